/* TLSConnection: the part of asyncio's SSLProtocol that moves bytes, and the fields of SSLProtocol that it reads.

   fastloop/tls.py derives a class from this and from the running Python's SSLProtocol, which does the handshake, errors,
   time-outs and the shutdown. Both work on one set of fields (those that stand here are descriptors that come before the
   instance's dict), on the same SSL and the same BIOs, so either may go on where the other stopped. What is unusual is
   left to Python's methods.

   Native is a connection in the state WRAPPED, over a SocketTransport of ours, whose SSL was found (openssl.h). */

#ifndef FASTLOOP_IO_TLS_H
#define FASTLOOP_IO_TLS_H

#include "io/openssl.h"
#include "io/transport.h"

/* The water marks of SSLProtocol. */
typedef enum { TLS_OUTGOING_HIGH, TLS_OUTGOING_LOW, TLS_INCOMING_HIGH, TLS_INCOMING_LOW, TLS_MARKS } TlsMark;

typedef struct TlsConnection {
    PyObject_HEAD
    State *state; /* borrowed: the type keeps its module */

    /* SSLProtocol's, by the same names with an underscore in front; NULL: not set. */
    PyObject *ssl_state;
    PyObject *transport;
    PyObject *sslobj;
    PyObject *app_protocol;
    PyObject *sink_protocol; /* the one that `sinks` is about; only to be compared */
    PyObject *app_protocol_get_buffer;
    PyObject *app_protocol_buffer_updated;
    PyObject *write_backlog;
    PyObject *marks[TLS_MARKS]; /* as the user gave them, see TlsMark */
    Py_ssize_t write_buffer_size;
    char app_protocol_is_buffer;
    char app_reading_paused;
    char app_writing_paused;
    char ssl_reading_paused;
    char ssl_writing_paused;
    bool sinks;      /* the reader of a standard stream may be fed directly, see io/streamsink.h */
    bool is_exposed; /* the program has the SSLObject, and may write with it in between */
    bool has_begun;  /* the handshake of a server; see io/handshakes.h */
    bool is_put_off; /* ... has to wait */
    bool is_under_way;
    struct TlsConnection *next_put_off;

    double levels[TLS_MARKS]; /* `marks` in bytes */
    PyObject *socket;         /* the _ssl._SSLSocket that owns the three below; all NULL when not bound */
    SSL *ssl;
    BIO *incoming;
    BIO *outgoing;
    Chunks plain; /* written in this turn and not encrypted yet; only while native, and then the backlog is empty */
} TlsConnection;

#define TlsConnection_CAST(op) ((TlsConnection *)(op))

extern PyType_Spec TLSConnection_spec;

/* The TLSConnection that takes what a transport with this protocol reads; NULL when it does not, or there is none. */
static inline TlsConnection *
tls_of(State *state, PyObject *protocol)
{
    bool is_ours = protocol != NULL && PyObject_TypeCheck(protocol, state->TLSConnectionType);
    return is_ours && TlsConnection_CAST(protocol)->ssl != NULL ? TlsConnection_CAST(protocol) : NULL;
}

/* What the transport has read, from `data`. Reports as SSLProtocol does; -1 with what it does not catch. */
int tls_feed(TlsConnection *self, const char *data, size_t size);

/* Encrypts what was written in this turn into the queue of the transport; `at_once`: which the caller flushes, so it may be
   sent right away. Reports as SSLProtocol does; -1 with what it does not catch. */
int tls_encrypt(TlsConnection *self, bool at_once);
/* The same, and has the transport send. */
int tls_send(TlsConnection *self);

PyObject *TLSConnection_write(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *TLSConnection_write_appdata(PyObject *op, PyObject *iterable);
PyObject *TLSConnection_do_read(PyObject *op, PyObject *ignored);

/* The method of asyncio's own SSLProtocol, with at most one argument (NULL: none). -1 with an exception. */
int tls_call_stock(TlsConnection *self, const char *name, PyObject *argument);

/* Before the connection is dropped: puts what the standard transport would have sent by now into the queue of ours, and
   drops the rest. Calls no Python code. */
void tls_seal_rest(TlsConnection *self);

/* Drops what was written and not encrypted. */
void tls_drop_plain(TlsConnection *self);

static inline bool
tls_is_native(TlsConnection *self)
{
    State *state = self->state;
    return self->ssl != NULL && self->ssl_state == state->openssl->wrapped && self->transport != NULL &&
           Py_IS_TYPE(self->transport, state->SocketTransportType);
}

#endif
