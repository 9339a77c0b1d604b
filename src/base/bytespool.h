/* Bytes objects that nobody else refers to any more, kept for the next message.

   What is too large for CPython's own allocator goes to malloc, which takes several hundred instructions for a block that
   comes and goes with each message. Only an object with no reference but the caller's comes in, and only its size, hash
   and contents are set anew: nobody can tell it from a new one. The pool is used by the thread of its loop. */

#ifndef FASTLOOP_BASE_BYTESPOOL_H
#define FASTLOOP_BASE_BYTESPOOL_H

#include "compat.h"

enum {
    /* Smaller ones come from CPython's allocator, and are quick. */
    BYTESPOOL_MINIMUM = 512,
    BYTESPOOL_MAXIMUM = 16 * 1024,
    BYTESPOOL_CLASSES = BYTESPOOL_MAXIMUM / BYTESPOOL_MINIMUM,
    /* Rooms are large objects that are read into, before anybody knows how much will come. */
    BYTESPOOL_ROOM_STEP = 16 * 1024,
    BYTESPOOL_ROOMS = 16,
};

typedef struct {
    PyObject *first[BYTESPOOL_CLASSES]; /* by size; each has the next one in its contents */
    /* How many were asked for and have not come back: so many are kept, and none of a size that nobody asks for. */
    uint8_t away[BYTESPOOL_CLASSES];
    size_t kept_bytes;
    PyObject *rooms[BYTESPOOL_ROOMS]; /* one of each size, or NULL; the size of all that its memory holds */
} BytesPool;

/* A bytes object (new) of these contents; NULL with MemoryError. `pool` may be NULL. */
PyObject *bytespool_new(BytesPool *pool, const char *data, Py_ssize_t size);
/* Drops a reference (stolen) to any object; keeps the object if it can be used again. `pool` may be NULL. */
void bytespool_drop(BytesPool *pool, PyObject *op);

/* A bytes object (new) with room for so many BYTESPOOL_ROOM_STEPs, 1 to BYTESPOOL_ROOMS; NULL with MemoryError. */
PyObject *bytespool_room(BytesPool *pool, int steps);
/* Drops a reference (stolen) to one that may have been made shorter since; keeps it if it can be used again. */
void bytespool_drop_room(BytesPool *pool, PyObject *room, int steps);

void bytespool_clear(BytesPool *pool);

#endif
