/* The ready queue: what runs in this turn or the next, as records by value in a ring.

   One record stands for one `call_soon` of the standard loop, so FIFO order is exactly asyncio's. The ring knows
   nothing of handles or tasks: a record brings its own function. Used by the thread of the loop only. */

#ifndef FASTLOOP_SCHED_READY_H
#define FASTLOOP_SCHED_READY_H

#include "state.h"

typedef struct LoopObject LoopObject;

/* Runs one record. Returns 0, or -1 with SystemExit or KeyboardInterrupt set, which end run_forever(); every other
   exception is reported inside. `owner` and `arg` stay alive during the call. */
typedef int (*ready_run)(LoopObject *loop, PyObject *owner, PyObject *arg);

typedef struct {
    ready_run run;
    PyObject *owner; /* strong */
    PyObject *arg;   /* strong or NULL */
} ReadyEntry;

typedef struct {
    ReadyEntry *entries;
    size_t mask; /* capacity - 1; the capacity is a power of two */
    size_t head; /* index of the oldest record, taken modulo the capacity */
    size_t count;
} Ready;

int ready_init(Ready *ready);
/* Drops the records; may run arbitrary code through Py_DECREF. */
void ready_clear(Ready *ready);
void ready_free(Ready *ready);
int ready_traverse(Ready *ready, visitproc visit, void *arg);
/* Makes room for one more record; -1 with MemoryError. */
int ready_grow(Ready *ready);

/* Is there room for one more record, or memory to make it? Without, there are records to run. */
static inline bool
ready_has_room(Ready *ready)
{
    if (UNLIKELY(ready->count > ready->mask) && ready_grow(ready) < 0) {
        PyErr_Clear();
        return false;
    }
    return true;
}

/* Appends a record; takes new references to owner and arg. -1 with MemoryError. */
static inline int
ready_append(Ready *ready, ready_run run, PyObject *owner, PyObject *arg)
{
    if (UNLIKELY(ready->count > ready->mask) && ready_grow(ready) < 0) {
        return -1;
    }
    ReadyEntry *entry = &ready->entries[(ready->head + ready->count) & ready->mask];
    entry->run = run;
    entry->owner = Py_NewRef(owner);
    entry->arg = Py_XNewRef(arg);
    ready->count++;
    return 0;
}

/* Takes the oldest record out; the caller owns its references. The ring must not be empty. */
static inline ReadyEntry
ready_take(Ready *ready)
{
    ReadyEntry entry = ready->entries[ready->head & ready->mask];
    ready->head = (ready->head + 1) & ready->mask;
    ready->count--;
    return entry;
}

#endif
