/* Where the time of a loop goes, and what loop.metrics() reads. */

#include "sched/metrics.h"

#include "sched/loop.h"

/* ---- time ---- */

static inline uint64_t
take(Counter *counter)
{
    uint64_t value = atomic_load_explicit(counter, memory_order_relaxed);
    atomic_store_explicit(counter, 0, memory_order_relaxed);
    return value;
}

void
metrics_run_begins(Metrics *metrics, bool nested)
{
    Timing *timing = metrics->timing;
    if (!nested) {
        timing->mark_ns = compat_monotonic_ns();
        timing->turn_idle_ns = 0;
    }
}

/* Time spent waiting, as one word that can be read at any moment: outside of a wait, twice the nanoseconds so far; in one,
   what they would have been at the zero of the clock, and a 1 in the last bit. So a reader adds the time of day, and the
   number never goes back. */
static inline uint64_t
encode(uint64_t ns, bool waiting)
{
    return ns << 1 | waiting;
}

static inline uint64_t
decode(uint64_t word, uint64_t now)
{
    return word & 1 ? (word - 1 + (now << 1)) >> 1 : word >> 1;
}

void
metrics_wait_begins(Metrics *metrics)
{
    Timing *timing = metrics->timing;
    uint64_t word = timing->poll;
    if (!(word & 1)) {
        timing->poll = encode((word >> 1) - compat_monotonic_ns(), true);
        timing->wait_from_ns = word >> 1;
    }
}

uint64_t
metrics_wait_ends(Metrics *metrics)
{
    Timing *timing = metrics->timing;
    uint64_t now = compat_monotonic_ns();
    uint64_t word = timing->poll;
    if (!(word & 1)) {
        return 0;
    }
    uint64_t total = decode(word, now);
    timing->poll = encode(total, false);
    counter_add(&timing->turn_idle_ns, total - timing->wait_from_ns);
    return now;
}

void
metrics_attached(Metrics *metrics, uint64_t since_ns)
{
    Timing *timing = metrics->timing;
    uint64_t waited = compat_monotonic_ns() - since_ns;
    counter_add(&timing->gil_ns, waited);
    counter_add(&timing->turn_idle_ns, waited);
}

void
metrics_turn_ends(Metrics *metrics)
{
    Timing *timing = metrics->timing;
    uint64_t now = compat_monotonic_ns();
    uint64_t since = timing->mark_ns;
    uint64_t idle = take(&timing->turn_idle_ns);
    timing->mark_ns = now;
    if (since != 0 && now - since >= idle) {
        counter_add(&timing->run_ns, now - since - idle);
        histogram_add(&timing->turn, now - since - idle);
    }
}

void
metrics_timer_due(Metrics *metrics, double when, double now)
{
    /* A time in the past, or minus infinity, says nothing about the loop; a day is more than any lag. */
    double late = now - when;
    if (late < 86400.0) {
        histogram_add(&metrics->timing->lag, late > 0.0 ? (uint64_t)(late * 1e9) : 0);
    }
}

/* ---- life ---- */

static int
make_timing(Metrics *metrics)
{
    if (metrics->timing != NULL) {
        return 0;
    }
    Timing *timing = PyMem_RawCalloc(1, sizeof(Timing));
    if (timing == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    Timing *none = NULL;
    if (!atomic_compare_exchange_strong(&metrics->timing, &none, timing)) {
        PyMem_RawFree(timing);
    }
    return 0;
}

void
metrics_free(Metrics *metrics)
{
    PyMem_RawFree(metrics->timing);
    metrics->timing = NULL;
}

/* ---- methods ---- */

PyObject *
Loop_set_metrics(PyObject *op, PyObject *flag)
{
    Metrics *metrics = &LoopObject_CAST(op)->metrics;
    int timed = PyObject_IsTrue(flag);
    if (timed < 0 || (timed && make_timing(metrics) < 0)) {
        return NULL;
    }
    if (timed && !metrics->timed) {
        /* What was under way when it was switched off is long over. */
        metrics->timing->mark_ns = 0;
        metrics->timing->turn_idle_ns = 0;
    }
    metrics->timed = timed != 0;
    Py_RETURN_NONE;
}

/* Sets a key of a dict; steals the value. -1 with an exception, also when the value is NULL. */
static int
put(PyObject *dict, const char *key, PyObject *value)
{
    int err = value == NULL ? -1 : PyDict_SetItemString(dict, key, value);
    Py_XDECREF(value);
    return err;
}

static int
put_seconds(PyObject *dict, const char *key, Timing *timing, uint64_t ns)
{
    return put(dict, key, timing == NULL ? Py_NewRef(Py_None) : PyFloat_FromDouble((double)ns / 1e9));
}

static int
put_histogram(PyObject *dict, const char *key, Histogram *histogram)
{
    return put(dict, key, histogram == NULL ? Py_NewRef(Py_None) : histogram_summary(histogram));
}

static int
put_counts(PyObject *dict, LoopObject *loop)
{
    Metrics *metrics = &loop->metrics;
    const struct {
        const char *key;
        uint64_t number;
    } counts[] = {
        {"turns", metrics->turns},
        {"callbacks", metrics->callbacks},
        {"ready", loop->ready.count + loop->inbox.count},
        {"timers", timers_count(&loop->timers)},
        {"bytes_in", metrics->bytes_in},
        {"bytes_out", metrics->bytes_out},
        {"messages_in", metrics->messages_in},
        {"messages_out", metrics->messages_out},
    };
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        if (put(dict, counts[i].key, PyLong_FromUnsignedLongLong(counts[i].number)) < 0) {
            return -1;
        }
    }
    return 0;
}

static PyObject *
executor_counts(LoopObject *loop, Timing *timing)
{
    Metrics *metrics = &loop->metrics;
    int queued = Py_MAX(metrics->jobs_queued, 0);
    PyObject *dict = Py_BuildValue("{sK,si,si}", "jobs", (unsigned long long)metrics->jobs, "queued", queued, "running",
                                   Py_MAX(loop->jobs_under_way - queued, 0));
    if (dict != NULL && put_histogram(dict, "wait", timing == NULL ? NULL : &timing->job_wait) < 0) {
        Py_CLEAR(dict);
    }
    return dict;
}

PyObject *
Loop_read_metrics(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    LoopObject *loop = LoopObject_CAST(op);
    Timing *timing = loop->metrics.timing;
    PyObject *dict = PyDict_New();
    if (dict == NULL) {
        return NULL;
    }
    if (put_counts(dict, loop) < 0 || put(dict, "executor", executor_counts(loop, timing)) < 0 ||
        put(dict, "timed", PyBool_FromLong(loop->metrics.timed)) < 0 ||
        put_seconds(dict, "poll_seconds", timing, timing == NULL ? 0 : decode(timing->poll, compat_monotonic_ns())) <
            0 ||
        put_seconds(dict, "gil_seconds", timing, timing == NULL ? 0 : timing->gil_ns) < 0 ||
        put_seconds(dict, "run_seconds", timing, timing == NULL ? 0 : timing->run_ns) < 0 ||
        put_histogram(dict, "lag", timing == NULL ? NULL : &timing->lag) < 0 ||
        put_histogram(dict, "turn", timing == NULL ? NULL : &timing->turn) < 0) {
        Py_CLEAR(dict);
    }
    return dict;
}
