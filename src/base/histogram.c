/* Places 0 to 7 are those nanoseconds; then each power of two has eight places. */

#include "base/histogram.h"

static size_t
place_of(uint64_t ns)
{
    if (ns < HISTOGRAM_STEPS) {
        return (size_t)ns;
    }
    int power = 63 - __builtin_clzll(ns); /* 3 or more */
    return (size_t)(power - 2) * HISTOGRAM_STEPS + (size_t)(ns >> (power - 3)) % HISTOGRAM_STEPS;
}

/* The largest number of nanoseconds that has this place. */
static uint64_t
largest_of(size_t place)
{
    if (place < HISTOGRAM_STEPS) {
        return place;
    }
    int shift = (int)(place / HISTOGRAM_STEPS) - 1;
    uint64_t step = place % HISTOGRAM_STEPS + HISTOGRAM_STEPS;
    return ((step + 1) << shift) - 1;
}

void
histogram_add(Histogram *histogram, uint64_t ns)
{
    atomic_fetch_add_explicit(&histogram->count, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&histogram->sum_ns, ns, memory_order_relaxed);
    atomic_fetch_add_explicit(&histogram->places[place_of(ns)], 1, memory_order_relaxed);
    uint64_t max = atomic_load_explicit(&histogram->max_ns, memory_order_relaxed);
    while (ns > max && !atomic_compare_exchange_weak(&histogram->max_ns, &max, ns)) {
    }
}

/* What `percent` of the durations do not exceed, in seconds. */
static double
percentile(const uint64_t *places, uint64_t count, uint64_t max_ns, unsigned percent)
{
    uint64_t wanted = count - count / 100 * (100 - percent) - count % 100 * (100 - percent) / 100;
    uint64_t seen = 0;
    for (size_t i = 0; i < HISTOGRAM_PLACES && count > 0; i++) {
        seen += places[i];
        if (seen >= wanted) {
            return (double)Py_MIN(largest_of(i), max_ns) / 1e9;
        }
    }
    return 0.0;
}

PyObject *
histogram_summary(Histogram *histogram)
{
    uint64_t places[HISTOGRAM_PLACES], count = 0;
    for (size_t i = 0; i < HISTOGRAM_PLACES; i++) {
        places[i] = atomic_load_explicit(&histogram->places[i], memory_order_relaxed);
        count += places[i];
    }
    uint64_t max_ns = histogram->max_ns;
    return Py_BuildValue("{sK,sd,sd,sd,sd,sd}", "count", (unsigned long long)count, "sum",
                         (double)histogram->sum_ns / 1e9, "p50", percentile(places, count, max_ns, 50), "p90",
                         percentile(places, count, max_ns, 90), "p99", percentile(places, count, max_ns, 99), "max",
                         (double)max_ns / 1e9);
}
