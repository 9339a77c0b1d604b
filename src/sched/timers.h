/* The timers of a loop: a binary heap keyed by (when, sequence).

   A handle knows its place, so cancel() takes it out at once. `when` is the double that the user gave; nanoseconds
   appear only where the poll is armed. Used by the thread of the loop only. */

#ifndef FASTLOOP_SCHED_TIMERS_H
#define FASTLOOP_SCHED_TIMERS_H

#include "sched/handle.h"

typedef struct {
    double when;
    uint64_t sequence;    /* equal times fire in the order in which they were scheduled */
    HandleObject *handle; /* strong */
} TimerEntry;

typedef struct {
    TimerEntry *entries;
    size_t count;
    size_t capacity;
    uint64_t next_sequence;
} Timers;

/* Adds a handle (new reference) and sets its index. -1 with MemoryError. */
int timers_push(Timers *timers, HandleObject *handle);
/* Takes a scheduled handle out and drops the heap's reference to it. */
void timers_remove(Timers *timers, HandleObject *handle);
/* Takes the earliest handle out; the caller owns it. The heap must not be empty. */
HandleObject *timers_pop(Timers *timers);
void timers_clear(Timers *timers);
int timers_traverse(Timers *timers, visitproc visit, void *arg);

#endif
