/* Whether to spin before blocking, and for how long.

   A thread that blocks pays for a system call and a context switch, and so does who wakes it; that is most of the time of
   a short job. Spinning for a moment saves them where another CPU brings what is waited for meanwhile, and is nothing
   but waste elsewhere. So each miss halves the time, a hit doubles it again, three misses in a row end it for a tenth of
   a second, and with one CPU it is never tried. Used by one thread at a time. */

#ifndef FASTLOOP_BASE_SPIN_H
#define FASTLOOP_BASE_SPIN_H

#include "compat.h"

enum {
    /* About what it costs to block and be woken: a longer wait does not pay. */
    SPIN_MAX_NS = 20000,
    /* Between threads that call a loop and wait for what comes of it, the first time: they still come out of a block. */
    SPIN_CALL_MAX_NS = 50000,
    /* A call that comes so soon after the last one is one of a burst. */
    SPIN_BURST_NS = 500,
    /* A wait that a call has ended as soon as this (by a wake-up, which takes most of it) may be worth it next time. */
    SPIN_CALL_SOON_NS = 200000,
    /* Jobs that take longer are not worth it: what spinning saves is a small part of them. */
    SPIN_JOB_MAX_NS = 10000,
    /* After a hit: how long the other thread may take to let go of the GIL. */
    SPIN_RELEASE_NS = 3000,
};

typedef struct {
    uint32_t max_ns;
    uint32_t budget_ns;
    int misses; /* in a row */
    uint64_t off_until_ns;
} Spin;

/* Never for longer than max_ns. */
void spin_init(Spin *spin, uint32_t max_ns);
/* How long to spin now, 0 for not at all. */
uint64_t spin_budget(Spin *spin, uint64_t now);
/* Says how it ended. */
void spin_note(Spin *spin, bool hit);

/* Waits until `*word` is `value`, for at most so many nanoseconds; false when it is not. */
bool spin_until(const _Atomic int *word, int value, uint64_t budget_ns);
bool spin_until_at_least(const _Atomic int *word, int value, uint64_t budget_ns);

#endif
