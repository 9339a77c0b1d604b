/* SocketTransport: the type, its life, and the methods that move no bytes.

   Ownership: the loop holds the transport while `hold` is not 0, the transport holds its loop until it is over, the
   stream has a borrowed back-pointer. An idle transport that nobody refers to is collected: its finaliser warns and
   closes the socket. All of it belongs to the thread of the loop. */

#include "io/transport.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <unistd.h>

#include "base/uverror.h"

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
    PyObject *handle = method == NULL
                           ? NULL
                           : PyObject_CallMethod((PyObject *)loop, "call_soon_threadsafe", "O", method);
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

/* The standard's `_fatal_error(exc, message)`; -1 with an exception when the end could not be scheduled. */
static int
fatal_error(SocketTransport *self, PyObject *exc, const char *message)
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
    if (fatal_error(self, exc, message) < 0) {
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

int
transport_force_close(SocketTransport *self, PyObject *exc)
{
    if (self->conn_lost) {
        return 0;
    }
    transport_drop_output(self);
    if (!self->closing) {
        self->closing = true;
        transport_stop_reading(self);
    }
    self->conn_lost = 1;
    return transport_schedule_lost(self, exc);
}

int
transport_close(SocketTransport *self)
{
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
    self->conn_lost = 1;
    return transport_schedule_lost(self, Py_None);
}

/* Detaches or closes the Python socket, whichever lets libuv close its descriptor once and once only. */
static void
release_sock(SocketTransport *self)
{
    PyObject *sock = self->sock;
    if (sock == NULL) {
        return;
    }
    self->sock = NULL;
    PyObject *result = PyObject_CallMethod(sock, self->sock_state == SOCK_SHARED ? "detach" : "close", NULL);
    if (result == NULL) {
        PyErr_WriteUnraisable(sock);
    }
    Py_XDECREF(result);
    self->sock_state = SOCK_NONE;
    Py_DECREF(sock);
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

void
transport_close_socket(SocketTransport *self)
{
    Py_INCREF(self);
    transport_drop_output(self);
    transport_note_local(self);
    forget_in_loop(self);
    release_sock(self);
    UvStream *stream = self->stream;
    self->stream = NULL;
    self->reading = self->writing = false;
    if (stream != NULL) {
        stream_close_threadsafe(stream);
    }
    if (self->loop != NULL && self->loop->io != NULL) {
        transport_release(self, HOLD_READING | HOLD_WRITING | HOLD_FLUSH);
    }
    Py_DECREF(self);
}

/* A socket object of the user's that showed libuv's descriptor: a duplicate of that, so it stays connected. */
static int
give_back_sock(SocketTransport *self)
{
    int copy = fcntl(self->fd, F_DUPFD_CLOEXEC, 3);
    if (copy < 0) {
        uverror_raise(-errno);
        return -1;
    }
    PyObject *detached = PyObject_CallMethod(self->sock, "detach", NULL);
    PyObject *made = detached == NULL ? NULL
                                      : PyObject_CallMethod(self->sock, "__init__", "iiii", self->family, self->type,
                                                            self->proto, copy);
    if (made == NULL) {
        close(copy);
    }
    PyObject *result = made == NULL ? NULL : PyObject_CallMethod(self->sock, "settimeout", "i", 0);
    Py_XDECREF(detached);
    Py_XDECREF(made);
    Py_XDECREF(result);
    self->sock_state = SOCK_OWN;
    return result == NULL ? -1 : 0;
}

void
transport_loop_closed(SocketTransport *self)
{
    Py_INCREF(self);
    transport_note_local(self);
    if (self->sock_state == SOCK_SHARED && give_back_sock(self) < 0) {
        PyErr_WriteUnraisable((PyObject *)self);
    }
    PyObject *sock = self->sock;
    self->sock = NULL;
    transport_close_socket(self);
    self->sock = sock;
    Py_DECREF(self);
}

/* Tells the server, once, that the connection is gone. -1 with an exception. */
static int
detach_server(SocketTransport *self)
{
    PyObject *server = self->server;
    if (server == NULL) {
        return 0;
    }
    self->server = NULL;
    bool takes_transport = self->traits.server_takes_transport;
    PyObject *result = takes_transport
                           ? PyObject_CallMethodOneArg(server, self->state->str__detach, (PyObject *)self)
                           : PyObject_CallMethodNoArgs(server, self->state->str__detach);
    Py_DECREF(server);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
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

/* Reports the exception that is set, when there may be another one to raise. */
static void
report_if(SocketTransport *self, int err)
{
    if (err < 0) {
        PyErr_WriteUnraisable((PyObject *)self);
    }
}

static PyObject *
SocketTransport_call_connection_lost(PyObject *op, PyObject *exc)
{
    SocketTransport *self = SocketTransport_CAST(op);
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
    report_if(self, detach_server(self));
    report_if(self, fail_empty_waiter(self));
    Py_CLEAR(self->loop);
    Py_CLEAR(self->context);
    Py_CLEAR(self->write_context);
    Py_CLEAR(self->fixed_context);
    if (raised != NULL) {
        compat_restore_exception(raised);
    }
    return result;
}

/* ---- making ---- */

/* TCP_NODELAY exactly where asyncio.base_events._set_nodelay() sets it. */
static int
set_nodelay(SocketTransport *self)
{
    if ((self->family != AF_INET && self->family != AF_INET6) || self->type != SOCK_STREAM ||
        self->proto != IPPROTO_TCP) {
        return 0;
    }
    int on = 1;
    if (setsockopt(self->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0) {
        uverror_raise(-errno);
        return -1;
    }
    return 0;
}

static int
set_protocol(SocketTransport *self, PyObject *protocol)
{
    int buffered = PyObject_IsInstance(protocol, self->state->asyncio_BufferedProtocol);
    if (buffered < 0) {
        return -1;
    }
    self->buffered = buffered;
    Py_XSETREF(self->protocol, Py_NewRef(protocol));
    return 0;
}

/* Takes a dict of extra information, or makes one of any mapping. */
static int
set_extra(SocketTransport *self, PyObject *extra)
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

/* An int attribute of a socket; `fallback` where there is none. -1 with an exception. */
static int
int_attribute(PyObject *sock, const char *name, int fallback)
{
    PyObject *value = PyObject_GetAttrString(sock, name);
    if (value == NULL) {
        PyErr_Clear();
        return fallback;
    }
    long number = PyLong_AsLong(value);
    Py_DECREF(value);
    if (number == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        return fallback;
    }
    return (int)number;
}

/* What the kernel knows about a socket that came as a Python object. */
static int
inspect_socket(SocketTransport *self, PyObject *sock)
{
    struct sockaddr_storage address;
    socklen_t size = sizeof(address);
    if (getsockname(self->fd, (struct sockaddr *)&address, &size) < 0) {
        uverror_raise(-errno);
        return -1;
    }
    self->family = address.ss_family;
    self->local = address_new((struct sockaddr *)&address, size);
    size = sizeof(address);
    if (getpeername(self->fd, (struct sockaddr *)&address, &size) == 0) {
        self->peer = address_new((struct sockaddr *)&address, size);
    }
    int type = 0;
    size = sizeof(type);
    if (getsockopt(self->fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0) {
        uverror_raise(-errno);
        return -1;
    }
    self->type = type;
    /* Not the kernel's number: the standard loop sets TCP_NODELAY by what the socket was made with. */
    self->proto = int_attribute(sock, "proto", 0);
    return 0;
}

/* Addresses of a family that only the socket module can show are asked for while they can be had. */
static int
note_foreign_addresses(SocketTransport *self, PyObject *sock)
{
    if (self->family == AF_INET || self->family == AF_INET6 || self->family == AF_UNIX) {
        return 0;
    }
    if (self->extra == NULL) {
        self->extra = PyDict_New();
    }
    const char *methods[] = {"getsockname", "getpeername"};
    PyObject *names[] = {self->state->str_sockname, self->state->str_peername};
    for (int i = 0; self->extra != NULL && i < 2; i++) {
        PyObject *value = PyObject_CallMethod(sock, methods[i], NULL);
        if (value == NULL) {
            PyErr_Clear();
        } else if (PyDict_SetDefault(self->extra, names[i], value) == NULL) {
            Py_DECREF(value);
            return -1;
        }
        Py_XDECREF(value);
    }
    return self->extra == NULL ? -1 : 0;
}

/* Finds the descriptor for libuv in a Python socket: its own if it is exactly a socket.socket, which close() then leaves
   open; else a duplicate, as also where a transport that is still being closed has it. */
static int
take_python_socket(SocketTransport *self, PyObject *sock)
{
    int fd = poller_fd_of(sock);
    if (fd < 0) {
        return -1;
    }
    bool shared = Py_IS_TYPE(sock, (PyTypeObject *)self->state->socket_socket) &&
                  poller_get_transport(self->loop, fd) == NULL;
    self->fd = shared ? fd : fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (self->fd < 0) {
        uverror_raise(-errno);
        return -1;
    }
    self->sock_state = shared ? SOCK_SHARED : SOCK_OWN;
    if (inspect_socket(self, sock) < 0 || note_foreign_addresses(self, sock) < 0) {
        if (!shared) {
            close(self->fd);
        }
        return -1;
    }
    return 0;
}

/* Opens the stream. The descriptor is libuv's afterwards, or still the socket's, or closed. */
static int
open_stream(SocketTransport *self, const TransportSpec *spec)
{
    if (spec->sock != NULL) {
        if (take_python_socket(self, spec->sock) < 0) {
            return -1;
        }
    } else {
        self->fd = spec->fd;
        self->family = spec->family;
        self->type = spec->type;
        self->proto = spec->proto;
        self->peer = address_new(spec->peer, spec->peer_size);
    }
    bool is_tcp = self->family == AF_INET || self->family == AF_INET6;
    self->stream = stream_open(self->loop, self->fd, is_tcp, self);
    if (self->stream == NULL) {
        if (self->sock_state != SOCK_SHARED) {
            close(self->fd);
        }
        return -1;
    }
    if (self->sock_state == SOCK_SHARED) {
        return transport_share_sock(self, spec->sock);
    }
    self->sock = Py_XNewRef(spec->sock);
    return 0;
}

/* Makes the transport known to its server and its loop. */
static int
attach(SocketTransport *self, PyObject *server)
{
    if (poller_set_transport(self->loop, self->fd, self) < 0) {
        return -1;
    }
    if (server == NULL || server == Py_None) {
        return 0;
    }
    PyObject *result = self->traits.server_takes_transport
                           ? PyObject_CallMethodOneArg(server, self->state->str__attach, (PyObject *)self)
                           : PyObject_CallMethodNoArgs(server, self->state->str__attach);
    if (result == NULL) {
        return -1;
    }
    Py_DECREF(result);
    self->server = Py_NewRef(server);
    return 0;
}

/* ready_run: reading starts after connection_made(). */
static int
run_start_reading(LoopObject *Py_UNUSED(loop), PyObject *owner, PyObject *Py_UNUSED(arg))
{
    SocketTransport *self = SocketTransport_CAST(owner);
    return transport_wants_reading(self) ? transport_start_reading(self) : 0;
}

/* ready_run: the waiter of create_connection() learns that connection_made() was called. */
static int
run_wake_waiter(LoopObject *loop, PyObject *owner, PyObject *Py_UNUSED(arg))
{
    PyObject *result = PyObject_CallFunctionObjArgs(loop->state->set_result_unless_cancelled, owner, Py_None, NULL);
    if (result == NULL) {
        if (loop_must_propagate()) {
            return -1;
        }
        loop_report(loop, "Exception in callback _set_result_unless_cancelled()", "future", owner, NULL);
    }
    Py_XDECREF(result);
    return 0;
}

static int
schedule_start(SocketTransport *self, PyObject *waiter)
{
    PyObject *method = PyObject_GetAttr(self->protocol, self->state->str_connection_made);
    if (method == NULL) {
        return -1;
    }
    PyObject *transport = (PyObject *)self;
    int err = loop_call_soon(self->loop, method, &transport, 1, self->fixed_context);
    Py_DECREF(method);
    if (err == 0) {
        err = loop_push(self->loop, run_start_reading, transport, NULL);
    }
    if (err == 0 && waiter != NULL && waiter != Py_None) {
        err = loop_push(self->loop, run_wake_waiter, waiter, NULL);
    }
    return err;
}

static int
set_contexts(SocketTransport *self, PyObject *context)
{
    if (context != NULL && context != Py_None) {
        self->fixed_context = Py_NewRef(context);
        self->context = Py_NewRef(context);
        return 0;
    }
    self->context = PyContext_CopyCurrent();
    return self->context == NULL ? -1 : 0;
}

SocketTransport *
transport_new(LoopObject *loop, const TransportSpec *spec)
{
    PyTypeObject *type = loop->state->SocketTransportType;
    SocketTransport *self = (SocketTransport *)type->tp_alloc(type, 0);
    if (self == NULL) {
        if (spec->sock == NULL) {
            close(spec->fd);
        }
        return NULL;
    }
    self->state = loop->state;
    self->loop = (LoopObject *)Py_NewRef(loop);
    self->traits = loop->io->traits;
    limits_init(self);
    if (open_stream(self, spec) < 0 || set_contexts(self, spec->context) < 0 || set_extra(self, spec->extra) < 0 ||
        set_protocol(self, spec->protocol) < 0 || attach(self, spec->server) < 0 || set_nodelay(self) < 0 ||
        schedule_start(self, spec->waiter) < 0) {
        PyObject *exc = compat_take_exception();
        self->over = self->closing = true;
        transport_close_socket(self);
        report_if(self, detach_server(self));
        Py_DECREF(self);
        compat_restore_exception(exc);
        return NULL;
    }
    self->opened = true;
    return self;
}

PyObject *
Loop_make_socket_transport(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"sock", "protocol", "waiter", "extra", "server", "context", NULL};
    LoopObject *loop = LoopObject_CAST(op);
    TransportSpec spec = {.fd = -1};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O$OOO:_make_socket_transport", names, &spec.sock,
                                     &spec.protocol, &spec.waiter, &spec.extra, &spec.server, &spec.context)) {
        return NULL;
    }
    int fd;
    if (loop_check_open(loop) < 0 || poller_check_no_transport(loop, spec.sock, &fd) < 0) {
        return NULL;
    }
    return (PyObject *)transport_new(loop, &spec);
}

/* ---- methods ---- */

static PyObject *
none_or_null(int err)
{
    return err < 0 ? NULL : Py_NewRef(Py_None);
}

/* For a method that is left to the loop's thread. */
static PyObject *
deferred(void)
{
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

static PyObject *
SocketTransport_close(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    SocketTransport *self = SocketTransport_CAST(op);
    if (!self->closing && transport_defer_to_loop(self, "close", true)) {
        return deferred();
    }
    return none_or_null(transport_close(self));
}

static PyObject *
SocketTransport_abort(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    SocketTransport *self = SocketTransport_CAST(op);
    if (!self->conn_lost && transport_defer_to_loop(self, "abort", true)) {
        return deferred();
    }
    return none_or_null(transport_force_close(self, Py_None));
}

static PyObject *
SocketTransport_force_close(PyObject *op, PyObject *exc)
{
    return none_or_null(transport_force_close(SocketTransport_CAST(op), exc));
}

static PyObject *
SocketTransport_fatal_error(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"exc", "message", NULL};
    PyObject *exc;
    const char *message = "Fatal error on transport";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|s:_fatal_error", names, &exc, &message)) {
        return NULL;
    }
    if (!PyExceptionInstance_Check(exc)) {
        PyErr_Format(PyExc_TypeError, "exc must be an exception, not %R", exc);
        return NULL;
    }
    return none_or_null(fatal_error(SocketTransport_CAST(op), exc, message));
}

static PyObject *
SocketTransport_is_closing(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(SocketTransport_CAST(op)->closing);
}

static PyObject *
SocketTransport_is_reading(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(transport_wants_reading(SocketTransport_CAST(op)));
}

static PyObject *
SocketTransport_pause_reading(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    SocketTransport *self = SocketTransport_CAST(op);
    if (!transport_wants_reading(self)) {
        Py_RETURN_NONE;
    }
    if (transport_defer_to_loop(self, "pause_reading", false)) {
        return deferred();
    }
    self->paused = true;
    transport_stop_reading(self);
    transport_log_debug(self, "%r pauses reading");
    Py_RETURN_NONE;
}

static PyObject *
SocketTransport_resume_reading(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    SocketTransport *self = SocketTransport_CAST(op);
    if (self->closing || !self->paused) {
        Py_RETURN_NONE;
    }
    if (transport_defer_to_loop(self, "resume_reading", false)) {
        return deferred();
    }
    if (self->loop != NULL && loop_check_open(self->loop) < 0) {
        return NULL;
    }
    self->paused = false;
    if (self->fixed_context == NULL) {
        /* The standard loop registers a new reader, which copies the context of this call. */
        PyObject *context = PyContext_CopyCurrent();
        if (context == NULL) {
            return NULL;
        }
        Py_XSETREF(self->context, context);
    }
    if (transport_start_reading(self) < 0) {
        return NULL;
    }
    transport_log_debug(self, "%r resumes reading");
    Py_RETURN_NONE;
}

static PyObject *
SocketTransport_set_protocol(PyObject *op, PyObject *protocol)
{
    return none_or_null(set_protocol(SocketTransport_CAST(op), protocol));
}

static PyObject *
SocketTransport_get_protocol(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    PyObject *protocol = SocketTransport_CAST(op)->protocol;
    return Py_NewRef(protocol == NULL ? Py_None : protocol);
}

static PyObject *
SocketTransport_can_write_eof(PyObject *Py_UNUSED(op), PyObject *Py_UNUSED(ignored))
{
    Py_RETURN_TRUE;
}

static PyObject *
SocketTransport_get_write_buffer_size(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromSize_t(transport_buffer_size(SocketTransport_CAST(op)));
}

PyDoc_STRVAR(SocketTransport_lend_doc,
             "_lend_fd($self, lent, /)\n--\n\n"
             "Let add_reader() and add_writer() take the descriptor (lent=True), as sendfile() needs it, or not.");

static PyObject *
SocketTransport_lend_fd(PyObject *op, PyObject *flag)
{
    SocketTransport *self = SocketTransport_CAST(op);
    int lent = PyObject_IsTrue(flag);
    if (lent < 0) {
        return NULL;
    }
    if (self->stream != NULL) {
        SocketTransport *owner = poller_get_transport(self->loop, self->fd);
        if (owner == NULL || owner == self) {
            return none_or_null(poller_set_transport(self->loop, self->fd, lent ? NULL : self));
        }
    }
    Py_RETURN_NONE;
}

static PyObject *
SocketTransport_repr(PyObject *op)
{
    SocketTransport *self = SocketTransport_CAST(op);
    const char *state = self->over ? " closed" : self->closing ? " closing" : "";
    if (self->loop == NULL || self->loop->closed) {
        return PyUnicode_FromFormat("<SocketTransport%s fd=%d>", state, self->fd);
    }
    return PyUnicode_FromFormat("<SocketTransport%s fd=%d read=%s write=<%s, bufsize=%zu>>", state, self->fd,
                                self->reading ? "polling" : "idle", self->writing ? "polling" : "idle",
                                transport_buffer_size(self));
}

/* ---- attributes ---- */

static PyObject *
or_none(PyObject *value)
{
    return Py_NewRef(value == NULL ? Py_None : value);
}

static PyObject *
get_loop(PyObject *op, void *Py_UNUSED(closure))
{
    return or_none((PyObject *)SocketTransport_CAST(op)->loop);
}

static PyObject *
get_protocol(PyObject *op, void *Py_UNUSED(closure))
{
    return or_none(SocketTransport_CAST(op)->protocol);
}

static int
set_protocol_attribute(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    return set_protocol(SocketTransport_CAST(op), value == NULL ? Py_None : value);
}

static PyObject *
get_server(PyObject *op, void *Py_UNUSED(closure))
{
    return or_none(SocketTransport_CAST(op)->server);
}

static PyObject *
get_empty_waiter(PyObject *op, void *Py_UNUSED(closure))
{
    return or_none(SocketTransport_CAST(op)->empty_waiter);
}

static PyObject *
get_extra(PyObject *op, void *Py_UNUSED(closure))
{
    return Py_XNewRef(transport_extra(SocketTransport_CAST(op)));
}

static int
set_extra_attribute(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    return set_extra(SocketTransport_CAST(op), value);
}

static PyObject *
get_sock(PyObject *op, void *Py_UNUSED(closure))
{
    SocketTransport *self = SocketTransport_CAST(op);
    return self->over ? Py_NewRef(Py_None) : Py_XNewRef(transport_sock(self));
}

/* The pieces that wait to be sent, as a list of bytes. */
static PyObject *
get_buffer(PyObject *op, void *Py_UNUSED(closure))
{
    SocketTransport *self = SocketTransport_CAST(op);
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < self->queue.count; i++) {
        Chunk *chunk = &self->queue.items[self->queue.head + i];
        PyObject *bytes = PyBytes_FromStringAndSize(chunk->data, (Py_ssize_t)chunk->size);
        if (bytes == NULL || PyList_Append(list, bytes) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(bytes);
    }
    return list;
}

static PyObject *
get_flag(PyObject *op, void *closure)
{
    return PyBool_FromLong(*(bool *)((char *)op + (size_t)closure));
}

static int
set_flag(PyObject *op, PyObject *value, void *closure)
{
    int truth = value == NULL ? 0 : PyObject_IsTrue(value);
    if (truth >= 0) {
        *(bool *)((char *)op + (size_t)closure) = truth > 0;
    }
    return truth < 0 ? -1 : 0;
}

/* The two marks; `closure` is not NULL for the high one. */
static PyObject *
get_limit(PyObject *op, void *closure)
{
    return limits_get(SocketTransport_CAST(op), closure != NULL);
}

static int
set_limit(PyObject *op, PyObject *value, void *closure)
{
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "cannot delete a water mark");
        return -1;
    }
    return limits_set(SocketTransport_CAST(op), closure != NULL, value);
}

static int
ignore_assignment(PyObject *Py_UNUSED(op), PyObject *Py_UNUSED(value), void *Py_UNUSED(closure))
{
    return 0;
}

static PyObject *
get_true(PyObject *Py_UNUSED(op), void *Py_UNUSED(closure))
{
    Py_RETURN_TRUE;
}

static PyObject *
get_sendfile_mode(PyObject *op, void *Py_UNUSED(closure))
{
    return PyObject_GetAttrString(SocketTransport_CAST(op)->state->stock_SocketTransport, "_sendfile_compatible");
}

/* ---- life of the object ---- */

static void
SocketTransport_finalize(PyObject *op)
{
    SocketTransport *self = SocketTransport_CAST(op);
    if (self->over) {
        return;
    }
    PyObject *exc = compat_take_exception();
    if (self->opened && PyErr_ResourceWarning(op, 1, "unclosed transport %R", op) < 0) {
        PyErr_WriteUnraisable(op);
    }
    self->over = self->closing = true;
    self->conn_lost++;
    transport_close_socket(self);
    report_if(self, detach_server(self));
    if (exc != NULL) {
        compat_restore_exception(exc);
    }
}

static int
SocketTransport_traverse(PyObject *op, visitproc visit, void *arg)
{
    SocketTransport *self = SocketTransport_CAST(op);
    Py_VISIT(Py_TYPE(op));
    for (int i = 0; i < TRANSPORT_BASE_SLOTS; i++) {
        Py_VISIT(self->base_slots[i]);
    }
    Py_VISIT(self->loop);
    Py_VISIT(self->protocol);
    Py_VISIT(self->server);
    Py_VISIT(self->context);
    Py_VISIT(self->write_context);
    Py_VISIT(self->fixed_context);
    Py_VISIT(self->extra);
    if (self->sock_state != SOCK_SHARED) {
        Py_VISIT(self->sock);
    }
    Py_VISIT(self->empty_waiter);
    Py_VISIT(self->limits);
    Py_VISIT(self->dict);
    return 0;
}

static int
SocketTransport_clear(PyObject *op)
{
    SocketTransport *self = SocketTransport_CAST(op);
    /* The finaliser has closed the socket. */
    assert(self->stream == NULL);
    for (int i = 0; i < TRANSPORT_BASE_SLOTS; i++) {
        Py_CLEAR(self->base_slots[i]);
    }
    Py_CLEAR(self->protocol);
    Py_CLEAR(self->server);
    Py_CLEAR(self->context);
    Py_CLEAR(self->write_context);
    Py_CLEAR(self->fixed_context);
    Py_CLEAR(self->extra);
    Py_CLEAR(self->sock);
    Py_CLEAR(self->empty_waiter);
    Py_CLEAR(self->limits);
    Py_CLEAR(self->dict);
    if (self->hold == 0) {
        Py_CLEAR(self->loop);
    }
    return 0;
}

static void
SocketTransport_dealloc(PyObject *op)
{
    if (PyObject_CallFinalizerFromDealloc(op) < 0) {
        return;
    }
    SocketTransport *self = SocketTransport_CAST(op);
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs(op);
    }
    (void)SocketTransport_clear(op);
    chunks_clear(&self->queue);
    PyMem_Free(self->peer);
    PyMem_Free(self->local);
    type->tp_free(op);
    Py_DECREF(type);
}

#define FASTCALL_KEYWORDS(function) ((PyCFunction)(void (*)(void))(function)), METH_FASTCALL | METH_KEYWORDS
#define VARARGS_KEYWORDS(function) ((PyCFunction)(void (*)(void))(function)), METH_VARARGS | METH_KEYWORDS

static PyMethodDef SocketTransport_methods[] = {
    {"write", SocketTransport_write, METH_O,
     "write($self, data, /)\n--\n\nSend bytes, a bytearray or a memoryview, at the end of this turn of the loop.\n\n"
     "Raises TypeError for anything else, RuntimeError after write_eof(). See asyncio.WriteTransport.write()."},
    {"writelines", SocketTransport_writelines, METH_O,
     "writelines($self, list_of_data, /)\n--\n\nSend every item of an iterable of bytes-like objects.\n\n"
     "See asyncio.WriteTransport.writelines()."},
    {"write_eof", SocketTransport_write_eof, METH_NOARGS,
     "write_eof($self, /)\n--\n\nClose the sending side when everything is sent. See asyncio.WriteTransport.write_eof()."},
    {"can_write_eof", SocketTransport_can_write_eof, METH_NOARGS, "can_write_eof($self, /)\n--\n\nReturn True."},
    {"close", SocketTransport_close, METH_NOARGS,
     "close($self, /)\n--\n\nStop reading, send what was written, then call connection_lost(None).\n\n"
     "See asyncio.BaseTransport.close()."},
    {"abort", SocketTransport_abort, METH_NOARGS,
     "abort($self, /)\n--\n\nDrop what was not sent and call connection_lost(None) in the next turn.\n\n"
     "See asyncio.WriteTransport.abort()."},
    {"is_closing", SocketTransport_is_closing, METH_NOARGS,
     "is_closing($self, /)\n--\n\nReturn True from the call of close() or an error on."},
    {"is_reading", SocketTransport_is_reading, METH_NOARGS,
     "is_reading($self, /)\n--\n\nReturn False while paused and when closing."},
    {"pause_reading", SocketTransport_pause_reading, METH_NOARGS,
     "pause_reading($self, /)\n--\n\nCall data_received() no more until resume_reading()."},
    {"resume_reading", SocketTransport_resume_reading, METH_NOARGS,
     "resume_reading($self, /)\n--\n\nRead again. Raises RuntimeError when the loop is closed."},
    {"set_protocol", SocketTransport_set_protocol, METH_O,
     "set_protocol($self, protocol, /)\n--\n\nHave another protocol called from now on, a BufferedProtocol or not."},
    {"get_protocol", SocketTransport_get_protocol, METH_NOARGS,
     "get_protocol($self, /)\n--\n\nReturn the protocol, None when the connection is over."},
    {"get_extra_info", FASTCALL_KEYWORDS(SocketTransport_get_extra_info),
     "get_extra_info($self, name, default=None)\n--\n\nReturn 'socket', 'peername', 'sockname' or what else is known.\n\n"
     "See asyncio.BaseTransport.get_extra_info()."},
    {"get_write_buffer_size", SocketTransport_get_write_buffer_size, METH_NOARGS,
     "get_write_buffer_size($self, /)\n--\n\nReturn the number of bytes that the system did not take yet."},
    {"get_write_buffer_limits", SocketTransport_get_limits, METH_NOARGS,
     "get_write_buffer_limits($self, /)\n--\n\nReturn (low, high) in bytes."},
    {"set_write_buffer_limits", VARARGS_KEYWORDS(SocketTransport_set_limits),
     "set_write_buffer_limits($self, /, high=None, low=None)\n--\n\nSet the water marks of flow control, in bytes.\n\n"
     "Raises ValueError unless high >= low >= 0. See asyncio.WriteTransport.set_write_buffer_limits()."},
    {"_set_write_buffer_limits", VARARGS_KEYWORDS(SocketTransport_set_limits_quietly), NULL},
    {"_maybe_pause_protocol", SocketTransport_maybe_pause_protocol, METH_NOARGS, NULL},
    {"_maybe_resume_protocol", SocketTransport_maybe_resume_protocol, METH_NOARGS, NULL},
    {"_force_close", SocketTransport_force_close, METH_O, NULL},
    {"_fatal_error", VARARGS_KEYWORDS(SocketTransport_fatal_error), NULL},
    {"_call_connection_lost", SocketTransport_call_connection_lost, METH_O, NULL},
    {"_make_empty_waiter", SocketTransport_make_empty_waiter, METH_NOARGS, NULL},
    {"_reset_empty_waiter", SocketTransport_reset_empty_waiter, METH_NOARGS, NULL},
    {"_lend_fd", SocketTransport_lend_fd, METH_O, SocketTransport_lend_doc},
    {NULL},
};

#define AT(field) (void *)offsetof(SocketTransport, field)

/* Every slot of the base is shadowed: its own descriptors would show fields that nobody sets. */
static PyGetSetDef SocketTransport_getset[] = {
    {"_loop", get_loop, ignore_assignment, NULL, NULL},
    {"_extra", get_extra, set_extra_attribute, NULL, NULL},
    {"_protocol_paused", get_flag, set_flag, NULL, AT(protocol_paused)},
    {"_high_water", get_limit, set_limit, NULL, (void *)1},
    {"_low_water", get_limit, set_limit, NULL, NULL},
    {"_protocol", get_protocol, set_protocol_attribute, NULL, NULL},
    {"_server", get_server, NULL, NULL, NULL},
    {"_sock", get_sock, NULL, NULL, NULL},
    {"_empty_waiter", get_empty_waiter, NULL, NULL, NULL},
    {"_buffer", get_buffer, NULL, NULL, NULL},
    {"_closing", get_flag, NULL, NULL, AT(closing)},
    {"_eof", get_flag, NULL, NULL, AT(eof)},
    {"_paused", get_flag, NULL, NULL, AT(paused)},
    {"_start_tls_compatible", get_true, NULL, NULL, NULL},
    {"_sendfile_compatible", get_sendfile_mode, NULL, NULL, NULL},
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {NULL},
};

static PyMemberDef SocketTransport_members[] = {
    {"_sock_fd", T_INT, offsetof(SocketTransport, fd), READONLY, NULL},
    {"_conn_lost", T_UINT, offsetof(SocketTransport, conn_lost), READONLY, NULL},
    {"__dictoffset__", T_PYSSIZET, offsetof(SocketTransport, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(SocketTransport, weakrefs), READONLY, NULL},
    {NULL},
};

PyDoc_STRVAR(SocketTransport_doc,
             "The transport of a TCP or Unix stream connection, made by the loop. See asyncio.Transport.");

static PyType_Slot SocketTransport_slots[] = {
    {Py_tp_doc, (void *)SocketTransport_doc},
    {Py_tp_repr, SocketTransport_repr},
    {Py_tp_finalize, SocketTransport_finalize},
    {Py_tp_traverse, SocketTransport_traverse},
    {Py_tp_clear, SocketTransport_clear},
    {Py_tp_dealloc, SocketTransport_dealloc},
    {Py_tp_methods, SocketTransport_methods},
    {Py_tp_getset, SocketTransport_getset},
    {Py_tp_members, SocketTransport_members},
    {0, NULL},
};

PyType_Spec SocketTransport_spec = {
    .name = "fastloop._core.SocketTransport",
    .basicsize = sizeof(SocketTransport),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = SocketTransport_slots,
};
