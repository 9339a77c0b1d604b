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
static HandleObject *
take_at(Timers *timers, size_t index)
{
    HandleObject *handle = timers->entries[index].handle;
    TimerEntry last = timers->entries[--timers->count];
    if (last.handle != handle) {
        if (index > 0 && earlier(&last, &timers->entries[(index - 1) / 2])) {
            sift_up(timers, index, last);
        } else {
            sift_down(timers, index, last);
        }
    }
    handle->scheduled = false;
    return handle;
}

int
timers_push(Timers *timers, HandleObject *handle)
{
    if (timers->count == timers->capacity) {
        size_t capacity = timers->capacity == 0 ? 64 : timers->capacity * 2;
        TimerEntry *entries = PyMem_Resize(timers->entries, TimerEntry, capacity);
        if (entries == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        timers->entries = entries;
        timers->capacity = capacity;
    }
    TimerEntry entry = {handle->when, timers->next_sequence++, (HandleObject *)Py_NewRef(handle)};
    handle->scheduled = true;
    sift_up(timers, timers->count++, entry);
    return 0;
}

void
timers_remove(Timers *timers, HandleObject *handle)
{
    HandleObject *taken = take_at(timers, handle->heap_index);
    Py_DECREF(taken);
}

HandleObject *
timers_pop(Timers *timers)
{
    return take_at(timers, 0);
}

void
timers_clear(Timers *timers)
{
    TimerEntry *entries = timers->entries;
    size_t count = timers->count;
    timers->entries = NULL;
    timers->count = timers->capacity = 0;
    for (size_t i = 0; i < count; i++) {
        entries[i].handle->scheduled = false;
    }
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
