/* "Less than so long ago?", asked in each turn, by the counter of the CPU: reading that takes a third of the time that the
   clock takes, and the clock was a tenth of a turn with one short step. How many ticks the time is, is measured by the
   clock, anew each second: a machine may be moved, or sleep. */

#ifndef FASTLOOP_BASE_TICKS_H
#define FASTLOOP_BASE_TICKS_H

#include "compat.h"

enum {
    TICKS_BASE_MIN_NS = 1000000, /* what is measured over less says nothing: a thread may be interrupted */
    TICKS_BASE_NS = 1000000000,
    TICKS_PER_NS_MAX = 8,
};

typedef struct {
    uint64_t begun_ns; /* the measurement */
    uint64_t begun_ticks;
    uint64_t noted_ns; /* since when is asked */
    uint64_t noted_ticks;
    uint64_t interval_ticks; /* 0 = not known yet */
} Ticks;

/* Notes that what is asked for happened at `now`, when compat_ticks() was `now_ticks`; the next questions are about the
   interval given here. */
static inline void
ticks_note(Ticks *ticks, uint64_t now, uint64_t now_ticks, uint64_t interval_ns)
{
    ticks->noted_ns = now;
    ticks->noted_ticks = now_ticks;
    uint64_t elapsed_ns = now - ticks->begun_ns, elapsed_ticks = now_ticks - ticks->begun_ticks;
    bool is_fresh = elapsed_ns <= TICKS_BASE_NS;
    if (LIKELY(is_fresh) && elapsed_ns >= TICKS_BASE_MIN_NS) {
        /* More than this has no CPU: its counter was set, or we were interrupted between it and the clock. */
        uint64_t most = elapsed_ns * TICKS_PER_NS_MAX;
        ticks->interval_ticks = elapsed_ticks < most ? interval_ns * elapsed_ticks / elapsed_ns : 0;
    }
    if (UNLIKELY(!is_fresh)) {
        ticks->begun_ns = now;
        ticks->begun_ticks = now_ticks;
    }
}

/* Is it less than the interval since the last note? */
static inline bool
ticks_is_recent(const Ticks *ticks, uint64_t interval_ns)
{
    return LIKELY(ticks->interval_ticks != 0) ? compat_ticks() - ticks->noted_ticks < ticks->interval_ticks
                                              : compat_monotonic_ns() - ticks->noted_ns < interval_ns;
}

#endif
