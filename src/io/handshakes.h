/* When a TLS server begins the handshakes of its connections.

   A server begins when the peer has said something: asked before, OpenSSL would answer that it has nothing to do. With
   many under way, others wait until one is over, first come, first served. Each has 30 KiB from the peer's first word
   until its second; a server that answers a thousand peers before it looks for the second words has that memory for
   good, and who came first waits for all. Peers that are slow, or never say a second word, must not hold up the others:
   a timer lets one begin in each millisecond, which is about what a server can do at all. */

#ifndef FASTLOOP_IO_HANDSHAKES_H
#define FASTLOOP_IO_HANDSHAKES_H

#include "sched/loop.h"

typedef struct TlsConnection TlsConnection;

typedef struct {
    size_t under_way;
    bool is_queued;       /* a record of the ready queue will begin some */
    bool is_armed;        /* ... and so will a timer */
    TlsConnection *first; /* that wait to begin, linked by next_put_off: strong references */
    TlsConnection *last;
} Handshakes;

/* Methods of TLSConnection. */
PyObject *TLSConnection_do_handshake(PyObject *op, PyObject *ignored);
PyObject *TLSConnection_begin_put_off(PyObject *op, PyObject *loop);
/* One that was under way is over, one way or the other. */
void handshakes_end(TlsConnection *self);
/* The same without an effect on others, for a connection that goes. Keeps an exception that is set. */
void handshakes_forget(TlsConnection *self);

int handshakes_traverse(Handshakes *handshakes, visitproc visit, void *arg);
void handshakes_clear(Handshakes *handshakes);

#endif
