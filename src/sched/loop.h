/* The loop: owns the ready queue, the timers, the inbox and the uv_loop, and runs turns.

   One turn: poll (I/O callbacks run here), move due timers to the ready queue, run what is ready, flush writes. A
   loop belongs to the thread that holds it; only loop_push(), loop_call_soon(), what touches timers and functions named
   _threadsafe may be called from others. Python code
   is entered with the thread state attached; the turn gives it away once, around a poll that may block. */

#ifndef FASTLOOP_SCHED_LOOP_H
#define FASTLOOP_SCHED_LOOP_H

#include "base/contexts.h"
#include "base/freelist.h"
#include "base/lead.h"
#include "base/spin.h"
#include "base/ticks.h"
#include "sched/gate.h"
#include "sched/handle.h"
#include "sched/inbox.h"
#include "sched/metrics.h"
#include "sched/timers.h"

/* What a layer above sched/ hangs on the loop. Every hook may be NULL. */
struct LoopHooks {
    /* Called by Loop.__new__; -1 with an exception. */
    int (*open)(LoopObject *loop);
    /* After the poll of a turn, when `has_found`: queues what counts as found by it, though no system call told. */
    void (*collect)(LoopObject *loop);
    /* Instead of a poll of a turn without work, when `may_glance` and the last poll was short ago: queues what can be found
       without uv_run(); false if that is nothing. */
    bool (*glance)(LoopObject *loop);
    /* The end of a turn, and of a run, when `needs_flush`: sends what was written in it. Reports its own errors. */
    void (*flush)(LoopObject *loop);
    /* Loop.close(): closes every uv handle of the layer; may run Python code. */
    void (*close)(LoopObject *loop);
    /* The last call, without Python code: closes uv handles that are still open, frees the layer's part. */
    void (*abandon)(LoopObject *loop);
    /* Right before uv_run(), when `watchers_changed`: libuv ends the process when the system refuses a descriptor that
       it was told to watch, so those that are no longer what they were are taken away. Runs no Python code. */
    void (*check_watchers)(LoopObject *loop);
    /* Now and then: frees some of what is kept for reuse, which was last done so long ago. May run Python code. */
    void (*trim)(LoopObject *loop, uint64_t elapsed_ns);
    /* In a forked child, after uv_loop_fork(); a negative libuv code on failure. */
    int (*fork)(LoopObject *loop);
    int (*traverse)(LoopObject *loop, visitproc visit, void *arg);
    void (*clear)(LoopObject *loop);
};

struct LoopObject {
    PyObject_HEAD
    State *state;
    PyObject *module; /* strong, until the very end: the state lives in it */
    uv_loop_t *uv;    /* allocated apart; NULL once closed */
    Ready ready;
    Timers timers;
    Inbox inbox;

    GateObject *gate;             /* what other threads go through to what is the loop's; NULL where there is a GIL */
    _Atomic unsigned long holder; /* the thread that is inside run_turns() or close(), 0 for none */
    _Atomic unsigned long thread_id; /* what Python calls the running thread, 0 while not running */
    ContextSwitch context_switch;    /* of that thread, for the records that it runs */
    PyObject **running;              /* likewise: see State.running_at */
    PyObject *no_variables;          /* the state's, borrowed; NULL with FASTLOOP_DISABLE=contexts */
    _Atomic bool closed;
    _Atomic bool stopping;
    _Atomic bool debug;
    _Atomic bool times_records;    /* debug, or there is a slow-callback hook */
    _Atomic bool has_late_wakeups; /* futures keep wake-ups of tasks for which the ready queue had no memory */
    _Atomic bool native_call_soon; /* neither a subclass nor the instance replaced call_soon() */
    _Atomic bool native_call_at;   /* likewise call_at() */
    _Atomic bool native_time;      /* likewise time() */
    /* Eight, so that no compiler reads one of these with one of those. */
    bool opened; /* the inbox exists */
    bool in_turn;
    bool polling;          /* inside uv_run(), which must not be entered again */
    bool poll_defers;      /* ... without blocking: there is work, which comes before what the poll finds */
    bool has_found;        /* LoopHooks.collect() has something for the next poll, which must not block */
    bool needs_flush;      /* LoopHooks.flush() has something to do */
    bool may_glance;       /* LoopHooks.glance() will probably find something */
    bool watchers_changed; /* the next uv_run() tells the system what to watch: with the thread state held, see
                              loop_poll_now() */
    pid_t pid;             /* of the process that made, or last re-armed, the uv_loop */

    PyThreadState *released; /* our thread state while a blocking poll has given it away */
    PyObject *pending;       /* exception raised inside a libuv callback, to leave run_forever() with */

    /* The task that asyncio.current_task() still answers with although its step is over: see loop_leave_task(). With a GIL
       borrowed, only to be compared. */
    PyObject *left_task;

    unsigned running_version;            /* of a type, when its is_running() was ours; 0 for none */
    unsigned long long poll_interval_ns; /* with work ready, the poll may be skipped for so long */
    _Atomic bool may_spin;               /* FASTLOOP_DISABLE=spin takes it away */
    _Atomic int jobs_under_way;          /* of run_in_executor(), natively */
    _Atomic uint32_t job_ns;             /* what these take on average */
    Spin job_spin;                       /* in a wait for their outcomes */
    Spin call_spin;                      /* in a wait for a call of another thread */
    Spin caller_spin;                    /* of such threads; under the GIL, as the next */
    uint64_t last_stay_ns;               /* when one of them has ended */
    bool called_soon;                    /* such a call has ended the last wait, and that was short */
    Metrics metrics;

    Ticks last_poll;
    uint64_t last_release_ns;
    uint64_t last_trim_ns;
    unsigned turns_since_poll;

    uv_timer_t *coarse_timer; /* wakes the poll a little before a far deadline */
    uv_poll_t *precise_poll;  /* a timerfd for the rest, where the system has it */
    int timer_fd;
    uint64_t precise_deadline_ns; /* what the timerfd is armed for, 0 = not */
    bool precise_expired;         /* the timerfd has ended the poll */
    Lead lead;                    /* of the timerfd */

    double clock_resolution;
    PyObject *current_handle; /* debug mode: the handle that runs, else NULL */
    _Atomic uint64_t slow_ns; /* for Loop._call_slow_hook(), 0 = there is no hook */
    PyObject *dict;
    PyObject *weakrefs;

    FreeList free_handles;
    FreeList free_timers;
    PyObject *spare_context; /* an empty one of a handle that has run, or NULL */

    struct IoPart *io;     /* io/'s */
    struct CoroPart *coro; /* coro/'s */
    struct PoolPart *pool; /* pool/'s */
};

#define LoopObject_CAST(op) ((LoopObject *)(op))

extern PyType_Spec Loop_spec;

/* True when `op` is a fastloop (or a Python subclass of one). */
static inline bool
loop_check(State *state, PyObject *op)
{
    return PyObject_TypeCheck(op, state->LoopType);
}

/* Raises RuntimeError('Event loop is closed') and returns -1 when it is. */
int loop_check_open(LoopObject *loop);

/* May the calling thread touch the ready queue and the free lists? With a GIL everybody may, for that is their lock;
   without one only the holder. */
static inline bool
loop_is_held_here(LoopObject *loop)
{
    return !HAVE_FREE_THREADING || atomic_load_explicit(&loop->holder, memory_order_relaxed) == compat_thread_ident();
}

/* How contexts are entered by the calls, in any thread. */
static inline ContextSwitch
context_by_calls(State *state)
{
    return (ContextSwitch){.thread = NULL, .watchers = state->contexts.watchers};
}

/* How the calling thread, which has the loop, enters them. */
static inline ContextSwitch
loop_context_switch(LoopObject *loop)
{
    ContextSwitch by = context_by_calls(loop->state);
    by.thread = loop->no_variables == NULL ? NULL : PyThreadState_Get();
    return by;
}

/* Frees some of what is kept for reuse and nobody has needed of late, if it is time to look; may run Python code then. */
bool loop_trim(LoopObject *loop, uint64_t now);

/* The number of the turn under way; 0 before the first. */
static inline uint64_t
loop_turn(LoopObject *loop)
{
    return atomic_load_explicit(&loop->metrics.turns, memory_order_relaxed);
}

/* Queues a record for the next turn, from whichever thread, and wakes the loop if it waits. New references are taken.
   -1 with an exception (MemoryError, RuntimeError when closed). */
static inline int
loop_push(LoopObject *loop, ready_run run, PyObject *owner, PyObject *arg)
{
    if (UNLIKELY(loop->closed)) {
        return loop_check_open(loop);
    }
    if (UNLIKELY(!loop_is_held_here(loop))) {
        return inbox_push_threadsafe(&loop->inbox, run, owner, arg);
    }
    int err = ready_append(&loop->ready, run, owner, arg);
    if (UNLIKELY(atomic_load_explicit(&loop->inbox.waiting, memory_order_relaxed) > WOKEN)) {
        inbox_wake_if_waiting(&loop->inbox);
    }
    return err;
}

/* The same without the wake-up, for which loop_wake_threadsafe() comes next; without a GIL, it is no different. */
static inline int
loop_push_quietly(LoopObject *loop, ready_run run, PyObject *owner, PyObject *arg)
{
    if (HAVE_FREE_THREADING) {
        return loop_push(loop, run, owner, arg);
    }
    return UNLIKELY(loop->closed) ? loop_check_open(loop) : ready_append(&loop->ready, run, owner, arg);
}

/* Wakes the loop if it waits, with the GIL given away meanwhile: the loop finds it free. Who wakes a thread and keeps what
   that wants first has it wake up, wait for the GIL, and be woken again. Runs other threads; keeps an exception. */
void loop_wake_threadsafe(LoopObject *loop);

/* What C code calls in place of Python's `loop.call_soon(callback, *args, context=context)`: the same effect, and a
   replaced call_soon() is honoured. `context` may be NULL. */
int loop_call_soon(LoopObject *loop, PyObject *callback, PyObject *const *args, Py_ssize_t nargs, PyObject *context);

/* loop.time() in seconds: the monotonic clock, or what replaced it. -1.0 with an exception on failure. */
double loop_time(LoopObject *loop);
/* Is is_running() still ours, at this moment? For who can do without calling it. */
bool loop_keeps_is_running(LoopObject *loop);

/* Does asyncio.current_task() still answer with the task whose step is over, see loop_leave_task()? Not since 3.14, where
   it costs nothing to tell the truth. */
static inline bool
loop_follows_step(LoopObject *loop)
{
    return !HAVE_THREAD_STATE_TASKS && loop->left_task != NULL;
}

/* Called before anything runs but the step of a task of ours. Such a step leaves its entry for current_task() where it
   is, since mostly another step comes next and replaces it; nobody else may see it. Keeps an exception that is set. */
static inline void
loop_leave_task(LoopObject *loop)
{
    if (UNLIKELY(loop_follows_step(loop))) {
        loop->state->leave_task(loop);
    }
}

/* Gives the thread state away for a poll; loop_enter() takes it back. */
static inline void
loop_release(LoopObject *loop)
{
    state_note_attached(loop->state, -1);
    if (UNLIKELY(loop->metrics.timed)) {
        metrics_wait_begins(&loop->metrics);
    }
    loop->released = PyEval_SaveThread();
}

/* First statement of every libuv callback: takes the thread state back if the poll gave it away. */
static inline void
loop_enter(LoopObject *loop)
{
    if (loop->released != NULL) {
        PyThreadState *thread_state = loop->released;
        loop->released = NULL;
        uint64_t woken_ns = UNLIKELY(loop->metrics.timing != NULL) ? metrics_wait_ends(&loop->metrics) : 0;
        PyEval_RestoreThread(thread_state);
        if (UNLIKELY(woken_ns != 0)) {
            metrics_attached(&loop->metrics, woken_ns);
        }
        loop->inbox.waiting = NOT_WAITING;
        state_note_attached(loop->state, 1);
        /* What other threads have queued meanwhile comes before what the poll finds. */
        inbox_drain(&loop->inbox, &loop->ready);
        loop->poll_defers |= loop->ready.count > 0;
    }
    loop_leave_task(loop);
}

/* Has the next turn poll, however short ago the last poll was. */
static inline void
loop_poll_soon(LoopObject *loop)
{
    loop->turns_since_poll = UINT_MAX;
}

/* uv_run() in the given mode, with a note that it is under way. */
static inline void
loop_poll(LoopObject *loop, uv_run_mode mode)
{
    loop->polling = true;
    loop->poll_defers = mode == UV_RUN_NOWAIT;
    uv_run(loop->uv, mode);
    loop->polling = false;
}

/* uv_run() that does not block and keeps the thread state, so that nobody closes a descriptor between the check and the
   system call. */
static inline void
loop_poll_now(LoopObject *loop)
{
    if (UNLIKELY(loop->watchers_changed)) {
        loop->state->io_hooks->check_watchers(loop);
    }
    loop_poll(loop, UV_RUN_NOWAIT);
}

/* Keeps the exception that is set until the turn can raise it out of run_forever(), and ends the poll. For SystemExit
   and KeyboardInterrupt inside a libuv callback; a second one is written as unraisable. */
void loop_raise_later(LoopObject *loop);

/* Reports the exception that is set through loop.call_exception_handler(), with `message` and further pairs
   (const char *key, PyObject *value), ended by NULL. SystemExit and KeyboardInterrupt go to loop_raise_later()
   instead. Never leaves an exception set. */
void loop_report(LoopObject *loop, const char *message, ...);

/* Between these two Python code runs as inside an `except` clause for `exc`: sys.exc_info() is about it, and it is the
   __context__ of what is raised. begin gives what end wants. */
static inline PyObject *
loop_begin_handling(PyObject *exc)
{
    PyObject *before = PyErr_GetHandledException();
    /* Who runs the loop may be a generator, and then this may be its caller's, which would stay with it. */
    PyErr_SetHandledException(NULL);
    PyObject *outer = PyErr_GetHandledException();
    if (outer == before) {
        Py_CLEAR(before);
    }
    Py_XDECREF(outer);
    PyErr_SetHandledException(exc);
    return before;
}

static inline void
loop_end_handling(PyObject *before)
{
    PyErr_SetHandledException(before);
    Py_XDECREF(before);
}

/* Is the exception that is set one that must leave run_forever()? */
static inline bool
loop_must_propagate(void)
{
    return PyErr_ExceptionMatches(PyExc_SystemExit) || PyErr_ExceptionMatches(PyExc_KeyboardInterrupt);
}

/* Reports what took `ns` (a handle, a task, a transport) in debug mode, and to the hook for slow callbacks when it is that
   slow. Called while `times_records`. -1 with an exception. */
int loop_report_time(LoopObject *loop, PyObject *ran, uint64_t ns);

/* Called before a libuv handle is closed where the loop need not have run since a fork: the parent's goes on. */
void loop_before_close(LoopObject *loop);

/* Adds methods of another layer to the Loop type (module.c, at start). */
int loop_add_methods(PyTypeObject *type, PyMethodDef *methods);

#endif
