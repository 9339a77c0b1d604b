/* The timers of a loop: a binary heap whose handles know their index. */

#include "sched/timers.h"

static inline bool
earlier(const TimerEntry *a, const TimerEntry *b)
{
    return a->when < b->when || (a->when == b->when && a->sequence < b->sequence);
}

static inline void
place(Timers *timers, size_t index, TimerEntry entry)
{
    timers->entries[index] = entry;
    entry.handle->heap_index = index;
}

static void
sift_up(Timers *timers, size_t index, TimerEntry entry)
{
    while (index > 0) {
        size_t parent = (index - 1) / 2;
        if (!earlier(&entry, &timers->entries[parent])) {
            break;
        }
        place(timers, index, timers->entries[parent]);
        index = parent;
    }
    place(timers, index, entry);
}

static void
sift_down(Timers *timers, size_t index, TimerEntry entry)
{
    for (;;) {
        size_t child = 2 * index + 1;
        if (child >= timers->count) {
            break;
        }
        if (child + 1 < timers->count && earlier(&timers->entries[child + 1], &timers->entries[child])) {
            child++;
        }
        if (!earlier(&timers->entries[child], &entry)) {
            break;
        }
        place(timers, index, timers->entries[child]);
        index = child;
    }
    place(timers, index, entry);
}

/* Takes the entry at `index` out of the heap; the caller owns its handle. */
static TimerHandleObject *
take_at(Timers *timers, size_t index)
{
    TimerHandleObject *handle = timers->entries[index].handle;
    TimerEntry last = timers->entries[--timers->count];
    if (last.handle != handle) {
        if (index > 0 && earlier(&last, &timers->entries[(index - 1) / 2])) {
            sift_up(timers, index, last);
        } else {
            sift_down(timers, index, last);
        }
    }
    handle->base.scheduled = false;
    return handle;
}

/* Room for one more; false without memory. */
static bool
reserve(Timers *timers)
{
    if (timers->count < timers->capacity) {
        return true;
    }
    size_t capacity = timers->capacity == 0 ? 64 : timers->capacity * 2;
    TimerEntry *entries = PyMem_Realloc(timers->entries, capacity * sizeof(TimerEntry));
    if (entries == NULL) {
        return false;
    }
    timers->entries = entries;
    timers->capacity = capacity;
    return true;
}

int
timers_push(Timers *timers, TimerHandleObject *handle)
{
    compat_mutex_lock(&timers->lock);
    bool fits = reserve(timers);
    if (LIKELY(fits)) {
        TimerEntry entry = {handle->when, timers->next_sequence++, (TimerHandleObject *)Py_NewRef(handle)};
        handle->base.scheduled = true;
        sift_up(timers, timers->count++, entry);
    }
    compat_mutex_unlock(&timers->lock);
    if (UNLIKELY(!fits)) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

void
timers_remove(Timers *timers, TimerHandleObject *handle)
{
    TimerHandleObject *taken = NULL;
    compat_mutex_lock(&timers->lock);
    if (handle->base.scheduled) {
        taken = take_at(timers, handle->heap_index);
    }
    compat_mutex_unlock(&timers->lock);
    Py_XDECREF(taken);
}

TimerHandleObject *
timers_pop_due(Timers *timers, double end)
{
    TimerHandleObject *handle = NULL;
    compat_mutex_lock(&timers->lock);
    if (timers->count > 0 && timers->entries[0].when < end) {
        handle = take_at(timers, 0);
    }
    compat_mutex_unlock(&timers->lock);
    return handle;
}

bool
timers_earliest(Timers *timers, double *when)
{
    compat_mutex_lock(&timers->lock);
    bool found = timers->count > 0;
    if (found) {
        *when = timers->entries[0].when;
    }
    compat_mutex_unlock(&timers->lock);
    return found;
}

size_t
timers_count(Timers *timers)
{
    compat_mutex_lock(&timers->lock);
    size_t count = timers->count;
    compat_mutex_unlock(&timers->lock);
    return count;
}

PyObject *
timers_snapshot(Timers *timers)
{
    for (;;) {
        compat_mutex_lock(&timers->lock);
        size_t count = timers->count;
        compat_mutex_unlock(&timers->lock);
        PyObject *snapshot = PyTuple_New((Py_ssize_t)count);
        if (snapshot == NULL) {
            return NULL;
        }
        /* A collection, and whatever it runs, may have changed the heap. */
        compat_mutex_lock(&timers->lock);
        bool same = count == timers->count;
        for (size_t i = 0; same && i < count; i++) { /* GCOV_EXCL_BR_LINE: up to Python 3.11 */
            PyTuple_SET_ITEM(snapshot, (Py_ssize_t)i, Py_NewRef(timers->entries[i].handle));
        }
        compat_mutex_unlock(&timers->lock);
        if (same) { /* GCOV_EXCL_BR_LINE */
            return snapshot;
        }
        Py_DECREF(snapshot);
    }
}

void
timers_clear(Timers *timers)
{
    compat_mutex_lock(&timers->lock);
    TimerEntry *entries = timers->entries;
    size_t count = timers->count;
    timers->entries = NULL;
    timers->count = timers->capacity = 0;
    for (size_t i = 0; i < count; i++) {
        entries[i].handle->base.scheduled = false;
    }
    compat_mutex_unlock(&timers->lock);
    for (size_t i = 0; i < count; i++) {
        Py_DECREF(entries[i].handle);
    }
    PyMem_Free(entries);
}

int
timers_traverse(Timers *timers, visitproc visit, void *arg)
{
    for (size_t i = 0; i < timers->count; i++) {
        Py_VISIT(timers->entries[i].handle);
    }
    return 0;
}
