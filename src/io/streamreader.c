/* What StreamReader's coroutines do between two waits. fastloop/_streams.py has the coroutines.

   Each function takes the reader first and returns bytes when it is done, a future to wait for before it is called
   again, or None when the standard method must do the work: something was replaced, or the argument is unusual. */

#include "io/streamreader.h"

#include <string.h>

#include "base/bytearrays.h"

/* The attributes that StreamReader.__init__() sets, all of them known; one more could replace a method. */
enum { FIELD_COUNT = 8 };

/* ---- attributes ---- */

PyObject *
reader_open(State *state, PyObject *reader)
{
    StreamState *streams = state->streams;
    if (streams == NULL || !streams->usable || !Py_IS_TYPE(reader, streams->reader.type) ||
        known_check(streams, &streams->reader) <= 0) {
        return NULL;
    }
    PyObject *dict = PyObject_GenericGetDict(reader, NULL);
    if (dict != NULL && UNLIKELY(!PyDict_CheckExact(dict) || PyDict_GET_SIZE(dict) != FIELD_COUNT)) {
        Py_CLEAR(dict);
    }
    return dict;
}

PyObject *
reader_buffer(State *state, PyObject *dict)
{
    PyObject *buffer = reader_get(dict, state->str__buffer);
    return buffer != NULL && PyByteArray_CheckExact(buffer) ? buffer : NULL;
}

int
reader_flag(PyObject *dict, PyObject *name)
{
    PyObject *value = reader_get(dict, name);
    return value == Py_False ? 0 : value == Py_True ? 1 : -1;
}

Py_ssize_t
reader_limit(State *state, PyObject *dict)
{
    PyObject *value = reader_get(dict, state->str__limit);
    if (value == NULL || !PyLong_CheckExact(value)) {
        return -1;
    }
    Py_ssize_t limit = PyLong_AsSsize_t(value);
    if (limit == -1) {
        PyErr_Clear();
    }
    /* Twice the limit is what is compared with. */
    return limit > PY_SSIZE_T_MAX / 2 ? -1 : limit;
}

/* ---- what the methods share ---- */

/* Neither done nor a future: for the standard method, unless there is an exception. */
static PyObject *
not_here(void)
{
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

/* `if self._exception is not None: raise self._exception`. 0 when there is none, 1 when it is not one that can be
   raised here, -1 with it. */
static int
raise_stored(State *state, PyObject *dict)
{
    PyObject *exc = reader_get(dict, state->str__exception);
    if (LIKELY(exc == Py_None)) {
        return 0;
    }
    if (exc == NULL || !PyExceptionInstance_Check(exc)) {
        return 1;
    }
    PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
    return -1;
}

static int
resume_transport(State *state, PyObject *dict)
{
    PyObject *transport = Py_XNewRef(reader_get(dict, state->str__transport));
    if (transport == NULL || PyDict_SetItem(dict, state->str__paused, Py_False) < 0) {
        Py_XDECREF(transport);
        return -1;
    }
    PyObject *result = PyObject_CallMethodNoArgs(transport, state->str_resume_reading);
    Py_DECREF(transport);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* The beginning of `_wait_for_data(name)`: the new waiter. */
static PyObject *
start_waiting(State *state, PyObject *dict, const char *name)
{
    PyObject *waiter = reader_get(dict, state->str__waiter);
    PyObject *loop = reader_get(dict, state->str__loop);
    int paused = reader_flag(dict, state->str__paused);
    if (waiter == NULL || loop == NULL || paused < 0) {
        return not_here();
    }
    if (waiter != Py_None) {
        PyErr_Format(PyExc_RuntimeError,
                     "%s() called while another coroutine is already waiting for incoming data", name);
        return NULL;
    }
    Py_INCREF(loop);
    PyObject *future = NULL;
    if (!paused || resume_transport(state, dict) == 0) {
        future = PyObject_CallMethodNoArgs(loop, state->str_create_future);
    }
    Py_DECREF(loop);
    if (future != NULL && PyDict_SetItem(dict, state->str__waiter, future) < 0) {
        Py_CLEAR(future);
    }
    return future;
}

/* The first `size` bytes; then `_maybe_resume_transport()`. */
static PyObject *
take(State *state, PyObject *dict, PyObject *buffer, Py_ssize_t size)
{
    Py_ssize_t rest = PyByteArray_GET_SIZE(buffer) - size;
    PyObject *bytes = bytearray_take(buffer, size);
    if (bytes == NULL || LIKELY(reader_get(dict, state->str__paused) == Py_False)) {
        return bytes;
    }
    if (rest <= reader_limit(state, dict) && resume_transport(state, dict) < 0) {
        Py_CLEAR(bytes);
    }
    return bytes;
}

/* raise IncompleteReadError(everything, expected) */
static PyObject *
raise_incomplete(StreamState *streams, PyObject *buffer, PyObject *expected)
{
    PyObject *partial = bytearray_take(buffer, PyByteArray_GET_SIZE(buffer));
    PyObject *exc =
        partial == NULL ? NULL : PyObject_CallFunctionObjArgs(streams->IncompleteReadError, partial, expected, NULL);
    if (exc != NULL) {
        PyErr_SetObject(streams->IncompleteReadError, exc);
    }
    Py_XDECREF(partial);
    Py_XDECREF(exc);
    return NULL;
}

/* raise LimitOverrunError(message, consumed) */
static PyObject *
raise_overrun(StreamState *streams, const char *message, Py_ssize_t consumed)
{
    PyObject *exc = PyObject_CallFunction(streams->LimitOverrunError, "sn", message, consumed);
    if (exc != NULL) {
        PyErr_SetObject(streams->LimitOverrunError, exc);
        Py_DECREF(exc);
    }
    return NULL;
}

/* ---- read() ---- */

/* read(n) of a reader; `resumed` when it has waited for data. */
static PyObject *
read_some(State *state, PyObject *dict, Py_ssize_t n, bool resumed)
{
    int raised = resumed ? 0 : raise_stored(state, dict);
    if (raised < 0) {
        return NULL;
    }
    PyObject *buffer = reader_buffer(state, dict);
    int eof = reader_flag(dict, state->str__eof);
    int paused = reader_flag(dict, state->str__paused);
    if (raised > 0 || buffer == NULL || eof < 0 || paused < 0 || (paused && reader_limit(state, dict) < 0)) {
        return not_here();
    }
    if (n == 0 && !resumed) {
        return PyBytes_FromStringAndSize(NULL, 0);
    }
    Py_ssize_t size = PyByteArray_GET_SIZE(buffer);
    if (size == 0 && !eof && !resumed) {
        return start_waiting(state, dict, "read");
    }
    return take(state, dict, buffer, Py_MIN(n, size));
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

/* For the three functions: opens the reader that is their first argument, out of `count`. None (new) or NULL when
   there is nothing more to do. */
static PyObject *
open_argument(State *state, PyObject *const *args, Py_ssize_t nargs, Py_ssize_t count, PyObject **dict)
{
    *dict = NULL;
    if (nargs != count) {
        PyErr_SetString(PyExc_TypeError, "wrong number of arguments");
        return NULL;
    }
    *dict = reader_open(state, args[0]);
    return *dict == NULL ? not_here() : NULL;
}

PyDoc_STRVAR(stream_read_doc, "_stream_read(reader, n, resumed, /)\n--\n\nSee fastloop._streams.");

static PyObject *
stream_read(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    State *state = state_of_module(module);
    PyObject *dict;
    PyObject *result = open_argument(state, args, nargs, 3, &dict);
    if (dict != NULL) {
        Py_ssize_t n = plain_size(args[1]);
        result = n < 0 ? not_here() : read_some(state, dict, n, args[2] == Py_True);
        Py_DECREF(dict);
    }
    return result;
}

/* ---- readexactly() ---- */

static PyObject *
read_exactly(State *state, PyObject *dict, PyObject *number, bool resumed)
{
    Py_ssize_t n = plain_size(number);
    int raised = resumed || n < 0 ? 0 : raise_stored(state, dict);
    if (raised < 0) {
        return NULL;
    }
    PyObject *buffer = reader_buffer(state, dict);
    int eof = reader_flag(dict, state->str__eof);
    int paused = reader_flag(dict, state->str__paused);
    if (raised > 0 || n < 0 || buffer == NULL || eof < 0 || paused < 0 || (paused && reader_limit(state, dict) < 0)) {
        return not_here();
    }
    if (n == 0) {
        return PyBytes_FromStringAndSize(NULL, 0);
    }
    if (PyByteArray_GET_SIZE(buffer) < n) {
        return eof ? raise_incomplete(state->streams, buffer, number) : start_waiting(state, dict, "readexactly");
    }
    return take(state, dict, buffer, n);
}

PyDoc_STRVAR(stream_read_exactly_doc, "_stream_read_exactly(reader, n, resumed, /)\n--\n\nSee fastloop._streams.");

static PyObject *
stream_read_exactly(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    State *state = state_of_module(module);
    PyObject *dict;
    PyObject *result = open_argument(state, args, nargs, 3, &dict);
    if (dict != NULL) {
        result = read_exactly(state, dict, args[1], args[2] == Py_True);
        Py_DECREF(dict);
    }
    return result;
}

/* ---- readuntil() ---- */

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

/* `scanned`: how long the buffer was when the separator was not in it, -1 at first. */
static PyObject *
read_until(State *state, PyObject *dict, PyObject *separator, Py_ssize_t scanned)
{
    int raised = scanned < 0 ? raise_stored(state, dict) : 0;
    if (raised < 0) {
        return NULL;
    }
    PyObject *buffer = reader_buffer(state, dict);
    Py_ssize_t limit = reader_limit(state, dict);
    int eof = reader_flag(dict, state->str__eof);
    if (raised > 0 || buffer == NULL || eof < 0 || limit < 0) {
        return not_here();
    }
    Py_ssize_t length = PyBytes_GET_SIZE(separator);
    Py_ssize_t size = PyByteArray_GET_SIZE(buffer);
    Py_ssize_t offset = Py_MAX(0, scanned + 1 - length);
    if (size - offset >= length) {
        Py_ssize_t found = find(buffer, offset, separator);
        if (found > limit) {
            return raise_overrun(state->streams, "Separator is found, but chunk is longer than limit", found);
        }
        if (found >= 0) {
            return take(state, dict, buffer, found + length);
        }
        offset = size + 1 - length;
        if (offset > limit) {
            return raise_overrun(state->streams, "Separator is not found, and chunk exceed the limit", offset);
        }
    }
    return eof ? raise_incomplete(state->streams, buffer, Py_None) : start_waiting(state, dict, "readuntil");
}

PyDoc_STRVAR(stream_read_until_doc, "_stream_read_until(reader, separator, scanned, /)\n--\n\nSee fastloop._streams.");

static PyObject *
stream_read_until(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    State *state = state_of_module(module);
    PyObject *dict;
    PyObject *result = open_argument(state, args, nargs, 3, &dict);
    if (dict != NULL) {
        bool usual = PyBytes_CheckExact(args[1]) && PyBytes_GET_SIZE(args[1]) > 0;
        result = usual ? read_until(state, dict, args[1], plain_size(args[2])) : not_here();
        Py_DECREF(dict);
    }
    return result;
}

#define FASTCALL(function) ((PyCFunction)(void (*)(void))(function)), METH_FASTCALL

PyMethodDef streamreader_methods[] = {
    {"_stream_read", FASTCALL(stream_read), stream_read_doc},
    {"_stream_read_exactly", FASTCALL(stream_read_exactly), stream_read_exactly_doc},
    {"_stream_read_until", FASTCALL(stream_read_until), stream_read_until_doc},
    {NULL},
};
