/* The libuv side of a stream transport. */

#include "io/stream.h"

#include "base/uverror.h"
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
    /* The address of the union is the address of the allocation. */
    PyMem_RawFree(handle);
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

UvStream *
stream_open(LoopObject *loop, int fd, bool is_tcp, SocketTransport *owner)
{
    UvStream *stream = PyMem_RawCalloc(1, sizeof(UvStream));
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
    link_stream(stream);
    return stream;
}

void
stream_close(UvStream *stream)
{
    stream->owner = NULL;
    unlink_stream(stream);
    uv_close(&stream->uv.handle, on_closed);
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
    chunks_clear(&request->chunks);
    PyMem_RawFree(request);
    if (stream->owner != NULL) {
        transport_written(stream->owner, status);
    }
}

int
stream_write(UvStream *stream, Chunks *queue, size_t size)
{
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
    return err;
}
