/* A queue of bytes on their way out: a sliding array. */

#include "base/chunks.h"

#include <string.h>

enum { FIRST_CAPACITY = 1, KEPT_CAPACITY = 64 };

/* Makes room for one more piece at the end; -1 without memory. */
static int
make_room(Chunks *chunks)
{
    if (chunks->head + chunks->count < chunks->capacity) {
        return 0;
    }
    if (chunks->head > chunks->capacity / 2) {
        memmove(chunks->items, chunks->items + chunks->head, chunks->count * sizeof(Chunk));
        chunks->head = 0;
        return 0;
    }
    size_t capacity = chunks->capacity == 0 ? FIRST_CAPACITY : chunks->capacity * 2;
    Chunk *items = PyMem_Realloc(chunks->items, capacity * sizeof(Chunk));
    if (items == NULL) {
        return -1;
    }
    chunks->items = items;
    chunks->capacity = capacity;
    return 0;
}

static int
append(Chunks *chunks, Chunk chunk)
{
    if (make_room(chunks) < 0) {
        return -1;
    }
    chunks->items[chunks->head + chunks->count] = chunk;
    chunks->count++;
    chunks->size_bytes += chunk.size;
    return 0;
}

int
chunks_push(Chunks *chunks, PyObject *bytes)
{
    if (append(chunks, (Chunk){bytes, PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes)}) < 0) {
        PyErr_NoMemory();
        return -1;
    }
    Py_INCREF(bytes);
    return 0;
}

unsigned
chunks_describe(const Chunks *chunks, uv_buf_t *buffers, unsigned limit)
{
    unsigned count = chunks->count < limit ? (unsigned)chunks->count : limit;
    for (unsigned i = 0; i < count; i++) {
        Chunk *chunk = &chunks->items[chunks->head + i];
        buffers[i].base = chunk->data;
        buffers[i].len = chunk->size;
    }
    return count;
}

/* An emptied queue starts at the front again, and gives the memory of a burst back. */
static void
rewind_if_empty(Chunks *chunks)
{
    if (chunks->count > 0) {
        return;
    }
    chunks->head = 0;
    if (chunks->capacity > KEPT_CAPACITY) {
        PyMem_Free(chunks->items);
        chunks->items = NULL;
        chunks->capacity = 0;
    }
}

void
chunks_consume(Chunks *chunks, size_t size)
{
    chunks_consume_into(chunks, size, NULL);
}

void
chunks_consume_into(Chunks *chunks, size_t size, BytesPool *pool)
{
    chunks->size_bytes -= size;
    while (size > 0) {
        Chunk *first = &chunks->items[chunks->head];
        if (first->size > size) {
            first->data += size;
            first->size -= size;
            return;
        }
        size -= first->size;
        PyObject *bytes = first->bytes;
        chunks->head++;
        chunks->count--;
        bytespool_drop(pool, bytes);
    }
    rewind_if_empty(chunks);
}

int
chunks_split(Chunks *from, Chunks *to, size_t size, size_t limit)
{
    size_t taken = 0;
    for (size_t i = 0; i < from->count && i < limit && taken < size; i++) {
        Chunk chunk = from->items[from->head + i];
        if (chunk.size > size - taken) {
            chunk.size = size - taken;
        }
        if (append(to, chunk) < 0) {
            /* The references still belong to `from` alone. */
            to->count = 0;
            chunks_clear(to);
            return -1;
        }
        taken += chunk.size;
    }
    for (size_t i = 0; i < to->count; i++) {
        Py_INCREF(to->items[i].bytes);
    }
    chunks_consume(from, taken);
    return 0;
}

void
chunks_clear(Chunks *chunks)
{
    for (size_t i = 0; i < chunks->count; i++) {
        Py_DECREF(chunks->items[chunks->head + i].bytes);
    }
    PyMem_Free(chunks->items);
    *chunks = (Chunks){NULL};
}
