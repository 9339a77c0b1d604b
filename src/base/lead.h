/* How much before its time a timer of the system is set.

   The system needs some tens of microseconds from the expiry of a timer until the thread that waits for it runs. So it is
   set by so much earlier as this has nearly always taken, lately; who is woken before the time after all, spins for the
   rest, which is short. */

#ifndef FASTLOOP_BASE_LEAD_H
#define FASTLOOP_BASE_LEAD_H

#include "compat.h"

/* Never more, for the rest may have to be spent spinning. */
#define LEAD_MAX_NS UINT64_C(100000)

enum { LEAD_WINDOW = 8 };

typedef struct {
    uint64_t ns; /* the lead; 0 at first */
    uint64_t late_ns[LEAD_WINDOW];
    int noted;
} Lead;

/* So long after the expiry that it was set for the thread has run. */
void lead_note(Lead *lead, uint64_t late_ns);

#endif
