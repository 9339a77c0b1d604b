/* When a TLS server begins the handshakes of its connections.

   A server begins when the peer has said something: asked before, OpenSSL would answer that it has nothing to do. With
   some under way, only one more begins in each turn, first come, first served. Each has 30 KiB from the peer's first
   word until its second; a server that answers a thousand peers before it looks for the second words has that memory
   for good, and who came first waits for all. */

#ifndef FASTLOOP_IO_HANDSHAKES_H
#define FASTLOOP_IO_HANDSHAKES_H

#include "sched/loop.h"

typedef struct TlsConnection TlsConnection;

typedef struct {
    size_t under_way;
    TlsConnection *first; /* that wait to begin, linked by next_put_off: strong references */
    TlsConnection *last;
} Handshakes;

/* The method of TLSConnection. */
PyObject *TLSConnection_do_handshake(PyObject *op, PyObject *ignored);
/* One that was under way is over, one way or the other. */
void handshakes_end(TlsConnection *self);

int handshakes_traverse(Handshakes *handshakes, visitproc visit, void *arg);
void handshakes_clear(Handshakes *handshakes);

#endif
