/* The ready queue, a growing ring. It never shrinks: a burst that came once comes again. */

#include "sched/ready.h"

enum { INITIAL_CAPACITY = 64 };

int
ready_init(Ready *ready)
{
    ready->entries = PyMem_New(ReadyEntry, INITIAL_CAPACITY);
    if (ready->entries == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    ready->mask = INITIAL_CAPACITY - 1;
    ready->head = 0;
    ready->count = 0;
    return 0;
}

int
ready_grow(Ready *ready)
{
    assert(ready->entries != NULL || ready->count == 0);
    size_t capacity = ready->entries == NULL ? 0 : ready->mask + 1;
    size_t larger = capacity == 0 ? INITIAL_CAPACITY : capacity * 2;
    /* Of a large block the system moves the pages: new ones, of which each costs a fault, are those behind. */
    ReadyEntry *entries = PyMem_Realloc(ready->entries, larger * sizeof(ReadyEntry));
    if (entries == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    ready->entries = entries;
    ready->mask = larger - 1;
    /* The records that were at the start, behind the last place, follow it now. */
    size_t end = ready->head + ready->count;
    if (end > capacity) {
        memcpy(&entries[capacity], entries, (end - capacity) * sizeof(ReadyEntry));
    }
    return 0;
}

void
ready_clear(Ready *ready)
{
    /* Dropping a reference may append records; those of this moment are enough, the rest goes with the next clear. */
    for (size_t left = ready->count; left > 0 && ready->count > 0; left--) {
        ReadyEntry entry = ready_take(ready);
        Py_DECREF(entry.owner);
        Py_XDECREF(entry.arg);
    }
}

void
ready_free(Ready *ready)
{
    while (ready->count > 0) {
        ready_clear(ready);
    }
    PyMem_Free(ready->entries);
    ready->entries = NULL;
    ready->mask = 0;
    ready->head = 0;
}

int
ready_traverse(Ready *ready, visitproc visit, void *arg)
{
    for (size_t i = 0; i < ready->count; i++) {
        ReadyEntry *entry = &ready->entries[(ready->head + i) & ready->mask];
        Py_VISIT(entry->owner);
        Py_VISIT(entry->arg);
    }
    return 0;
}
