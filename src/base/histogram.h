/* A histogram of durations, from a nanosecond to centuries: eight steps for each power of two, so what is read from it is
   at most an eighth too large. Any thread may add and read. */

#ifndef FASTLOOP_BASE_HISTOGRAM_H
#define FASTLOOP_BASE_HISTOGRAM_H

#include "state.h"

enum { HISTOGRAM_STEPS = 8, HISTOGRAM_PLACES = 62 * HISTOGRAM_STEPS };

typedef struct {
    _Atomic uint64_t count;
    _Atomic uint64_t sum_ns;
    _Atomic uint64_t max_ns;
    _Atomic uint64_t places[HISTOGRAM_PLACES];
} Histogram;

void histogram_add(Histogram *histogram, uint64_t ns);
/* A dict of seconds: p50, p90, p99, max and sum, and the count. New reference, or NULL with an exception. */
PyObject *histogram_summary(Histogram *histogram);

#endif
