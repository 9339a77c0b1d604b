/* The work queue of a fastloop.ThreadPool: what its workers take their jobs from.

   To concurrent.futures' own worker function a JobQueue is both the queue.SimpleQueue and the semaphore that counts idle
   workers. Items that were put() come out of get(); jobs of run_in_executor() are records by value, run inside get() by
   the worker that asks for the next item, and never come out. Any thread may call every function here. */

#ifndef FASTLOOP_POOL_JOBS_H
#define FASTLOOP_POOL_JOBS_H

#include "sched/loop.h"

/* One call for a worker: func(*args), whose outcome completes `future` in the thread of `loop`. The references are
   strong. An item of put() is `func`, with nothing else set. */
typedef struct {
    PyObject *func;
    PyObject *args; /* tuple, or NULL for none */
    PyObject *future;
    LoopObject *loop;
    uint64_t queued_ns; /* while the loop's metrics are `timed`, else 0 */
} Job;

typedef struct Waiter {
    uv_sem_t wake;
    struct Waiter *next;
} Waiter;

typedef struct {
    PyObject_HEAD
    State *state;
    PyObject *module;           /* strong, until the very end: the state lives in it */
    PyObject *executor_globals; /* of the module of the executor's own methods */
    uv_mutex_t lock;
    bool lock_made;
    Job *jobs; /* a ring; the capacity is a power of two */
    size_t capacity;
    size_t head;
    size_t count;
    _Atomic int empty; /* whether count is 0, for who spins */
    Spin spin;         /* for the worker that spins, one at most */
    bool spinning;
    _Atomic uint32_t job_ns; /* what jobs take on average */
    Waiter *waiting;         /* blocked workers, the last one to come first: its caches are the warmest */
    Waiter *spare;           /* allocated and not in use */
    Py_ssize_t idle;         /* workers that no new job counts on yet, as the standard executor counts them */
    bool waking;             /* a worker has been woken and has not come for its job yet */
    bool full;               /* there are as many workers as may be */
    bool closed;             /* takes no more jobs, only items */
    bool counts_each;        /* idle goes up after each job, not just when a worker finds the queue empty */
} JobQueueObject;

#define JobQueueObject_CAST(op) ((JobQueueObject *)(op))

extern PyType_Spec JobQueue_spec;

typedef enum {
    JOB_TAKEN,     /* the queue owns the job's references now */
    JOB_NO_WORKER, /* nobody is idle and one more worker may be started first */
    JOB_REFUSED,   /* closed */
    JOB_FAILED,    /* with MemoryError */
} JobOutcome;

/* Queues a job for an idle worker, or for the next one to be free when there can be no more workers. */
JobOutcome jobs_submit_threadsafe(JobQueueObject *queue, const Job *job);

#endif
