/* A queue of bytes on their way out: pieces of bytes objects, never copied, taken from the front.

   Plain C over exact bytes objects, so dropping a piece never runs Python code. */

#ifndef FASTLOOP_BASE_CHUNKS_H
#define FASTLOOP_BASE_CHUNKS_H

#include "base/bytespool.h"

typedef struct {
    PyObject *bytes; /* strong, exactly bytes */
    char *data;      /* the rest of it */
    size_t size;
} Chunk;

typedef struct {
    Chunk *items;
    size_t head; /* index of the oldest */
    size_t count;
    size_t capacity;
    size_t size_bytes;
} Chunks;

/* Appends a bytes object (new reference). -1 with MemoryError. */
int chunks_push(Chunks *chunks, PyObject *bytes);
/* Describes the front as at most `limit` buffers; how many there are. */
unsigned chunks_describe(const Chunks *chunks, uv_buf_t *buffers, unsigned limit);
/* Takes `size` bytes from the front. */
void chunks_consume(Chunks *chunks, size_t size);
/* The same; objects that are done with go to the pool, which may be NULL. */
void chunks_consume_into(Chunks *chunks, size_t size, BytesPool *pool);
/* Moves about `size` bytes, and at most `limit` pieces, from the front of `from` to the empty queue `to`. -1 without
   memory, no exception set, and then `from` is as it was. */
int chunks_split(Chunks *from, Chunks *to, size_t size, size_t limit);
void chunks_clear(Chunks *chunks);

#endif
