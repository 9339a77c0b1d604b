/* When a TLS server begins the handshakes of its connections.

   A server begins when the peer has said something, and in each turn only so many begin, first come, first served. Each
   has 30 KiB from the peer's first word until its second; a server that answers a thousand peers before it looks for the
   second words has that memory for good, and the other connections wait for all.

   After a crowd, what its handshakes had lies in pieces between what its connections keep, where malloc leaves it. Then
   the allocator is told to give it back. */

#ifndef FASTLOOP_IO_HANDSHAKES_H
#define FASTLOOP_IO_HANDSHAKES_H

#include "sched/loop.h"

typedef struct TlsConnection TlsConnection;

typedef struct {
    uint64_t turn;        /* the last one in which some began, */
    unsigned begun;       /* and how many */
    unsigned under_way;   /* begun, and not at an end yet, */
    unsigned crowd;       /* and how many were at the same time, since memory was last given back */
    bool is_queued;       /* a record of the ready queue will begin some */
    TlsConnection *first; /* that wait to begin, linked by next_put_off: strong references */
    TlsConnection *last;
} Handshakes;

/* The method of TLSConnection. */
PyObject *TLSConnection_do_handshake(PyObject *op, PyObject *ignored);

/* The connection is about to leave the state of the handshake, or to be freed. */
void handshakes_note_end(TlsConnection *self);

int handshakes_traverse(Handshakes *handshakes, visitproc visit, void *arg);
void handshakes_clear(Handshakes *handshakes);

#endif
