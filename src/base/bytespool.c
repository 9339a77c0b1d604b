/* Bytes objects for the next message. */

#include "base/bytespool.h"

#include <string.h>

/* All together hold no more than this: a turn with data for many connections needs about as much. */
enum { KEPT_MAXIMUM = 512 * 1024 };

static bool
is_pooled_size(Py_ssize_t size)
{
    return size > BYTESPOOL_MINIMUM && size <= BYTESPOOL_MAXIMUM;
}

/* The list for a size; all in a list are of about that size. */
static PyObject **
list_of(BytesPool *pool, Py_ssize_t size)
{
    return &pool->first[(size - 1) / BYTESPOOL_MINIMUM];
}

static PyObject *
pop(BytesPool *pool, PyObject **list)
{
    PyObject *bytes = *list;
    memcpy(list, PyBytes_AS_STRING(bytes), sizeof(bytes));
    pool->kept_bytes -= (size_t)PyBytes_GET_SIZE(bytes);
    return bytes;
}

PyObject *
bytespool_new(BytesPool *pool, const char *data, Py_ssize_t size)
{
    PyObject **list = pool == NULL || !is_pooled_size(size) ? NULL : list_of(pool, size);
    if (list == NULL || *list == NULL) {
        return PyBytes_FromStringAndSize(data, size);
    }
    PyObject *bytes = pop(pool, list);
    if (PyBytes_GET_SIZE(bytes) < size) {
        /* It was large enough for its class, but not for this. */
        Py_DECREF(bytes);
        return PyBytes_FromStringAndSize(data, size);
    }
    compat_bytes_renew(bytes, size);
    memcpy(PyBytes_AS_STRING(bytes), data, (size_t)size);
    return bytes;
}

void
bytespool_drop(BytesPool *pool, PyObject *op)
{
    if (HAVE_FREE_THREADING || pool == NULL || Py_REFCNT(op) != 1 || !PyBytes_CheckExact(op) ||
        !is_pooled_size(PyBytes_GET_SIZE(op)) || pool->kept_bytes >= KEPT_MAXIMUM) {
        Py_DECREF(op);
        return;
    }
    PyObject **list = list_of(pool, PyBytes_GET_SIZE(op));
    pool->kept_bytes += (size_t)PyBytes_GET_SIZE(op);
    memcpy(PyBytes_AS_STRING(op), list, sizeof(op));
    *list = op;
}

void
bytespool_clear(BytesPool *pool)
{
    for (int i = 0; i < BYTESPOOL_CLASSES; i++) {
        while (pool->first[i] != NULL) {
            Py_DECREF(pop(pool, &pool->first[i]));
        }
    }
}
