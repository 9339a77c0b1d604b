/* The least lateness of the last eight, or of some more. */

#include "base/lead.h"

enum { WINDOW = 8 };

static inline uint64_t
least_of(uint64_t one, uint64_t other)
{
    return one < other ? one : other;
}

void
lead_note(Lead *lead, uint64_t late_ns)
{
    lead->least_ns = lead->noted == 0 ? late_ns : least_of(late_ns, lead->least_ns);
    lead->ns = least_of(late_ns, lead->ns);
    if (++lead->noted == WINDOW) {
        lead->ns = least_of(lead->least_ns, LEAD_MAX_NS);
        lead->noted = 0;
    }
}
