/* The timers of a loop: a binary heap keyed by (when, sequence).

   A handle knows its place, so cancel() takes it out at once. `when` is the double that the user gave; nanoseconds
   appear only where the poll is armed. Scheduling and cancelling from a wrong thread is nothing that asyncio promises,
   and must not damage the heap: it is under the GIL, or a lock of its own. */

#ifndef FASTLOOP_SCHED_TIMERS_H
#define FASTLOOP_SCHED_TIMERS_H

#include "sched/handle.h"

typedef struct {
    double when;
    uint64_t sequence;         /* equal times fire in the order in which they were scheduled */
    TimerHandleObject *handle; /* strong */
} TimerEntry;

typedef struct {
    TimerEntry *entries;
    size_t count;
    size_t capacity;
    uint64_t next_sequence;
    CompatMutex lock; /* of everything here, and of `scheduled` and `heap_index` of the handles */
} Timers;

/* Adds a handle (new reference) and sets its index. -1 with MemoryError. */
int timers_push(Timers *timers, TimerHandleObject *handle);
/* Takes a handle out, if it is in, and drops the heap's reference to it. */
void timers_remove(Timers *timers, TimerHandleObject *handle);
/* Takes the earliest handle out if it is due before `end`; the caller owns it. NULL when there is none. */
TimerHandleObject *timers_pop_due(Timers *timers, double end);
/* The time of the earliest one; false when there is none. */
bool timers_earliest(Timers *timers, double *when);
size_t timers_count(Timers *timers);
/* The handles as a tuple, in the order of the heap; NULL with an exception. */
PyObject *timers_snapshot(Timers *timers);
void timers_clear(Timers *timers);
int timers_traverse(Timers *timers, visitproc visit, void *arg);

#endif
