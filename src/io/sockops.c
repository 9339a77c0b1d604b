/* loop.sock_recv() and its kin: awaitables that try the system call first and wait only where the kernel refuses it.

   A call with a plain socket and usual arguments makes a SockOp; every other one gets the coroutine of the standard
   selector loop. A SockOp starts when it is awaited, as a coroutine does. While it waits it is the reader or writer of
   its descriptor in the poller, which holds it; whoever takes that place, as a second call or add_reader() does, ends
   the wait without a result, as on the standard loop. */

#include "io/sockops.h"

#include <errno.h>

#include "base/address.h"
#include "base/functions.h"
#include "coro/future.h"
#include "io/pysocket.h"
#include "io/senders.h"

/* Parts of one sock_sendall() that are sent in succession, to a peer that takes them at once. */
enum { SENDS_MAX = 8 };

typedef struct SockOpObject SockOpObject;

/* Tries the system call: 1 with a result, 0 where it would block, -1 with an exception. */
typedef int (*try_call)(SockOpObject *self, PyObject **result);

typedef struct {
    const char *name;
    const char *qualified_name; /* of the standard coroutine */
    unsigned event;
    try_call attempt;
} SockKind;

struct SockOpObject {
    PyObject_HEAD
    const SockKind *kind;
    LoopObject *loop; /* this one and the next three are NULL when finished */
    PyObject *sock;
    PyObject *argument; /* the buffer, the data or the address; or NULL */
    PyObject *address;  /* of sock_sendto(), or NULL */
    PyObject *future;   /* while it waits */
    PyObject *awaiter;  /* the iteration over it */
    Py_buffer view;     /* the data that sock_sendall() is in the middle of; obj is NULL when there is none */
    Py_ssize_t size;    /* bytes wanted */
    Py_ssize_t sent;
    int fd;     /* that it waits for; -1 before */
    bool again; /* it gave way to others: no event will tell that it can go on */
    bool started;
    bool running;
    bool finished;
};

#define SockOpObject_CAST(op) ((SockOpObject *)(op))

/* ---- the system calls ---- */

static bool
would_block(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

/* What a system call that failed means: 0 or -1. */
static int
refused(void)
{
    if (would_block(errno)) {
        return 0;
    }
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

/* What a method of the socket object that returned `result` means; steals it. */
static int
from_method(PyObject *returned, PyObject **result)
{
    *result = returned;
    if (returned != NULL) {
        return 1;
    }
    if (PyErr_ExceptionMatches(PyExc_BlockingIOError) || PyErr_ExceptionMatches(PyExc_InterruptedError)) {
        PyErr_Clear();
        return 0;
    }
    return -1;
}

static int
fd_of(SockOpObject *self)
{
    return SocketObject_CAST(self->sock)->fd;
}

/* The result of a call that returns a value: 1, or -1 where that could not be made. */
static int
done(PyObject *value, PyObject **result)
{
    *result = value;
    return value == NULL ? -1 : 1;
}

/* Where to receive what becomes a bytes object: the buffer of the loop; or one of its own that is returned in `own`
   for more than that holds. NULL with MemoryError. */
static char *
receive_buffer(SockOpObject *self, PyObject **own)
{
    *own = NULL;
    /* The loop may have been closed since the call was made. */
    if (self->size <= IO_RECEIVE_SIZE && LIKELY(self->loop->io != NULL)) {
        return io_receive_buffer(self->loop);
    }
    *own = PyBytes_FromStringAndSize(NULL, self->size);
    return *own == NULL ? NULL : PyBytes_AS_STRING(*own);
}

/* The bytes object for `count` received bytes; takes over `own`. */
static PyObject *
received(const char *buffer, ssize_t count, PyObject *own)
{
    if (own == NULL) {
        return PyBytes_FromStringAndSize(buffer, (Py_ssize_t)count);
    }
    (void)_PyBytes_Resize(&own, (Py_ssize_t)count);
    return own;
}

static int
try_recv(SockOpObject *self, PyObject **result)
{
    if (self->size == 0) {
        /* As the socket module does it: nothing is asked for, nothing is done. */
        return done(PyBytes_FromStringAndSize(NULL, 0), result);
    }
    PyObject *own;
    char *buffer = receive_buffer(self, &own);
    if (buffer == NULL) {
        return -1;
    }
    ssize_t count = recv(fd_of(self), buffer, (size_t)self->size, MSG_DONTWAIT);
    if (count < 0) {
        int error = errno;
        Py_XDECREF(own);
        errno = error;
        return refused();
    }
    if (count > 0) {
        metrics_received(&self->loop->metrics, (size_t)count);
    }
    return done(received(buffer, count, own), result);
}

static int
try_recvfrom(SockOpObject *self, PyObject **result)
{
    struct sockaddr_storage address;
    socklen_t address_size = sizeof(address);
    PyObject *own;
    char *buffer = receive_buffer(self, &own);
    if (buffer == NULL) {
        return -1;
    }
    ssize_t count =
        recvfrom(fd_of(self), buffer, (size_t)self->size, MSG_DONTWAIT, (struct sockaddr *)&address, &address_size);
    if (count < 0) {
        int error = errno;
        Py_XDECREF(own);
        errno = error;
        return refused();
    }
    metrics_received(&self->loop->metrics, (size_t)count);
    PyObject *data = received(buffer, count, own);
    PyObject *sender = data == NULL ? NULL : senders_find(self->loop, &address, address_size);
    PyObject *pair = sender == NULL ? NULL : PyTuple_Pack(2, data, sender);
    Py_XDECREF(data);
    Py_XDECREF(sender);
    return done(pair, result);
}

static int
try_recv_into(SockOpObject *self, PyObject **result)
{
    Py_buffer view;
    if (PyObject_GetBuffer(self->argument, &view, PyBUF_WRITABLE) < 0) {
        return -1;
    }
    ssize_t count = view.len == 0 ? 0 : recv(fd_of(self), view.buf, (size_t)view.len, MSG_DONTWAIT);
    int error = errno;
    PyBuffer_Release(&view);
    errno = error;
    if (count > 0) {
        metrics_received(&self->loop->metrics, (size_t)count);
    }
    return count < 0 ? refused() : done(PyLong_FromSsize_t((Py_ssize_t)count), result);
}

static int
try_recvfrom_into(SockOpObject *self, PyObject **result)
{
    struct sockaddr_storage address;
    socklen_t address_size = sizeof(address);
    Py_buffer view;
    if (PyObject_GetBuffer(self->argument, &view, PyBUF_WRITABLE) < 0) {
        return -1;
    }
    if (self->size > view.len) {
        /* A bytearray has shrunk meanwhile: the socket module has the words for it. */
        PyBuffer_Release(&view);
        PyObject *method = PyUnicode_FromString("recvfrom_into");
        PyObject *size = method == NULL ? NULL : PyLong_FromSsize_t(self->size);
        PyObject *pair =
            size == NULL ? NULL : PyObject_CallMethodObjArgs(self->sock, method, self->argument, size, NULL);
        Py_XDECREF(method);
        Py_XDECREF(size);
        return from_method(pair, result);
    }
    ssize_t count =
        recvfrom(fd_of(self), view.buf, (size_t)self->size, MSG_DONTWAIT, (struct sockaddr *)&address, &address_size);
    int error = errno;
    PyBuffer_Release(&view);
    errno = error;
    if (count < 0) {
        return refused();
    }
    metrics_received(&self->loop->metrics, (size_t)count);
    PyObject *sender = senders_find(self->loop, &address, address_size);
    return done(sender == NULL ? NULL : Py_BuildValue("(nN)", (Py_ssize_t)count, sender), result);
}

static int
try_sendall(SockOpObject *self, PyObject **result)
{
    /* Held until the end of the wait, so that the data can neither change its size nor go. */
    if (self->view.obj == NULL && PyObject_GetBuffer(self->argument, &self->view, PyBUF_SIMPLE) < 0) {
        return -1;
    }
    int sends = 0;
    do {
        if (sends++ == SENDS_MAX) {
            self->again = true;
            return 0;
        }
        const char *rest = (const char *)self->view.buf + self->sent;
        ssize_t count = send(fd_of(self), rest, (size_t)(self->view.len - self->sent), MSG_DONTWAIT);
        if (count < 0) {
            return refused();
        }
        if (count > 0) {
            metrics_sent(&self->loop->metrics, (size_t)count);
        }
        self->sent += (Py_ssize_t)count;
        /* Until it refuses: only then does the kernel tell when there is room again. */
    } while (self->sent < self->view.len);
    return done(Py_NewRef(Py_None), result);
}

static int
try_sendto(SockOpObject *self, PyObject **result)
{
    struct sockaddr_storage target;
    socklen_t target_size = address_from_python(SocketObject_CAST(self->sock)->family, self->address, &target);
    if (target_size == 0) {
        /* The name of a host, a path, or wrong. */
        PyObject *count =
            PyObject_CallMethodObjArgs(self->sock, self->loop->state->str_sendto, self->argument, self->address, NULL);
        return from_method(count, result);
    }
    Py_buffer view;
    if (PySys_Audit("socket.sendto", "OO", self->sock, self->address) < 0 ||
        PyObject_GetBuffer(self->argument, &view, PyBUF_SIMPLE) < 0) {
        return -1;
    }
    ssize_t count =
        sendto(fd_of(self), view.buf, (size_t)view.len, MSG_DONTWAIT, (struct sockaddr *)&target, target_size);
    int error = errno;
    PyBuffer_Release(&view);
    errno = error;
    if (count >= 0) {
        metrics_sent(&self->loop->metrics, (size_t)count);
    }
    return count < 0 ? refused() : done(PyLong_FromSsize_t((Py_ssize_t)count), result);
}

/* Has the connection that was begun been made? */
static int
finish_connect(SockOpObject *self, PyObject **result)
{
    int error = 0;
    socklen_t size = sizeof(error);
    if (getsockopt(fd_of(self), SOL_SOCKET, SO_ERROR, &error, &size) < 0) {
        return refused();
    }
    if (error == 0) {
        return done(Py_NewRef(Py_None), result);
    }
    PyObject *text = PyUnicode_FromFormat("Connect call failed %S", self->argument);
    PyObject *exc = text == NULL ? NULL : PyObject_CallFunction(PyExc_OSError, "iN", error, text);
    if (exc != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        Py_DECREF(exc);
    }
    return -1;
}

static int
try_connect(SockOpObject *self, PyObject **result)
{
    if (self->future != NULL) {
        return finish_connect(self, result);
    }
    return from_method(PyObject_CallMethodOneArg(self->sock, self->loop->state->str_connect, self->argument), result);
}

static int
try_accept(SockOpObject *self, PyObject **result)
{
    State *state = self->loop->state;
    int outcome = from_method(PyObject_CallMethodNoArgs(self->sock, state->str_accept), result);
    if (outcome <= 0) {
        return outcome;
    }
    PyObject *sock = PySequence_GetItem(*result, 0);
    PyObject *set = sock == NULL ? NULL : PyObject_CallMethodOneArg(sock, state->str_setblocking, Py_False);
    Py_XDECREF(sock);
    if (set == NULL) {
        Py_CLEAR(*result);
        return -1;
    }
    Py_DECREF(set);
    return 1;
}

#define KIND(name, event, attempt)                            \
    {                                                         \
#name, "BaseSelectorEventLoop." #name, event, attempt \
    }

static const SockKind RECV = KIND(sock_recv, POLLSET_READ, try_recv);
static const SockKind RECV_INTO = KIND(sock_recv_into, POLLSET_READ, try_recv_into);
static const SockKind RECVFROM = KIND(sock_recvfrom, POLLSET_READ, try_recvfrom);
static const SockKind RECVFROM_INTO = KIND(sock_recvfrom_into, POLLSET_READ, try_recvfrom_into);
static const SockKind SENDALL = KIND(sock_sendall, POLLSET_WRITE, try_sendall);
static const SockKind SENDTO = KIND(sock_sendto, POLLSET_WRITE, try_sendto);
static const SockKind CONNECT = KIND(sock_connect, POLLSET_WRITE, try_connect);
static const SockKind ACCEPT = KIND(sock_accept, POLLSET_READ, try_accept);

/* ---- waiting ---- */

static void
end_wait(SockOpObject *self)
{
    int fd = self->fd;
    self->fd = -1;
    if (fd >= 0 && self->loop != NULL) {
        poller_end_wait(self->loop, fd, self->kind->event, (PyObject *)self);
    }
}

/* Drops everything; keeps the exception that is set. */
static void
finish(SockOpObject *self)
{
    PyObject *exc = compat_take_exception();
    Py_INCREF(self);
    self->finished = true;
    end_wait(self);
    PyBuffer_Release(&self->view);
    Py_CLEAR(self->future);
    Py_CLEAR(self->awaiter);
    Py_CLEAR(self->argument);
    Py_CLEAR(self->address);
    Py_CLEAR(self->sock);
    Py_CLEAR(self->loop);
    Py_DECREF(self);
    if (exc != NULL) {
        compat_restore_exception(exc);
    }
}

/* Is the future done? 1 or 0, or -1 with an exception. */
static int
is_done(State *state, PyObject *future)
{
    if (state->coro->native && future_is_plain(state->coro, future)) {
        return BaseFuture_CAST(future)->state != FUTURE_PENDING;
    }
    return method_truth(future, state->str_done);
}

/* future.set_result(result); -1 with an exception. */
static int
set_result(State *state, PyObject *future, PyObject *result)
{
    int known = state->complete_future(state, future, result);
    if (known != 0) {
        return known < 0 ? -1 : 0;
    }
    PyObject *set = PyObject_CallMethodOneArg(future, state->str_set_result, result);
    Py_XDECREF(set);
    return set == NULL ? -1 : 0;
}

/* future.set_exception() with the exception that is set; -1 with another one. */
static int
set_exception(State *state, PyObject *future)
{
    PyObject *exc = compat_take_exception();
    PyObject *set = PyObject_CallMethodOneArg(future, state->str_set_exception, exc);
    Py_XDECREF(set);
    Py_DECREF(exc);
    return set == NULL ? -1 : 0;
}

/* ready_run: the descriptor is ready. */
static int run_ready(LoopObject *loop, PyObject *owner, PyObject *arg);

static int
push_again(SockOpObject *self)
{
    return self->again ? loop_push(self->loop, run_ready, (PyObject *)self, NULL) : 0;
}

/* Tries again, and hands the outcome to the future. -1 with an exception. */
static int
try_again(SockOpObject *self, State *state, PyObject *future)
{
    PyObject *result = NULL;
    int outcome = is_done(state, future);
    if (outcome != 0) {
        /* Cancelled: what came is for the next one. */
        return outcome < 0 ? -1 : 0;
    }
    self->again = false;
    outcome = self->kind->attempt(self, &result);
    if (outcome == 0) {
        return push_again(self);
    }
    if (outcome < 0 && loop_must_propagate()) {
        return -1;
    }
    int err = outcome > 0 ? set_result(state, future, result) : set_exception(state, future);
    Py_XDECREF(result);
    end_wait(self);
    return err;
}

static int
run_ready(LoopObject *loop, PyObject *owner, PyObject *Py_UNUSED(arg))
{
    SockOpObject *self = SockOpObject_CAST(owner);
    if (self->finished || self->future == NULL || self->running) {
        return 0;
    }
    PyObject *future = Py_NewRef(self->future);
    self->running = true;
    int err = try_again(self, loop->state, future);
    self->running = false;
    Py_DECREF(future);
    if (err < 0) {
        if (loop_must_propagate()) {
            return -1;
        }
        loop_report(loop, "Exception in callback of a socket operation", NULL);
    }
    return 0;
}

/* A call that still waits at this number for a socket that has been closed since: nothing else would ever end it. -1
   with an exception. */
static int
end_stale_wait(LoopObject *loop, int fd, unsigned event)
{
    const PollerEntry *entry = poller_get_entry(loop, fd);
    if (LIKELY(entry == NULL)) {
        return 0;
    }
    const ReadyEntry *record = event == POLLSET_READ ? &entry->reader : &entry->writer;
    if (LIKELY(record->run != run_ready)) {
        return 0;
    }
    SockOpObject *stale = SockOpObject_CAST(record->owner);
    return stale->sock == NULL || fd_of(stale) == fd ? 0 : loop_push(loop, run_ready, (PyObject *)stale, NULL);
}

/* Makes the future and has the poller watch the descriptor. -1 with an exception. */
static int
start_waiting(SockOpObject *self)
{
    State *state = self->loop->state;
    self->future = PyObject_CallMethodNoArgs((PyObject *)self->loop, state->str_create_future);
    int fd = fd_of(self);
    PyObject *number = self->future == NULL ? NULL : PyLong_FromLong(fd);
    int err = number == NULL ? -1 : poller_check_no_transport(self->loop, number, &fd);
    Py_XDECREF(number);
    if (err == 0 && fd < 0) {
        errno = EBADF;
        PyErr_SetFromErrno(PyExc_OSError);
        err = -1;
    }
    /* Python code ran, which may have closed things. */
    if (err < 0 || loop_check_open(self->loop) < 0 || end_stale_wait(self->loop, fd, self->kind->event) < 0 ||
        poller_wait(self->loop, fd, self->kind->event, run_ready, (PyObject *)self, self->sock) < 0) {
        return -1;
    }
    self->fd = fd;
    PyAsyncMethods *methods = Py_TYPE(self->future)->tp_as_async;
    if (methods == NULL || methods->am_await == NULL) {
        PyErr_Format(PyExc_TypeError, "object %.100s can't be used in 'await' expression",
                     Py_TYPE(self->future)->tp_name);
        return -1;
    }
    self->awaiter = methods->am_await(self->future);
    return self->awaiter == NULL ? -1 : push_again(self);
}

/* ---- what a coroutine does ---- */

/* The start: RETURN with a result at once, NEXT where it has to wait. */
static PySendResult
start(SockOpObject *self, PyObject **result)
{
    self->started = self->running = true;
    int outcome = self->kind->attempt(self, result);
    if (outcome == 0 && start_waiting(self) < 0) {
        outcome = -1;
    }
    self->running = false;
    return outcome < 0 ? PYGEN_ERROR : outcome == 0 ? PYGEN_NEXT : PYGEN_RETURN;
}

/* What send() does, inside the gate. */
static PySendResult
advance(SockOpObject *self, PyObject *value, PyObject **result)
{
    *result = NULL;
    if (UNLIKELY(self->running)) {
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
        return PYGEN_ERROR;
    }
    if (UNLIKELY(self->finished)) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return PYGEN_ERROR;
    }
    PySendResult sent = PYGEN_NEXT;
    if (!self->started) {
        if (UNLIKELY(value != NULL && value != Py_None)) {
            PyErr_SetString(PyExc_TypeError, "can't send non-None value to a just-started coroutine");
            return PYGEN_ERROR;
        }
        sent = start(self, result);
    }
    if (sent == PYGEN_NEXT) {
        PyObject *awaiter = Py_NewRef(self->awaiter);
        self->running = true;
        sent = PyIter_Send(awaiter, Py_None, result);
        self->running = false;
        Py_DECREF(awaiter);
    }
    if (sent != PYGEN_NEXT) {
        finish(self);
    }
    return sent;
}

/* Borrowed; NULL where there is a GIL, and for one that is finished, which has no loop any more. */
static GateObject *
gate_of(SockOpObject *self)
{
    return !HAVE_FREE_THREADING || self->loop == NULL ? NULL : self->loop->gate;
}

static PySendResult
SockOp_am_send(PyObject *op, PyObject *value, PyObject **result)
{
    SockOpObject *self = SockOpObject_CAST(op);
    GateObject *gate = gate_of(self);
    if (LIKELY(!gate_is_shut(gate))) {
        return advance(self, value, result);
    }
    PySendResult sent;
    /* The end of the call drops the loop. */
    Py_INCREF(gate);
    FL_BEGIN_CRITICAL_SECTION(gate);
    sent = advance(self, value, result);
    FL_END_CRITICAL_SECTION();
    Py_DECREF(gate);
    return sent;
}

static PyObject *
SockOp_await(PyObject *op)
{
    if (UNLIKELY(SockOpObject_CAST(op)->awaiter != NULL)) {
        PyErr_SetString(PyExc_RuntimeError, "coroutine is being awaited already");
        return NULL;
    }
    return Py_NewRef(op);
}

/* Raises StopIteration(value); steals it. */
static PyObject *
stop_with(PyObject *value)
{
    PyObject *exc = PyObject_CallOneArg(PyExc_StopIteration, value);
    Py_DECREF(value);
    if (exc != NULL) {
        PyErr_SetObject(PyExc_StopIteration, exc);
        Py_DECREF(exc);
    }
    return NULL;
}

static PyObject *
SockOp_iternext(PyObject *op)
{
    PyObject *result;
    if (SockOp_am_send(op, Py_None, &result) != PYGEN_RETURN) {
        return result;
    }
    if (result == Py_None) {
        Py_DECREF(result);
        return NULL;
    }
    return stop_with(result);
}

static PyObject *
SockOp_send(PyObject *op, PyObject *value)
{
    PyObject *result;
    return SockOp_am_send(op, value, &result) == PYGEN_RETURN ? stop_with(result) : result;
}

/* Raises what throw(type, value, traceback) or throw(value) is given. */
static void
raise_given(PyObject *type, PyObject *value, PyObject *traceback)
{
    if (PyExceptionInstance_Check(type)) {
        value = type;
        type = PyExceptionInstance_Class(value);
    } else if (!PyExceptionClass_Check(type)) {
        PyErr_Format(PyExc_TypeError, "exceptions must be classes or instances deriving from BaseException, not %s",
                     Py_TYPE(type)->tp_name);
        return;
    }
    if (traceback != NULL && traceback != Py_None && !PyTraceBack_Check(traceback)) {
        PyErr_SetString(PyExc_TypeError, "throw() third argument must be a traceback object");
        return;
    }
    traceback = traceback == Py_None ? NULL : traceback;
    PyErr_Restore(Py_NewRef(type), Py_XNewRef(value == Py_None ? NULL : value), Py_XNewRef(traceback));
}

static PyObject *
SockOp_throw(PyObject *op, PyObject *args)
{
    SockOpObject *self = SockOpObject_CAST(op);
    GateObject *gate = gate_of(self);
    if (UNLIKELY(gate_is_shut(gate))) {
        return gate_call(gate, SockOp_throw, op, args);
    }
    PyObject *type, *value = NULL, *traceback = NULL;
    if (!PyArg_UnpackTuple(args, "throw", 1, 3, &type, &value, &traceback)) {
        return NULL;
    }
    if (self->running) {
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
        return NULL;
    }
    if (self->finished) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return NULL;
    }
    if (!self->started) {
        self->started = true;
        raise_given(type, value, traceback);
        finish(self);
        return NULL;
    }
    PyObject *awaiter = Py_NewRef(self->awaiter);
    PyObject *method = PyObject_GetAttr(awaiter, self->loop->state->str_throw);
    self->running = true;
    PyObject *result = method == NULL ? NULL : PyObject_Call(method, args, NULL);
    self->running = false;
    Py_XDECREF(method);
    Py_DECREF(awaiter);
    if (result == NULL) {
        finish(self);
    }
    return result;
}

static PyObject *
SockOp_close(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    SockOpObject *self = SockOpObject_CAST(op);
    GateObject *gate = gate_of(self);
    if (UNLIKELY(gate_is_shut(gate))) {
        return gate_call(gate, SockOp_close, op, NULL);
    }
    if (self->running) {
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
        return NULL;
    }
    self->started = true;
    if (!self->finished) {
        finish(self);
    }
    Py_RETURN_NONE;
}

static PyObject *
get_name(PyObject *op, void *Py_UNUSED(closure))
{
    return PyUnicode_FromString(SockOpObject_CAST(op)->kind->name);
}

static PyObject *
get_qualified_name(PyObject *op, void *Py_UNUSED(closure))
{
    return PyUnicode_FromString(SockOpObject_CAST(op)->kind->qualified_name);
}

/* ---- life of the object ---- */

static void
SockOp_finalize(PyObject *op)
{
    SockOpObject *self = SockOpObject_CAST(op);
    if (self->started) {
        return;
    }
    self->started = true;
    PyObject *exc = compat_take_exception();
    const char *name = self->kind->qualified_name;
    if (PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "coroutine '%s' was never awaited", name) < 0) {
        PyErr_WriteUnraisable(op);
    }
    if (exc != NULL) {
        compat_restore_exception(exc);
    }
}

static int
SockOp_traverse(PyObject *op, visitproc visit, void *arg)
{
    SockOpObject *self = SockOpObject_CAST(op);
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->loop);
    Py_VISIT(self->sock);
    Py_VISIT(self->argument);
    Py_VISIT(self->address);
    Py_VISIT(self->future);
    Py_VISIT(self->awaiter);
    return 0;
}

static int
SockOp_clear(PyObject *op)
{
    finish(SockOpObject_CAST(op));
    return 0;
}

static void
SockOp_dealloc(PyObject *op)
{
    SockOpObject *self = SockOpObject_CAST(op);
    if (UNLIKELY(!self->started) && PyObject_CallFinalizerFromDealloc(op) < 0) {
        return;
    }
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    PyBuffer_Release(&self->view);
    Py_XDECREF(self->future);
    Py_XDECREF(self->awaiter);
    Py_XDECREF(self->argument);
    Py_XDECREF(self->address);
    Py_XDECREF(self->sock);
    Py_XDECREF((PyObject *)self->loop);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyMethodDef SockOp_methods[] = {
    {"send", SockOp_send, METH_O, "send($self, value, /)\n--\n\nResume; the value must be None."},
    {"throw", SockOp_throw, METH_VARARGS,
     "throw($self, type, value=None, traceback=None, /)\n--\n\nRaise an exception where it waits, which ends it."},
    {"close", SockOp_close, METH_NOARGS, "close($self, /)\n--\n\nWait no longer."},
    {NULL},
};

static PyGetSetDef SockOp_getset[] = {
    {"__name__", get_name, NULL, NULL, NULL},
    {"__qualname__", get_qualified_name, NULL, NULL, NULL},
    {NULL},
};

static PyType_Slot SockOp_slots[] = {
    {Py_tp_doc, "What loop.sock_recv() and its kin return: an awaitable that behaves as their coroutine does."},
    {Py_am_await, SockOp_await},
    {Py_am_send, SockOp_am_send},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, SockOp_iternext},
    {Py_tp_methods, SockOp_methods},
    {Py_tp_getset, SockOp_getset},
    {Py_tp_finalize, SockOp_finalize},
    {Py_tp_traverse, SockOp_traverse},
    {Py_tp_clear, SockOp_clear},
    {Py_tp_dealloc, SockOp_dealloc},
    {0, NULL},
};

PyType_Spec SockOp_spec = {
    .name = "fastloop._core.SockOp",
    .basicsize = sizeof(SockOpObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = SockOp_slots,
};

/* ---- methods of the loop ---- */

/* The coroutine of the standard loop's method. */
static PyObject *
call_standard(LoopObject *loop, const SockKind *kind, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    enum { MOST = 8 };
    PyObject *stack[MOST] = {(PyObject *)loop};
    Py_ssize_t total = nargs + (kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames));
    if (total >= MOST) {
        PyErr_Format(PyExc_TypeError, "%s() got too many arguments", kind->name);
        return NULL;
    }
    for (Py_ssize_t i = 0; i < total; i++) {
        stack[i + 1] = args[i];
    }
    PyObject *method = PyObject_GetAttrString(loop->state->stock_SelectorLoop, kind->name);
    PyObject *result = method == NULL ? NULL : PyObject_Vectorcall(method, stack, (size_t)nargs + 1, kwnames);
    Py_XDECREF(method);
    return result;
}

/* In debug mode the standard coroutine checks more. */
static bool
is_native(LoopObject *loop, PyObject *sock)
{
    return loop->io != NULL && !loop->io->no_native_sockets && !loop->debug && io_may_touch(loop) &&
           pysocket_is_plain(loop, sock);
}

/* New SockOp; `argument` and `address` may be NULL. */
static PyObject *
make(LoopObject *loop, const SockKind *kind, PyObject *sock, PyObject *argument, PyObject *address, Py_ssize_t size)
{
    PyTypeObject *type = loop->state->SockOpType;
    SockOpObject *self = PyObject_GC_New(SockOpObject, type);
    if (self == NULL) {
        return NULL;
    }
    self->kind = kind;
    self->loop = (LoopObject *)Py_NewRef(loop);
    self->sock = Py_NewRef(sock);
    self->argument = Py_XNewRef(argument);
    self->address = Py_XNewRef(address);
    self->future = self->awaiter = self->view.obj = NULL;
    self->size = size;
    self->sent = 0;
    self->fd = -1;
    self->again = self->started = self->running = self->finished = false;
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

/* A number of bytes that the socket module takes; -1 for everything else. */
static Py_ssize_t
byte_count(PyObject *value)
{
    int overflow = 0;
    long number = PyLong_CheckExact(value) ? PyLong_AsLongAndOverflow(value, &overflow) : -1;
    return overflow != 0 || number > INT_MAX ? -1 : number;
}

/* The length of a buffer of single bytes in one piece, as len() has it; -1 for everything else. */
static Py_ssize_t
buffer_length(PyObject *value, bool writable)
{
    if (PyBytes_CheckExact(value)) {
        return writable ? -1 : PyBytes_GET_SIZE(value);
    }
    if (PyByteArray_CheckExact(value)) {
        return PyByteArray_GET_SIZE(value);
    }
    if (!PyMemoryView_Check(value)) {
        return -1;
    }
    const Py_buffer *view = PyMemoryView_GET_BUFFER(value);
    bool fits = view->buf != NULL && view->ndim == 1 && view->itemsize == 1 && PyBuffer_IsContiguous(view, 'C') &&
                !(writable && view->readonly);
    return fits ? view->len : -1;
}

/* Can senders.h show the addresses of this socket's family? */
static bool
knows_addresses(PyObject *sock)
{
    int family = SocketObject_CAST(sock)->family;
    return family == AF_INET || family == AF_INET6 || family == AF_UNIX;
}

PyObject *
Loop_sock_recv(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    LoopObject *loop = LoopObject_CAST(op);
    if (LIKELY(nargs == 2 && kwnames == NULL && is_native(loop, args[0]))) {
        Py_ssize_t size = byte_count(args[1]);
        if (size >= 0) {
            return make(loop, &RECV, args[0], NULL, NULL, size);
        }
    }
    return call_standard(loop, &RECV, args, nargs, kwnames);
}

PyObject *
Loop_sock_recv_into(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    LoopObject *loop = LoopObject_CAST(op);
    if (nargs == 2 && kwnames == NULL && is_native(loop, args[0]) && buffer_length(args[1], true) >= 0) {
        return make(loop, &RECV_INTO, args[0], args[1], NULL, 0);
    }
    return call_standard(loop, &RECV_INTO, args, nargs, kwnames);
}

PyObject *
Loop_sock_recvfrom(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    LoopObject *loop = LoopObject_CAST(op);
    if (nargs == 2 && kwnames == NULL && is_native(loop, args[0]) && knows_addresses(args[0])) {
        Py_ssize_t size = byte_count(args[1]);
        if (size >= 0) {
            return make(loop, &RECVFROM, args[0], NULL, NULL, size);
        }
    }
    return call_standard(loop, &RECVFROM, args, nargs, kwnames);
}

PyObject *
Loop_sock_recvfrom_into(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    LoopObject *loop = LoopObject_CAST(op);
    if ((nargs == 2 || nargs == 3) && kwnames == NULL && is_native(loop, args[0]) && knows_addresses(args[0])) {
        Py_ssize_t length = buffer_length(args[1], true);
        Py_ssize_t size = nargs == 3 ? byte_count(args[2]) : 0;
        if (length >= 0 && size >= 0 && size <= length) {
            return make(loop, &RECVFROM_INTO, args[0], args[1], NULL, size == 0 ? length : size);
        }
    }
    return call_standard(loop, &RECVFROM_INTO, args, nargs, kwnames);
}

PyObject *
Loop_sock_sendall(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    LoopObject *loop = LoopObject_CAST(op);
    if (LIKELY(nargs == 2 && kwnames == NULL && is_native(loop, args[0]) && buffer_length(args[1], false) >= 0)) {
        return make(loop, &SENDALL, args[0], args[1], NULL, 0);
    }
    return call_standard(loop, &SENDALL, args, nargs, kwnames);
}

PyObject *
Loop_sock_sendto(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    LoopObject *loop = LoopObject_CAST(op);
    if (nargs == 3 && kwnames == NULL && is_native(loop, args[0]) && buffer_length(args[1], false) >= 0) {
        return make(loop, &SENDTO, args[0], args[1], args[2], 0);
    }
    return call_standard(loop, &SENDTO, args, nargs, kwnames);
}

/* Names are resolved by the standard coroutine. */
PyObject *
Loop_sock_connect(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    LoopObject *loop = LoopObject_CAST(op);
    struct sockaddr_storage address;
    if (nargs == 2 && kwnames == NULL && is_native(loop, args[0]) &&
        address_from_python(SocketObject_CAST(args[0])->family, args[1], &address) > 0) {
        return make(loop, &CONNECT, args[0], args[1], NULL, 0);
    }
    return call_standard(loop, &CONNECT, args, nargs, kwnames);
}

PyObject *
Loop_sock_accept(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    LoopObject *loop = LoopObject_CAST(op);
    if (nargs == 1 && kwnames == NULL && is_native(loop, args[0])) {
        return make(loop, &ACCEPT, args[0], NULL, NULL, 0);
    }
    return call_standard(loop, &ACCEPT, args, nargs, kwnames);
}

PyObject *
Loop_set_native_sockets(PyObject *op, PyObject *flag)
{
    LoopObject *loop = LoopObject_CAST(op);
    int truth = PyObject_IsTrue(flag);
    if (truth < 0) {
        return NULL;
    }
    if (loop->io != NULL) {
        loop->io->no_native_sockets = truth == 0;
    }
    Py_RETURN_NONE;
}
