/* The I/O part of a loop: its place in the life of the loop, and the methods that io/ adds to the Loop type. */

#include "io/io.h"

#include "io/clients.h"
#include "io/connect.h"
#include "io/loan.h"
#include "io/server.h"
#include "io/sockops.h"
#include "io/transport.h"

/* ---- hooks ---- */

/* The number of arguments of a Python function; -1 with an exception. */
static long
count_arguments(PyObject *type, const char *name)
{
    PyObject *function = PyObject_GetAttrString(type, name);
    PyObject *code = function == NULL ? NULL : PyObject_GetAttrString(function, "__code__");
    PyObject *count = code == NULL ? NULL : PyObject_GetAttrString(code, "co_argcount");
    long number = count == NULL ? -1 : PyLong_AsLong(count);
    Py_XDECREF(function);
    Py_XDECREF(code);
    Py_XDECREF(count);
    return number;
}

static int
find_traits(State *state, IoTraits *traits)
{
    long arguments = count_arguments(state->asyncio_Server, "_attach");
    if (arguments < 0) {
        return -1;
    }
    traits->server_takes_transport = arguments == 2;
    PyObject *own = PyObject_GetAttrString(state->stock_SocketTransport, "writelines");
    PyObject *inherited = own == NULL ? NULL : PyObject_GetAttrString(state->asyncio_FlowControlMixin, "writelines");
    traits->joins_lines = own == inherited;
    Py_XDECREF(own);
    Py_XDECREF(inherited);
    return inherited == NULL ? -1 : 0;
}

static int
io_open(LoopObject *loop)
{
    struct IoPart *io = PyMem_Calloc(1, sizeof(struct IoPart));
    if (io == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    poller_init(&io->poller);
    signals_init(&io->signals);
    if (find_traits(loop->state, &io->traits) < 0) {
        PyMem_Free(io);
        return -1;
    }
    loop->io = io;
    return 0;
}

NEVER_INLINE void
flush_transports(LoopObject *loop)
{
    loop_leave_task(loop);
    transport_flush_all(loop);
    /* The other end may be ours: programs count on an answer within two turns. */
    loop_poll_soon(loop);
}

static void
io_flush(LoopObject *loop)
{
    struct IoPart *io = loop->io;
    if (UNLIKELY(io == NULL)) {
        return;
    }
    poller_end_turn(loop);
    if (UNLIKELY(io->flush_head != NULL)) {
        flush_transports(loop);
    }
}

static void
io_close(LoopObject *loop)
{
    struct IoPart *io = loop->io;
    if (io == NULL) {
        return;
    }
    signals_close(loop);
    connect_forget(loop);
    handshakes_clear(&io->handshakes);
    while (io->streams != NULL) {
        UvStream *stream = io->streams;
        if (stream->owner != NULL) {
            transport_loop_closed(stream->owner);
        } else {
            stream_close(stream);
        }
    }
    poller_clear(loop);
}

/* The loop goes without having been closed: Python objects must neither be called nor find anything of it. */
static void
io_abandon(LoopObject *loop)
{
    struct IoPart *io = loop->io;
    if (io == NULL) {
        return;
    }
    while (io->streams != NULL) {
        UvStream *stream = io->streams;
        if (stream->owner != NULL) {
            stream->owner->stream = NULL;
            stream->owner->reading = stream->owner->writing = false;
        }
        stream_close(stream);
    }
    signals_close(loop);
    poller_close(loop);
    connect_forget(loop);
    handshakes_clear(&io->handshakes);
    Py_CLEAR(io->read_bytes);
    PyMem_RawFree(io->read_buffer);
    PyMem_RawFree(io->plain_buffer);
    tlsbios_free(io->tls_bios);
    bytespool_clear(&io->bytes);
    PyMem_RawFree(io->receive_buffer);
    senders_clear(loop);
    numeric_clear(&io->numeric);
    loop->io = NULL;
    PyMem_Free(io);
}

static int
io_fork(LoopObject *loop)
{
    if (loop->io == NULL) {
        return 0;
    }
    /* The new set of the child is told of everything. */
    for (UvStream *stream = loop->io->streams; stream != NULL; stream = stream->next) {
        stream_mark_changed(stream);
    }
    int err = poller_fork(loop);
    return err < 0 ? err : signals_fork(loop);
}

static int
io_traverse(LoopObject *loop, visitproc visit, void *arg)
{
    struct IoPart *io = loop->io;
    if (io == NULL) {
        return 0;
    }
    for (SocketTransport *transport = io->active; transport != NULL; transport = transport->next_active) {
        Py_VISIT(transport);
    }
    Py_VISIT(io->decided);
    Py_VISIT(io->foreign_transports);
    int err = numeric_traverse(&io->numeric, visit, arg);
    if (err == 0) {
        err = handshakes_traverse(&io->handshakes, visit, arg);
    }
    return err != 0 ? err : poller_traverse(&io->poller, visit, arg);
}

static void
io_clear(LoopObject *loop)
{
    struct IoPart *io = loop->io;
    if (io == NULL) {
        return;
    }
    poller_clear(loop);
    senders_clear(loop);
    numeric_clear(&io->numeric);
    connect_forget(loop);
    handshakes_clear(&io->handshakes);
    io->flush_head = io->flush_tail = NULL;
    while (io->active != NULL) {
        transport_release(io->active, HOLD_READING | HOLD_WRITING | HOLD_FLUSH);
    }
    Py_CLEAR(io->foreign_transports);
}

const LoopHooks io_hooks = {
    .open = io_open,
    .collect = connect_collect,
    .glance = poller_glance,
    .flush = io_flush,
    .close = io_close,
    .abandon = io_abandon,
    .check_watchers = streams_check_changed,
    .fork = io_fork,
    .traverse = io_traverse,
    .clear = io_clear,
};

char *
io_receive_buffer(LoopObject *loop)
{
    struct IoPart *io = loop->io;
    if (UNLIKELY(io->receive_buffer == NULL)) {
        io->receive_buffer = PyMem_RawMalloc(IO_RECEIVE_SIZE);
        if (io->receive_buffer == NULL) {
            PyErr_NoMemory();
        }
    }
    return io->receive_buffer;
}

/* ---- methods of the loop ---- */

PyDoc_STRVAR(Loop_foreign_transports_doc,
             "_foreign_transports($self, /)\n--\n\n"
             "The mapping fd -> transport in which the standard library's own transports register themselves.");

static PyObject *
Loop_foreign_transports(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    if (UNLIKELY(gate_is_shut(LoopObject_CAST(op)->gate))) {
        return gate_call(LoopObject_CAST(op)->gate, Loop_foreign_transports, op, NULL);
    }
    LoopObject *loop = LoopObject_CAST(op);
    if (loop->io == NULL) {
        return PyDict_New();
    }
    if (loop->io->foreign_transports == NULL) {
        PyObject *mapping = PyObject_CallNoArgs(loop->state->weakref_WeakValueDictionary);
        if (mapping == NULL) {
            return NULL;
        }
        Py_XSETREF(loop->io->foreign_transports, mapping);
    }
    return Py_NewRef(loop->io->foreign_transports);
}

PyDoc_STRVAR(Loop_open_handles_doc,
             "_open_handles($self, /)\n--\n\n"
             "List (kind, fd) of the uv handles that are open, apart from the loop's own; for tests.");

static PyObject *
Loop_open_handles(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    if (UNLIKELY(gate_is_shut(LoopObject_CAST(op)->gate))) {
        return gate_call(LoopObject_CAST(op)->gate, Loop_open_handles, op, NULL);
    }
    LoopObject *loop = LoopObject_CAST(op);
    PyObject *list = PyList_New(0);
    UvStream *stream = loop->io == NULL ? NULL : loop->io->streams;
    for (; list != NULL && stream != NULL; stream = stream->next) {
        uv_os_fd_t fd = -1;
        (void)uv_fileno(&stream->uv.handle, &fd);
        PyObject *pair = Py_BuildValue("si", uv_handle_type_name(stream->uv.handle.type), (int)fd);
        if (pair == NULL || PyList_Append(list, pair) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(pair);
    }
    return list;
}

PyDoc_STRVAR(Loop_count_handles_doc,
             "_count_handles($self, /)\n--\n\n"
             "How many handles of each kind are open, as a dict; None where another thread may be changing them.");

static PyObject *
Loop_count_handles(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    LoopObject *loop = LoopObject_CAST(op);
    if (!loop_is_held_here(loop) && loop->holder != 0) {
        Py_RETURN_NONE;
    }
    int tcp = 0, others = 0, readers = 0, writers = 0, listeners = 0;
    struct IoPart *io = loop->io;
    for (UvStream *stream = io == NULL ? NULL : io->streams; stream != NULL; stream = stream->next) {
        tcp += stream->uv.handle.type == UV_TCP;
        others += stream->uv.handle.type != UV_TCP;
    }
    for (size_t fd = 0; io != NULL && fd < io->poller.size; fd++) {
        const PollerEntry *entry = &io->poller.entries[fd];
        bool listens = entry->reader.owner != NULL && Py_IS_TYPE(entry->reader.owner, loop->state->ListenerType);
        listeners += listens;
        readers += entry->reader.run != NULL && !listens;
        writers += entry->writer.run != NULL;
    }
    return Py_BuildValue("{si,si,si,si,si}", "tcp", tcp, "unix", others, "listeners", listeners, "readers", readers,
                         "writers", writers);
}

PyDoc_STRVAR(Loop_count_sent_doc, "_count_sent($self, size, /)\n--\n\nCount bytes that Python code sent.");

static PyObject *
Loop_count_sent(PyObject *op, PyObject *size)
{
    size_t bytes = PyLong_AsSize_t(size);
    if (bytes == (size_t)-1 && PyErr_Occurred()) {
        return NULL;
    }
    metrics_sent(&LoopObject_CAST(op)->metrics, bytes);
    Py_RETURN_NONE;
}

#define FASTCALL_KEYWORDS(function) ((PyCFunction)(void (*)(void))(function)), METH_FASTCALL | METH_KEYWORDS
#define VARARGS_KEYWORDS(function) ((PyCFunction)(void (*)(void))(function)), METH_VARARGS | METH_KEYWORDS

PyMethodDef io_loop_methods[] = {
    {"add_reader", FASTCALL_KEYWORDS(Loop_add_reader),
     "add_reader($self, fd, callback, *args)\n--\n\n"
     "Call callback(*args) in every turn in which `fd`, an int or an object with fileno(), can be read.\n\n"
     "Replaces and cancels the reader that was there. Raises ValueError for what is no descriptor, OSError for one\n"
     "that cannot be polled (PermissionError for a regular file), RuntimeError for one that a transport owns and when\n"
     "the loop is closed. See asyncio.loop.add_reader()."},
    {"add_writer", FASTCALL_KEYWORDS(Loop_add_writer),
     "add_writer($self, fd, callback, *args)\n--\n\n"
     "Call callback(*args) in every turn in which `fd` can be written; otherwise as add_reader().\n\n"
     "See asyncio.loop.add_writer()."},
    {"remove_reader", FASTCALL_KEYWORDS(Loop_remove_reader),
     "remove_reader($self, fd)\n--\n\n"
     "Stop watching `fd` for reading; True if a reader was there. See asyncio.loop.remove_reader()."},
    {"remove_writer", FASTCALL_KEYWORDS(Loop_remove_writer),
     "remove_writer($self, fd)\n--\n\n"
     "Stop watching `fd` for writing; True if a writer was there. See asyncio.loop.remove_writer()."},
    /* What the standard library's own transports and sock_* methods call: no check for transports, and the handle is
       returned. */
    {"_add_reader", FASTCALL_KEYWORDS(Loop_private_add_reader), NULL},
    {"_add_writer", FASTCALL_KEYWORDS(Loop_private_add_writer), NULL},
    {"_remove_reader", Loop_private_remove_reader, METH_O, NULL},
    {"_remove_writer", Loop_private_remove_writer, METH_O, NULL},
    {"_ensure_fd_no_transport", Loop_ensure_fd_no_transport, METH_O, NULL},
    {"_poll_state", Loop_poll_state, METH_O,
     "_poll_state($self, fd, /)\n--\n\n"
     "(events, reader, writer) of a descriptor that add_reader() or add_writer() watches, or None; `events` as in the\n"
     "selectors module."},
    {"_make_socket_transport", VARARGS_KEYWORDS(Loop_make_socket_transport), NULL},
    {"_start_connecting", (PyCFunction)(void (*)(void))Loop_start_connecting, METH_FASTCALL, NULL},
    {"_answer_numeric", (PyCFunction)(void (*)(void))Loop_answer_numeric, METH_FASTCALL, NULL},
    {"_keep_answer", (PyCFunction)(void (*)(void))Loop_keep_answer, METH_FASTCALL, NULL},
    {"_start_serving", VARARGS_KEYWORDS(Loop_start_serving), NULL},
    {"sock_recv", FASTCALL_KEYWORDS(Loop_sock_recv),
     "sock_recv($self, sock, n)\n--\n\nReceive at most `n` bytes from a socket; b\"\" when the other side has "
     "closed.\n\nSee asyncio.loop.sock_recv()."},
    {"sock_recv_into", FASTCALL_KEYWORDS(Loop_sock_recv_into),
     "sock_recv_into($self, sock, buf)\n--\n\nReceive into a buffer; how many bytes.\n\n"
     "See asyncio.loop.sock_recv_into()."},
    {"sock_recvfrom", FASTCALL_KEYWORDS(Loop_sock_recvfrom),
     "sock_recvfrom($self, sock, bufsize)\n--\n\nReceive a datagram and its sender.\n\n"
     "See asyncio.loop.sock_recvfrom()."},
    {"sock_recvfrom_into", FASTCALL_KEYWORDS(Loop_sock_recvfrom_into),
     "sock_recvfrom_into($self, sock, buf, nbytes=0)\n--\n\nReceive a datagram into a buffer; how many bytes, and "
     "the sender.\n\nSee asyncio.loop.sock_recvfrom_into()."},
    {"sock_sendall", FASTCALL_KEYWORDS(Loop_sock_sendall),
     "sock_sendall($self, sock, data)\n--\n\nSend all of `data`.\n\nSee asyncio.loop.sock_sendall()."},
    {"sock_sendto", FASTCALL_KEYWORDS(Loop_sock_sendto),
     "sock_sendto($self, sock, data, address)\n--\n\nSend a datagram; how many bytes.\n\n"
     "See asyncio.loop.sock_sendto()."},
    {"sock_connect", FASTCALL_KEYWORDS(Loop_sock_connect),
     "sock_connect($self, sock, address)\n--\n\nConnect a socket.\n\nSee asyncio.loop.sock_connect()."},
    {"sock_accept", FASTCALL_KEYWORDS(Loop_sock_accept),
     "sock_accept($self, sock)\n--\n\nAccept a connection: the new socket and the address of the other side.\n\n"
     "See asyncio.loop.sock_accept()."},
    {"_set_native_sockets", Loop_set_native_sockets, METH_O,
     "_set_native_sockets($self, flag, /)\n--\n\nWhether sock_*() calls are fastloop's own."},
    {"_set_native_servers", Loop_set_native_servers, METH_O,
     "_set_native_servers($self, flag, /)\n--\n\nWhether servers count their connections without calling Python."},
    {"_install_wakeup_fd", Loop_install_wakeup_fd, METH_NOARGS, NULL},
    {"_uninstall_wakeup_fd", Loop_uninstall_wakeup_fd, METH_NOARGS, NULL},
    {"_keep_wakeup_fd", Loop_keep_wakeup_fd, METH_O, NULL},
    {"_foreign_transports", Loop_foreign_transports, METH_NOARGS, Loop_foreign_transports_doc},
    {"_count_handles", Loop_count_handles, METH_NOARGS, Loop_count_handles_doc},
    {"_count_sent", Loop_count_sent, METH_O, Loop_count_sent_doc},
    {"_open_handles", Loop_open_handles, METH_NOARGS, Loop_open_handles_doc},
    {NULL},
};
