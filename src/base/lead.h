/* How much before its time a timer of the system is set.

   The system needs some tens of microseconds from the expiry of a timer until the thread that waits for it runs. So it is
   set by so much earlier as this has taken at least, lately; who is woken before the time after all, spins for the rest,
   which is rare and short. */

#ifndef FASTLOOP_BASE_LEAD_H
#define FASTLOOP_BASE_LEAD_H

#include "compat.h"

/* Never more, for the rest may have to be spent spinning. */
enum { LEAD_MAX_NS = 30000 };

typedef struct {
    uint64_t ns; /* the lead; 0 at first */
    uint64_t least_ns;
    int noted;
} Lead;

/* So long after the expiry that it was set for the thread has run. */
void lead_note(Lead *lead, uint64_t late_ns);

#endif
