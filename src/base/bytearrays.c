/* A bytearray takes bytes from its front by moving its start. bytearray's own methods do so too, but they give the
   memory back whenever it gets empty, to ask for it again with the next bytes. */

#include "base/bytearrays.h"

#include <string.h>

enum {
    /* An empty bytearray keeps this much: many connections are idle most of the time. */
    KEPT_EMPTY = 4096,
    /* One that is still being read keeps this much, as it was needed a moment ago. */
    KEPT_IN_USE = 512 * 1024,
};

int
bytearray_append(PyObject *op, const char *data, Py_ssize_t size)
{
    Py_ssize_t before = PyByteArray_GET_SIZE(op);
    if (size > PY_SSIZE_T_MAX - before - 1) {
        PyErr_NoMemory();
        return -1;
    }
    if (PyByteArray_Resize(op, before + size) < 0) {
        return -1;
    }
    memcpy(PyByteArray_AS_STRING(op) + before, data, (size_t)size);
    return 0;
}

#if HAVE_BYTEARRAY_MEMORY

/* del array[:size] */
static int
drop(PyObject *op, Py_ssize_t size)
{
    PyByteArrayObject *array = (PyByteArrayObject *)op;
    Py_ssize_t rest = Py_SIZE(op) - size;
    if (!bytearray_may_resize(op) || array->ob_alloc > (rest == 0 ? KEPT_EMPTY : KEPT_IN_USE)) {
        return PySequence_DelSlice(op, 0, size);
    }
    if (rest == 0) {
        bytearray_reset(op, 0);
    } else {
        array->ob_start += size;
        Py_SET_SIZE(array, rest);
    }
    return 0;
}

PyObject *
bytearray_take(PyObject *op, Py_ssize_t size)
{
    PyObject *bytes = PyBytes_FromStringAndSize(PyByteArray_AS_STRING(op), size);
    if (bytes != NULL && size > 0 && drop(op, size) < 0) {
        Py_CLEAR(bytes);
    }
    return bytes;
}

void
bytearray_swap(PyObject *one, PyObject *other)
{
    PyByteArrayObject *first = (PyByteArrayObject *)one;
    PyByteArrayObject *second = (PyByteArrayObject *)other;
    PyByteArrayObject saved = *first;
    first->ob_alloc = second->ob_alloc;
    first->ob_bytes = second->ob_bytes;
    first->ob_start = second->ob_start;
    Py_SET_SIZE(first, Py_SIZE(second));
    second->ob_alloc = saved.ob_alloc;
    second->ob_bytes = saved.ob_bytes;
    second->ob_start = saved.ob_start;
    Py_SET_SIZE(second, Py_SIZE(&saved));
}

void
bytearray_reset(PyObject *op, Py_ssize_t size)
{
    PyByteArrayObject *array = (PyByteArrayObject *)op;
    array->ob_start = array->ob_bytes;
    Py_SET_SIZE(array, size);
    array->ob_start[size] = '\0';
}

#else

PyObject *
bytearray_take(PyObject *op, Py_ssize_t size)
{
    return PyObject_CallMethod(op, "take_bytes", "n", size);
}

void
bytearray_swap(PyObject *Py_UNUSED(one), PyObject *Py_UNUSED(other))
{
    Py_UNREACHABLE();
}

void
bytearray_reset(PyObject *Py_UNUSED(op), Py_ssize_t Py_UNUSED(size))
{
    Py_UNREACHABLE();
}

#endif
