/* What a loop counts, for loop.metrics().

   Counters are always on: one increment for a turn, for what the ready queue ran in it, for a read and a send. Whatever
   costs a look at the clock is off until loop.set_metrics(True) makes the Timing. Only the thread of the loop counts,
   but for jobs and histograms; any thread may read. */

#ifndef FASTLOOP_SCHED_METRICS_H
#define FASTLOOP_SCHED_METRICS_H

#include "base/histogram.h"
#include "sched/ready.h"

typedef _Atomic uint64_t Counter;

/* Where time went. Made by the first set_metrics(True), and kept until the loop is freed. */
typedef struct {
    Counter poll;          /* waiting for events, see encode() in metrics.c */
    Counter gil_ns;        /* waiting for the interpreter after that */
    Counter run_ns;        /* the rest of each turn */
    Counter mark_ns;       /* when the turn under way began, 0 = unknown */
    uint64_t wait_from_ns; /* what `poll` was before the wait under way */
    Counter turn_idle_ns;  /* of the turn under way, what went into `poll` and gil_ns */
    Histogram lag;         /* from the time of a timer until its turn */
    Histogram turn;        /* run_ns of each turn */
    Histogram job_wait;    /* from run_in_executor() until a worker takes the job */
} Timing;

typedef struct {
    Counter turns;
    Counter callbacks; /* records of the ready queue that were run */
    Counter bytes_in;
    Counter bytes_out;
    Counter messages_in; /* reads that brought something; datagrams */
    Counter messages_out;
    Counter jobs;            /* of run_in_executor(), natively */
    _Atomic int jobs_queued; /* those that no worker has taken yet */
    _Atomic bool timed;
    _Atomic(Timing *) timing; /* NULL until `timed` for the first time */
} Metrics;

/* Only for the thread of the loop: no locked instruction, for nobody else writes. */
static inline void
counter_add(Counter *counter, uint64_t number)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + number, memory_order_relaxed);
}

static inline void
metrics_received(Metrics *metrics, size_t size)
{
    counter_add(&metrics->messages_in, 1);
    counter_add(&metrics->bytes_in, size);
}

static inline void
metrics_sent(Metrics *metrics, size_t size)
{
    counter_add(&metrics->messages_out, 1);
    counter_add(&metrics->bytes_out, size);
}

/* The following are called only while `timed`, but for metrics_wait_ends(), which is as soon as there is a Timing. */

/* A run begins; `nested` in a turn of another one, which has begun before. */
void metrics_run_begins(Metrics *metrics, bool nested);
/* The wait of a poll begins, and ends: when, or 0 if its begin was not noted; then the thread state is back. */
void metrics_wait_begins(Metrics *metrics);
uint64_t metrics_wait_ends(Metrics *metrics);
void metrics_attached(Metrics *metrics, uint64_t since_ns);
void metrics_turn_ends(Metrics *metrics);
/* A timer that was due at `when` runs in this turn, which began its timers at `now`. */
void metrics_timer_due(Metrics *metrics, double when, double now);

void metrics_free(Metrics *metrics);

/* Methods of the loop; loop.c has the table. */
PyObject *Loop_read_metrics(PyObject *op, PyObject *ignored);
PyObject *Loop_set_metrics(PyObject *op, PyObject *flag);

#endif
