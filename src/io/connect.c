/* Connecting to a numeric address or the path of a Unix socket: what asyncio's create_connection() and
   create_unix_connection() do for one, without a Python socket.

   loop._start_connecting() begins and gives a Connector, whose descriptor the poller watches until the future that was
   passed learns the outcome; make_transport() then turns the descriptor into a transport. Until that the Connector owns
   it, and closes it when it goes. Errors and their texts are the standard loop's. */

#include "io/connect.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/address.h"
#include "base/functions.h"
#include "base/lowfds.h"
#include "base/uverror.h"
#include "io/io.h"
#include "io/transport.h"

typedef struct {
    PyObject_HEAD
    LoopObject *loop;
    PyObject *future; /* NULL once the outcome is known */
    PyObject *name;   /* the address as the standard loop shows it */
    int fd;           /* -1 when it is the transport's, or closed */
    int family;
    socklen_t size;
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
        struct sockaddr_un un;
    } address;
} ConnectorObject;

#define ConnectorObject_CAST(op) ((ConnectorObject *)(op))

/* ---- the address ---- */

/* Fills in the address for a numeric host; false when it is none. */
static bool
parse_address(ConnectorObject *self, PyObject *host, PyObject *port)
{
    struct sockaddr_storage address;
    self->size = address_of_host(host, port, &address);
    memcpy(&self->address, &address, self->size);
    self->family = self->size > 0 ? self->address.any.sa_family : AF_UNSPEC;
    return self->size > 0;
}

/* The same for the path of a Unix socket; false for one that the socket module refuses, or that is not usual. */
static bool
fill_path(ConnectorObject *self, const char *path, Py_ssize_t size)
{
    struct sockaddr_un *un = &self->address.un;
    bool is_abstract = HAVE_EPOLL && size > 0 && path[0] == 0;
    size_t room = sizeof(un->sun_path) - !is_abstract;
    if (size == 0 || (size_t)size > room || (!is_abstract && memchr(path, 0, (size_t)size) != NULL)) {
        return false;
    }
    memset(un, 0, sizeof(*un));
    un->sun_family = AF_UNIX;
    memcpy(un->sun_path, path, (size_t)size);
    self->family = AF_UNIX;
    self->size = is_abstract ? (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)size) : sizeof(*un);
    return true;
}

static bool
parse_path(ConnectorObject *self, PyObject *path)
{
    PyObject *bytes = PyUnicode_CheckExact(path) ? PyUnicode_EncodeFSDefault(path)
                      : PyBytes_CheckExact(path) ? Py_NewRef(path)
                                                 : NULL;
    bool parsed = bytes != NULL && fill_path(self, PyBytes_AS_STRING(bytes), PyBytes_GET_SIZE(bytes));
    PyErr_Clear();
    Py_XDECREF(bytes);
    return parsed;
}

static PyObject *
address_name(ConnectorObject *self, PyObject *host, PyObject *port)
{
    if (self->family == AF_UNIX) {
        return Py_NewRef(host);
    }
    return self->family == AF_INET ? PyTuple_Pack(2, host, port) : Py_BuildValue("OOii", host, port, 0, 0);
}

/* ---- the outcome ---- */

/* Gives the descriptor up; takes it out of the poller first. -1 with an exception. */
static int
close_descriptor(ConnectorObject *self)
{
    int fd = self->fd;
    if (fd < 0) {
        return 0;
    }
    self->fd = -1;
    int err = 0;
    if (self->loop->io != NULL && poller_has_writer(self->loop, fd, (PyObject *)self)) {
        err = poller_unwatch(self->loop, fd, POLLSET_WRITE);
    }
    close(fd);
    return err < 0 ? -1 : 0;
}

/* future.set_result(None), or future.set_exception(exc), unless it is done. -1 with an exception. */
static int
complete(LoopObject *loop, PyObject *future, PyObject *exc)
{
    State *state = loop->state;
    if (exc == NULL && state->complete_future != NULL) {
        int done = state->complete_future(state, future, Py_None);
        if (done != 0) {
            return done < 0 ? -1 : 0;
        }
    }
    int done = method_truth(future, state->str_done);
    if (done != 0) {
        return done < 0 ? -1 : 0;
    }
    PyObject *result = exc == NULL ? PyObject_CallMethod(future, "set_result", "(O)", Py_None)
                                   : PyObject_CallMethod(future, "set_exception", "(O)", exc);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* OSError(code, f"Connect call failed {address}") */
static PyObject *
failure(ConnectorObject *self, int code)
{
    PyObject *text = PyUnicode_FromFormat("Connect call failed %S", self->name);
    PyObject *exc = text == NULL ? NULL : PyObject_CallFunction(PyExc_OSError, "iO", code, text);
    Py_XDECREF(text);
    return exc;
}

/* ready_run: the kernel has something to say about the connection. */
static int
run_connected(LoopObject *loop, PyObject *owner, PyObject *Py_UNUSED(arg))
{
    ConnectorObject *self = ConnectorObject_CAST(owner);
    if (self->fd < 0 || self->future == NULL) {
        return 0;
    }
    int code = 0;
    socklen_t size = sizeof(code);
    if (getsockopt(self->fd, SOL_SOCKET, SO_ERROR, &code, &size) < 0) {
        code = errno;
    }
    if (code == EAGAIN || code == EALREADY || code == EINPROGRESS || code == EINTR) {
        return 0;
    }
    PyObject *future = self->future;
    self->future = NULL;
    PyObject *exc = code == 0 ? NULL : failure(self, code);
    int err = code != 0 && exc == NULL ? -1 : poller_unwatch(loop, self->fd, POLLSET_WRITE);
    if (err >= 0) {
        err = complete(loop, future, exc);
    }
    Py_XDECREF(exc);
    if (err < 0 && !loop_must_propagate()) {
        /* Who waits shall learn it. */
        PyObject *raised = compat_take_exception();
        err = complete(loop, future, raised);
        Py_XDECREF(raised);
    }
    Py_DECREF(future);
    if (err < 0 && !loop_must_propagate()) {
        loop_report(loop, "Exception in callback Loop._sock_connect_cb()", NULL);
        err = 0;
    }
    return err;
}

/* ---- starting ---- */

static int
protocol_of(ConnectorObject *self)
{
    return self->family == AF_UNIX ? 0 : IPPROTO_TCP;
}

/* socket() and connect(): 0, 1 when it is under way, or -1 with OSError. */
static int
begin(ConnectorObject *self)
{
#if HAVE_SOCKET_FLAGS
    int fd = socket(self->family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol_of(self));
#else
    int fd = socket(self->family, SOCK_STREAM, protocol_of(self));
    if (fd >= 0 && (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 || fcntl(fd, F_SETFL, O_NONBLOCK) < 0)) {
        close(fd);
        fd = -1;
    }
#endif
    fd = fd < 0 ? -errno : lowfds_leave(fd);
    if (fd < 0) {
        uverror_raise(fd);
        return -1;
    }
    self->fd = fd;
    transport_check_number(self->loop, fd);
    if (PySys_Audit("socket.connect", "OO", self, self->name) < 0) {
        return -1;
    }
    if (connect(fd, &self->address.any, self->size) == 0) {
        return 0;
    }
    if (errno == EINPROGRESS || errno == EINTR || errno == EAGAIN) {
        return 1;
    }
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

/* Does the kernel know by now? It mostly does for an address of this machine, and then there is nothing to watch. */
static bool
is_decided(ConnectorObject *self)
{
    struct pollfd asked = {.fd = self->fd, .events = POLLOUT};
    return poll(&asked, 1, 0) > 0;
}

/* Has the next poll find it, behind everything else: the server may have its end in this very loop. */
static int
note_decided(LoopObject *loop, ConnectorObject *self)
{
    struct IoPart *io = loop->io;
    if (io->decided == NULL) {
        io->decided = PyList_New(0);
    }
    if (io->decided == NULL || PyList_Append(io->decided, (PyObject *)self) < 0) {
        return -1;
    }
    loop->has_found = true;
    loop_poll_soon(loop);
    return 0;
}

void
connect_collect(LoopObject *loop)
{
    PyObject *decided = loop->io->decided;
    Py_ssize_t count = 0;
    while (count < PyList_GET_SIZE(decided) &&
           loop_push(loop, run_connected, PyList_GET_ITEM(decided, count), NULL) == 0) {
        count++;
    }
    loop->has_found = count < PyList_GET_SIZE(decided) || PyList_SetSlice(decided, 0, count, NULL) < 0;
    if (loop->has_found) {
        /* No memory: what is queued makes room, and what is queued twice finds the outcome told. */
        PyErr_Clear();
    }
}

void
connect_forget(LoopObject *loop)
{
    loop->has_found = false;
    Py_CLEAR(loop->io->decided);
}

/* Has run_connected() called when the outcome is known: in the next turn at the earliest, as on the standard loop. */
static int
await_outcome(LoopObject *loop, ConnectorObject *self)
{
    return is_decided(self) ? note_decided(loop, self)
                            : poller_watch(loop, self->fd, POLLSET_WRITE, run_connected, (PyObject *)self, NULL);
}

static ConnectorObject *
connector_new(LoopObject *loop, PyObject *future)
{
    ConnectorObject *self = PyObject_GC_New(ConnectorObject, loop->state->ConnectorType);
    if (self != NULL) {
        self->loop = (LoopObject *)Py_NewRef(loop);
        self->future = Py_NewRef(future);
        self->name = NULL;
        self->fd = -1;
        self->family = AF_UNSPEC;
        PyObject_GC_Track(self);
    }
    return self;
}

/* _start_connecting(future, host, port) or (future, path): a Connector, or None when this is no numeric address. */
PyObject *
Loop_start_connecting(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    LoopObject *loop = LoopObject_CAST(op);
    if (nargs != 3 && nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "_start_connecting() takes a future, and a host and a port or a path");
        return NULL;
    }
    if (loop_check_open(loop) < 0) {
        return NULL;
    }
    ConnectorObject *self = connector_new(loop, args[0]);
    if (self == NULL) {
        return NULL;
    }
    if (!io_may_touch(loop) || !(nargs == 2 ? parse_path(self, args[1]) : parse_address(self, args[1], args[2]))) {
        Py_DECREF(self);
        Py_RETURN_NONE;
    }
    self->name = address_name(self, args[1], nargs == 2 ? NULL : args[2]);
    int state = self->name == NULL ? -1 : begin(self);
    if (state > 0) {
        state = await_outcome(loop, self);
    } else if (state == 0) {
        PyObject *future = self->future;
        self->future = NULL;
        state = complete(loop, future, NULL);
        Py_DECREF(future);
    }
    if (state < 0) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

/* ---- the type ---- */

/* The address of the peer, which the kernel may know better: connecting to 0.0.0.0 ends at 127.0.0.1, and a server
   may be bound to another path. */
static void
find_peer(ConnectorObject *self)
{
    if (self->family == AF_INET && self->address.in.sin_addr.s_addr != INADDR_ANY) {
        return;
    }
    socklen_t size = sizeof(self->address);
    self->size = getpeername(self->fd, &self->address.any, &size) < 0 ? 0 : Py_MIN(size, sizeof(self->address));
}

/* make_transport(protocol, waiter, context=None) */
static PyObject *
Connector_make_transport(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    ConnectorObject *self = ConnectorObject_CAST(op);
    if (nargs < 2 || nargs > 3) {
        PyErr_SetString(PyExc_TypeError, "make_transport() takes a protocol, a waiter and a context");
        return NULL;
    }
    if (UNLIKELY(!io_may_touch(self->loop))) {
        PyErr_SetString(PyExc_RuntimeError, "the loop runs in another thread than the one that connects");
        return NULL;
    }
    PyObject *context = nargs == 3 && args[2] != Py_None ? args[2] : NULL;
    if (context != NULL && !PyContext_CheckExact(context)) {
        PyErr_Format(PyExc_TypeError, "a contextvars.Context was expected, not %R", context);
        return NULL;
    }
    if (loop_check_open(self->loop) < 0) {
        return NULL;
    }
    if (self->fd < 0 || self->future != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "not connected");
        return NULL;
    }
    find_peer(self);
    TransportSpec spec = {
        .fd = self->fd,
        .family = self->family,
        .type = SOCK_STREAM,
        .proto = protocol_of(self),
        .peer = self->size == 0 ? NULL : &self->address.any,
        .peer_size = self->size,
        .protocol = args[0],
        .waiter = args[1],
        .context = context,
    };
    self->fd = -1;
    return (PyObject *)transport_new(self->loop, &spec);
}

static PyObject *
Connector_close(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return close_descriptor(ConnectorObject_CAST(op)) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *
Connector_fileno(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLong(ConnectorObject_CAST(op)->fd);
}

static int
Connector_traverse(PyObject *op, visitproc visit, void *arg)
{
    ConnectorObject *self = ConnectorObject_CAST(op);
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->loop);
    Py_VISIT(self->future);
    Py_VISIT(self->name);
    return 0;
}

static int
Connector_clear(PyObject *op)
{
    ConnectorObject *self = ConnectorObject_CAST(op);
    Py_CLEAR(self->future);
    Py_CLEAR(self->name);
    return 0;
}

static void
Connector_dealloc(PyObject *op)
{
    ConnectorObject *self = ConnectorObject_CAST(op);
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    /* The poller would hold it: it is not watched any more. */
    if (self->fd >= 0) {
        close(self->fd);
    }
    (void)Connector_clear(op);
    Py_CLEAR(self->loop);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyMethodDef Connector_methods[] = {
    {"make_transport", (PyCFunction)(void (*)(void))Connector_make_transport, METH_FASTCALL,
     "make_transport($self, protocol, waiter, context=None, /)\n--\n\n"
     "Return the transport of the connection, which has been made; all its callbacks run in the context, if one is "
     "given."},
    {"close", Connector_close, METH_NOARGS, "close($self, /)\n--\n\nGive the connection up."},
    {"fileno", Connector_fileno, METH_NOARGS, "fileno($self, /)\n--\n\nReturn the descriptor, -1 when it is gone."},
    {NULL},
};

static PyMemberDef Connector_members[] = {
    {"family", T_INT, offsetof(ConnectorObject, family), READONLY, NULL},
    {NULL},
};

static PyType_Slot Connector_slots[] = {
    {Py_tp_doc, (void *)"A connection that is being made."},
    {Py_tp_traverse, Connector_traverse},
    {Py_tp_clear, Connector_clear},
    {Py_tp_dealloc, Connector_dealloc},
    {Py_tp_methods, Connector_methods},
    {Py_tp_members, Connector_members},
    {0, NULL},
};

PyType_Spec Connector_spec = {
    .name = "fastloop._core.Connector",
    .basicsize = sizeof(ConnectorObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Connector_slots,
};
