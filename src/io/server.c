/* Listener: a listening socket that accepts for asyncio.Server.

   It is a reader of the poller, so it runs in its place in the ready queue as the standard loop's _accept_connection()
   does. A plain connection is made here, from a bare descriptor, one turn later as by the standard loop's task; TLS, debug
   mode and families that only the socket module knows go through the coroutine of the running Python,
   loop._accept_by_task().

   A listener lives in the poller's table; whoever takes it out of there ends it. */

#include "io/server.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/lowfds.h"
#include "base/uverror.h"
#include "io/io.h"
#include "io/transport.h"

typedef struct {
    PyObject_HEAD
    PyObject *factory;
    PyObject *sock;       /* the listening Python socket */
    PyObject *sslcontext; /* None without TLS */
    PyObject *server;     /* None without one */
    PyObject *timeouts;   /* (handshake, shutdown), for TLS */
    PyObject *context;    /* a copy of the one that started serving, or the one that was asked for */
    bool context_given;   /* 3.15: every callback of a connection runs in one copy of it */
    unsigned singles;     /* wake-ups that shall accept one connection each, after a call that was in vain */
    unsigned singles_left;
    unsigned turn;    /* of the last wake-up */
    unsigned waiting; /* connections that were accepted and have no transport yet */
    bool may_be_more; /* that wake-up accepted one connection and did not look for another */
    int fd;
    int backlog;
    int family;
    int type;
    int proto;
} ListenerObject;

enum {
    /* Odd, as 2 n + 1 reaches it. */
    SINGLES_MAX = 63,
    /* No more than this pass between two polls. */
    TURNS_UNPOLLED = 16,
};

#define ListenerObject_CAST(op) ((ListenerObject *)(op))

/* A connection in the turn between accept() and its transport. */
typedef struct {
    int fd;
    socklen_t peer_size;
    struct sockaddr_storage peer;
} Accepted;

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

static bool
is_native(LoopObject *loop, ListenerObject *self)
{
    return !loop->debug && self->sslcontext == Py_None &&
           (self->family == AF_INET || self->family == AF_INET6 || self->family == AF_UNIX);
}

/* Makes a connection of an accepted descriptor. 0, or -1 with an exception: MemoryError, SystemExit, KeyboardInterrupt.
   What else goes wrong costs that connection and is reported in debug mode only, as on the standard loop. */
static int
connect_one(LoopObject *loop, ListenerObject *self, int fd, struct sockaddr *peer, socklen_t size)
{
    /* The standard loop has a task there, which copies. */
    PyObject *context = PyContext_Copy(self->context);
    if (context == NULL || PyContext_Enter(context) < 0) {
        Py_XDECREF(context);
        close(fd);
        return -1;
    }
    int err = is_native(loop, self) ? connect_native(loop, self, fd, peer, size, context)
                                    : connect_by_task(loop, self, fd, peer, size, context);
    if (err < 0 && !loop_must_propagate()) {
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

/* A loop that is closed in between drops it. */
static void
on_accepted_dropped(PyObject *capsule)
{
    Accepted *accepted = PyCapsule_GetPointer(capsule, NULL);
    if (accepted->fd >= 0) {
        close(accepted->fd);
    }
    PyMem_Free(accepted);
}

/* ready_run: `arg` is a capsule of an Accepted. */
static int
run_accepted(LoopObject *loop, PyObject *owner, PyObject *arg)
{
    ListenerObject *self = ListenerObject_CAST(owner);
    Accepted *accepted = PyCapsule_GetPointer(arg, NULL);
    self->waiting--;
    int fd = accepted->fd;
    accepted->fd = -1;
    return connect_one(loop, self, fd, (struct sockaddr *)&accepted->peer, accepted->peer_size);
}

/* Has connect_one() called in the next turn, when the standard loop's task takes its first step. -1 with an exception. */
static int
connect_soon(LoopObject *loop, ListenerObject *self, int fd, const struct sockaddr_storage *peer, socklen_t size)
{
    Accepted *accepted = PyMem_Malloc(sizeof(*accepted));
    if (accepted == NULL) {
        close(fd);
        PyErr_NoMemory();
        return -1;
    }
    *accepted = (Accepted){.fd = fd, .peer_size = size, .peer = *peer};
    PyObject *capsule = PyCapsule_New(accepted, NULL, on_accepted_dropped);
    if (capsule == NULL) {
        close(fd);
        PyMem_Free(accepted);
        return -1;
    }
    int err = loop_push(loop, run_accepted, (PyObject *)self, capsule);
    Py_DECREF(capsule);
    if (err == 0) {
        self->waiting++;
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

/* Accepts once: 1 to go on, 0 when nothing is there, -1 with an exception. */
static int
accept_next(LoopObject *loop, ListenerObject *self, bool at_once)
{
    struct sockaddr_storage peer;
    socklen_t size;
    int fd = lowfds_leave(accept_one(self->fd, &peer, &size));
    if (fd < 0) {
        return accept_failed(loop, self, fd);
    }
    /* What is not made here takes a task, which begins in the next turn by itself. */
    int err = at_once || !is_native(loop, self) ? connect_one(loop, self, fd, (struct sockaddr *)&peer, size)
                                                : connect_soon(loop, self, fd, &peer, size);
    return err < 0 ? -1 : 1;
}

/* How many connections to accept in this wake-up: as the standard loop until none is left, but the call that finds that
   out costs as much as the one before it. Where connections come one at a time it is left out, and the next poll
   tells whether there is another; more and more seldom it is tried whether they have begun to come in crowds. When one
   turn after the other finds one it is soon tried: a crowd must not wait a turn for each. Only natively, where
   Loop_accept_rest() can make up for it, and not where clients in the same loop can tell in which turn they were
   accepted. */
static long
connections_to_expect(LoopObject *loop, ListenerObject *self)
{
    unsigned turn = loop->io->turn;
    if (turn - self->turn == 1) {
        self->singles_left /= 2;
    }
    self->turn = turn;
    bool may_leave_some = is_native(loop, self) && !loop->io->no_native_servers && !loop->io->serves_itself;
    if (self->singles_left > 0 && may_leave_some) {
        self->singles_left--;
        return 1;
    }
    return (long)self->backlog + 1;
}

static void
note_accepted(ListenerObject *self, long accepted)
{
    self->singles = accepted > 1 ? 0 : Py_MIN(2 * self->singles + 1, SINGLES_MAX);
    self->singles_left = self->singles;
}

/* Accepts until nothing is left, or `most` are; how many. -1 with an exception that the loop must not swallow. */
static long
accept_up_to(LoopObject *loop, ListenerObject *self, long most, bool at_once)
{
    long accepted = 0;
    int go_on = 1;
    while (accepted < most && go_on > 0 && is_listening(loop, self)) {
        go_on = accept_next(loop, self, at_once);
        accepted += go_on > 0;
    }
    if (go_on < 0) {
        if (loop_must_propagate()) {
            return -1;
        }
        loop_report(loop, "Exception in callback Loop._accept_connection()", "socket", self->sock, NULL);
    }
    return accepted;
}

/* ready_run: accepts what is there, up to the backlog. */
static int
run_listener(LoopObject *loop, PyObject *owner, PyObject *Py_UNUSED(arg))
{
    ListenerObject *self = ListenerObject_CAST(owner);
    self->may_be_more = false;
    long expected = connections_to_expect(loop, self);
    long accepted = accept_up_to(loop, self, expected, false);
    if (expected > 1) {
        note_accepted(self, Py_MAX(accepted, 0));
    }
    self->may_be_more = expected == 1 && accepted == 1;
    return accepted < 0 ? -1 : 0;
}

/* ---- stopping ---- */

/* _accept_rest(fd), before a listening socket is closed: a connection that came together with the last one belongs to the
   server, for the standard loop would have accepted it by now. */
PyObject *
Loop_accept_rest(PyObject *op, PyObject *number)
{
    LoopObject *loop = LoopObject_CAST(op);
    if (UNLIKELY(gate_is_shut(loop->gate))) {
        return gate_call(loop->gate, Loop_accept_rest, op, number);
    }
    long fd = PyLong_AsLong(number);
    if (fd == -1 && PyErr_Occurred()) {
        return NULL;
    }
    /* Another thread must neither touch libuv nor call the factory. */
    bool may_accept = !loop->closed && io_may_touch(loop) && fd >= 0 && fd <= INT_MAX;
    const PollerEntry *entry = may_accept ? poller_get_entry(loop, (int)fd) : NULL;
    if (entry == NULL || entry->reader.owner == NULL || !Py_IS_TYPE(entry->reader.owner, loop->state->ListenerType)) {
        Py_RETURN_NONE;
    }
    ListenerObject *self = (ListenerObject *)Py_NewRef(entry->reader.owner);
    long accepted = 0;
    if (self->may_be_more && loop->io->turn - self->turn <= TURNS_UNPOLLED && is_native(loop, self)) {
        self->may_be_more = false;
        /* A factory may close another server. */
        PyObject *outer = loop->io->late_server;
        loop->io->late_server = self->server;
        /* As far as the one that they came with. */
        accepted = accept_up_to(loop, self, self->backlog, self->waiting == 0);
        if (loop->io != NULL) {
            loop->io->late_server = outer;
        }
    }
    Py_DECREF(self);
    return accepted < 0 ? NULL : Py_NewRef(Py_None);
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
    int err = self->timeouts == NULL || set_context(self, context) < 0 || inspect(self) < 0 || loop_check_open(loop) < 0
                  ? -1
                  : watch(loop, self);
    Py_DECREF(self);
    if (err < 0) {
        return NULL;
    }
    loop->io->has_served = true;
    Py_RETURN_NONE;
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

static void
Listener_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
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
