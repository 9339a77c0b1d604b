/* One of the least of the last eight latenesses, or of some more. */

#include "base/lead.h"

#include <stdlib.h>

/* So many of eight are woken before their time, and spin. With fewer, one that found the processor awake would decide for
   all. */
enum { WOKEN_EARLY = 2 };

static int
compare(const void *one, const void *other)
{
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
    return a < b ? -1 : a > b;
}

void
lead_note(Lead *lead, uint64_t late_ns)
{
    lead->late_ns[lead->noted] = late_ns;
    if (++lead->noted == LEAD_WINDOW) {
        qsort(lead->late_ns, LEAD_WINDOW, sizeof(lead->late_ns[0]), compare);
        lead->ns = Py_MIN(lead->late_ns[WOKEN_EARLY], LEAD_MAX_NS);
        lead->noted = 0;
    }
}
