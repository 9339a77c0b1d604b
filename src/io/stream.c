/* The libuv side of a stream transport. */

#include "io/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/lowfds.h"
#include "base/uverror.h"
#include "base/uvwatch.h"
#include "io/io.h"
#include "io/transport.h"

/* Buffers in one write: libuv passes no more than IOV_MAX, which is 1024, to the kernel at once. */
enum { MAX_BUFFERS = 512 };

typedef struct {
    uv_write_t request; /* first: libuv hands its address back */
    UvStream *stream;
    Chunks chunks;
} WriteRequest;

static void
on_closed(uv_handle_t *handle)
{
    PyMem_RawFree(stream_of((uv_stream_t *)handle));
}

static void
link_stream(UvStream *stream)
{
    struct IoPart *io = stream->loop->io;
    stream->previous = NULL;
    stream->next = io->streams;
    if (io->streams != NULL) {
        io->streams->previous = stream;
    }
    io->streams = stream;
}

static void
unlink_stream(UvStream *stream)
{
    if (stream->previous != NULL) {
        stream->previous->next = stream->next;
    } else {
        stream->loop->io->streams = stream->next;
    }
    if (stream->next != NULL) {
        stream->next->previous = stream->previous;
    }
}

/* ---- whose number ---- */

bool
stream_find_inode(int fd, uint64_t *inode)
{
    struct stat status;
    if (fstat(fd, &status) < 0 || !S_ISSOCK(status.st_mode)) {
        return false;
    }
    *inode = status.st_ino;
    return true;
}

bool
stream_owns_descriptor(UvStream *stream)
{
    uint64_t inode;
    return stream_find_inode(stream->fd, &inode) && inode == stream->inode;
}

static void
unlink_changed(UvStream *stream)
{
    if (!stream->changed) {
        return;
    }
    stream->changed = false;
    if (stream->previous_changed != NULL) {
        stream->previous_changed->next_changed = stream->next_changed;
    } else {
        stream->loop->io->changed = stream->next_changed;
    }
    if (stream->next_changed != NULL) {
        stream->next_changed->previous_changed = stream->previous_changed;
    } else {
        stream->loop->io->changed_last = stream->previous_changed;
    }
    stream->loop->watchers_changed = stream->loop->io->changed != NULL;
}

void
stream_mark_changed(UvStream *stream)
{
    if (uv_is_closing(&stream->uv.handle) || (stream->changed && !stream->checked)) {
        return;
    }
    /* Those that a poll has checked are the first ones of the list. The system reports in the order in which it was
       told, which is that in which reading has started. */
    unlink_changed(stream);
    struct IoPart *io = stream->loop->io;
    stream->loop->watchers_changed = true;
    stream->changed = true;
    stream->checked = false;
    stream->next_changed = NULL;
    stream->previous_changed = io->changed_last;
    if (io->changed_last != NULL) {
        io->changed_last->next_changed = stream;
    } else {
        io->changed = stream;
    }
    io->changed_last = stream;
}

/* Can libuv tell the system about it? Takes it out of libuv's hands if not. Runs no Python code. */
static void
check_stream(UvStream *stream)
{
    if (LIKELY(stream_owns_descriptor(stream))) {
        int err = uvwatch_register(stream->loop->uv, &stream->uv.stream.io_watcher);
        if (UNLIKELY(err < 0) && stream->owner != NULL) {
            transport_watch_refused(stream->owner, err);
        }
    } else if (stream->owner != NULL) {
        transport_lose_descriptor(stream->owner);
    } else {
        stream_abandon(stream);
    }
}

void
streams_check_changed(LoopObject *loop)
{
    while (loop->io != NULL && loop->io->changed != NULL) {
        UvStream *stream = loop->io->changed;
        unlink_changed(stream);
        check_stream(stream);
    }
}

/* The same from within a poll, which may be about to tell the system; the next one will check again. */
static void
check_changed_in_poll(LoopObject *loop)
{
    UvStream *first = NULL, *next;
    for (UvStream *stream = loop->io->changed_last; stream != NULL && !stream->checked;
         stream = stream->previous_changed) {
        first = stream;
    }
    for (UvStream *stream = first; stream != NULL; stream = next) {
        next = stream->next_changed;
        stream->checked = true;
        check_stream(stream);
    }
}

/* ---- opening and closing ---- */

UvStream *
stream_open(LoopObject *loop, int fd, bool is_tcp, SocketTransport *owner)
{
    assert(io_may_touch(loop));
    transport_check_number(loop, fd);
    size_t size = is_tcp ? sizeof(uv_tcp_t) : sizeof(uv_pipe_t);
    UvStream *stream = PyMem_RawCalloc(1, offsetof(UvStream, uv) + size);
    if (stream == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    int err = is_tcp ? uv_tcp_init(loop->uv, &stream->uv.tcp) : uv_pipe_init(loop->uv, &stream->uv.pipe, 0);
    if (err < 0) {
        PyMem_RawFree(stream);
        uverror_raise(err);
        return NULL;
    }
    err = is_tcp ? uv_tcp_open(&stream->uv.tcp, fd) : uv_pipe_open(&stream->uv.pipe, fd);
    if (err < 0) {
        uv_close(&stream->uv.handle, on_closed);
        uverror_raise(err);
        return NULL;
    }
    stream->loop = loop;
    stream->owner = owner;
    stream->fd = fd;
    (void)stream_find_inode(fd, &stream->inode);
    link_stream(stream);
    return stream;
}

void
stream_close(UvStream *stream)
{
    assert(io_may_touch(stream->loop));
    stream->owner = NULL;
    unlink_changed(stream);
    unlink_stream(stream);
    uv_close(&stream->uv.handle, on_closed);
}

void
stream_abandon(UvStream *stream)
{
    int flags = fcntl(stream->fd, F_GETFD);
    int copy = flags < 0 ? -1 : fcntl(stream->fd, F_DUPFD_CLOEXEC, LOWFDS);
    int fd = stream->fd;
    stream_close(stream);
    /* libuv has closed the number, whatever it was. */
    if (copy >= 0) {
        if (dup2(copy, fd) >= 0) {
            (void)fcntl(fd, F_SETFD, flags);
        }
        close(copy);
    }
}

/* ready_run: closes a stream that another thread orphaned. `owner` is a capsule of it. */
static int
run_close_orphan(LoopObject *loop, PyObject *owner, PyObject *Py_UNUSED(arg))
{
    UvStream *wanted = PyCapsule_GetPointer(owner, NULL);
    /* Closing the loop in the meantime closed it. */
    for (UvStream *stream = loop->io == NULL ? NULL : loop->io->streams; stream != NULL; stream = stream->next) {
        if (stream == wanted && stream->owner == NULL) {
            stream_close(stream);
            break;
        }
    }
    return 0;
}

void
stream_close_threadsafe(UvStream *stream)
{
    LoopObject *loop = stream->loop;
    if (io_may_touch(loop)) {
        stream_close(stream);
        return;
    }
    stream->owner = NULL;
    PyObject *capsule = PyCapsule_New(stream, NULL, NULL);
    if (capsule == NULL || loop_push(loop, run_close_orphan, capsule, NULL) < 0) {
        /* It stays open until the loop is closed. */
        PyErr_Clear();
    }
    Py_XDECREF(capsule);
}

static void
on_written(uv_write_t *uv_request, int status)
{
    WriteRequest *request = (WriteRequest *)uv_request;
    UvStream *stream = request->stream;
    loop_enter(stream->loop);
    stream_mark_changed(stream);
    if (status == 0) {
        metrics_sent(&stream->loop->metrics, request->chunks.size_bytes);
    }
    chunks_clear(&request->chunks);
    PyMem_RawFree(request);
    LoopObject *loop = stream->loop;
    if (stream->owner != NULL) {
        transport_written(stream->owner, status);
    }
    /* libuv may call this before it polls. */
    if (loop->io != NULL) {
        check_changed_in_poll(loop);
    }
}

ssize_t
stream_send(int fd, uv_buf_t *buffers, unsigned count)
{
    ssize_t size;
    do {
        if (count == 1) {
            size = send(fd, buffers->base, buffers->len, COMPAT_MSG_NOSIGNAL);
        } else {
            /* A uv_buf_t is laid out as the system's iovec. */
            struct msghdr message = {.msg_iov = (struct iovec *)buffers, .msg_iovlen = count};
            size = sendmsg(fd, &message, COMPAT_MSG_NOSIGNAL);
        }
    } while (UNLIKELY(size < 0) && errno == EINTR);
    if (LIKELY(size >= 0)) {
        return size;
    }
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS ? UV_EAGAIN : uv_translate_sys_error(errno);
}

int
stream_write(UvStream *stream, Chunks *queue, size_t size)
{
    assert(io_may_touch(stream->loop));
    WriteRequest *request = PyMem_RawCalloc(1, sizeof(WriteRequest));
    if (request == NULL || chunks_split(queue, &request->chunks, size, MAX_BUFFERS) < 0) {
        PyMem_RawFree(request);
        return UV_ENOMEM;
    }
    request->stream = stream;
    uv_buf_t buffers[MAX_BUFFERS];
    unsigned count = chunks_describe(&request->chunks, buffers, MAX_BUFFERS);
    int err = uv_write(&request->request, &stream->uv.stream, buffers, count, on_written);
    if (err < 0) {
        chunks_clear(&request->chunks);
        PyMem_RawFree(request);
    }
    stream_mark_changed(stream);
    return err;
}
