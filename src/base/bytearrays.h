/* The ends of a bytearray: append at one, take away at the other.

   The caller keeps the object and has tested that it is exactly a bytearray. */

#ifndef FASTLOOP_BASE_BYTEARRAYS_H
#define FASTLOOP_BASE_BYTEARRAYS_H

#include "compat.h"

/* May its size change? Not while a memoryview shows it. */
static inline bool
bytearray_may_resize(PyObject *op)
{
    return ((PyByteArrayObject *)op)->ob_exports == 0;
}

/* array.extend(data); -1 with an exception. */
int bytearray_append(PyObject *op, const char *data, Py_ssize_t size);

/* Gives each of two bytearrays the other's contents; both may be resized. Only where HAVE_BYTEARRAY_MEMORY. */
void bytearray_swap(PyObject *one, PyObject *other);

/* Gives it the first `size` bytes of its memory, which is larger, as its contents. Only where HAVE_BYTEARRAY_MEMORY. */
void bytearray_reset(PyObject *op, Py_ssize_t size);

/* How much it could hold. */
static inline Py_ssize_t
bytearray_allocated(PyObject *op)
{
    return ((PyByteArrayObject *)op)->ob_alloc;
}

/* The first `size` bytes, which it loses; `size` is not above its own. NULL with an exception. */
PyObject *bytearray_take(PyObject *op, Py_ssize_t size);

#endif
