/* SocketTransport: the transport of a connected stream socket, a subclass of asyncio.transports._FlowControlMixin.

   opening.c makes one, transport.c is its life, reading.c and writing.c move bytes, limits.c is flow control, extra.c is
   get_extra_info() and the socket object, transport_type.c is what Python sees of it. It behaves as asyncio's _SelectorSocketTransport of the running Python, but
   bytes written in a turn leave together at its end, and reading is libuv's.

   Life: made open; `closing` from close() or an error on; `conn_lost` once connection_lost() is scheduled or may not
   be any more; `over` when the socket is closed and connection_lost() was called. */

#ifndef FASTLOOP_IO_TRANSPORT_H
#define FASTLOOP_IO_TRANSPORT_H

#include "base/address.h"
#include "io/io.h"

/* Room for the slots of asyncio.transports._FlowControlMixin (five words on 3.11 to 3.15); module.c checks it. */
enum { TRANSPORT_BASE_SLOTS = 6 };

/* Why the loop holds the transport: it is linked into io->active while there is a reason. */
enum { HOLD_READING = 1, HOLD_WRITING = 2, HOLD_FLUSH = 4 };

/* Who owns the descriptor that the Python socket object shows. */
typedef enum {
    SOCK_NONE, /* there is no Python object yet */
    /* It shows libuv's descriptor, and is detached before that is closed. It is exactly a socket.socket, which refers to
       nothing, so it is no part of a cycle; the collector is not told of it, lest it finalise the socket before the
       transport: the finaliser would close the descriptor under libuv. */
    SOCK_SHARED,
    SOCK_OWN, /* it has one of its own */
} SockState;

struct SocketTransport {
    PyObject_HEAD
    PyObject *base_slots[TRANSPORT_BASE_SLOTS];
    State *state;            /* borrowed: the type keeps its module */
    GateObject *gate;        /* the loop's, to the end; NULL where there is a GIL */
    LoopObject *loop;        /* NULL when over */
    UvStream *stream;        /* NULL once closed */
    PyObject *protocol;      /* NULL when over */
    PyObject *server;        /* NULL without one, and when over */
    PyObject *context;       /* in which the protocol is called from the poll */
    PyObject *write_context; /* of the write() that the kernel did not take, for resume_writing(); or NULL */
    PyObject *fixed_context; /* the one that the caller asked for (3.15), or NULL: copies of the current one */
    PyObject *extra;         /* dict, filled on demand, or NULL */
    PyObject *sock;          /* the Python socket, see sock_state */
    PyObject *empty_waiter;  /* the future of _make_empty_waiter(), or NULL */
    PyObject *limits;        /* (low, high) as the user gave them, or NULL: the defaults */
    PyObject *dict;
    PyObject *weakrefs;

    Chunks queue;      /* what was written; while `writing` it waits behind that */
    double high_water; /* bytes */
    double low_water;

    SocketTransport *previous_active; /* in io->active, while `hold` is not 0 */
    SocketTransport *next_active;
    SocketTransport *next_flush; /* in io->flush_head, while HOLD_FLUSH */

    Address *peer; /* NULL: unknown, or in `extra` */
    Address *local;
    int fd;
    short family;
    short type;
    short proto;
    uint64_t read_turn; /* loop_turn() at the last read that brought data */
    unsigned conn_lost; /* counts, as the standard's `_conn_lost`, the writes after the end too */
    uint8_t hold;
    uint8_t sock_state; /* SockState */

    bool opened; /* completely made: the finaliser has something to say */
    bool losing; /* connection_lost() was or is being called */
    bool over;
    /* Other threads may ask for these. */
    _Atomic bool closing;
    _Atomic bool paused; /* pause_reading() was called */
    bool unclosed;       /* only the finaliser has closed it */
    bool eof;            /* write_eof() was called */
    bool shutdown_due;   /* ... and takes effect when the output is gone */
    bool starting;       /* reading starts after connection_made(), see run_start_reading() */
    bool reading;        /* libuv reads, or will once the allocation callback has returned */
    bool read_due;       /* ... and has found something that a record will read */
    bool in_alloc;       /* between libuv's allocation and read callbacks, where reading cannot be stopped */
    bool writing;        /* a write is in flight */
    bool buffered;       /* the protocol is a BufferedProtocol */
    bool secured;        /* the protocol is a TLSConnection, see io/tls.h */
    bool sinks;          /* it is a standard stream's, and its reader may be fed directly */
    uint8_t bulk;        /* steps of room that the next read gets for itself, 0 for the loop's buffer */
    uint8_t was_bulk;    /* what the last read of a Protocol would have needed */
    bool protocol_paused;
    IoTraits traits;
};

#define SocketTransport_CAST(op) ((SocketTransport *)(op))

extern PyType_Spec SocketTransport_spec;

/* What a transport is made of; everything is borrowed, and may be NULL but `protocol`. */
typedef struct {
    int fd; /* without `sock`: libuv's from now on */
    int family;
    int type;
    int proto;
    PyObject *sock; /* a Python socket, or anything with fileno(); then the four above are ignored */
    const struct sockaddr *peer;
    socklen_t peer_size;
    PyObject *protocol;
    PyObject *waiter;
    PyObject *extra;
    PyObject *server;
    PyObject *context;
} TransportSpec;

/* ---- opening.c ---- */

/* New transport, with connection_made() scheduled. NULL with an exception; without a `sock` the descriptor is closed
   then. */
SocketTransport *transport_new(LoopObject *loop, const TransportSpec *spec);

/* The method of the loop. */
PyObject *Loop_make_socket_transport(PyObject *op, PyObject *args, PyObject *kwargs);

/* ---- transport.c ---- */

static inline bool
transport_is_closing(SocketTransport *self)
{
    return self->closing;
}

/* Has the loop hold the transport for a reason, or no longer. The last release may free it. */
void transport_hold(SocketTransport *self, uint8_t reason);
void transport_release(SocketTransport *self, uint8_t reason);

/* The protocol, which decides how is read; -1 with an exception. */
int transport_set_protocol(SocketTransport *self, PyObject *protocol);
/* The extra information that the caller has: a dict, or any mapping. -1 with an exception. */
int transport_set_extra(SocketTransport *self, PyObject *extra);

/* The standard's `_fatal_error(exc, message)`; -1 with an exception when the end could not be scheduled. */
int transport_fatal_error(SocketTransport *self, PyObject *exc, const char *message);
/* Deals with the exception that is set as the standard's `_fatal_error(exc, message)` does, and ends the connection.
   Returns -1, with the exception still set, for SystemExit and KeyboardInterrupt, else 0. */
int transport_fail(SocketTransport *self, const char *message);

/* The standard's `_force_close(exc)`; `exc` is None or an exception. -1 with an exception when the loop is closed. */
int transport_force_close(SocketTransport *self, PyObject *exc);

/* What close() does; -1 with an exception. */
int transport_close(SocketTransport *self);

/* Schedules `_call_connection_lost(exc)`, for which `conn_lost` must just have become 1. -1 with an exception. */
int transport_schedule_lost(SocketTransport *self, PyObject *exc);

/* The standard's `_call_connection_lost(exc)`: None, or NULL with what connection_lost() raised. */
PyObject *transport_call_lost(SocketTransport *self, PyObject *exc);

/* Tells the server, once, that the connection is gone. -1 with an exception. */
int transport_detach_server(SocketTransport *self);
/* Reports the exception that is set, if `err` is negative, where there may be another one to raise. */
void transport_report_if(SocketTransport *self, int err);

/* Closes the descriptor for good. The Python socket loses it too. */
void transport_close_socket(SocketTransport *self);

/* The descriptor was closed behind our back, and its number may be another file's: libuv gives it up at once, and
   connection_lost(OSError) is on its way. Runs no Python code. */
void transport_lose_descriptor(SocketTransport *self);

/* Ends it with an error soon: the system refuses to watch its descriptor. Runs no Python code. */
void transport_watch_refused(SocketTransport *self, int code);
/* Has a transport that lost its descriptor give up the number, which the system has just given out anew. */
void transport_check_number(LoopObject *loop, int fd);

/* The loop is being closed: the transport loses its stream, a Python socket of the user's keeps its connection. */
void transport_loop_closed(SocketTransport *self);

/* True, with an exception or a call scheduled, when this is another thread than the loop's: the method `name` is left
   to the loop's thread. The standard loop has no such rule; here libuv must not be touched. `checked`: the standard
   method calls call_soon(), which raises RuntimeError for the wrong thread in debug mode. */
bool transport_defer_to_loop(SocketTransport *self, const char *name, bool checked);

/* Raises what the standard transport's method `name` raises for this argument; always NULL. */
PyObject *transport_refuse(SocketTransport *self, const char *name, PyObject *argument);

/* logger.debug(format, transport), in debug mode; never fails. */
void transport_log_debug(SocketTransport *self, const char *format);

/* Enters a context (borrowed or NULL) for calls out of the poll; what comes back is for transport_leave_context(). */
PyObject *transport_enter_context(PyObject *context);
void transport_leave_context(PyObject *entered);

/* ---- reading.c ---- */

/* The standard's is_reading(). */
static inline bool
transport_wants_reading(SocketTransport *self)
{
    return !self->closing && !self->paused;
}

/* The loop's buffer of IO_PLAIN_SIZE bytes, whose content nobody may expect to last; NULL without memory or loop. */
char *transport_plain_buffer(SocketTransport *self);
/* The loop's, or NULL. */
BytesPool *transport_bytes_pool(SocketTransport *self);

/* Has libuv read; -1 with an exception. */
int transport_start_reading(SocketTransport *self);
void transport_stop_reading(SocketTransport *self);

/* ---- writing.c ---- */

/* Bytes that the kernel would not take yet. */
size_t transport_buffer_size(SocketTransport *self);

static inline bool
transport_has_output(SocketTransport *self)
{
    return self->writing || self->queue.count > 0;
}

/* Tries to send what was written. Reports errors as transport_fail() does: 0, or -1 with SystemExit or
   KeyboardInterrupt. */
int transport_flush(SocketTransport *self);

/* What is due when the last byte has gone: the empty waiter, the end of a closing transport, the shutdown for
   write_eof(). Nothing when there is output yet. -1 with an exception. */
int transport_drained(SocketTransport *self);

/* Completes the empty waiter, with an exception unless that is NULL; nothing when there is none or it is done. -1 with
   an exception. */
int transport_finish_waiter(SocketTransport *self, PyObject *exc);

static inline bool
transport_takes_output(SocketTransport *self)
{
    return self->conn_lost == 0 && self->stream != NULL && io_may_touch(self->loop);
}

/* Offers the kernel what was written in this turn, as the standard transport's write() has done, and drops the rest. Runs
   no Python code. */
void transport_send_last(SocketTransport *self);

/* Drops what was not sent, of a TLS connection also what was not encrypted: nothing must follow a gap. */
void transport_drop_output(SocketTransport *self);

/* From libuv: the write in flight is done. */
void transport_written(SocketTransport *self, int status);

/* For TLS, which has ciphertext to send: puts bytes into the queue (a new reference), or counts them as lost. -1 with an
   exception. Then sends them, soon. 0, or -1 with an exception for the caller of write(). */
int transport_push(SocketTransport *self, PyObject *bytes);
int transport_send(SocketTransport *self);
/* Sends bytes that stand elsewhere, unless there are others in front of them: how many the kernel took, or a libuv code
   (not UV_EAGAIN). */
ssize_t transport_try_send(SocketTransport *self, const char *data, size_t size);
/* Ends a connection of which the kernel takes no more. 0, or -1 with SystemExit or KeyboardInterrupt. */
int transport_sending_failed(SocketTransport *self, int code);
/* The plaintext of a TLS connection becomes output; `at_once`: which the caller flushes, so it may be sent right away. 0, or
   -1 with SystemExit or KeyboardInterrupt. */
int transport_encrypt(SocketTransport *self, bool at_once);
/* True when the transport will be flushed: at the end of this turn if the caller may wait for that, and by the loop's
   own thread when this is another one. */
bool transport_flushes_later(SocketTransport *self, bool may_wait);
/* Exact bytes for any bytes-like object: itself, or a copy, since the user may change his. NULL with BufferError. */
PyObject *transport_exact_bytes(PyObject *data);

/* The end of a turn: flushes every transport that was written to. */
void transport_flush_all(LoopObject *loop);

PyObject *SocketTransport_write(PyObject *op, PyObject *data);
PyObject *SocketTransport_writelines(PyObject *op, PyObject *iterable);
PyObject *SocketTransport_write_eof(PyObject *op, PyObject *ignored);
PyObject *SocketTransport_make_empty_waiter(PyObject *op, PyObject *ignored);
PyObject *SocketTransport_reset_empty_waiter(PyObject *op, PyObject *ignored);

/* ---- limits.c ---- */

/* Tells the protocol to pause above the high-water mark, or to resume below the low one. 0, or -1 with SystemExit or
   KeyboardInterrupt; everything else is reported. */
int transport_maybe_pause(SocketTransport *self);
int transport_maybe_resume(SocketTransport *self);

void limits_init(SocketTransport *self);
/* One of the two marks as the user gave it (new), and its setter; -1 with an exception. */
PyObject *limits_get(SocketTransport *self, bool high);
int limits_set(SocketTransport *self, bool high, PyObject *value);
PyObject *SocketTransport_maybe_pause_protocol(PyObject *op, PyObject *ignored);
PyObject *SocketTransport_maybe_resume_protocol(PyObject *op, PyObject *ignored);
PyObject *SocketTransport_get_limits(PyObject *op, PyObject *ignored);
PyObject *SocketTransport_set_limits(PyObject *op, PyObject *args, PyObject *kwargs);
PyObject *SocketTransport_set_limits_quietly(PyObject *op, PyObject *args, PyObject *kwargs);

/* ---- extra.c ---- */

/* The Python socket (borrowed), made if need be. None when there is none any more; NULL with an exception. */
PyObject *transport_sock(SocketTransport *self);

/* Takes a Python socket that shows libuv's descriptor into use. -1 with an exception. */
int transport_share_sock(SocketTransport *self, PyObject *sock);

/* The standard's `_extra` dict (borrowed), complete. NULL with an exception. */
PyObject *transport_extra(SocketTransport *self);

/* Notes the local address while the socket is still open. */
void transport_note_local(SocketTransport *self);

PyObject *SocketTransport_get_extra_info(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);

#endif
