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

/* The list for a size: what is in one is of about the same size. */
static size_t
slot_of(Py_ssize_t size)
{
    return (size_t)(size - 1) / BYTESPOOL_MINIMUM;
}

static PyObject *
pop(BytesPool *pool, size_t slot)
{
    PyObject *bytes = pool->first[slot];
    memcpy(&pool->first[slot], PyBytes_AS_STRING(bytes), sizeof(PyObject *));
    pool->kept_bytes -= (size_t)PyBytes_GET_SIZE(bytes);
    return bytes;
}

PyObject *
bytespool_new(BytesPool *pool, const char *data, Py_ssize_t size)
{
    if (pool == NULL || !is_pooled_size(size)) {
        return PyBytes_FromStringAndSize(data, size);
    }
    size_t slot = slot_of(size);
    PyObject *bytes = pool->first[slot] == NULL ? NULL : pop(pool, slot);
    pool->away[slot] += pool->away[slot] < UINT8_MAX;
    if (bytes == NULL || PyBytes_GET_SIZE(bytes) < size) {
        Py_XDECREF(bytes);
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
    size_t slot = slot_of(PyBytes_GET_SIZE(op));
    if (pool->away[slot] == 0) {
        Py_DECREF(op);
        return;
    }
    pool->away[slot]--;
    pool->kept_bytes += (size_t)PyBytes_GET_SIZE(op);
    memcpy(PyBytes_AS_STRING(op), &pool->first[slot], sizeof(PyObject *));
    pool->first[slot] = op;
}

PyObject *
bytespool_room(BytesPool *pool, int steps)
{
    PyObject *room = pool->rooms[steps - 1];
    pool->rooms[steps - 1] = NULL;
    return room != NULL ? room : PyBytes_FromStringAndSize(NULL, (Py_ssize_t)steps * BYTESPOOL_ROOM_STEP);
}

void
bytespool_drop_room(BytesPool *pool, PyObject *room, int steps)
{
    if (HAVE_FREE_THREADING || Py_REFCNT(room) != 1 || pool->rooms[steps - 1] != NULL) {
        Py_DECREF(room);
        return;
    }
    compat_bytes_renew(room, (Py_ssize_t)steps * BYTESPOOL_ROOM_STEP);
    pool->rooms[steps - 1] = room;
}

void
bytespool_clear(BytesPool *pool)
{
    for (int i = 0; i < BYTESPOOL_ROOMS; i++) {
        Py_CLEAR(pool->rooms[i]);
    }
    for (size_t slot = 0; slot < BYTESPOOL_CLASSES; slot++) {
        while (pool->first[slot] != NULL) {
            Py_DECREF(pop(pool, slot));
        }
    }
}
