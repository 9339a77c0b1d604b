/* The life of a transport: from the loop's list of those that libuv may call, to its end.

   Ownership: the loop holds the transport while `hold` is not 0, the transport holds its loop until it is over, the
   stream has a borrowed back-pointer. An idle transport that nobody refers to is collected: its finaliser warns and
   closes the socket. All of it belongs to the thread of the loop. */

#include "io/transport.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/uverror.h"
#include "io/clients.h"
#include "io/streamsink.h"

/* ---- the loop's list ---- */

void
transport_hold(SocketTransport *self, uint8_t reason)
{
    if (self->hold == 0) {
        struct IoPart *io = self->loop->io;
        self->previous_active = NULL;
        self->next_active = io->active;
        if (io->active != NULL) {
            io->active->previous_active = self;
        }
        io->active = self;
        Py_INCREF(self);
    }
    self->hold |= reason;
}

void
transport_release(SocketTransport *self, uint8_t reason)
{
    if (self->hold == 0) {
        return;
    }
    self->hold &= (uint8_t)~reason;
    if (self->hold != 0) {
        return;
    }
    if (self->previous_active != NULL) {
        self->previous_active->next_active = self->next_active;
    } else {
        self->loop->io->active = self->next_active;
    }
    if (self->next_active != NULL) {
        self->next_active->previous_active = self->previous_active;
    }
    self->previous_active = self->next_active = NULL;
    Py_DECREF(self);
}

/* Takes the transport out of the list of those to flush. */
static void
unlink_flush(SocketTransport *self)
{
    if (!(self->hold & HOLD_FLUSH)) {
        return;
    }
    struct IoPart *io = self->loop->io;
    SocketTransport **place = &io->flush_head;
    SocketTransport *before = NULL;
    while (*place != NULL && *place != self) {
        before = *place;
        place = &before->next_flush;
    }
    if (*place == self) {
        *place = self->next_flush;
        if (io->flush_tail == self) {
            io->flush_tail = before;
        }
    }
    self->next_flush = NULL;
}

/* ---- small helpers ---- */

PyObject *
transport_enter_context(PyObject *context)
{
    if (context == NULL) {
        return NULL;
    }
    if (PyContext_Enter(context) < 0) {
        /* Entered already, further up in a nested run: the bytes must not be lost for that. */
        PyErr_Clear();
        return NULL;
    }
    return Py_NewRef(context);
}

void
transport_leave_context(PyObject *entered)
{
    if (entered == NULL) {
        return;
    }
    PyObject *exc = compat_take_exception();
    if (PyContext_Exit(entered) < 0) {
        PyErr_WriteUnraisable(entered);
    }
    if (exc != NULL) {
        compat_restore_exception(exc);
    }
    Py_DECREF(entered);
}

void
transport_log_debug(SocketTransport *self, const char *format)
{
    if (self->loop == NULL || LIKELY(!self->loop->debug)) {
        return;
    }
    PyObject *result = PyObject_CallMethod(self->state->asyncio_logger, "debug", "sO", format, self);
    if (result == NULL) {
        PyErr_WriteUnraisable((PyObject *)self);
    }
    Py_XDECREF(result);
}

PyObject *
transport_refuse(SocketTransport *self, const char *name, PyObject *argument)
{
    /* The standard method tests its argument before anything else, and its words are those of the running Python. */
    PyObject *method = PyObject_GetAttrString(self->state->stock_SocketTransport, name);
    PyObject *result = method == NULL ? NULL : PyObject_CallFunctionObjArgs(method, self, argument, NULL);
    Py_XDECREF(method);
    if (result != NULL) {
        Py_DECREF(result);
        PyErr_Format(PyExc_TypeError, "%s() does not take %R", name, argument);
    }
    return NULL;
}

int
transport_set_protocol(SocketTransport *self, PyObject *protocol)
{
    int buffered = PyObject_IsInstance(protocol, self->state->asyncio_BufferedProtocol);
    if (buffered < 0 || (self->secured && transport_encrypt(self, false) < 0)) {
        return -1;
    }
    self->buffered = buffered;
    self->secured = PyObject_TypeCheck(protocol, self->state->TLSConnectionType);
    self->sinks = self->loop != NULL && sink_attach(self->loop, protocol);
    self->bulk = self->was_bulk = 0;
    Py_XSETREF(self->protocol, Py_NewRef(protocol));
    return 0;
}

int
transport_set_extra(SocketTransport *self, PyObject *extra)
{
    if (extra == NULL || extra == Py_None) {
        return 0;
    }
    PyObject *dict = PyDict_Check(extra) ? Py_NewRef(extra) : PyDict_New();
    if (dict == NULL || (dict != extra && PyDict_Update(dict, extra) < 0)) {
        Py_XDECREF(dict);
        return -1;
    }
    Py_XSETREF(self->extra, dict);
    return 0;
}

bool
transport_defer_to_loop(SocketTransport *self, const char *name, bool checked)
{
    LoopObject *loop = self->loop;
    if (loop == NULL || LIKELY(io_may_touch(loop))) {
        return false;
    }
    if (checked && loop->debug) {
        PyObject *result = PyObject_CallMethodNoArgs((PyObject *)loop, loop->state->str__check_thread);
        if (result == NULL) {
            return true;
        }
        Py_DECREF(result);
    }
    PyObject *method = PyObject_GetAttrString((PyObject *)self, name);
    PyObject *handle =
        method == NULL ? NULL : PyObject_CallMethod((PyObject *)loop, "call_soon_threadsafe", "O", method);
    Py_XDECREF(method);
    Py_XDECREF(handle);
    return true;
}

/* ---- errors and the end ---- */

/* logger.debug("%r: %s", self, message, exc_info=exc), in debug mode. */
static void
log_lost_connection(SocketTransport *self, PyObject *exc, const char *message)
{
    if (self->loop == NULL || !self->loop->debug) {
        return;
    }
    PyObject *method = PyObject_GetAttrString(self->state->asyncio_logger, "debug");
    PyObject *args = method == NULL ? NULL : Py_BuildValue("(sOs)", "%r: %s", self, message);
    PyObject *kwargs = args == NULL ? NULL : Py_BuildValue("{sO}", "exc_info", exc);
    PyObject *result = kwargs == NULL ? NULL : PyObject_Call(method, args, kwargs);
    if (result == NULL) {
        PyErr_WriteUnraisable((PyObject *)self);
    }
    Py_XDECREF(method);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    Py_XDECREF(result);
}

int
transport_fatal_error(SocketTransport *self, PyObject *exc, const char *message)
{
    if (PyErr_GivenExceptionMatches(exc, PyExc_OSError)) {
        log_lost_connection(self, exc, message);
    } else if (self->loop != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        loop_report(self->loop, message, "transport", self, "protocol",
                    self->protocol == NULL ? Py_None : self->protocol, NULL);
    }
    return transport_force_close(self, exc);
}

int
transport_fail(SocketTransport *self, const char *message)
{
    if (loop_must_propagate()) {
        return -1;
    }
    PyObject *exc = compat_take_exception();
    if (exc == NULL) {
        return 0;
    }
    if (transport_fatal_error(self, exc, message) < 0) {
        PyErr_WriteUnraisable((PyObject *)self);
    }
    Py_DECREF(exc);
    return 0;
}

int
transport_schedule_lost(SocketTransport *self, PyObject *exc)
{
    if (self->loop == NULL) {
        return 0;
    }
    PyObject *method = PyObject_GetAttr((PyObject *)self, self->state->str__call_connection_lost);
    if (method == NULL) {
        return -1;
    }
    int err = loop_call_soon(self->loop, method, &exc, 1, self->fixed_context);
    Py_DECREF(method);
    return err;
}

/* Without memory to schedule it, closing can be tried again. */
static int
schedule_lost_once(SocketTransport *self, PyObject *exc)
{
    self->conn_lost = 1;
    int err = transport_schedule_lost(self, exc);
    if (err < 0 && PyErr_ExceptionMatches(PyExc_MemoryError)) {
        self->conn_lost = 0;
    }
    return err;
}

/* ready_run: what another thread asked of transport_force_close(). */
static int
run_force_close(LoopObject *Py_UNUSED(loop), PyObject *owner, PyObject *exc)
{
    SocketTransport *self = SocketTransport_CAST(owner);
    return transport_force_close(self, exc) < 0 ? transport_fail(self, "Fatal error on socket transport") : 0;
}

int
transport_force_close(SocketTransport *self, PyObject *exc)
{
    if (self->conn_lost) {
        return 0;
    }
    if (self->stream != NULL && self->loop != NULL && UNLIKELY(!io_may_touch(self->loop))) {
        return loop_push(self->loop, run_force_close, (PyObject *)self, exc);
    }
    transport_send_last(self);
    if (!self->closing) {
        self->closing = true;
        transport_stop_reading(self);
    }
    return schedule_lost_once(self, exc);
}

int
transport_close(SocketTransport *self)
{
    /* Whoever closes what is below TLS may do so in the turn of a write. */
    if (!self->closing && self->secured && transport_encrypt(self, false) < 0) {
        return -1;
    }
    if (self->closing) {
        return 0;
    }
    self->closing = true;
    transport_stop_reading(self);
    if (transport_flush(self) < 0) {
        return -1;
    }
    if (self->conn_lost || transport_has_output(self)) {
        return 0;
    }
    int err = schedule_lost_once(self, Py_None);
    if (err < 0 && self->conn_lost == 0) {
        self->closing = false;
    }
    return err;
}

/* Detaches or closes the Python socket, whichever lets libuv close its descriptor once and once only. False when it
   could not be detached, and will close the descriptor itself. */
static bool
release_sock(SocketTransport *self)
{
    PyObject *sock = self->sock;
    if (sock == NULL) {
        return true;
    }
    bool shared = self->sock_state == SOCK_SHARED;
    self->sock = NULL;
    PyObject *result = PyObject_CallMethod(sock, shared ? "detach" : "close", NULL);
    if (result == NULL) {
        PyErr_WriteUnraisable(sock);
    }
    bool released = result != NULL || !shared;
    Py_XDECREF(result);
    self->sock_state = SOCK_NONE;
    Py_DECREF(sock);
    return released;
}

/* Takes the transport out of everything that the loop knows. */
static void
forget_in_loop(SocketTransport *self)
{
    LoopObject *loop = self->loop;
    if (loop == NULL || loop->io == NULL) {
        return;
    }
    if (poller_get_transport(loop, self->fd) == self) {
        (void)poller_set_transport(loop, self->fd, NULL);
    }
    unlink_flush(self);
}

/* Does nobody but the call of `_call_connection_lost` and transport_close_socket() refer to it? Then nobody can ask for
   an address afterwards. */
static bool
is_forgotten(SocketTransport *self)
{
    return !HAVE_FREE_THREADING && self->losing && Py_REFCNT(self) == 2;
}

void
transport_close_socket(SocketTransport *self)
{
    Py_INCREF(self);
    transport_drop_output(self);
    if (!is_forgotten(self)) {
        transport_note_local(self);
    }
    forget_in_loop(self);
    /* The socket, as the last that refers to it goes, would close the number of somebody else. */
    PyObject *sock = Py_XNewRef(self->sock);
    bool released = release_sock(self);
    UvStream *stream = self->stream;
    self->stream = NULL;
    self->reading = self->writing = false;
    if (stream != NULL && !released && io_may_touch(stream->loop)) {
        stream_abandon(stream);
    } else if (stream != NULL) {
        stream_close_threadsafe(stream);
    }
    Py_XDECREF(sock);
    if (self->loop != NULL && self->loop->io != NULL) {
        transport_release(self, HOLD_READING | HOLD_WRITING | HOLD_FLUSH);
    }
    Py_DECREF(self);
}

/* ready_run: what is left to do for a transport that lost its descriptor. */
static int
run_descriptor_lost(LoopObject *loop, PyObject *owner, PyObject *Py_UNUSED(arg))
{
    SocketTransport *self = SocketTransport_CAST(owner);
    PyObject *exc = uverror_new(UV_EBADF);
    if (exc != NULL) {
        log_lost_connection(self, exc, "Fatal error on socket transport");
    }
    if (exc == NULL || transport_schedule_lost(self, exc) < 0) {
        loop_report(loop, "Fatal error on socket transport", "transport", self, NULL);
    }
    Py_XDECREF(exc);
    return 0;
}

void
transport_lose_descriptor(SocketTransport *self)
{
    /* While get_buffer() is called libuv is about to read, and stands no uv_close(). */
    if (self->stream == NULL || self->in_alloc) {
        return;
    }
    Py_INCREF(self);
    LoopObject *loop = self->loop;
    UvStream *stream = self->stream;
    self->stream = NULL;
    self->reading = self->writing = false;
    forget_in_loop(self);
    stream_abandon(stream);
    transport_drop_output(self);
    self->closing = true;
    if (self->conn_lost == 0) {
        self->conn_lost = 1;
        if (loop_push(loop, run_descriptor_lost, (PyObject *)self, NULL) < 0) {
            PyErr_Clear();
        }
    }
    transport_release(self, HOLD_READING | HOLD_WRITING | HOLD_FLUSH);
    Py_DECREF(self);
}

/* ready_run: the error of transport_watch_refused(). */
static int
run_watch_refused(LoopObject *Py_UNUSED(loop), PyObject *owner, PyObject *code)
{
    uverror_raise((int)PyLong_AsLong(code));
    return transport_fail(SocketTransport_CAST(owner), "Fatal error on socket transport");
}

void
transport_watch_refused(SocketTransport *self, int code)
{
    PyObject *number = PyLong_FromLong(code);
    if (number == NULL || loop_push(self->loop, run_watch_refused, (PyObject *)self, number) < 0) {
        PyErr_WriteUnraisable((PyObject *)self);
    }
    Py_XDECREF(number);
}

void
transport_check_number(LoopObject *loop, int fd)
{
    SocketTransport *owner = poller_get_transport(loop, fd);
    if (UNLIKELY(owner != NULL) && owner->stream != NULL && io_may_touch(loop) &&
        !stream_owns_descriptor(owner->stream)) {
        transport_lose_descriptor(owner);
    }
}

/* A socket object of the user's that showed libuv's descriptor: a duplicate of that, so it stays connected. */
static int
give_back_sock(SocketTransport *self)
{
    int copy = fcntl(self->fd, F_DUPFD_CLOEXEC, 3);
    int err = -errno;
    PyObject *detached = PyObject_CallMethod(self->sock, "detach", NULL);
    if (detached == NULL) {
        /* It still shows libuv's. */
        if (copy >= 0) {
            close(copy);
        }
        return -1;
    }
    Py_DECREF(detached);
    self->sock_state = SOCK_OWN;
    if (copy < 0) {
        uverror_raise(err);
        return -1;
    }
    PyObject *made = PyObject_CallMethod(self->sock, "__init__", "iiii", self->family, self->type, self->proto, copy);
    if (made == NULL) {
        close(copy);
    }
    PyObject *result = made == NULL ? NULL : PyObject_CallMethod(self->sock, "settimeout", "i", 0);
    Py_XDECREF(made);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

void
transport_loop_closed(SocketTransport *self)
{
    if (!stream_owns_descriptor(self->stream)) {
        transport_lose_descriptor(self);
        return;
    }
    Py_INCREF(self);
    transport_note_local(self);
    if (self->sock_state == SOCK_SHARED && give_back_sock(self) < 0) {
        PyErr_WriteUnraisable((PyObject *)self);
    }
    /* One that still shows libuv's descriptor is detached, or keeps that, as wherever a transport ends. */
    PyObject *sock = self->sock_state == SOCK_SHARED ? NULL : self->sock;
    if (sock != NULL) {
        self->sock = NULL;
    }
    transport_close_socket(self);
    self->sock = sock;
    Py_DECREF(self);
}

int
transport_detach_server(SocketTransport *self)
{
    PyObject *server = self->server;
    if (server == NULL) {
        return 0;
    }
    self->server = NULL;
    int err = clients_detach(self, server);
    Py_DECREF(server);
    return err;
}

/* waiter.set_exception(ConnectionError(...)) for a sendfile() under way. */
static int
fail_empty_waiter(SocketTransport *self)
{
    if (self->empty_waiter == NULL) {
        return 0;
    }
    PyObject *exc = PyObject_CallFunction(PyExc_ConnectionError, "s", "Connection is closed by peer");
    if (exc == NULL) {
        return -1;
    }
    int err = transport_finish_waiter(self, exc);
    Py_DECREF(exc);
    return err;
}

void
transport_report_if(SocketTransport *self, int err)
{
    if (err < 0) {
        PyErr_WriteUnraisable((PyObject *)self);
    }
}

PyObject *
transport_call_lost(SocketTransport *self, PyObject *exc)
{
    if (self->over || self->losing) {
        Py_RETURN_NONE;
    }
    if (self->in_alloc) {
        PyErr_SetString(PyExc_RuntimeError, "the protocol's get_buffer() is being called");
        return NULL;
    }
    self->losing = self->closing = true;
    self->conn_lost += self->conn_lost == 0;
    PyObject *protocol = Py_NewRef(self->protocol);
    PyObject *result = PyObject_CallMethodOneArg(protocol, self->state->str_connection_lost, exc);
    Py_DECREF(protocol);
    PyObject *raised = result == NULL ? compat_take_exception() : NULL;
    self->over = true;
    transport_close_socket(self);
    Py_CLEAR(self->protocol);
    transport_report_if(self, transport_detach_server(self));
    transport_report_if(self, fail_empty_waiter(self));
    Py_CLEAR(self->loop);
    Py_CLEAR(self->context);
    Py_CLEAR(self->write_context);
    Py_CLEAR(self->fixed_context);
    if (raised != NULL) {
        compat_restore_exception(raised);
    }
    return result;
}
