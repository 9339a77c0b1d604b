/* Listener: a listening socket that accepts for asyncio.Server.

   It is a reader of the poller, so it runs in its place in the ready queue as the standard loop's _accept_connection()
   does, and accepts what is there. Each connection is made by a record of the next turn, where the standard loop has a
   task: from a bare descriptor; TLS, debug mode and families that only the socket module knows go through the coroutine
   of the running Python, loop._accept_by_task().

   A listener lives in the poller's table; whoever takes it out of there ends it. */

#include "io/server.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/lowfds.h"
#include "base/uverror.h"
#include "coro/coro.h"
#include "io/io.h"
#include "io/transport.h"

/* A vain accept() costs the kernel a socket and a file, made and thrown away: ten times a poll(). So many connections in a row
   are asked for first. */
enum { ASKED_FOR = 8 };

/* A connection that was accepted and is to be made. */
typedef struct Accepted {
    struct Accepted *next;
    int fd;
    socklen_t size;
    struct sockaddr_storage peer; /* last: no more is allocated than the address needs */
} Accepted;

typedef struct {
    PyObject_HEAD
    PyObject *factory;
    PyObject *sock;         /* the listening Python socket */
    PyObject *sslcontext;   /* None without TLS */
    PyObject *server;       /* None without one */
    PyObject *timeouts;     /* (handshake, shutdown), for TLS */
    PyObject *context;      /* a copy of the one that started serving, or the one that was asked for */
    bool context_given;     /* 3.15: every callback of a connection runs in one copy of it */
    bool is_overridden;     /* a subclass of the loop has its own of what the standard loop calls for a connection */
    struct Accepted *first; /* for each there is a record of run_accepted() */
    struct Accepted *last;
    int fd;
    int backlog;
    int family;
    int type;
    int proto;
} ListenerObject;

#define ListenerObject_CAST(op) ((ListenerObject *)(op))

/* ---- accepting ---- */

/* The next connection, not blocking and close-on-exec, or a negated errno. */
static int
accept_one(int listening, struct sockaddr_storage *peer, socklen_t *size)
{
    *size = sizeof(*peer);
#if HAVE_ACCEPT4
    int fd = accept4(listening, (struct sockaddr *)peer, size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    return fd < 0 ? -errno : fd;
#else
    int fd = accept(listening, (struct sockaddr *)peer, size);
    if (fd < 0) {
        return -errno;
    }
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 || fcntl(fd, F_SETFL, O_NONBLOCK) < 0) {
        int err = -errno;
        close(fd);
        return err;
    }
    return fd;
#endif
}

/* protocol_factory() and the transport, in the connection's context; -1 with an exception. The descriptor is gone
   from here in any case. */
static int
connect_native(LoopObject *loop, ListenerObject *self, int fd, struct sockaddr *peer, socklen_t size, PyObject *context)
{
    PyObject *protocol = PyObject_CallNoArgs(self->factory);
    if (protocol == NULL) {
        close(fd);
        return -1;
    }
    if (loop_check_open(loop) < 0) {
        close(fd);
        Py_DECREF(protocol);
        return -1;
    }
    TransportSpec spec = {
        .fd = fd,
        .family = self->family,
        .type = self->type,
        .proto = self->proto,
        .peer = peer,
        .peer_size = size,
        .protocol = protocol,
        .server = self->server,
        .context = self->context_given ? context : NULL,
    };
    SocketTransport *transport = transport_new(loop, &spec);
    Py_DECREF(protocol);
    Py_XDECREF(transport);
    return transport == NULL ? -1 : 0;
}

/* The connection as a Python socket, left to loop._accept_by_task(). */
static int
connect_by_task(LoopObject *loop, ListenerObject *self, int fd, struct sockaddr *peer, socklen_t size,
                PyObject *context)
{
    PyObject *sock =
        PyObject_CallFunction(loop->state->socket_socket, "iiii", self->family, self->type, self->proto, fd);
    if (sock == NULL) {
        close(fd);
        return -1;
    }
    PyObject *peername = address_to_python(peer, size);
    PyObject *result = NULL;
    if (peername != NULL) {
        result = PyObject_CallMethod((PyObject *)loop, "_accept_by_task", "OOOOOOO", sock, peername, self->factory,
                                     self->sslcontext, self->server, self->timeouts,
                                     self->context_given ? context : Py_None);
    }
    Py_XDECREF(peername);
    Py_DECREF(sock);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* Has somebody replaced, on this loop, what the standard loop calls for a connection? */
static bool
is_replaced(LoopObject *loop)
{
    if (loop->coro->task_factory != NULL) {
        return true;
    }
    if (loop->dict == NULL || PyDict_GET_SIZE(loop->dict) == 0) {
        return false;
    }
    State *state = loop->state;
    PyObject *names[] = {state->str__accept_connection2, state->str__make_socket_transport, state->str_create_task};
    for (int i = 0; i < 3; i++) {
        int found = PyDict_Contains(loop->dict, names[i]);
        if (found < 0) {
            PyErr_Clear();
        }
        if (found != 0) {
            return true;
        }
    }
    return false;
}

static bool
is_native(LoopObject *loop, ListenerObject *self)
{
    return !loop->debug && self->sslcontext == Py_None && !self->is_overridden && !is_replaced(loop) &&
           (self->family == AF_INET || self->family == AF_INET6 || self->family == AF_UNIX);
}

typedef int (*Connect)(LoopObject *, ListenerObject *, int fd, struct sockaddr *, socklen_t, PyObject *context);

/* Makes a connection of an accepted descriptor. 0, or -1 with an exception: MemoryError, SystemExit, KeyboardInterrupt.
   What else goes wrong costs that connection and is reported in debug mode only, as on the standard loop. */
static int
connect_one(LoopObject *loop, ListenerObject *self, int fd, struct sockaddr *peer, socklen_t size, Connect connect)
{
    /* The standard loop has a task there, which copies. */
    PyObject *context = PyContext_Copy(self->context);
    if (context == NULL || PyContext_Enter(context) < 0) {
        Py_XDECREF(context);
        close(fd);
        return -1;
    }
    int err = connect(loop, self, fd, peer, size, context);
    if (err < 0 && connect == connect_native && !loop_must_propagate()) {
        if (loop->debug) {
            loop_report(loop, "Error on transport creation for incoming connection", NULL);
        }
        PyErr_Clear();
        err = 0;
    }
    PyObject *exc = compat_take_exception();
    if (PyContext_Exit(context) < 0) {
        PyErr_WriteUnraisable(context);
    }
    Py_DECREF(context);
    if (exc != NULL) {
        compat_restore_exception(exc);
    }
    return err;
}

/* The system has no descriptor or memory left: says so, and tries again later. */
static int
pause_accepting(LoopObject *loop, ListenerObject *self, int code)
{
    uverror_raise(code);
    PyObject *exc = compat_take_exception();
    PyObject *wrapped = PyObject_CallOneArg(loop->state->asyncio_TransportSocket, self->sock);
    compat_restore_exception(exc);
    loop_report(loop, "socket.accept() out of system resource", "socket", wrapped, NULL);
    Py_XDECREF(wrapped);
    if (loop->closed || poller_unwatch(loop, self->fd, POLLSET_READ) < 0) {
        return loop_check_open(loop);
    }
    PyObject *delay = PyObject_GetAttrString(loop->state->asyncio_constants, "ACCEPT_RETRY_DELAY");
    PyObject *resume = delay == NULL ? NULL : PyObject_GetAttrString((PyObject *)self, "_resume");
    PyObject *handle =
        resume == NULL ? NULL : PyObject_CallMethod((PyObject *)loop, "call_later", "OOO", delay, resume, loop);
    Py_XDECREF(delay);
    Py_XDECREF(resume);
    Py_XDECREF(handle);
    return handle == NULL ? -1 : 0;
}

/* An error of accept(): 1 to go on, 0 to stop for now, -1 with an exception. */
static int
accept_failed(LoopObject *loop, ListenerObject *self, int code)
{
    switch (-code) {
    case ECONNABORTED:
        return 1;
    case EAGAIN:
#if EWOULDBLOCK != EAGAIN
    case EWOULDBLOCK:
#endif
    case EINTR:
        return 0;
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
        return pause_accepting(loop, self, code);
    default:
        uverror_raise(code);
        return -1;
    }
}

/* A callback may have stopped the server, closed the loop, or put another reader in our place. */
static bool
is_listening(LoopObject *loop, ListenerObject *self)
{
    return poller_has_reader(loop, self->fd, (PyObject *)self);
}

/* -1 when the exception that is set must leave run_forever(). */
static int
report_unless_fatal(LoopObject *loop, ListenerObject *self)
{
    if (loop_must_propagate()) {
        return -1;
    }
    loop_report(loop, "Exception in callback Loop._accept_connection()", "socket", self->sock, NULL);
    return 0;
}

/* ready_run: makes the connection that was accepted first. */
static int
run_accepted(LoopObject *loop, PyObject *owner, PyObject *Py_UNUSED(arg))
{
    ListenerObject *self = ListenerObject_CAST(owner);
    Accepted *accepted = self->first;
    if (accepted == NULL) {
        return 0;
    }
    self->first = accepted->next;
    int err = connect_one(loop, self, accepted->fd, (struct sockaddr *)&accepted->peer, accepted->size, connect_native);
    PyMem_Free(accepted);
    return err < 0 ? report_unless_fatal(loop, self) : 0;
}

/* Has the next turn make the connection; -1 with MemoryError, and then the descriptor is closed. */
static int
connect_soon(LoopObject *loop, ListenerObject *self, int fd, const struct sockaddr_storage *peer, socklen_t size)
{
    Accepted *accepted = PyMem_Malloc(offsetof(Accepted, peer) + size);
    if (accepted == NULL) {
        PyErr_NoMemory();
    }
    if (accepted == NULL || loop_push(loop, run_accepted, (PyObject *)self, NULL) < 0) {
        PyMem_Free(accepted);
        close(fd);
        return -1;
    }
    accepted->next = NULL;
    accepted->fd = fd;
    accepted->size = size;
    memcpy(&accepted->peer, peer, size);
    if (self->first == NULL) {
        self->first = accepted;
    } else {
        self->last->next = accepted;
    }
    self->last = accepted;
    return 0;
}

/* Accepts once: 1 to go on, 0 when nothing is there, -1 with an exception. */
static int
accept_next(LoopObject *loop, ListenerObject *self)
{
    struct sockaddr_storage peer;
    socklen_t size;
    int fd = lowfds_leave(accept_one(self->fd, &peer, &size));
    if (fd < 0) {
        return accept_failed(loop, self, fd);
    }
    transport_check_number(loop, fd);
    size = Py_MIN(size, (socklen_t)sizeof(peer));
    int err = is_native(loop, self) ? connect_soon(loop, self, fd, &peer, size)
                                    : connect_one(loop, self, fd, (struct sockaddr *)&peer, size, connect_by_task);
    return err < 0 ? -1 : 1;
}

/* Is there another connection, or an error for accept() to tell? */
static bool
has_next(ListenerObject *self)
{
    struct pollfd asked = {.fd = self->fd, .events = POLLIN};
    return poll(&asked, 1, 0) != 0;
}

/* ready_run: accepts what is there, up to the backlog. */
static int
run_listener(LoopObject *loop, PyObject *owner, PyObject *Py_UNUSED(arg))
{
    ListenerObject *self = ListenerObject_CAST(owner);
    int go_on = 1;
    for (long i = 0; i <= self->backlog && go_on > 0 && is_listening(loop, self); i++) {
        go_on = i == 0 || i > ASKED_FOR || has_next(self) ? accept_next(loop, self) : 0;
    }
    return go_on < 0 ? report_unless_fatal(loop, self) : 0;
}

/* ---- starting ---- */

static int
watch(LoopObject *loop, ListenerObject *self)
{
    return poller_watch(loop, self->fd, POLLSET_READ, run_listener, (PyObject *)self, NULL);
}

static PyObject *
Listener_resume(PyObject *op, PyObject *loop)
{
    ListenerObject *self = ListenerObject_CAST(op);
    PyObject *number = PyObject_CallMethod(self->sock, "fileno", NULL);
    long fd = number == NULL ? -1 : PyLong_AsLong(number);
    Py_XDECREF(number);
    if (PyErr_Occurred()) {
        return NULL;
    }
    /* The server was closed in the meantime, or the loop. */
    if (fd != self->fd || LoopObject_CAST(loop)->closed) {
        Py_RETURN_NONE;
    }
    return watch(LoopObject_CAST(loop), self) < 0 ? NULL : Py_NewRef(Py_None);
}

/* Reads family, type and proto of the listening socket, which accepted ones inherit. */
static int
inspect(ListenerObject *self)
{
    const char *names[] = {"family", "type", "proto"};
    int *places[] = {&self->family, &self->type, &self->proto};
    for (int i = 0; i < 3; i++) {
        PyObject *value = PyObject_GetAttrString(self->sock, names[i]);
        long number = value == NULL ? -1 : PyLong_AsLong(value);
        Py_XDECREF(value);
        if (number == -1 && PyErr_Occurred()) {
            return -1;
        }
        *places[i] = (int)number;
    }
    self->fd = poller_fd_of(self->sock);
    return self->fd < 0 ? -1 : 0;
}

/* The context in which the standard loop would run its callbacks. */
static int
set_context(ListenerObject *self, PyObject *context)
{
    self->context_given = context != Py_None;
    self->context = self->context_given ? Py_NewRef(context) : PyContext_CopyCurrent();
    if (self->context == NULL) {
        return -1;
    }
    if (!PyContext_CheckExact(self->context)) {
        PyErr_Format(PyExc_TypeError, "context must be a contextvars.Context, not %R", context);
        return -1;
    }
    return 0;
}

static int
note_overrides(ListenerObject *self, LoopObject *loop)
{
    PyObject *natively = PyObject_CallMethodNoArgs((PyObject *)loop, loop->state->str__accepts_natively);
    self->is_overridden = natively == Py_False;
    Py_XDECREF(natively);
    return natively == NULL ? -1 : 0;
}

PyObject *
Loop_start_serving(PyObject *op, PyObject *args, PyObject *kwargs)
{
    if (UNLIKELY(gate_is_shut(LoopObject_CAST(op)->gate))) {
        return gate_call_keywords(LoopObject_CAST(op)->gate, Loop_start_serving, op, args, kwargs);
    }
    static const char *const names[] = {
        "protocol_factory",     "sock",    "sslcontext", "server", "backlog", "ssl_handshake_timeout",
        "ssl_shutdown_timeout", "context", NULL};
    LoopObject *loop = LoopObject_CAST(op);
    PyObject *factory, *sock, *sslcontext = Py_None, *server = Py_None;
    PyObject *handshake = Py_None, *shutdown_timeout = Py_None, *context = Py_None;
    int backlog = 100;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|OOiOOO:_start_serving", (char **)names, &factory, &sock,
                                     &sslcontext, &server, &backlog, &handshake, &shutdown_timeout, &context) ||
        loop_check_open(loop) < 0) {
        return NULL;
    }
    ListenerObject *self = PyObject_GC_New(ListenerObject, loop->state->ListenerType);
    if (self == NULL) {
        return NULL;
    }
    memset((char *)self + sizeof(PyObject), 0, sizeof(ListenerObject) - sizeof(PyObject));
    self->factory = Py_NewRef(factory);
    self->sock = Py_NewRef(sock);
    self->sslcontext = Py_NewRef(sslcontext);
    self->server = Py_NewRef(server);
    self->backlog = backlog;
    PyObject_GC_Track(self);
    self->timeouts = PyTuple_Pack(2, handshake, shutdown_timeout);
    int err = self->timeouts == NULL || set_context(self, context) < 0 || inspect(self) < 0 ||
                      note_overrides(self, loop) < 0 || loop_check_open(loop) < 0
                  ? -1
                  : watch(loop, self);
    Py_DECREF(self);
    return err < 0 ? NULL : Py_NewRef(Py_None);
}

/* ---- the type ---- */

static int
Listener_traverse(PyObject *op, visitproc visit, void *arg)
{
    ListenerObject *self = ListenerObject_CAST(op);
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->factory);
    Py_VISIT(self->sock);
    Py_VISIT(self->sslcontext);
    Py_VISIT(self->server);
    Py_VISIT(self->timeouts);
    Py_VISIT(self->context);
    return 0;
}

static int
Listener_clear(PyObject *op)
{
    ListenerObject *self = ListenerObject_CAST(op);
    Py_CLEAR(self->factory);
    Py_CLEAR(self->sock);
    Py_CLEAR(self->sslcontext);
    Py_CLEAR(self->server);
    Py_CLEAR(self->timeouts);
    Py_CLEAR(self->context);
    return 0;
}

/* The loop was closed before it has made these connections. */
static void
drop_accepted(ListenerObject *self)
{
    while (self->first != NULL) {
        Accepted *accepted = self->first;
        self->first = accepted->next;
        close(accepted->fd);
        PyMem_Free(accepted);
    }
}

static void
Listener_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    drop_accepted(ListenerObject_CAST(op));
    (void)Listener_clear(op);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyMethodDef Listener_methods[] = {
    {"_resume", Listener_resume, METH_O, "_resume($self, loop, /)\n--\n\nAccept again, unless the server was closed."},
    {NULL},
};

static PyType_Slot Listener_slots[] = {
    {Py_tp_doc, (void *)"A listening socket that accepts for asyncio.Server."},
    {Py_tp_traverse, Listener_traverse},
    {Py_tp_clear, Listener_clear},
    {Py_tp_dealloc, Listener_dealloc},
    {Py_tp_methods, Listener_methods},
    {0, NULL},
};

PyType_Spec Listener_spec = {
    .name = "fastloop._core.Listener",
    .basicsize = sizeof(ListenerObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Listener_slots,
};
