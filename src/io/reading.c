/* Reading: from libuv to data_received(), buffer_updated() and eof_received().

   Reads share one buffer of the loop and are copied to bytes of the exact size, memory of an earlier message where there is
   some (base/bytespool.h); what a peer that sends bulk is going to send is read straight into a bytes object; a
   BufferedProtocol gives its own buffer. Nothing allocates much more than was read: malloc would map, fault in and unmap
   pages for every message, which costs several times the copy.

   libuv calls the allocation callback, reads, and calls the read callback. uv_read_stop() in between takes the read
   callback away and crashes libuv 1.44, so what get_buffer() does to the transport is caught up with afterwards.

   On the standard loop data stands in line behind what is ready to run. A poll that blocks finds nothing ready, and
   delivers; in one that does not, libuv gets no buffer, and a record reads when it is its turn. */

#include "io/transport.h"

#include <errno.h>
#include <sys/socket.h>

#include "base/uverror.h"
#include "io/streamsink.h"
#include "io/tls.h"

enum {
    /* As much as the standard loop reads at once. */
    READ_SIZE = 256 * 1024,
    /* What is smaller is copied. */
    BULK_MINIMUM = 32 * 1024,
};
_Static_assert(READ_SIZE == BYTESPOOL_ROOMS * BYTESPOOL_ROOM_STEP, "the largest room takes all");

/* ---- the allocation callback ---- */

/* Raises what recv_into() raises for something that is no writable buffer. */
static void
raise_not_writable(PyObject *object)
{
    PyErr_Clear();
    PyErr_Format(PyExc_TypeError, "recv_into() argument 1 must be read-write bytes-like object, not %.50s",
                 Py_TYPE(object)->tp_name);
}

/* protocol.get_buffer(-1), not empty; NULL with an exception. */
static PyObject *
ask_for_buffer(SocketTransport *self)
{
    PyObject *protocol = Py_NewRef(self->protocol);
    PyObject *hint = PyLong_FromLong(-1);
    PyObject *buffer = hint == NULL ? NULL : PyObject_CallMethodOneArg(protocol, self->state->str_get_buffer, hint);
    Py_XDECREF(hint);
    Py_DECREF(protocol);
    if (buffer == NULL) {
        return NULL;
    }
    Py_ssize_t size = PyObject_Size(buffer);
    if (size <= 0) {
        if (size == 0) {
            PyErr_SetString(PyExc_RuntimeError, "get_buffer() returned an empty buffer");
        }
        Py_CLEAR(buffer);
    }
    return buffer;
}

/* Fills io->read_view from the BufferedProtocol; false when that failed, which was dealt with, but for SystemExit and
   KeyboardInterrupt, which are set then. */
static bool
take_user_buffer(SocketTransport *self, LoopObject *loop)
{
    struct IoPart *io = loop->io;
    const char *message = "Fatal error: protocol.get_buffer() call failed.";
    PyObject *buffer = ask_for_buffer(self);
    if (buffer != NULL) {
        if (PyObject_GetBuffer(buffer, &io->read_view, PyBUF_WRITABLE) < 0) {
            raise_not_writable(buffer);
            message = "Fatal read error on socket transport";
            Py_CLEAR(buffer);
        }
    }
    if (buffer == NULL) {
        (void)transport_fail(self, message);
        return false;
    }
    Py_DECREF(buffer);
    return true;
}

/* The memory for the next read of a Protocol; libuv reports UV_ENOBUFS when it is NULL. */
static uv_buf_t
take_own_buffer(SocketTransport *self, struct IoPart *io)
{
    if (self->bulk && self->sinks) {
        io->read_bytes = sink_buffer(self->state);
        if (io->read_bytes != NULL) {
            return uv_buf_init(PyByteArray_AS_STRING(io->read_bytes), (unsigned)PyByteArray_GET_SIZE(io->read_bytes));
        }
    } else if (self->bulk) {
        io->read_bytes = bytespool_room(&io->bytes, self->bulk);
        if (io->read_bytes != NULL) {
            return uv_buf_init(PyBytes_AS_STRING(io->read_bytes), (unsigned)PyBytes_GET_SIZE(io->read_bytes));
        }
        PyErr_Clear();
    }
    if (io->read_buffer == NULL) {
        io->read_buffer = PyMem_RawMalloc(READ_SIZE);
    }
    return uv_buf_init(io->read_buffer, io->read_buffer == NULL ? 0 : READ_SIZE);
}

char *
transport_plain_buffer(SocketTransport *self)
{
    struct IoPart *io = self->loop == NULL ? NULL : self->loop->io;
    if (io != NULL && io->plain_buffer == NULL) {
        io->plain_buffer = PyMem_RawMalloc(IO_PLAIN_SIZE);
    }
    return io == NULL ? NULL : io->plain_buffer;
}

BytesPool *
transport_bytes_pool(SocketTransport *self)
{
    struct IoPart *io = self->loop == NULL ? NULL : self->loop->io;
    return io == NULL ? NULL : &io->bytes;
}

/* Has data been delivered in this very turn? */
static bool
has_read_in_turn(SocketTransport *self)
{
    return self->read_turn == loop_turn(self->loop);
}

/* The memory for the next read, which must follow; an empty one without memory, or when get_buffer() failed: then
   SystemExit or KeyboardInterrupt may be set. */
static uv_buf_t
take_buffer(SocketTransport *self, LoopObject *loop)
{
    struct IoPart *io = loop->io;
    if (!self->buffered || (self->secured && tls_of(self->state, self->protocol) != NULL)) {
        return take_own_buffer(self, io);
    }
    uv_buf_t buffer = uv_buf_init(NULL, 0);
    self->in_alloc = true;
    PyObject *entered = transport_enter_context(self->context);
    if (take_user_buffer(self, loop)) {
        buffer = uv_buf_init(io->read_view.buf, (unsigned)Py_MIN(io->read_view.len, (Py_ssize_t)INT_MAX));
    }
    transport_leave_context(entered);
    return buffer;
}

static int run_read(LoopObject *loop, PyObject *owner, PyObject *arg);

/* Must this read wait: for what is ready to run, or for the next turn, since one brings no more than one read? */
static bool
put_off_read(SocketTransport *self, LoopObject *loop)
{
    if (has_read_in_turn(self) || self->read_due) {
        return true;
    }
    if (!io_poll_queues(loop)) {
        return false;
    }
    if (loop_push(loop, run_read, (PyObject *)self, NULL) < 0) {
        PyErr_Clear();
        return false;
    }
    self->read_due = true;
    return true;
}

static void
on_alloc(uv_handle_t *handle, size_t Py_UNUSED(suggested), uv_buf_t *buffer)
{
    UvStream *stream = stream_of((uv_stream_t *)handle);
    LoopObject *loop = stream->loop;
    loop_enter(loop);
    SocketTransport *self = stream->owner;
    *buffer = uv_buf_init(NULL, 0);
    if (self == NULL || loop->io == NULL) {
        return;
    }
    loop->io->read_put_off = put_off_read(self, loop);
    if (!loop->io->read_put_off) {
        Py_INCREF(self);
        *buffer = take_buffer(self, loop);
        if (UNLIKELY(buffer->len == 0) && PyErr_Occurred()) {
            loop_raise_later(loop);
        }
        /* The read callback follows in any case, and the stream is kept by whoever keeps the transport. */
        Py_DECREF(self);
    }
}

/* ---- the read callback ---- */

/* Calls protocol.<name>(argument); -1 with an exception. */
static int
call_protocol(SocketTransport *self, PyObject *name, PyObject *argument)
{
    PyObject *stack[2] = {Py_NewRef(self->protocol), argument};
    PyObject *result = PyObject_VectorcallMethod(name, stack, 2, NULL);
    Py_DECREF(stack[0]);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* How many steps of room hold `size` bytes and more. */
static int
steps_for(Py_ssize_t size)
{
    return (int)Py_MIN(size / BYTESPOOL_ROOM_STEP + 1, BYTESPOOL_ROOMS);
}

/* What to read into the next time: a peer that sends as much as before will do so again. */
static void
expect_more(SocketTransport *self, Py_ssize_t size)
{
    int steps = steps_for(size);
    bool repeats = size == READ_SIZE || (size >= BULK_MINIMUM && steps == self->was_bulk);
    self->bulk = (uint8_t)(repeats ? steps : 0);
    self->was_bulk = (uint8_t)steps;
}

static int
deliver_bytes(SocketTransport *self, PyObject *bytes)
{
    if (bytes == NULL) {
        return transport_fail(self, "Fatal read error on socket transport");
    }
    if (self->conn_lost) {
        return 0;
    }
    int err = call_protocol(self, self->state->str_data_received, bytes);
    return err < 0 ? transport_fail(self, "Fatal error: protocol.data_received() call failed.") : 0;
}

static int
deliver_copy(SocketTransport *self, const char *data, Py_ssize_t size)
{
    BytesPool *pool = &self->loop->io->bytes;
    PyObject *bytes = bytespool_new(pool, data, size);
    int err = deliver_bytes(self, bytes);
    /* The poll is under way: the loop and its parts are there whatever became of the transport. */
    if (bytes != NULL) {
        bytespool_drop(pool, bytes);
    }
    return err;
}

/* What was read into a room that may be much too large for it. */
static int
deliver_room(SocketTransport *self, PyObject *room, Py_ssize_t size)
{
    if (size < PyBytes_GET_SIZE(room) / 4 * 3) {
        return deliver_copy(self, PyBytes_AS_STRING(room), size);
    }
    compat_bytes_renew(room, size);
    return deliver_bytes(self, room);
}

/* Ciphertext; errors are those of a BufferedProtocol, which SSLProtocol is. */
static int
deliver_secured(SocketTransport *self, const char *data, size_t size)
{
    TlsConnection *tls = tls_of(self->state, self->protocol);
    if (tls == NULL) {
        return 0;
    }
    Py_INCREF(tls);
    int err = tls_feed(tls, data, size);
    Py_DECREF(tls);
    return err < 0 ? transport_fail(self, "Fatal error: protocol.buffer_updated() call failed.") : 0;
}

/* Has the reader of a standard stream take what was read; false when the protocol must be called. */
static bool
deliver_to_reader(SocketTransport *self, const char *data, Py_ssize_t size, PyObject *spare, int *err)
{
    if (!self->sinks || self->conn_lost) {
        return false;
    }
    self->bulk = size >= SINK_BULK ? 1 : 0;
    PyObject *protocol = Py_NewRef(self->protocol);
    int taken = sink_feed(self->state, protocol, data, size, spare);
    Py_DECREF(protocol);
    *err = taken < 0 ? transport_fail(self, "Fatal error: protocol.data_received() call failed.") : 0;
    return taken != 0;
}

static int
deliver_buffered(SocketTransport *self, Py_ssize_t size)
{
    if (self->protocol == NULL) {
        return 0;
    }
    PyObject *count = PyLong_FromSsize_t(size);
    int err = count == NULL ? -1 : call_protocol(self, self->state->str_buffer_updated, count);
    Py_XDECREF(count);
    return err < 0 ? transport_fail(self, "Fatal error: protocol.buffer_updated() call failed.") : 0;
}

/* eof_received() was left by SystemExit or KeyboardInterrupt, which is set: as on the standard loop the end of the stream is
   told again, should the loop run once more. libuv tells it once for each start. */
static void
read_eof_again(SocketTransport *self)
{
    PyObject *leaving = compat_take_exception();
    transport_stop_reading(self);
    if (transport_wants_reading(self) && transport_start_reading(self) < 0) {
        PyErr_WriteUnraisable((PyObject *)self);
    }
    compat_restore_exception(leaving);
}

/* On the standard loop what was written in this turn has left before what is read now, and has met its own error first. */
static int
flush_first(SocketTransport *self)
{
    return (self->secured && transport_encrypt(self, true) < 0) ? -1 : transport_flush(self);
}

/* Has the read got the error that the write before it has on the standard loop? Then that write would get EPIPE. */
static bool
is_told_once(SocketTransport *self, int code)
{
    return HAVE_ERRORS_TOLD_ONCE && self->family != AF_UNIX && code != UV_ENOTCONN;
}

/* The peer will send no more: true from eof_received() keeps the connection open for writing. */
static int
deliver_eof(SocketTransport *self)
{
    if (self->conn_lost) {
        return 0;
    }
    if (flush_first(self) < 0) {
        read_eof_again(self);
        return -1;
    }
    if (self->conn_lost) {
        return 0;
    }
    transport_log_debug(self, "%r received EOF");
    PyObject *protocol = Py_NewRef(self->protocol);
    PyObject *result = PyObject_CallMethodNoArgs(protocol, self->state->str_eof_received);
    Py_DECREF(protocol);
    int keep_open = result == NULL ? -1 : PyObject_IsTrue(result);
    Py_XDECREF(result);
    if (keep_open < 0) {
        int err = transport_fail(self, "Fatal error: protocol.eof_received() call failed.");
        if (err < 0) {
            read_eof_again(self);
        }
        return err;
    }
    transport_stop_reading(self);
    if (!keep_open && transport_close(self) < 0) {
        return transport_fail(self, "Fatal read error on socket transport");
    }
    return 0;
}

static int
deliver_error(SocketTransport *self, int code)
{
    if (self->conn_lost) {
        return 0;
    }
    if (code == UV_EBADF || code == UV_ENOTSOCK) {
        transport_lose_descriptor(self);
        return 0;
    }
    if (!is_told_once(self, code) && flush_first(self) < 0) {
        return -1;
    }
    if (self->conn_lost) {
        return 0;
    }
    uverror_raise(code);
    return transport_fail(self, "Fatal read error on socket transport");
}

/* `asked`: the protocol's get_buffer() was called for this read. `own`: the room or the spare bytearray that was read into,
   or NULL. */
static int
deliver(SocketTransport *self, ssize_t size, const char *data, PyObject *own, bool asked)
{
    if (UNLIKELY(self->loop == NULL)) {
        /* A __release_buffer__() has called _call_connection_lost(). */
        return 0;
    }
    if (size > 0) {
        self->read_turn = loop_turn(self->loop);
        metrics_received(&self->loop->metrics, (size_t)size);
        if (asked) {
            return deliver_buffered(self, size);
        }
        if (self->secured) {
            return deliver_secured(self, data, (size_t)size);
        }
        PyObject *room = own != NULL && PyBytes_CheckExact(own) ? own : NULL;
        int err;
        if (room == NULL && deliver_to_reader(self, data, size, own, &err)) {
            return err;
        }
        expect_more(self, size);
        return room == NULL ? deliver_copy(self, data, size) : deliver_room(self, room, size);
    }
    if (size == 0 || (size == UV_ENOBUFS && asked)) {
        /* Nothing to read after all, or get_buffer() failed, which the allocation callback has dealt with. */
        return 0;
    }
    if (size != UV_EOF) {
        return deliver_error(self, (int)size);
    }
    return deliver_eof(self);
}

/* Has the loop report how long a callback took, as it does for those of the ready queue. */
static void
report_time(SocketTransport *self, LoopObject *loop, uint64_t ns)
{
    if (loop_report_time(loop, (PyObject *)self, ns) < 0) {
        loop_report(loop, "Reporting a slow callback failed", "transport", self, NULL);
    }
}

/* The steps of a room, 0 for a spare bytearray or nothing. */
static int
steps_of(PyObject *own)
{
    return own != NULL && PyBytes_CheckExact(own) ? (int)(PyBytes_GET_SIZE(own) / BYTESPOOL_ROOM_STEP) : 0;
}

/* Keeps what was read into (stolen, or NULL) for the next time, unless the protocol has kept it. */
static void
put_back(LoopObject *loop, PyObject *own, int steps)
{
    if (steps > 0) {
        bytespool_drop_room(&loop->io->bytes, own, steps);
    } else if (own != NULL) {
        sink_buffer_done(loop->state, own);
    }
}

/* After a read into what take_buffer() gave: `size` bytes, or a negative libuv code. -1 with SystemExit or
   KeyboardInterrupt. */
static int
finish_read(SocketTransport *self, LoopObject *loop, ssize_t size, const char *data)
{
    struct IoPart *io = loop->io;
    PyObject *own = io->read_bytes;
    int steps = steps_of(own);
    Py_buffer view = io->read_view;
    io->read_bytes = NULL;
    io->read_view = (Py_buffer){NULL};
    if (UNLIKELY(size == UV_ENOBUFS) && view.obj != NULL) {
        /* It has items, but no bytes: recv_into() fills it with 0, and that is the end of the stream. */
        size = UV_EOF;
    }
    /* A get_buffer() that ran the loop may have had another read end in between. */
    bool asked = self->in_alloc || view.obj != NULL;
    self->in_alloc = false;
    if (!self->reading) {
        /* get_buffer() paused, closed or failed; what was read meanwhile is delivered as the standard loop does. */
        self->reading = true;
        transport_stop_reading(self);
    }
    PyBuffer_Release(&view);
    PyObject *entered = transport_enter_context(self->context);
    int err = deliver(self, size, data, own, asked);
    put_back(loop, own, steps);
    transport_leave_context(entered);
    return err;
}

/* Drops what a read without a transport would have filled. */
static void
forget_read(struct IoPart *io)
{
    Py_CLEAR(io->read_bytes);
    PyBuffer_Release(&io->read_view);
}

static int read_end_soon(SocketTransport *self);

static void
on_read(uv_stream_t *uv, ssize_t size, const uv_buf_t *buffer)
{
    UvStream *stream = stream_of(uv);
    LoopObject *loop = stream->loop;
    loop_enter(loop);
    if (size == UV_ENOBUFS && loop->io->read_put_off) {
        return;
    }
    if (size < 0 && uv_stream_get_write_queue_size(uv) > 0) {
        /* libuv has stopped reading and goes on writing. */
        stream_mark_changed(stream);
    }
    SocketTransport *self = (SocketTransport *)Py_XNewRef(stream->owner);
    if (self == NULL) {
        forget_read(loop->io);
        return;
    }
    uint64_t start = UNLIKELY(loop->times_records) ? uv_hrtime() : 0;
    bool unread = size == UV_EOF && buffer->base == NULL;
    if ((unread ? read_end_soon(self) : finish_read(self, loop, size, buffer->base)) < 0) {
        loop_raise_later(loop);
    }
    if (UNLIKELY(start != 0)) {
        report_time(self, loop, uv_hrtime() - start);
    }
    Py_DECREF(self);
}

/* One read as libuv does it: bytes, or its code; 0 when there was nothing after all. */
static ssize_t
receive(int fd, uv_buf_t buffer)
{
    if (buffer.len == 0) {
        return UV_ENOBUFS;
    }
    ssize_t size;
    do {
        size = recv(fd, buffer.base, buffer.len, 0);
    } while (UNLIKELY(size < 0) && errno == EINTR);
    if (size < 0) {
        return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : uv_translate_sys_error(errno);
    }
    return size == 0 ? UV_EOF : size;
}

/* ready_run: reads what a poll has found. Who has paused or closed in the meantime took the record's right away. */
static int
run_read(LoopObject *loop, PyObject *owner, PyObject *Py_UNUSED(arg))
{
    SocketTransport *self = SocketTransport_CAST(owner);
    if (!self->read_due || self->stream == NULL) {
        return 0;
    }
    self->read_due = false;
    /* A callback that ran since the poll may have closed the descriptor of the user's socket, and its number be another's. */
    if (self->sock_state == SOCK_SHARED && UNLIKELY(!stream_owns_descriptor(self->stream))) {
        transport_lose_descriptor(self);
        return 0;
    }
    uv_buf_t buffer = take_buffer(self, loop);
    PyObject *leaving = UNLIKELY(buffer.len == 0) ? compat_take_exception() : NULL;
    int err = finish_read(self, loop, receive(self->fd, buffer), buffer.base);
    if (leaving != NULL) {
        compat_restore_exception(leaving);
        err = -1;
    }
    return err;
}

/* ready_run: reads to the end, or to the error in its place. */
static int
run_read_end(LoopObject *loop, PyObject *owner, PyObject *arg)
{
    SocketTransport *self = SocketTransport_CAST(owner);
    /* Who paused will see the end when he resumes, and who has resumed since sees it in the next poll. */
    if (!transport_wants_reading(self) || self->reading) {
        return 0;
    }
    int err = transport_start_reading(self);
    self->read_due = self->reading;
    return err < 0 ? err : run_read(loop, owner, arg);
}

/* libuv calls a hang-up the end of the stream without a look: behind data that it has just read, and its newer versions
   wherever there is nothing to read. But a peer may have reset the connection after it had sent something, and a socket
   that was never connected has no end: the read that the standard loop makes in the next turn tells. */
static int
read_end_soon(SocketTransport *self)
{
    transport_stop_reading(self);
    int err = loop_push(self->loop, run_read_end, (PyObject *)self, NULL);
    return err < 0 ? transport_fail(self, "Fatal read error on socket transport") : 0;
}

/* ---- starting and stopping ---- */

int
transport_start_reading(SocketTransport *self)
{
    if (self->reading || self->stream == NULL) {
        return 0;
    }
    if (self->in_alloc) {
        self->reading = true;
        return 0;
    }
    assert(io_may_touch(self->loop));
    int err = uv_read_start(&self->stream->uv.stream, on_alloc, on_read);
    if (err < 0) {
        return deliver_error(self, err);
    }
    self->reading = true;
    stream_mark_changed(self->stream);
    transport_hold(self, HOLD_READING);
    return 0;
}

void
transport_stop_reading(SocketTransport *self)
{
    if (!self->reading) {
        return;
    }
    self->reading = false;
    self->read_due = false;
    if (self->in_alloc) {
        return;
    }
    if (self->stream != NULL) {
        assert(io_may_touch(self->loop));
        uv_read_stop(&self->stream->uv.stream);
        if (self->writing) {
            stream_mark_changed(self->stream);
        }
    }
    transport_release(self, HOLD_READING);
}
