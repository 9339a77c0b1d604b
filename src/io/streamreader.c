/* What StreamReader's coroutines do between two waits. fastloop/_streams.py has the coroutines.

   Each function takes the reader first and returns bytes when it is done, a future to wait for before it is called
   again (with the progress, where that is a number), or None when the standard method must do the work: something was
   replaced, or the argument is unusual. */

#include "io/streamreader.h"

#include <string.h>

#include "base/bytearrays.h"

/* ---- attributes ---- */

static const size_t FIELD_NAMES[FIELD_COUNT] = {
    [FIELD_LIMIT] = offsetof(State, str__limit),         [FIELD_LOOP] = offsetof(State, str__loop),
    [FIELD_BUFFER] = offsetof(State, str__buffer),       [FIELD_EOF] = offsetof(State, str__eof),
    [FIELD_WAITER] = offsetof(State, str__waiter),       [FIELD_EXCEPTION] = offsetof(State, str__exception),
    [FIELD_TRANSPORT] = offsetof(State, str__transport), [FIELD_PAUSED] = offsetof(State, str__paused),
};

static PyObject *
field_name(State *state, int field)
{
    return *(PyObject **)((char *)state + FIELD_NAMES[field]);
}

/* Fills view->held; false when an attribute is missing. In the order of __init__(), going through the dict is much
   quicker than looking each of them up. */
static bool
load_fields(ReaderView *view)
{
    PyObject *key, *value;
    Py_ssize_t position = 0;
    int field = 0;
    while (field < FIELD_COUNT && PyDict_Next(view->dict, &position, &key, &value) &&
           key == field_name(view->state, field)) {
        view->held[field++] = value;
    }
    for (; field < FIELD_COUNT; field++) {
        if (HAVE_FREE_THREADING) {
            /* Looking up may let go of the dict's lock, and what was found is another thread's to take away. */
            return false;
        }
        view->held[field] = PyDict_GetItemWithError(view->dict, field_name(view->state, field));
        if (view->held[field] == NULL) {
            return false;
        }
    }
    return true;
}

/* The same with a reference to each, where another thread may take theirs away. */
static bool
hold_fields(ReaderView *view)
{
    bool complete;
    FL_BEGIN_CRITICAL_SECTION(view->dict);
    complete = load_fields(view);
    for (int i = 0; HAVE_FREE_THREADING && complete && i < FIELD_COUNT; i++) {
        Py_INCREF(view->held[i]);
    }
    FL_END_CRITICAL_SECTION();
    return complete;
}

static bool
is_bool(PyObject *op)
{
    return op == Py_False || op == Py_True;
}

/* Are the attributes of the types that they usually have? */
static bool
check_fields(ReaderView *view)
{
    PyObject *limit = view->held[FIELD_LIMIT];
    view->buffer = view->held[FIELD_BUFFER];
    if (!PyByteArray_CheckExact(view->buffer) || !PyLong_CheckExact(limit) || !is_bool(view->held[FIELD_EOF]) ||
        !is_bool(view->held[FIELD_PAUSED])) {
        return false;
    }
    view->eof = view->held[FIELD_EOF] == Py_True;
    view->paused = view->held[FIELD_PAUSED] == Py_True;
    view->limit = PyLong_AsSsize_t(limit);
    if (view->limit == -1) {
        PyErr_Clear();
    }
    return view->limit >= 0 && view->limit <= PY_SSIZE_T_MAX / 2;
}

int
reader_open(State *state, PyObject *reader, ReaderView *view)
{
    StreamState *streams = state->streams;
    if (streams == NULL || !streams->usable || !Py_IS_TYPE(reader, streams->reader.type)) {
        return 0;
    }
    int original = known_check(streams, &streams->reader);
    if (original <= 0) {
        return original;
    }
    view->state = state;
    view->dict = PyObject_GenericGetDict(reader, NULL);
    if (view->dict == NULL) {
        return -1;
    }
    /* One attribute more could replace a method. */
    if (PyDict_CheckExact(view->dict) && PyDict_GET_SIZE(view->dict) == FIELD_COUNT && hold_fields(view)) {
        if (LIKELY(check_fields(view))) {
            return 1;
        }
        reader_close(view);
    } else {
        Py_DECREF(view->dict);
    }
    return PyErr_Occurred() ? -1 : 0;
}

int
reader_set(ReaderView *view, ReaderField field, PyObject *value)
{
    return PyDict_SetItem(view->dict, field_name(view->state, field), value);
}

/* ---- what the methods share ---- */

/* `raise self._exception`; None for what is no exception. */
static PyObject *
raise_stored(ReaderView *view)
{
    PyObject *exc = view->held[FIELD_EXCEPTION];
    if (!PyExceptionInstance_Check(exc)) {
        Py_RETURN_NONE;
    }
    PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
    return NULL;
}

static bool
has_exception(ReaderView *view)
{
    return UNLIKELY(view->held[FIELD_EXCEPTION] != Py_None);
}

/* `self._paused = False; self._transport.resume_reading()` */
static int
resume_transport(ReaderView *view, PyObject *transport)
{
    if (reader_set(view, FIELD_PAUSED, Py_False) < 0) {
        return -1;
    }
    PyObject *result = PyObject_CallMethodNoArgs(transport, view->state->str_resume_reading);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* The beginning of `_wait_for_data(name)`: the new waiter. */
static PyObject *
start_waiting(ReaderView *view, const char *name)
{
    if (view->held[FIELD_WAITER] != Py_None) {
        PyErr_Format(PyExc_RuntimeError, "%s() called while another coroutine is already waiting for incoming data",
                     name);
        return NULL;
    }
    PyObject *loop = Py_NewRef(view->held[FIELD_LOOP]);
    PyObject *transport = Py_NewRef(view->held[FIELD_TRANSPORT]);
    PyObject *future = NULL;
    if (!view->paused || resume_transport(view, transport) == 0) {
        future = PyObject_CallMethodNoArgs(loop, view->state->str_create_future);
    }
    Py_DECREF(transport);
    Py_DECREF(loop);
    if (future != NULL && reader_set(view, FIELD_WAITER, future) < 0) {
        Py_CLEAR(future);
    }
    return future;
}

/* The first `size` bytes of the buffer. A large memory that gets empty is kept for others. */
static PyObject *
take_bytes(ReaderView *view, Py_ssize_t size)
{
    /* Garbage may be collected on the way, and some finaliser may give the reader another buffer. */
    PyObject *buffer = Py_NewRef(view->buffer);
    PyObject *bytes;
    if (HAVE_BYTEARRAY_MEMORY && size == PyByteArray_GET_SIZE(buffer) && bytearray_allocated(buffer) > SPARE_SIZE &&
        bytearray_may_resize(buffer)) {
        bytes = PyBytes_FromStringAndSize(PyByteArray_AS_STRING(buffer), size);
        if (bytes != NULL) {
            spare_take_back(view->state->streams, buffer);
        }
    } else {
        bytes = bytearray_take(buffer, size);
    }
    Py_DECREF(buffer);
    return bytes;
}

/* The first `size` bytes; then `_maybe_resume_transport()`. */
static PyObject *
take(ReaderView *view, Py_ssize_t size)
{
    if (LIKELY(!view->paused)) {
        return take_bytes(view, size);
    }
    PyObject *transport = Py_NewRef(view->held[FIELD_TRANSPORT]);
    Py_ssize_t rest = PyByteArray_GET_SIZE(view->buffer) - size;
    PyObject *bytes = take_bytes(view, size);
    if (bytes != NULL && rest <= view->limit && resume_transport(view, transport) < 0) {
        Py_CLEAR(bytes);
    }
    Py_DECREF(transport);
    return bytes;
}

/* raise IncompleteReadError(everything, expected) */
static PyObject *
raise_incomplete(ReaderView *view, PyObject *expected)
{
    PyObject *type = view->state->streams->IncompleteReadError;
    PyObject *partial = take_bytes(view, PyByteArray_GET_SIZE(view->buffer));
    PyObject *exc = partial == NULL ? NULL : PyObject_CallFunctionObjArgs(type, partial, expected, NULL);
    if (exc != NULL) {
        PyErr_SetObject(type, exc);
    }
    Py_XDECREF(partial);
    Py_XDECREF(exc);
    return NULL;
}

/* raise LimitOverrunError(message, consumed) */
static PyObject *
raise_overrun(ReaderView *view, const char *message, Py_ssize_t consumed)
{
    PyObject *type = view->state->streams->LimitOverrunError;
    PyObject *exc = PyObject_CallFunction(type, "sn", message, consumed);
    if (exc != NULL) {
        PyErr_SetObject(type, exc);
        Py_DECREF(exc);
    }
    return NULL;
}

/* An argument that is exactly an int, not negative and not too large; -1 without an exception. */
static Py_ssize_t
plain_size(PyObject *number)
{
    if (!PyLong_CheckExact(number)) {
        return -1;
    }
    Py_ssize_t size = PyLong_AsSsize_t(number);
    if (size == -1) {
        PyErr_Clear();
    }
    return size;
}

/* ---- the three methods ---- */

/* read(n); `resumed` when it has waited for data, which are then taken whatever has become of the reader. */
static PyObject *
read_some(ReaderView *view, PyObject *number, bool resumed)
{
    Py_ssize_t n = plain_size(number);
    if (n < 0) {
        Py_RETURN_NONE;
    }
    if (!resumed) {
        if (has_exception(view)) {
            return raise_stored(view);
        }
        if (n > 0 && PyByteArray_GET_SIZE(view->buffer) == 0 && !view->eof) {
            return start_waiting(view, "read");
        }
        if (n == 0) {
            return PyBytes_FromStringAndSize(NULL, 0);
        }
    }
    return take(view, Py_MIN(n, PyByteArray_GET_SIZE(view->buffer)));
}

static PyObject *
read_exactly(ReaderView *view, PyObject *number, bool resumed)
{
    Py_ssize_t n = plain_size(number);
    if (n < 0) {
        Py_RETURN_NONE;
    }
    if (!resumed && has_exception(view)) {
        return raise_stored(view);
    }
    if (n == 0) {
        return PyBytes_FromStringAndSize(NULL, 0);
    }
    if (PyByteArray_GET_SIZE(view->buffer) < n) {
        return view->eof ? raise_incomplete(view, number) : start_waiting(view, "readexactly");
    }
    return take(view, n);
}

/* Where `separator` is in the buffer, from `offset` on; -1 when it is not there. */
static Py_ssize_t
find(PyObject *buffer, Py_ssize_t offset, PyObject *separator)
{
    const char *start = PyByteArray_AS_STRING(buffer);
    const char *text = PyBytes_AS_STRING(separator);
    size_t length = (size_t)PyBytes_GET_SIZE(separator);
    size_t size = (size_t)(PyByteArray_GET_SIZE(buffer) - offset);
    const char *found =
        length == 1 ? memchr(start + offset, text[0], size) : memmem(start + offset, size, text, length);
    return found == NULL ? -1 : found - start;
}

/* start_waiting(), and how much was looked through; in a tuple. */
static PyObject *
start_waiting_for_separator(ReaderView *view, Py_ssize_t scanned)
{
    /* First of all: a tuple may start a collection, and what was loaded of the reader is borrowed. And one with nothing in it
       that the collector knows is not tracked, so that a future put into it later would stay for good. */
    PyObject *future = start_waiting(view, "readuntil");
    if (future == NULL) {
        return NULL;
    }
    PyObject *size = PyLong_FromSsize_t(scanned);
    PyObject *pair = size == NULL ? NULL : PyTuple_Pack(2, future, size);
    if (pair == NULL) {
        PyObject *exc = compat_take_exception();
        if (reader_set(view, FIELD_WAITER, Py_None) < 0) {
            PyErr_Clear();
        }
        compat_restore_exception(exc);
    }
    Py_XDECREF(size);
    Py_DECREF(future);
    return pair;
}

/* `scanned`: how long the buffer was when the separator was not in it, -1 at first. Waiting, it returns a pair. */
static PyObject *
read_until(ReaderView *view, PyObject *separator, Py_ssize_t scanned)
{
    if (!PyBytes_CheckExact(separator) || PyBytes_GET_SIZE(separator) == 0) {
        Py_RETURN_NONE;
    }
    if (scanned < 0 && has_exception(view)) {
        return raise_stored(view);
    }
    Py_ssize_t length = PyBytes_GET_SIZE(separator);
    Py_ssize_t size = PyByteArray_GET_SIZE(view->buffer);
    Py_ssize_t offset = Py_MAX(0, scanned + 1 - length);
    if (size - offset >= length) {
        Py_ssize_t found = find(view->buffer, offset, separator);
        if (found > view->limit) {
            return raise_overrun(view, "Separator is found, but chunk is longer than limit", found);
        }
        if (found >= 0) {
            return take(view, found + length);
        }
        offset = size + 1 - length;
        if (offset > view->limit) {
            return raise_overrun(view, "Separator is not found, and chunk exceed the limit", offset);
        }
        scanned = size;
    }
    return view->eof ? raise_incomplete(view, Py_None) : start_waiting_for_separator(view, Py_MAX(scanned, 0));
}

/* ---- what Python calls ---- */

/* Opens the reader that is the first of three arguments: as reader_open(). */
static int
open_argument(PyObject *module, PyObject *const *args, Py_ssize_t nargs, ReaderView *view)
{
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "a reader, an argument and the progress are needed");
        return -1;
    }
    return reader_open(state_of_module(module), args[0], view);
}

static PyObject *
none_unless(int err)
{
    return err < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(stream_read_doc, "_stream_read(reader, n, resumed, /)\n--\n\nSee fastloop._streams.");

static PyObject *
stream_read(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    ReaderView view;
    int opened = open_argument(module, args, nargs, &view);
    if (opened <= 0) {
        return none_unless(opened);
    }
    PyObject *result;
    FL_BEGIN_CRITICAL_SECTION(view.buffer);
    result = read_some(&view, args[1], args[2] == Py_True);
    FL_END_CRITICAL_SECTION();
    reader_close(&view);
    return result;
}

PyDoc_STRVAR(stream_read_exactly_doc, "_stream_read_exactly(reader, n, resumed, /)\n--\n\nSee fastloop._streams.");

static PyObject *
stream_read_exactly(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    ReaderView view;
    int opened = open_argument(module, args, nargs, &view);
    if (opened <= 0) {
        return none_unless(opened);
    }
    PyObject *result;
    FL_BEGIN_CRITICAL_SECTION(view.buffer);
    result = read_exactly(&view, args[1], args[2] == Py_True);
    FL_END_CRITICAL_SECTION();
    reader_close(&view);
    return result;
}

PyDoc_STRVAR(stream_read_until_doc, "_stream_read_until(reader, separator, scanned, /)\n--\n\nSee fastloop._streams.");

static PyObject *
stream_read_until(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    ReaderView view;
    int opened = open_argument(module, args, nargs, &view);
    if (opened <= 0) {
        return none_unless(opened);
    }
    PyObject *result;
    FL_BEGIN_CRITICAL_SECTION(view.buffer);
    result = read_until(&view, args[1], plain_size(args[2]));
    FL_END_CRITICAL_SECTION();
    reader_close(&view);
    return result;
}

#define FASTCALL(function) ((PyCFunction)(void (*)(void))(function)), METH_FASTCALL

PyMethodDef streamreader_methods[] = {
    {"_stream_read", FASTCALL(stream_read), stream_read_doc},
    {"_stream_read_exactly", FASTCALL(stream_read_exactly), stream_read_exactly_doc},
    {"_stream_read_until", FASTCALL(stream_read_until), stream_read_until_doc},
    {NULL},
};
