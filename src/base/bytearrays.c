/* A bytearray takes bytes from its front by moving its start. bytearray's own methods do so too, but they give the
   memory back whenever it gets empty, to ask for it again with the next bytes. */

#include "base/bytearrays.h"

#include <string.h>

/* An empty bytearray keeps this much: many connections are idle most of the time. */
enum { KEPT_SIZE = 4096 };

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

#if HAVE_BYTEARRAY_TAKE_BYTES

PyObject *
bytearray_take(PyObject *op, Py_ssize_t size)
{
    return PyObject_CallMethod(op, "take_bytes", "n", size);
}

#else

/* del array[:size] */
static int
drop(PyObject *op, Py_ssize_t size)
{
    PyByteArrayObject *array = (PyByteArrayObject *)op;
    Py_ssize_t rest = Py_SIZE(op) - size;
    if (!bytearray_may_resize(op) || (rest < array->ob_alloc / 2 && array->ob_alloc > KEPT_SIZE)) {
        return PySequence_DelSlice(op, 0, size);
    }
    array->ob_start = rest == 0 ? array->ob_bytes : array->ob_start + size;
    Py_SET_SIZE(array, rest);
    array->ob_start[rest] = '\0';
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

#endif
