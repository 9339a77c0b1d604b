/* Making a transport: from a Python socket, or from the descriptor of an accepted connection. */

#include "io/transport.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <unistd.h>

#include "base/lowfds.h"
#include "base/uverror.h"
#include "io/clients.h"

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

/* An int attribute of a socket; `fallback` where there is none. */
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
    struct sockaddr_storage address = {.ss_family = AF_UNSPEC};
    socklen_t size = sizeof(address);
    if (getsockname(self->fd, (struct sockaddr *)&address, &size) < 0) {
        uverror_raise(-errno);
        return -1;
    }
    self->family = (short)address.ss_family;
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
    self->type = (short)type;
    /* Not the kernel's number: the standard loop sets TCP_NODELAY by what the socket was made with. */
    self->proto = (short)int_attribute(sock, "proto", 0);
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
   open; else a duplicate, as also where a transport that is still being closed has it, and for the numbers of standard
   input and output, which libuv does not close. */
static int
take_python_socket(SocketTransport *self, PyObject *sock)
{
    int fd = poller_fd_of(sock);
    if (fd < 0) {
        return -1;
    }
    bool shared = Py_IS_TYPE(sock, (PyTypeObject *)self->state->socket_socket) && fd >= LOWFDS &&
                  poller_get_transport(self->loop, fd) == NULL;
    self->fd = shared ? fd : fcntl(fd, F_DUPFD_CLOEXEC, LOWFDS);
    if (self->fd < 0) {
        uverror_raise(-errno);
        return -1;
    }
    self->sock_state = shared ? SOCK_SHARED : SOCK_OWN;
    if (inspect_socket(self, sock) < 0 || loop_check_open(self->loop) < 0) {
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
        self->family = (short)spec->family;
        self->type = (short)spec->type;
        self->proto = (short)spec->proto;
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
    /* The standard transport's own reader would take the place of one that is left from before. */
    if (poller_unwatch(self->loop, self->fd, POLLSET_READ) < 0 ||
        poller_unwatch(self->loop, self->fd, POLLSET_WRITE) < 0 ||
        poller_set_transport(self->loop, self->fd, self) < 0) {
        return -1;
    }
    if (server == NULL || server == Py_None) {
        return 0;
    }
    if (clients_attach(self, server) < 0) {
        return -1;
    }
    self->server = Py_NewRef(server);
    return 0;
}

/* ready_run: reading starts after connection_made(). */
static int
run_start_reading(LoopObject *loop, PyObject *owner, PyObject *Py_UNUSED(arg))
{
    SocketTransport *self = SocketTransport_CAST(owner);
    self->starting = false;
    if (!transport_wants_reading(self)) {
        return 0;
    }
    /* The peer may have sent something before. */
    loop_poll_soon(loop);
    return transport_start_reading(self);
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
        self->starting = err == 0;
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
    self->gate = (GateObject *)Py_XNewRef(loop->gate);
    self->loop = (LoopObject *)Py_NewRef(loop);
    self->traits = loop->io->traits;
    limits_init(self);
    if (open_stream(self, spec) < 0 || set_contexts(self, spec->context) < 0 ||
        transport_set_extra(self, spec->extra) < 0 ||
        (spec->sock != NULL && note_foreign_addresses(self, spec->sock) < 0) ||
        transport_set_protocol(self, spec->protocol) < 0 || attach(self, spec->server) < 0 || set_nodelay(self) < 0 ||
        schedule_start(self, spec->waiter) < 0) {
        PyObject *exc = compat_take_exception();
        self->over = self->closing = true;
        transport_close_socket(self);
        transport_report_if(self, transport_detach_server(self));
        Py_DECREF(self);
        compat_restore_exception(exc);
        return NULL;
    }
    self->opened = true;
    return self;
}

/* For a wrong thread, which must not touch libuv: the standard library's transport, on the poller. */
static PyObject *
make_standard_transport(LoopObject *loop, const TransportSpec *spec)
{
    PyObject *waiter = spec->waiter == NULL ? Py_None : spec->waiter;
    PyObject *extra = spec->extra == NULL ? Py_None : spec->extra;
    PyObject *server = spec->server == NULL ? Py_None : spec->server;
    PyObject *args = Py_BuildValue("(OOOOOO)", loop, spec->sock, spec->protocol, waiter, extra, server);
    PyObject *kwargs = PyDict_New();
    PyObject *made = NULL;
    /* Only versions that have it give one. */
    bool given = spec->context != NULL && spec->context != Py_None;
    if (args != NULL && kwargs != NULL && (!given || PyDict_SetItemString(kwargs, "context", spec->context) == 0)) {
        made = PyObject_Call(loop->state->stock_SocketTransport, args, kwargs);
    }
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    return made;
}

PyObject *
Loop_make_socket_transport(PyObject *op, PyObject *args, PyObject *kwargs)
{
    if (UNLIKELY(gate_is_shut(LoopObject_CAST(op)->gate))) {
        return gate_call_keywords(LoopObject_CAST(op)->gate, Loop_make_socket_transport, op, args, kwargs);
    }
    static const char *const names[] = {"sock", "protocol", "waiter", "extra", "server", "context", NULL};
    LoopObject *loop = LoopObject_CAST(op);
    TransportSpec spec = {.fd = -1};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O$OOO:_make_socket_transport", (char **)names, &spec.sock,
                                     &spec.protocol, &spec.waiter, &spec.extra, &spec.server, &spec.context)) {
        return NULL;
    }
    int fd;
    /* The check runs Python code, which may close the loop. */
    if (poller_check_no_transport(loop, spec.sock, &fd) < 0 || loop_check_open(loop) < 0) {
        return NULL;
    }
    if (UNLIKELY(!io_may_touch(loop))) {
        return make_standard_transport(loop, &spec);
    }
    return (PyObject *)transport_new(loop, &spec);
}
