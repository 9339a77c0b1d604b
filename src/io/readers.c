/* loop.add_reader() and its kin, for Python: arguments and errors are those of the standard selector loop. */

#include "base/args.h"
#include "io/io.h"

/* The arguments of f(fd, callback, *args, context=None); everything is borrowed. */
typedef struct {
    PyObject *fd;
    PyObject *callback;
    PyObject *const *rest;
    Py_ssize_t nrest;
    PyObject *context;
} WatchArgs;

/* Takes one keyword; false when there is no such argument or it is there already. */
static bool
take_keyword(WatchArgs *parsed, PyObject *name, PyObject *value, bool takes_context)
{
    PyObject **place = PyUnicode_CompareWithASCIIString(name, "fd") == 0                         ? &parsed->fd
                       : PyUnicode_CompareWithASCIIString(name, "callback") == 0                 ? &parsed->callback
                       : takes_context && PyUnicode_CompareWithASCIIString(name, "context") == 0 ? &parsed->context
                                                                                                 : NULL;
    if (place == NULL || *place != NULL) {
        return false;
    }
    *place = value;
    return true;
}

static int
parse_watch(WatchArgs *parsed, const char *method, bool takes_context, PyObject *const *args, Py_ssize_t nargs,
            PyObject *kwnames)
{
    *parsed = (WatchArgs){.fd = nargs > 0 ? args[0] : NULL, .callback = nargs > 1 ? args[1] : NULL};
    if (nargs > 2) {
        parsed->rest = args + 2;
        parsed->nrest = nargs - 2;
    }
    Py_ssize_t count = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        if (!take_keyword(parsed, name, args[nargs + i], takes_context)) {
            PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument %R", method, name);
            return -1;
        }
    }
    if (parsed->fd == NULL || parsed->callback == NULL) {
        PyErr_Format(PyExc_TypeError, "%s() missing required positional argument: '%s'", method,
                     parsed->fd == NULL ? "fd" : "callback");
        return -1;
    }
    return 0;
}

/* The bool that epoll is told in place of a descriptor when the reader or the writer is removed, or is added as `added`:
   what was registered first counts. NULL when it is a number, or when nothing changes. */
static PyObject *
bool_for_descriptor(LoopObject *loop, int fd, unsigned event, PyObject *added)
{
    const PollerEntry *entry = poller_get_entry(loop, fd);
    bool reads = entry != NULL && entry->reader.run != NULL;
    bool writes = entry != NULL && entry->writer.run != NULL;
    bool changes = (event == POLLSET_READ ? reads : writes) != (added != NULL);
    PyObject *told = reads || writes ? entry->fileobj : added;
    return changes && told != NULL && PyBool_Check(told) ? told : NULL;
}

/* Newer versions warn of a bool, wherever epoll is told: -1 with the warning as an exception. */
static int
warn_of_bool(PyObject *number)
{
    return number != NULL && PyObject_AsFileDescriptor(number) < 0 ? -1 : 0;
}

/* loop._add_reader() and its kin: the handle (new), or NULL with an exception. */
static PyObject *
add_handle(LoopObject *loop, WatchArgs *parsed, unsigned event)
{
    if (loop_check_open(loop) < 0) {
        return NULL;
    }
    HandleObject *handle = handle_new(loop, parsed->callback, parsed->rest, parsed->nrest, parsed->context);
    if (handle == NULL) {
        return NULL;
    }
    PyObject *fileobj = PyLong_CheckExact(parsed->fd) ? NULL : parsed->fd;
    int fd = poller_fd_of(parsed->fd);
    PyObject *odd = bool_for_descriptor(loop, fd, event, parsed->fd);
    /* Python code ran in fileno(), and runs for a warning. */
    if (fd < 0 || warn_of_bool(odd) < 0 || loop_check_open(loop) < 0 ||
        poller_watch(loop, fd, event, handle_run, (PyObject *)handle, fileobj) < 0) {
        Py_CLEAR(handle);
    }
    return (PyObject *)handle;
}

static PyObject *
add_public(PyObject *op, const char *method, unsigned event, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    LoopObject *loop = LoopObject_CAST(op);
    WatchArgs parsed;
    int fd;
    if (parse_watch(&parsed, method, false, args, nargs, kwnames) < 0 ||
        poller_check_no_transport(loop, parsed.fd, &fd) < 0) {
        return NULL;
    }
    PyObject *handle = add_handle(loop, &parsed, event);
    if (handle == NULL) {
        return NULL;
    }
    Py_DECREF(handle);
    Py_RETURN_NONE;
}

static PyObject *
add_private(PyObject *op, const char *method, unsigned event, PyObject *const *args, Py_ssize_t nargs,
            PyObject *kwnames)
{
    WatchArgs parsed;
    if (parse_watch(&parsed, method, true, args, nargs, kwnames) < 0) {
        return NULL;
    }
    return add_handle(LoopObject_CAST(op), &parsed, event);
}

/* loop._remove_reader() and its kin: a bool. */
static PyObject *
remove_private(PyObject *op, PyObject *fileobj, unsigned event)
{
    LoopObject *loop = LoopObject_CAST(op);
    if (loop->closed || loop->io == NULL) {
        Py_RETURN_FALSE;
    }
    int fd = poller_fd_to_find(fileobj);
    if (fd < 0 && PyErr_ExceptionMatches(PyExc_ValueError) && loop->io != NULL) {
        fd = poller_find_fileobj(loop, fileobj);
        if (fd >= 0) {
            PyErr_Clear();
        }
    }
    if (fd < 0) {
        return NULL;
    }
    PyObject *odd = bool_for_descriptor(loop, fd, event, NULL);
    int found = poller_unwatch(loop, fd, event);
    return found < 0 || warn_of_bool(odd) < 0 ? NULL : PyBool_FromLong(found);
}

static PyObject *
remove_public(PyObject *op, PyObject *fileobj, unsigned event)
{
    int fd;
    if (poller_check_no_transport(LoopObject_CAST(op), fileobj, &fd) < 0) {
        return NULL;
    }
    return remove_private(op, fileobj, event);
}

PyObject *
Loop_add_reader(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    if (UNLIKELY(gate_is_shut(LoopObject_CAST(op)->gate))) {
        return gate_call_fast(LoopObject_CAST(op)->gate, Loop_add_reader, op, args, nargs, kwnames);
    }
    return add_public(op, "add_reader", POLLSET_READ, args, nargs, kwnames);
}

PyObject *
Loop_add_writer(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    if (UNLIKELY(gate_is_shut(LoopObject_CAST(op)->gate))) {
        return gate_call_fast(LoopObject_CAST(op)->gate, Loop_add_writer, op, args, nargs, kwnames);
    }
    return add_public(op, "add_writer", POLLSET_WRITE, args, nargs, kwnames);
}

PyObject *
Loop_remove_reader(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    if (UNLIKELY(gate_is_shut(LoopObject_CAST(op)->gate))) {
        return gate_call_fast(LoopObject_CAST(op)->gate, Loop_remove_reader, op, args, nargs, kwnames);
    }
    PyObject *fd = args_only("BaseSelectorEventLoop.remove_reader", "fd", args, nargs, kwnames);
    return fd == NULL ? NULL : remove_public(op, fd, POLLSET_READ);
}

PyObject *
Loop_remove_writer(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    if (UNLIKELY(gate_is_shut(LoopObject_CAST(op)->gate))) {
        return gate_call_fast(LoopObject_CAST(op)->gate, Loop_remove_writer, op, args, nargs, kwnames);
    }
    PyObject *fd = args_only("BaseSelectorEventLoop.remove_writer", "fd", args, nargs, kwnames);
    return fd == NULL ? NULL : remove_public(op, fd, POLLSET_WRITE);
}

PyObject *
Loop_private_add_reader(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    if (UNLIKELY(gate_is_shut(LoopObject_CAST(op)->gate))) {
        return gate_call_fast(LoopObject_CAST(op)->gate, Loop_private_add_reader, op, args, nargs, kwnames);
    }
    return add_private(op, "_add_reader", POLLSET_READ, args, nargs, kwnames);
}

PyObject *
Loop_private_add_writer(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    if (UNLIKELY(gate_is_shut(LoopObject_CAST(op)->gate))) {
        return gate_call_fast(LoopObject_CAST(op)->gate, Loop_private_add_writer, op, args, nargs, kwnames);
    }
    return add_private(op, "_add_writer", POLLSET_WRITE, args, nargs, kwnames);
}

PyObject *
Loop_private_remove_reader(PyObject *op, PyObject *fd)
{
    if (UNLIKELY(gate_is_shut(LoopObject_CAST(op)->gate))) {
        return gate_call(LoopObject_CAST(op)->gate, Loop_private_remove_reader, op, fd);
    }
    return remove_private(op, fd, POLLSET_READ);
}

PyObject *
Loop_private_remove_writer(PyObject *op, PyObject *fd)
{
    if (UNLIKELY(gate_is_shut(LoopObject_CAST(op)->gate))) {
        return gate_call(LoopObject_CAST(op)->gate, Loop_private_remove_writer, op, fd);
    }
    return remove_private(op, fd, POLLSET_WRITE);
}

PyObject *
Loop_ensure_fd_no_transport(PyObject *op, PyObject *fileobj)
{
    if (UNLIKELY(gate_is_shut(LoopObject_CAST(op)->gate))) {
        return gate_call(LoopObject_CAST(op)->gate, Loop_ensure_fd_no_transport, op, fileobj);
    }
    int fd;
    if (poller_check_no_transport(LoopObject_CAST(op), fileobj, &fd) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyObject *
Loop_poll_state(PyObject *op, PyObject *fileobj)
{
    if (UNLIKELY(gate_is_shut(LoopObject_CAST(op)->gate))) {
        return gate_call(LoopObject_CAST(op)->gate, Loop_poll_state, op, fileobj);
    }
    LoopObject *loop = LoopObject_CAST(op);
    int fd = poller_fd_of(fileobj);
    if (fd < 0) {
        return NULL;
    }
    const PollerEntry *entry = poller_get_entry(loop, fd);
    unsigned events = entry == NULL ? 0
                                    : (entry->reader.run != NULL ? POLLSET_READ : 0) |
                                          (entry->writer.run != NULL ? POLLSET_WRITE : 0);
    if (events == 0) {
        Py_RETURN_NONE;
    }
    PyObject *reader = entry->reader.owner == NULL ? Py_None : entry->reader.owner;
    PyObject *writer = entry->writer.owner == NULL ? Py_None : entry->writer.owner;
    return Py_BuildValue("(IOO)", events, reader, writer);
}
