/* Writing: bytes of one turn leave together when it ends.

   While nothing is in flight, `queue` holds bytes that the kernel was not offered yet; they do not count as buffered.
   What it does not take goes into one uv_write of limited size, and from then on `queue` waits behind that. When that
   write is done the rest is tried again. */

#include "io/transport.h"

#include <errno.h>

#include "base/functions.h"
#include "base/uverror.h"
#include "io/tls.h"

enum {
    /* Do not gather more than this before the kernel is offered it. */
    FLUSH_AT = 16 * 1024,
    /* The size of one write in flight: the progress of more than the default high-water mark would show too late. */
    IN_FLIGHT = 256 * 1024,
    MAX_BUFFERS = 512,
};

/* ---- sending ---- */

size_t
transport_buffer_size(SocketTransport *self)
{
    if (!self->writing || self->stream == NULL || self->conn_lost) {
        return 0;
    }
    return uv_stream_get_write_queue_size(&self->stream->uv.stream) + self->queue.size_bytes;
}

void
transport_drop_output(SocketTransport *self)
{
    TlsConnection *tls = self->secured ? tls_of(self->state, self->protocol) : NULL;
    if (tls != NULL) {
        tls_drop_plain(tls);
    }
    chunks_clear(&self->queue);
}

/* Offers the queue to the kernel: 0 with an empty queue, UV_EAGAIN when it is full, or another negative code. */
static int
try_queue(SocketTransport *self)
{
    while (self->queue.count > 0) {
        uv_buf_t buffers[MAX_BUFFERS];
        unsigned count = chunks_describe(&self->queue, buffers, MAX_BUFFERS);
        size_t offered = 0;
        for (unsigned i = 0; i < count; i++) {
            offered += buffers[i].len;
        }
        ssize_t written = stream_send(self->fd, buffers, count);
        if (written < 0) {
            return (int)written;
        }
        metrics_sent(&self->loop->metrics, (size_t)written);
        chunks_consume_into(&self->queue, (size_t)written, &self->loop->io->bytes);
        if ((size_t)written < offered) {
            return UV_EAGAIN;
        }
    }
    return 0;
}

void
transport_send_last(SocketTransport *self)
{
    TlsConnection *tls = self->secured ? tls_of(self->state, self->protocol) : NULL;
    if (tls != NULL) {
        tls_seal_rest(tls);
    }
    if (!self->writing && transport_takes_output(self) && self->queue.count > 0) {
        (void)try_queue(self);
    }
    transport_drop_output(self);
}

int
transport_sending_failed(SocketTransport *self, int code)
{
    if (code == UV_EBADF || code == UV_ENOTSOCK) {
        transport_lose_descriptor(self);
        return 0;
    }
    transport_drop_output(self);
    uverror_raise(code);
    return transport_fail(self, "Fatal write error on socket transport");
}

int
transport_flush(SocketTransport *self)
{
    if (self->writing || self->queue.count == 0) {
        return 0;
    }
    int err = self->stream == NULL ? UV_ECANCELED : try_queue(self);
    if (err == UV_EAGAIN) {
        err = stream_write(self->stream, &self->queue, IN_FLIGHT);
        if (err == 0) {
            self->writing = true;
            transport_hold(self, HOLD_WRITING);
            return 0;
        }
    }
    return UNLIKELY(err < 0) ? transport_sending_failed(self, err) : 0;
}

ssize_t
transport_try_send(SocketTransport *self, const char *data, size_t size)
{
    if (self->writing || self->queue.count > 0 || self->stream == NULL || self->conn_lost) {
        return 0;
    }
    uv_buf_t buffer = uv_buf_init((char *)data, (unsigned)size);
    ssize_t sent = stream_send(self->fd, &buffer, 1);
    if (sent > 0) {
        metrics_sent(&self->loop->metrics, (size_t)sent);
    }
    return sent == UV_EAGAIN ? 0 : sent;
}

/* shutdown(SHUT_WR); -1 with OSError. */
static int
shut_down_writing(SocketTransport *self)
{
    if (self->stream != NULL && shutdown(self->fd, SHUT_WR) < 0) {
        uverror_raise(-errno);
        return -1;
    }
    return 0;
}

int
transport_finish_waiter(SocketTransport *self, PyObject *exc)
{
    if (self->empty_waiter == NULL) {
        return 0;
    }
    PyObject *waiter = Py_NewRef(self->empty_waiter);
    int done = method_truth(waiter, self->state->str_done);
    PyObject *result = NULL;
    if (done == 0) {
        result = exc == NULL ? PyObject_CallMethod(waiter, "set_result", "(O)", Py_None)
                             : PyObject_CallMethod(waiter, "set_exception", "(O)", exc);
    }
    Py_DECREF(waiter);
    int err = done > 0 || result != NULL ? 0 : -1;
    Py_XDECREF(result);
    return err;
}

int
transport_drained(SocketTransport *self)
{
    if (transport_has_output(self)) {
        return 0;
    }
    if (transport_finish_waiter(self, NULL) < 0) {
        return -1;
    }
    if (self->closing) {
        if (self->conn_lost) {
            return 0;
        }
        self->conn_lost = 1;
        return transport_schedule_lost(self, Py_None);
    }
    if (self->shutdown_due) {
        self->shutdown_due = false;
        return shut_down_writing(self);
    }
    return 0;
}

/* transport_drained() where there is no caller to raise to. */
static void
drained_or_report(SocketTransport *self, LoopObject *loop)
{
    if (transport_drained(self) < 0) {
        loop_report(loop, "Exception in callback SocketTransport._write_ready()", "transport", self, NULL);
    }
}

/* The write in flight failed: ends the connection, and whoever waits for the buffer to empty. */
static int
write_failed(SocketTransport *self, int code)
{
    PyObject *exc = uverror_new(code);
    if (exc == NULL) {
        return transport_fail(self, "Fatal write error on socket transport");
    }
    transport_drop_output(self);
    compat_restore_exception(Py_NewRef(exc));
    int err = transport_fail(self, "Fatal write error on socket transport");
    if (err == 0 && transport_finish_waiter(self, exc) < 0) {
        err = transport_fail(self, "Fatal write error on socket transport");
    }
    Py_DECREF(exc);
    return err;
}

/* -1 with SystemExit or KeyboardInterrupt. */
static int
finish_write(SocketTransport *self, LoopObject *loop, int status)
{
    self->writing = false;
    transport_release(self, HOLD_WRITING);
    int err = 0;
    if (!self->conn_lost) {
        PyObject *entered = transport_enter_context(self->write_context != NULL ? self->write_context : self->context);
        err = status < 0 ? write_failed(self, status) : transport_flush(self);
        if (err == 0 && !self->conn_lost) {
            err = transport_maybe_resume(self);
        }
        if (err == 0 && !self->conn_lost) {
            drained_or_report(self, loop);
        }
        transport_leave_context(entered);
    }
    if (!self->writing) {
        Py_CLEAR(self->write_context);
    }
    return err;
}

/* ready_run: a write is done, `arg` is its status. */
static int
run_written(LoopObject *loop, PyObject *owner, PyObject *arg)
{
    return finish_write(SocketTransport_CAST(owner), loop, (int)PyLong_AsLong(arg));
}

/* Has the end of a write wait for what is ready to run, as on the standard loop; false without memory. */
static bool
put_off_written(SocketTransport *self, LoopObject *loop, int status)
{
    PyObject *number = PyLong_FromLong(status);
    int err = number == NULL ? -1 : loop_push(loop, run_written, (PyObject *)self, number);
    Py_XDECREF(number);
    if (err < 0) {
        PyErr_Clear();
    }
    return err == 0;
}

void
transport_written(SocketTransport *self, int status)
{
    LoopObject *loop = (LoopObject *)Py_NewRef(self->loop);
    Py_INCREF(self);
    if (!io_poll_queues(loop) || !put_off_written(self, loop, status)) {
        if (finish_write(self, loop, status) < 0) {
            loop_raise_later(loop);
        }
    }
    Py_DECREF(self);
    Py_DECREF(loop);
}

/* ---- the end of the turn ---- */

int
transport_encrypt(SocketTransport *self, bool at_once)
{
    TlsConnection *tls = tls_of(self->state, self->protocol);
    if (tls == NULL) {
        return 0;
    }
    Py_INCREF(tls);
    PyObject *entered = transport_enter_context(self->context);
    int err = tls_encrypt(tls, at_once);
    if (err < 0) {
        err = transport_fail(self, "Fatal write error on socket transport");
    }
    transport_leave_context(entered);
    Py_DECREF(tls);
    return err;
}

static void
link_flush(SocketTransport *self)
{
    if (self->hold & HOLD_FLUSH) {
        return;
    }
    struct IoPart *io = self->loop->io;
    self->next_flush = NULL;
    if (io->flush_tail != NULL) {
        io->flush_tail->next_flush = self;
    } else {
        io->flush_head = self;
    }
    io->flush_tail = self;
    self->loop->needs_flush = true;
    transport_hold(self, HOLD_FLUSH);
}

/* A flush with nobody above it to do the rest. 0, or -1 with SystemExit or KeyboardInterrupt. */
static int
flush_and_pause(SocketTransport *self, LoopObject *loop)
{
    if (self->secured && UNLIKELY(transport_encrypt(self, true) < 0)) {
        /* What has left the protocol's pause_writing() must not keep the bytes back. */
        PyObject *leaving = compat_take_exception();
        if (transport_flush(self) < 0) {
            PyErr_Clear();
        }
        compat_restore_exception(leaving);
        return -1;
    }
    int err = transport_flush(self);
    if (err == 0 && UNLIKELY(self->writing)) {
        PyObject *entered = transport_enter_context(self->context);
        err = transport_maybe_pause(self);
        transport_leave_context(entered);
    }
    if (err == 0 && !self->conn_lost) {
        drained_or_report(self, loop);
    }
    return err;
}

void
transport_flush_all(LoopObject *loop)
{
    struct IoPart *io = loop->io;
    while (io->flush_head != NULL) {
        SocketTransport *self = (SocketTransport *)Py_NewRef(io->flush_head);
        io->flush_head = self->next_flush;
        if (io->flush_head == NULL) {
            io->flush_tail = NULL;
        }
        self->next_flush = NULL;
        transport_release(self, HOLD_FLUSH);
        if (flush_and_pause(self, loop) < 0) {
            loop_raise_later(loop);
        }
        Py_DECREF(self);
    }
}

/* ready_run: the flush of bytes that another thread wrote. */
static int
run_flush(LoopObject *loop, PyObject *owner, PyObject *Py_UNUSED(arg))
{
    return flush_and_pause(SocketTransport_CAST(owner), loop);
}

/* Bytes of this write() wait for the kernel: notes the context, and tells the protocol when they are many. 0, or -1 with
   an exception. */
static int
wait_for_kernel(SocketTransport *self)
{
    if (self->write_context == NULL && self->fixed_context == NULL) {
        self->write_context = PyContext_CopyCurrent();
        if (self->write_context == NULL) {
            return -1;
        }
    }
    return transport_maybe_pause(self);
}

/* Decides when what was just queued is sent. 0, or -1 with an exception for the caller of write(). */
static int
send_soon(SocketTransport *self)
{
    if (self->writing) {
        return wait_for_kernel(self);
    }
    if (UNLIKELY(!io_may_touch(self->loop))) {
        return loop_push(self->loop, run_flush, (PyObject *)self, NULL);
    }
    if (!self->loop->in_turn || self->queue.size_bytes >= FLUSH_AT) {
        int err = transport_flush(self);
        return err < 0 || !self->writing ? err : wait_for_kernel(self);
    }
    link_flush(self);
    return 0;
}

/* ---- what the user writes ---- */

/* Counts a write to a lost connection, and warns from the fifth on. */
static int
count_lost_write(SocketTransport *self)
{
    PyObject *threshold = PyObject_GetAttrString(self->state->asyncio_constants, "LOG_THRESHOLD_FOR_CONNLOST_WRITES");
    long limit = threshold == NULL ? -1 : PyLong_AsLong(threshold);
    Py_XDECREF(threshold);
    if (limit == -1 && PyErr_Occurred()) {
        return -1;
    }
    PyObject *result = Py_None;
    Py_INCREF(result);
    if ((long)self->conn_lost >= limit) {
        Py_SETREF(result,
                  PyObject_CallMethod(self->state->asyncio_logger, "warning", "s", "socket.send() raised exception."));
    }
    self->conn_lost++;
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

PyObject *
transport_exact_bytes(PyObject *data)
{
    if (PyBytes_CheckExact(data)) {
        return Py_NewRef(data);
    }
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    PyObject *bytes = PyBytes_FromStringAndSize(view.buf, view.len);
    PyBuffer_Release(&view);
    return bytes;
}

/* Refuses to write after write_eof() and during sendfile(); -1 with RuntimeError. */
static int
check_writable(SocketTransport *self, const char *after_eof, const char *during_sendfile)
{
    if (self->eof) {
        PyErr_SetString(PyExc_RuntimeError, after_eof);
        return -1;
    }
    if (self->empty_waiter != NULL) {
        PyErr_SetString(PyExc_RuntimeError, during_sendfile);
        return -1;
    }
    return 0;
}

/* Is there a loop and a stream to write to? -1 with RuntimeError after the loop was closed. */
static int
check_stream(SocketTransport *self)
{
    if (LIKELY(self->stream != NULL)) {
        return 0;
    }
    PyErr_SetString(PyExc_RuntimeError, "Event loop is closed");
    return -1;
}

int
transport_push(SocketTransport *self, PyObject *bytes)
{
    if (self->conn_lost) {
        return count_lost_write(self);
    }
    return check_stream(self) < 0 ? -1 : chunks_push(&self->queue, bytes);
}

int
transport_send(SocketTransport *self)
{
    return self->loop == NULL || self->conn_lost || self->queue.count == 0 ? 0 : send_soon(self);
}

bool
transport_flushes_later(SocketTransport *self, bool may_wait)
{
    if (self->stream == NULL || self->conn_lost) {
        return false;
    }
    if (UNLIKELY(!io_may_touch(self->loop))) {
        if (loop_push(self->loop, run_flush, (PyObject *)self, NULL) == 0) {
            return true;
        }
        PyErr_Clear();
        return false;
    }
    if (!may_wait || !self->loop->in_turn) {
        return false;
    }
    link_flush(self);
    return true;
}

PyObject *
SocketTransport_write(PyObject *op, PyObject *data)
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call(SocketTransport_CAST(op)->gate, SocketTransport_write, op, data);
    }
    SocketTransport *self = SocketTransport_CAST(op);
    bool exact = PyBytes_CheckExact(data);
    if (!exact && !PyBytes_Check(data) && !PyByteArray_Check(data) && !PyMemoryView_Check(data)) {
        return transport_refuse(self, "write", data);
    }
    if (check_writable(self, "Cannot call write() after write_eof()", "unable to write; sendfile is in progress") < 0) {
        return NULL;
    }
    int truth = exact ? PyBytes_GET_SIZE(data) > 0 : PyObject_IsTrue(data);
    if (truth <= 0) {
        return truth < 0 ? NULL : Py_NewRef(Py_None);
    }
    if (self->conn_lost) {
        return count_lost_write(self) < 0 ? NULL : Py_NewRef(Py_None);
    }
    if (check_stream(self) < 0) {
        return NULL;
    }
    PyObject *bytes = transport_exact_bytes(data);
    int err = bytes == NULL ? transport_fail(self, "Fatal write error on socket transport")
                            : chunks_push(&self->queue, bytes);
    if (err == 0 && bytes != NULL) {
        err = send_soon(self);
    }
    Py_XDECREF(bytes);
    return err < 0 ? NULL : Py_NewRef(Py_None);
}

/* Exact bytes for an item of writelines(); NULL with the TypeError of memoryview(), or BufferError. */
static PyObject *
line_as_bytes(PyObject *line)
{
    if (PyBytes_CheckExact(line)) {
        return Py_NewRef(line);
    }
    PyObject *view = PyMemoryView_FromObject(line);
    PyObject *bytes = view == NULL ? NULL : transport_exact_bytes(view);
    Py_XDECREF(view);
    return bytes;
}

/* Makes every item of a list of ours exact bytes, empty ones included. -1 with the exception of the first that is no
   buffer. */
static int
make_exact(PyObject *list)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
        PyObject *bytes = line_as_bytes(PyList_GET_ITEM(list, i));
        if (bytes == NULL || PyList_SetItem(list, i, bytes) < 0) {
            return -1;
        }
    }
    return 0;
}

static int
push_all(SocketTransport *self, PyObject *list)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
        PyObject *bytes = PyList_GET_ITEM(list, i);
        if (PyBytes_GET_SIZE(bytes) > 0 && chunks_push(&self->queue, bytes) < 0) {
            return -1;
        }
    }
    return self->queue.count == 0 ? 0 : send_soon(self);
}

/* What asyncio.WriteTransport does, where the standard transport has no writelines() of its own: write() may be replaced. */
static PyObject * /* GCOV_EXCL_START: up to Python 3.11 */
write_joined(PyObject *op, PyObject *iterable)
{
    PyObject *empty = PyBytes_FromStringAndSize(NULL, 0);
    PyObject *joined = empty == NULL ? NULL : PyObject_CallMethod(empty, "join", "(O)", iterable);
    PyObject *result = joined == NULL ? NULL : PyObject_CallMethod(op, "write", "(O)", joined);
    Py_XDECREF(empty);
    Py_XDECREF(joined);
    if (result == NULL) {
        return NULL;
    }
    Py_DECREF(result);
    Py_RETURN_NONE;
} /* GCOV_EXCL_STOP */

PyObject *
SocketTransport_writelines(PyObject *op, PyObject *iterable)
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call(SocketTransport_CAST(op)->gate, SocketTransport_writelines, op, iterable);
    }
    SocketTransport *self = SocketTransport_CAST(op);
    if (self->traits.joins_lines) {
        return write_joined(op, iterable);
    }
    if (check_writable(self, "Cannot call writelines() after write_eof()",
                       "unable to writelines; sendfile is in progress") < 0) {
        return NULL;
    }
    int truth = PyObject_IsTrue(iterable);
    if (truth <= 0) {
        return truth < 0 ? NULL : Py_NewRef(Py_None);
    }
    if (self->conn_lost) {
        return count_lost_write(self) < 0 ? NULL : Py_NewRef(Py_None);
    }
    PyObject *list = PySequence_List(iterable);
    if (list == NULL) {
        return NULL;
    }
    PyObject *result = NULL;
    if (make_exact(list) < 0) {
        if (PyErr_ExceptionMatches(PyExc_BufferError) &&
            transport_fail(self, "Fatal write error on socket transport") == 0) {
            result = Py_NewRef(Py_None);
        }
    } else if (check_stream(self) == 0 && push_all(self, list) == 0) {
        result = Py_NewRef(Py_None);
    }
    Py_DECREF(list);
    return result;
}

PyObject *
SocketTransport_write_eof(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call(SocketTransport_CAST(op)->gate, SocketTransport_write_eof, op, NULL);
    }
    SocketTransport *self = SocketTransport_CAST(op);
    if (self->closing || self->eof) {
        Py_RETURN_NONE;
    }
    if (transport_defer_to_loop(self, "write_eof", false)) {
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    }
    if (self->secured && transport_encrypt(self, true) < 0) {
        return NULL;
    }
    self->eof = true;
    if (transport_flush(self) < 0) {
        return NULL;
    }
    if (transport_has_output(self)) {
        self->shutdown_due = true;
        Py_RETURN_NONE;
    }
    if (!self->conn_lost && shut_down_writing(self) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* ---- for sendfile ---- */

PyObject *
SocketTransport_make_empty_waiter(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call(SocketTransport_CAST(op)->gate, SocketTransport_make_empty_waiter, op, NULL);
    }
    SocketTransport *self = SocketTransport_CAST(op);
    if (self->empty_waiter != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Empty waiter is already set");
        return NULL;
    }
    /* What a wrong thread wrote is flushed by a record. */
    if (self->loop != NULL && io_may_touch(self->loop) && transport_flush(self) < 0) {
        return NULL;
    }
    if (self->loop == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Transport is closed");
        return NULL;
    }
    PyObject *waiter = PyObject_CallMethod((PyObject *)self->loop, "create_future", NULL);
    if (waiter == NULL) {
        return NULL;
    }
    Py_XSETREF(self->empty_waiter, Py_NewRef(waiter));
    if (!transport_has_output(self) && transport_finish_waiter(self, NULL) < 0) {
        Py_CLEAR(waiter);
    }
    return waiter;
}

PyObject *
SocketTransport_reset_empty_waiter(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call(SocketTransport_CAST(op)->gate, SocketTransport_reset_empty_waiter, op, NULL);
    }
    Py_CLEAR(SocketTransport_CAST(op)->empty_waiter);
    Py_RETURN_NONE;
}
