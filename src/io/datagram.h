/* DatagramTransport: what runs once per datagram of the standard library's datagram transport.

   fastloop.unix joins this type with asyncio's own _SelectorDatagramTransport, which does everything else: opening,
   closing, waiting to send, flow control, errors, repr. Both work on the same state, in the fields of this struct. */

#ifndef FASTLOOP_IO_DATAGRAM_H
#define FASTLOOP_IO_DATAGRAM_H

#include "io/io.h"
#include "io/transport.h"

typedef struct {
    PyObject_HEAD
    PyObject *base_slots[TRANSPORT_BASE_SLOTS];
    State *state; /* borrowed: the type keeps its module */

    /* The attributes of the same names with an underscore; NULL where there is none. */
    PyObject *loop;
    PyObject *sock;
    PyObject *protocol;
    PyObject *buffer;
    PyObject *address;
    PyObject *extra;
    PyObject *conn_lost;
    PyObject *closing;
    Py_ssize_t max_size;

    PyObject *last_sender; /* the address that came with the last datagram, and what it stands for */
    struct sockaddr_storage last_address;
    socklen_t last_size;
    uint8_t quiet; /* how often in succession there was no second datagram: 0 to QUIET_MAX */
} DatagramObject;

#define DatagramObject_CAST(op) ((DatagramObject *)(op))

extern PyType_Spec Datagram_spec;

#endif
