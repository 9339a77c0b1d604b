/* The loop: life, scheduling methods, and the turn.

   Order of a turn, which is the standard loop's: poll, then timers that are due, then everything that was ready at that
   point; what these add waits for the next turn. I/O callbacks of libuv run inside the poll, with the thread state
   attached (loop_enter). An exception that must leave run_forever() is parked in loop->pending by loop_raise_later(). */

#include "sched/loop.h"

#include <math.h>
#include <time.h>
#include <unistd.h>

#include "base/args.h"
#include "base/lowfds.h"
#include "base/uverror.h"
#include "base/uvwatch.h"
#include "sched/park.h"
#include "sched/sleep.h"

enum {
    /* With work ready the poll is skipped for this long and this many turns. A ready descriptor beside a busy chain of
       callbacks must not wait longer than 20 us; an empty poll costs 0.5 us. */
    POLL_INTERVAL_NS = 10000, /* loop.poll_interval_ns, which only benchmarks change */
    POLL_INTERVAL_TURNS = 16,
    /* Where each turn has work, other threads get the interpreter around a poll, this often. A thread that waits for it
       may still be late each time, and each time starts anew to count the switch interval (5 ms) after which it would
       demand it. So the first part of each period is without, and long enough for that. */
    RELEASE_INTERVAL_NS = 20000,
    RELEASE_PERIOD_NS = 20000000,
    DEMAND_NS = 8000000,
};

/* ---- time ---- */

double
loop_time(LoopObject *loop)
{
    if (LIKELY(loop->native_time)) {
        return (double)compat_monotonic_ns() / 1e9;
    }
    PyObject *now = PyObject_CallMethodNoArgs((PyObject *)loop, loop->state->str_time);
    if (now == NULL) {
        return -1.0;
    }
    double seconds = PyFloat_AsDouble(now);
    Py_DECREF(now);
    return seconds;
}

/* ---- checks and reports ---- */

int
loop_check_open(LoopObject *loop)
{
    if (loop->closed) {
        PyErr_SetString(PyExc_RuntimeError, "Event loop is closed");
        return -1;
    }
    return 0;
}

void
loop_raise_later(LoopObject *loop)
{
    if (loop->pending != NULL) {
        PyErr_WriteUnraisable((PyObject *)loop);
        return;
    }
    loop->pending = compat_take_exception();
    if (loop->uv != NULL) {
        uv_stop(loop->uv);
    }
}

/* Calls loop.call_exception_handler(context) about `exc`, or about no exception; 0, or -1 with an exception. */
static int
call_exception_handler(LoopObject *loop, PyObject *context, PyObject *exc)
{
    PyObject *before = loop_begin_handling(exc);
    PyObject *result = PyObject_CallMethodOneArg((PyObject *)loop, loop->state->str_call_exception_handler, context);
    loop_end_handling(before);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

void
loop_report(LoopObject *loop, const char *message, ...)
{
    if (loop_must_propagate()) {
        loop_raise_later(loop);
        return;
    }
    PyObject *exc = compat_take_exception();
    PyObject *context = Py_BuildValue("{ss,sO}", "message", message, "exception", exc == NULL ? Py_None : exc);
    int err = context == NULL ? -1 : 0;
    va_list pairs;
    va_start(pairs, message);
    for (const char *key = va_arg(pairs, const char *); key != NULL; key = va_arg(pairs, const char *)) {
        PyObject *value = va_arg(pairs, PyObject *);
        if (err == 0 && value != NULL) {
            err = PyDict_SetItemString(context, key, value);
        }
    }
    va_end(pairs);
    if (err == 0) {
        err = call_exception_handler(loop, context, exc);
    }
    Py_XDECREF(exc);
    Py_XDECREF(context);
    if (err < 0) {
        if (loop_must_propagate()) {
            loop_raise_later(loop);
        } else {
            PyErr_WriteUnraisable((PyObject *)loop);
        }
    }
}

/* The checks of debug mode before a callback is taken; `threadsafe` leaves the thread out. */
static int
check_in_debug(LoopObject *loop, PyObject *callback, const char *method, bool threadsafe)
{
    PyObject *self = (PyObject *)loop;
    if (!threadsafe) {
        PyObject *result = PyObject_CallMethodNoArgs(self, loop->state->str__check_thread);
        if (result == NULL) {
            return -1;
        }
        Py_DECREF(result);
    }
    PyObject *name = PyUnicode_FromString(method);
    if (name == NULL) {
        return -1;
    }
    PyObject *result = PyObject_CallMethodObjArgs(self, loop->state->str__check_callback, callback, name, NULL);
    Py_DECREF(name);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* ---- call_soon and its kin ---- */

/* Tells the collector of a new handle, unless it need not know. A loop that runs is alive, and so is what waits in its
   ready queue: the collector need not know of a handle that does not outlive that (see handle_run() and track_queued()),
   which hardly any does. */
static inline void
track_new_handle(LoopObject *loop, HandleObject *handle)
{
    if (HAVE_FREE_THREADING || UNLIKELY(!loop->in_turn)) {
        PyObject_GC_Track(handle);
    }
}

/* Queues a new handle. */
static inline int
push_handle(LoopObject *loop, HandleObject *handle)
{
    track_new_handle(loop, handle);
    return loop_push(loop, handle_run, (PyObject *)handle, NULL);
}

void
loop_wake_threadsafe(LoopObject *loop)
{
    if (HAVE_FREE_THREADING) {
        return;
    }
    if (loop->inbox.waiting == SPINNING) {
        inbox_wake_if_waiting(&loop->inbox);
    } else if (inbox_begin_send(&loop->inbox)) {
        PyThreadState *thread_state = PyEval_SaveThread();
        (void)inbox_send_released(&loop->inbox);
        PyEval_RestoreThread(thread_state);
    }
}

/* Gives a loop that spins the GIL, and stays for a moment: when the loop waits again before that is over, neither of the
   two has blocked. */
static void
stay_with_spinning(LoopObject *loop, uint64_t now)
{
    uint64_t budget_ns = spin_budget(&loop->caller_spin, now);
    PyThreadState *thread_state = PyEval_SaveThread();
    bool stays = inbox_send_released(&loop->inbox) && budget_ns > 0;
    bool done = stays && spin_until_at_least(&loop->inbox.waiting, SPINNING, budget_ns);
    if (done) {
        /* It is about to let go of the GIL. */
        (void)spin_until(&loop->state->attached, 0, SPIN_RELEASE_NS);
    }
    PyEval_RestoreThread(thread_state);
    if (stays) {
        spin_note(&loop->caller_spin, done);
        loop->last_stay_ns = compat_monotonic_ns();
    }
}

/* loop_wake_threadsafe() for a caller who may want what comes of it. Who comes back at once does not: its calls are a burst,
   which the loop had better find together. */
static void
wake_for_caller_threadsafe(LoopObject *loop)
{
    if (HAVE_FREE_THREADING || LIKELY(loop->inbox.waiting != SPINNING)) {
        loop_wake_threadsafe(loop);
        return;
    }
    uint64_t now = compat_monotonic_ns();
    if (now - loop->last_stay_ns < SPIN_BURST_NS || !inbox_begin_send(&loop->inbox)) {
        loop_wake_threadsafe(loop);
    } else {
        stay_with_spinning(loop, now);
    }
}

int
loop_call_soon(LoopObject *loop, PyObject *callback, PyObject *const *args, Py_ssize_t nargs, PyObject *context)
{
    if (LIKELY(loop->native_call_soon && !loop->debug)) {
        if (loop_check_open(loop) < 0) {
            return -1;
        }
        HandleObject *handle = handle_new_untracked(loop, callback, args, nargs, context);
        if (handle == NULL) {
            return -1;
        }
        int err = push_handle(loop, handle);
        Py_DECREF(handle);
        return err;
    }
    PyObject *method = PyObject_GetAttr((PyObject *)loop, loop->state->str_call_soon);
    PyObject *positional = method == NULL ? NULL : PyTuple_New(nargs + 1);
    PyObject *keywords = NULL;
    if (positional != NULL && context != NULL) {
        bool is_unused = context == loop->state->contexts.unused;
        keywords =
            is_unused ? Py_BuildValue("{sN}", "context", PyContext_New()) : Py_BuildValue("{sO}", "context", context);
    }
    PyObject *result = NULL;
    if (positional != NULL && (context == NULL || keywords != NULL)) {
        PyTuple_SET_ITEM(positional, 0, Py_NewRef(callback));
        for (Py_ssize_t i = 0; i < nargs; i++) {
            PyTuple_SET_ITEM(positional, i + 1, Py_NewRef(args[i]));
        }
        result = PyObject_Call(method, positional, keywords);
    }
    Py_XDECREF(method);
    Py_XDECREF(positional);
    Py_XDECREF(keywords);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

PyDoc_STRVAR(Loop_call_soon_doc,
             "call_soon($self, callback, *args, context=None)\n--\n\n"
             "Call callback(*args) in the next turn of the loop, in the order of registration.\n\n"
             "context is the contextvars.Context to run in, by default a copy of the current one. Returns an\n"
             "asyncio.Handle. Raises RuntimeError when the loop is closed. See asyncio.loop.call_soon().");

static PyObject *
Loop_call_soon(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    LoopObject *loop = LoopObject_CAST(op);
    PyObject *context;
    if (UNLIKELY(!args_are_plain(loop->state, args, nargs, kwnames, 1, &context))) {
        return args_call_sorted(loop->state, "call_soon", Loop_call_soon, op, args, nargs, kwnames);
    }
    if (loop_check_open(loop) < 0) {
        return NULL;
    }
    if (UNLIKELY(loop->debug) && check_in_debug(loop, args[0], "call_soon", false) < 0) {
        return NULL;
    }
    HandleObject *handle = handle_new_untracked(loop, args[0], args + 1, nargs - 1, context);
    if (handle != NULL && push_handle(loop, handle) < 0) {
        Py_CLEAR(handle);
    }
    return (PyObject *)handle;
}

PyDoc_STRVAR(Loop_call_soon_threadsafe_doc,
             "call_soon_threadsafe($self, callback, *args, context=None)\n--\n\n"
             "Like call_soon(), from any thread; wakes the loop.\n\n"
             "Raises RuntimeError when the loop is closed. See asyncio.loop.call_soon_threadsafe().");

static PyObject *
Loop_call_soon_threadsafe(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    LoopObject *loop = LoopObject_CAST(op);
    PyObject *context;
    if (UNLIKELY(!args_are_plain(loop->state, args, nargs, kwnames, 1, &context))) {
        return args_call_sorted(loop->state, "call_soon_threadsafe", Loop_call_soon_threadsafe, op, args, nargs,
                                kwnames);
    }
    if (loop_check_open(loop) < 0) {
        return NULL;
    }
    if (UNLIKELY(loop->debug) && check_in_debug(loop, args[0], "call_soon_threadsafe", true) < 0) {
        return NULL;
    }
    HandleObject *handle = handle_new_untracked(loop, args[0], args + 1, nargs - 1, context);
    if (handle == NULL) {
        return NULL;
    }
    handle->threadsafe = HAVE_BLOCKING_HANDLES;
    track_new_handle(loop, handle);
    ready_run run = HAVE_BLOCKING_HANDLES ? handle_run_threadsafe : handle_run;
    if (loop_push_quietly(loop, run, (PyObject *)handle, NULL) < 0) {
        Py_CLEAR(handle);
    }
    wake_for_caller_threadsafe(loop);
    return (PyObject *)handle;
}

/* Schedules args[0](*args[1:]) for `seconds`; `when_object` is what when() gives back, NULL for the float itself. */
static PyObject *
schedule_timer(LoopObject *loop, double seconds, PyObject *when_object, PyObject *const *args, Py_ssize_t nargs,
               PyObject *context)
{
    if (loop_check_open(loop) < 0 || (UNLIKELY(loop->debug) && check_in_debug(loop, args[0], "call_at", false) < 0)) {
        return NULL;
    }
    TimerHandleObject *handle = timer_handle_new(loop, seconds, when_object, args[0], args + 1, nargs - 1, context);
    if (handle != NULL && timers_push(&loop->timers, handle) < 0) {
        Py_CLEAR(handle);
    }
    return (PyObject *)handle;
}

/* The same for a time that may be any number. */
static PyObject *
schedule_timer_at(LoopObject *loop, PyObject *when, PyObject *const *args, Py_ssize_t nargs, PyObject *context)
{
    double seconds = PyFloat_AsDouble(when);
    if (seconds == -1.0 && PyErr_Occurred()) {
        return NULL;
    }
    return schedule_timer(loop, seconds, PyFloat_CheckExact(when) ? NULL : when, args, nargs, context);
}

PyDoc_STRVAR(Loop_call_at_doc,
             "call_at($self, when, callback, *args, context=None)\n--\n\n"
             "Call callback(*args) at `when`, in seconds of loop.time(); never earlier.\n\n"
             "Returns an asyncio.TimerHandle. Raises TypeError when `when` is None, RuntimeError when the loop is\n"
             "closed. See asyncio.loop.call_at().");

static PyObject *
Loop_call_at(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    LoopObject *loop = LoopObject_CAST(op);
    PyObject *context;
    if (UNLIKELY(!args_are_plain(loop->state, args, nargs, kwnames, 2, &context))) {
        return args_call_sorted(loop->state, "call_at", Loop_call_at, op, args, nargs, kwnames);
    }
    if (args[0] == Py_None) {
        PyErr_SetString(PyExc_TypeError, "when cannot be None");
        return NULL;
    }
    return schedule_timer_at(loop, args[0], args + 1, nargs - 1, context);
}

/* call_later() by a call_at() that a subclass, a patch or the instance put in place of ours. */
static PyObject *
call_replaced_call_at(LoopObject *loop, PyObject *when, PyObject *const *args, Py_ssize_t nargs, PyObject *context)
{
    PyObject *positional = PyTuple_New(nargs);
    if (positional == NULL) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < nargs; i++) {
        PyTuple_SET_ITEM(positional, i, Py_NewRef(args[i]));
    }
    PyObject *handle = PyObject_CallMethodObjArgs((PyObject *)loop, loop->state->str__call_replaced_call_at, when,
                                                  positional, context == NULL ? Py_None : context, NULL);
    Py_DECREF(positional);
    return handle;
}

PyDoc_STRVAR(Loop_call_later_doc,
             "call_later($self, delay, callback, *args, context=None)\n--\n\n"
             "Call callback(*args) after `delay` seconds.\n\n"
             "A delay of zero or less makes it due in the next turn. Returns an asyncio.TimerHandle. Raises TypeError\n"
             "when delay is None, RuntimeError when the loop is closed. See asyncio.loop.call_later().");

static PyObject *
Loop_call_later(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    LoopObject *loop = LoopObject_CAST(op);
    PyObject *context;
    if (UNLIKELY(!args_are_plain(loop->state, args, nargs, kwnames, 2, &context))) {
        return args_call_sorted(loop->state, "call_later", Loop_call_later, op, args, nargs, kwnames);
    }
    if (args[0] == Py_None) {
        PyErr_SetString(PyExc_TypeError, "delay must not be None");
        return NULL;
    }
    if (LIKELY(loop->native_time && loop->native_call_at && PyFloat_CheckExact(args[0]))) {
        double seconds = loop_time(loop) + PyFloat_AS_DOUBLE(args[0]);
        return schedule_timer(loop, seconds, NULL, args + 1, nargs - 1, context);
    }
    PyObject *now = PyObject_CallMethodNoArgs(op, loop->state->str_time);
    PyObject *when = now == NULL ? NULL : PyNumber_Add(now, args[0]);
    Py_XDECREF(now);
    if (when == NULL) {
        return NULL;
    }
    PyObject *handle = loop->native_call_at ? schedule_timer_at(loop, when, args + 1, nargs - 1, context)
                                            : call_replaced_call_at(loop, when, args + 1, nargs - 1, context);
    Py_DECREF(when);
    return handle;
}

PyDoc_STRVAR(Loop_make_handle_doc, "_make_handle($self, callback, args, context=None, /)\n--\n\n"
                                   "Return an asyncio.Handle for callback(*args) that is not scheduled.");

static PyObject *
Loop_make_handle(PyObject *op, PyObject *args)
{
    PyObject *callback, *positional, *context = NULL;
    if (!PyArg_ParseTuple(args, "OO!|O:_make_handle", &callback, &PyTuple_Type, &positional, &context)) {
        return NULL;
    }
    return (PyObject *)handle_new(LoopObject_CAST(op), callback, &PyTuple_GET_ITEM(positional, 0),
                                  PyTuple_GET_SIZE(positional), context);
}

/* The function that runs a handle of whichever type. */
static ready_run
runner_of(LoopObject *loop, PyObject *handle)
{
    bool ours = Py_IS_TYPE(handle, loop->state->HandleType) || Py_IS_TYPE(handle, loop->state->TimerHandleType);
    return ours ? handle_run : handle_run_foreign;
}

PyDoc_STRVAR(Loop_add_callback_doc,
             "_add_callback($self, handle, /)\n--\n\nQueue an asyncio.Handle for the next turn.");

static PyObject *
Loop_add_callback(PyObject *op, PyObject *handle)
{
    LoopObject *loop = LoopObject_CAST(op);
    if (loop_push(loop, runner_of(loop, handle), handle, NULL) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
Loop_add_callback_signalsafe(PyObject *op, PyObject *handle)
{
    LoopObject *loop = LoopObject_CAST(op);
    if (loop_push(loop, runner_of(loop, handle), handle, NULL) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
Loop_write_to_self(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    LoopObject *loop = LoopObject_CAST(op);
    if (!loop->closed) {
        inbox_wake_threadsafe(&loop->inbox);
    }
    Py_RETURN_NONE;
}

static PyObject *
Loop_timer_handle_cancelled(PyObject *Py_UNUSED(op), PyObject *Py_UNUSED(handle))
{
    /* Our timers leave the heap by themselves. */
    Py_RETURN_NONE;
}

/* ---- the turn ---- */

static PyObject *
get_current_handle(PyObject *op, void *Py_UNUSED(closure))
{
    PyObject *handle;
    FL_BEGIN_CRITICAL_SECTION(op);
    handle = Py_XNewRef(LoopObject_CAST(op)->current_handle);
    FL_END_CRITICAL_SECTION();
    return handle == NULL ? Py_NewRef(Py_None) : handle;
}

static int
set_current_handle(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    LoopObject *loop = LoopObject_CAST(op);
    PyObject *old;
    FL_BEGIN_CRITICAL_SECTION(op);
    old = loop->current_handle;
    loop->current_handle = Py_XNewRef(value == Py_None ? NULL : value);
    FL_END_CRITICAL_SECTION();
    Py_XDECREF(old);
    return 0;
}

/* Calls the loop's method `name`(ran, seconds); -1 with an exception. */
static int
call_with_time(LoopObject *loop, PyObject *name, PyObject *ran, uint64_t ns)
{
    PyObject *duration = PyFloat_FromDouble((double)ns / 1e9);
    PyObject *result =
        duration == NULL ? NULL : PyObject_CallMethodObjArgs((PyObject *)loop, name, ran, duration, NULL);
    Py_XDECREF(duration);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int
loop_report_time(LoopObject *loop, PyObject *ran, uint64_t ns)
{
    loop_leave_task(loop);
    State *state = loop->state;
    if (loop->debug && call_with_time(loop, state->str__report_slow_callback, ran, ns) < 0) {
        return -1;
    }
    uint64_t slow_ns = loop->slow_ns;
    return slow_ns != 0 && ns >= slow_ns ? call_with_time(loop, state->str__call_slow_hook, ran, ns) : 0;
}

/* The collector is told of the owner of a record, see push_handle(). */
static inline void
track_record(ReadyEntry *entry)
{
    if (entry->run == handle_run || entry->run == handle_run_threadsafe) {
        handle_track(entry->owner);
    }
}

/* Runs a record, and reports how long it took. */
static int
run_timed(LoopObject *loop, ReadyEntry *entry)
{
    bool is_handle =
        entry->run == handle_run || entry->run == handle_run_threadsafe || entry->run == handle_run_foreign;
    set_current_handle((PyObject *)loop, is_handle && loop->debug ? entry->owner : NULL, NULL);
    uint64_t start = compat_monotonic_ns();
    int err = entry->run(loop, entry->owner, entry->arg);
    uint64_t taken = compat_monotonic_ns() - start;
    set_current_handle((PyObject *)loop, NULL, NULL);
    if (err < 0) {
        return err;
    }
    /* Who is told may keep it. */
    track_record(entry);
    return loop_report_time(loop, entry->owner, taken);
}

/* Runs what was ready when the turn reached this point. -1 with the exception that ends the run; the rest stays. */
static int
run_ready(LoopObject *loop)
{
    size_t due = loop->ready.count, left = due;
    int err = 0;
    while (left > 0 && loop->ready.count > 0 && err >= 0) {
        ReadyEntry entry = ready_take(&loop->ready);
        left--;
        if (loop_follows_step(loop) && entry.run != loop->state->run_wakeup && entry.run != loop->state->run_step) {
            loop_leave_task(loop);
        }
        err = UNLIKELY(loop->times_records) ? run_timed(loop, &entry) : entry.run(loop, entry.owner, entry.arg);
        Py_DECREF(entry.owner);
        Py_XDECREF(entry.arg);
    }
    counter_add(&loop->metrics.callbacks, due - left);
    return err < 0 ? -1 : 0;
}

/* The end of a run: what is still queued is the collector's affair from now on, see push_handle(). */
static void
track_queued(Ready *ready)
{
    for (size_t i = 0; i < ready->count; i++) {
        track_record(&ready->entries[(ready->head + i) & ready->mask]);
    }
}

/* Moves the timers that are due to the ready queue, earliest first. */
static int
collect_timers(LoopObject *loop)
{
    double earliest;
    if (!timers_earliest(&loop->timers, &earliest)) {
        return 0;
    }
    if (UNLIKELY(!loop->native_time)) {
        loop_leave_task(loop);
    }
    double now = loop_time(loop);
    if (now == -1.0 && PyErr_Occurred()) {
        return -1;
    }
    double end = now + loop->clock_resolution;
    TimerHandleObject *handle;
    /* Those that there is no memory for stay due: what is queued makes room. */
    while (ready_has_room(&loop->ready) && (handle = timers_pop_due(&loop->timers, end)) != NULL) {
        if (UNLIKELY(loop->metrics.timed) && loop->native_time) {
            metrics_timer_due(&loop->metrics, handle->when, now);
        }
        (void)ready_append(&loop->ready, handle_run, (PyObject *)handle, NULL);
        Py_DECREF(handle);
    }
    return 0;
}

bool
loop_trim(LoopObject *loop, uint64_t now)
{
    uint64_t elapsed_ns = now - loop->last_trim_ns;
    if (LIKELY(elapsed_ns < FREELIST_TRIM_NS)) {
        return false;
    }
    loop->last_trim_ns = now;
    handle_free_list_trim(loop, elapsed_ns);
    const LoopHooks *hooks = loop->state->coro_hooks;
    if (hooks != NULL && hooks->trim != NULL) {
        hooks->trim(loop, elapsed_ns);
    }
    return true;
}

/* Polls without blocking, for a turn that has work. Lets signal handlers in, and other threads now and then. */
static int
poll_between(LoopObject *loop, uint64_t now)
{
    loop_leave_task(loop);
    if (PyErr_CheckSignals() < 0) {
        return -1;
    }
    (void)loop_trim(loop, now);
    if (loop->watchers_changed || now - loop->last_release_ns < RELEASE_INTERVAL_NS ||
        (!HAVE_FREE_THREADING && now % RELEASE_PERIOD_NS < DEMAND_NS)) {
        loop_poll_now(loop);
        return 0;
    }
    loop_release(loop);
    loop_poll(loop, UV_RUN_NOWAIT);
    loop_enter(loop);
    loop->last_release_ns = now;
    return 0;
}

/* Was the last poll so short ago that a turn with work may do without? */
static inline bool
may_skip_poll(LoopObject *loop)
{
    return loop->turns_since_poll < POLL_INTERVAL_TURNS && ticks_is_recent(&loop->last_poll, loop->poll_interval_ns) &&
           !loop->stopping;
}

/* Polls if it is time to, and blocks if there is nothing to do. -1 with an exception. */
static int
poll_events(LoopObject *loop)
{
    inbox_drain(&loop->inbox, &loop->ready);
    if (UNLIKELY(loop->has_late_wakeups)) {
        loop_leave_task(loop);
        loop->state->wake_late(loop);
    }
    bool busy = loop->ready.count > 0 || loop->stopping || loop->has_found;
    if (busy && may_skip_poll(loop)) {
        loop->turns_since_poll++;
        return 0;
    }
    uint64_t now = compat_monotonic_ns(), now_ticks = compat_ticks();
    if (busy) {
        if (poll_between(loop, now) < 0) {
            return -1;
        }
    } else if (loop->may_glance && may_skip_poll(loop) && loop->state->io_hooks->glance(loop)) {
        loop->turns_since_poll++;
        return 0;
    } else {
        int polled = sleep_until_event(loop, &now);
        if (polled < 0) {
            return -1;
        }
        inbox_drain(&loop->inbox, &loop->ready);
        now_ticks = compat_ticks();
        if (polled == 0) {
            /* One short job after the other must not keep what is ready waiting. */
            if (may_skip_poll(loop)) {
                loop->turns_since_poll++;
                return 0;
            }
            loop_poll_now(loop);
        }
    }
    loop->turns_since_poll = 0;
    ticks_note(&loop->last_poll, now, now_ticks, loop->poll_interval_ns);
    if (UNLIKELY(loop->pending != NULL)) {
        PyObject *exc = loop->pending;
        loop->pending = NULL;
        compat_restore_exception(exc);
        return -1;
    }
    return 0;
}

static void
flush(LoopObject *loop)
{
    if (UNLIKELY(loop->needs_flush)) {
        loop->state->io_hooks->flush(loop);
    }
}

/* Sends what was written even when an exception ends the run, which it must not disturb. */
static void
flush_keeping_exception(LoopObject *loop)
{
    PyObject *exc = compat_take_exception();
    flush(loop);
    if (exc != NULL) {
        compat_restore_exception(exc);
    }
}

static int
turn(LoopObject *loop)
{
    counter_add(&loop->metrics.turns, 1);
    int err = poll_events(loop);
    if (UNLIKELY(loop->has_found) && err == 0) {
        loop->state->io_hooks->collect(loop);
    }
    if (err == 0) {
        err = collect_timers(loop);
    }
    if (err == 0) {
        err = run_ready(loop);
    }
    if (UNLIKELY(err < 0)) {
        flush_keeping_exception(loop);
        return -1;
    }
    flush(loop);
    if (UNLIKELY(loop->pending != NULL)) {
        PyObject *exc = loop->pending;
        loop->pending = NULL;
        compat_restore_exception(exc);
        return -1;
    }
    return 0;
}

/* A fork takes no thread along that is just sending a wake-up; nobody must wait for it. Threads of the child are not among
   them: who finds the loop waiting is one that sends, and in the child it has not been so before this. What blocked in
   a thread of the parent counts as running for good. */
static void
forget_senders_of_parent(LoopObject *loop)
{
    if (UNLIKELY(loop->pid != getpid())) {
        loop->inbox.senders = 0;
    }
}

/* After a fork the child must not touch what it shares with its parent (the epoll set). */
static int
rearm_after_fork(LoopObject *loop)
{
    pid_t pid = getpid();
    if (LIKELY(loop->pid == pid)) {
        return 0;
    }
    forget_senders_of_parent(loop);
    HeldLowFds held = {.count = 0};
    int err = park_leave_parents_set(loop->uv);
    if (err == 0) {
        err = lowfds_hold(&held);
    }
    if (err == 0) {
        err = uv_loop_fork(loop->uv);
        if (err == 0) {
            err = uvwatch_register_own(loop->uv);
        }
        lowfds_release(&held);
    }
    if (err == 0) {
        err = inbox_fork(&loop->inbox);
    }
    if (err == 0) {
        err = sleep_fork(loop);
    }
    const LoopHooks *hooks = loop->state->io_hooks;
    if (err == 0 && hooks != NULL && hooks->fork != NULL) {
        err = hooks->fork(loop);
    }
    if (err < 0) {
        /* The next call begins anew. */
        uverror_raise(err);
        return -1;
    }
    loop->pid = pid;
    return 0;
}

void
loop_before_close(LoopObject *loop)
{
    if (UNLIKELY(loop->uv != NULL && loop->pid != getpid())) {
        (void)park_leave_parents_set(loop->uv);
    }
}

/* Makes the calling thread the holder; false when another one is. */
static bool
hold(LoopObject *loop)
{
    unsigned long nobody = 0, here = compat_thread_ident();
    return atomic_compare_exchange_strong(&loop->holder, &nobody, here) || nobody == here;
}

/* The turns of run_turns(), with the loop held. */
UNGUARDED static int
run_turns_held(LoopObject *loop, bool once)
{
    if (loop->polling) {
        PyErr_SetString(PyExc_RuntimeError, "fastloop cannot run inside data_received() and the like, which its poll "
                                            "calls: start a task there");
        return -1;
    }
    if (loop_check_open(loop) < 0 || rearm_after_fork(loop) < 0) {
        return -1;
    }
    inbox_drain(&loop->inbox, &loop->ready);
    bool outer = loop->in_turn;
    unsigned long outer_thread = loop->thread_id;
    ContextSwitch outer_switch = loop->context_switch;
    PyObject **outer_running = loop->running;
    loop->thread_id = compat_thread_ident();
    loop->context_switch = loop_context_switch(loop);
    size_t running_at = loop->state->running_at;
    loop->running = running_at == 0 ? NULL : (PyObject **)((char *)PyThreadState_Get() + running_at);
    loop->in_turn = true;
    loop->last_release_ns = compat_monotonic_ns();
    state_note_attached(loop->state, 1);
    if (UNLIKELY(loop->metrics.timed)) {
        metrics_run_begins(&loop->metrics, outer);
    }
    int err;
    do {
        err = turn(loop);
        if (UNLIKELY(loop->metrics.timed)) {
            metrics_turn_ends(&loop->metrics);
        }
    } while (err == 0 && !once && !loop->stopping);
    loop_leave_task(loop);
    state_note_attached(loop->state, -1);
    loop->in_turn = outer;
    loop->thread_id = outer_thread;
    loop->context_switch = outer_switch;
    loop->running = outer_running;
    if (!outer) {
        track_queued(&loop->ready);
    }
    return err;
}

/* The same inside the gate, see gate.h. */
static int /* GCOV_EXCL_START: only without a GIL */
run_turns_in_gate(LoopObject *loop, bool once)
{
    int err;
    FL_BEGIN_CRITICAL_SECTION(loop->gate);
    loop->gate->owner = compat_thread_ident();
    err = run_turns_held(loop, once);
    loop->gate->owner = 0;
    FL_END_CRITICAL_SECTION();
    return err;
} /* GCOV_EXCL_STOP */

/* Runs turns until `stopping`, or just one. */
static PyObject *
run_turns(LoopObject *loop, bool once)
{
    unsigned long outer = loop->holder;
    if (!hold(loop)) {
        PyErr_SetString(PyExc_RuntimeError, "This event loop is already running");
        return NULL;
    }
    int err = gate_is_shut(loop->gate) ? run_turns_in_gate(loop, once) : run_turns_held(loop, once);
    loop->holder = outer == compat_thread_ident() ? outer : 0;
    if (err < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Loop_run_turns_doc,
             "_run_turns($self, /)\n--\n\nRun turns until stop() is called; run_forever() wraps this.");

static PyObject *
Loop_run_turns(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return run_turns(LoopObject_CAST(op), false);
}

PyDoc_STRVAR(Loop_run_once_doc, "_run_once($self, /)\n--\n\nRun one turn of the loop.");

static PyObject *
Loop_run_once(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return run_turns(LoopObject_CAST(op), true);
}

/* ---- small methods ---- */

static PyObject *
Loop_time(PyObject *Py_UNUSED(op), PyObject *Py_UNUSED(ignored))
{
    return PyFloat_FromDouble((double)compat_monotonic_ns() / 1e9);
}

static PyObject *
Loop_stop(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    LoopObject_CAST(op)->stopping = true;
    Py_RETURN_NONE;
}

static PyObject *
Loop_is_running(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(LoopObject_CAST(op)->thread_id != 0);
}

static PyObject *
Loop_is_closed(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(LoopObject_CAST(op)->closed);
}

static PyObject *
Loop_get_debug(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(LoopObject_CAST(op)->debug);
}

static PyObject *
Loop_check_closed(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    if (loop_check_open(LoopObject_CAST(op)) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* ---- closing ---- */

static void
close_parts(LoopObject *loop)
{
    const LoopHooks *all[] = {loop->state->pool_hooks, loop->state->io_hooks, loop->state->coro_hooks};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        if (all[i] != NULL && all[i]->close != NULL) {
            all[i]->close(loop);
        }
    }
}

static void
abandon_parts(LoopObject *loop)
{
    const LoopHooks *all[] = {loop->state->pool_hooks, loop->state->io_hooks, loop->state->coro_hooks};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        if (all[i] != NULL && all[i]->abandon != NULL) {
            all[i]->abandon(loop);
        }
    }
}

/* Closes the uv_loop, whose remaining handles must all be on their way to be closed, and has `end` take it. Runs no Python
   code. */
static void
close_uv(LoopObject *loop, void (*end)(State *state, uv_loop_t *uv))
{
    if (loop->uv == NULL) {
        return;
    }
    uv_loop_t *uv = loop->uv;
    sleep_close(loop);
    forget_senders_of_parent(loop);
    inbox_close(&loop->inbox);
    abandon_parts(loop);
    loop->uv = NULL;
    end(loop->state, uv);
}

static void
drop_ready(LoopObject *loop)
{
    ready_clear(&loop->ready);
    /* Without a GIL, what was called outside a run still stands in the inbox. */
    while (inbox_has_records(&loop->inbox) && ready_has_room(&loop->ready)) {
        inbox_drain(&loop->inbox, &loop->ready);
        ready_clear(&loop->ready);
    }
}

/* What close() does, with the loop held. */
static void
close_held(LoopObject *loop)
{
    /* What is dropped may run Python code, which finds a closed loop, and nothing is added any more. */
    loop->closed = true;
    drop_ready(loop);
    timers_clear(&loop->timers);
    close_parts(loop);
    close_uv(loop, park_give);
    handle_free_list_clear(loop);
}

static void
close_in_gate(LoopObject *loop)
{
    if (!gate_is_shut(loop->gate)) {
        close_held(loop);
        return;
    }
    FL_BEGIN_CRITICAL_SECTION(loop->gate);
    loop->gate->owner = compat_thread_ident();
    close_held(loop);
    loop->gate->owner = 0;
    FL_END_CRITICAL_SECTION();
}

PyDoc_STRVAR(Loop_close_core_doc, "_close_core($self, /)\n--\n\n"
                                  "Close every handle, drop every callback and timer; close() wraps this.");

static PyObject *
Loop_close_core(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    LoopObject *loop = LoopObject_CAST(op);
    if (loop->closed || loop->uv == NULL) {
        Py_RETURN_NONE;
    }
    if (loop->in_turn) {
        PyErr_SetString(PyExc_RuntimeError, "Cannot close a running event loop");
        return NULL;
    }
    if (!hold(loop)) {
        PyErr_SetString(PyExc_RuntimeError, "Cannot close a running event loop");
        return NULL;
    }
    int err = rearm_after_fork(loop);
    if (err == 0) {
        close_in_gate(loop);
    }
    loop->holder = 0;
    if (err < 0) {
        return NULL;
    }
    if (loop->pending != NULL) {
        PyObject *exc = loop->pending;
        loop->pending = NULL;
        compat_restore_exception(exc);
        return NULL;
    }
    Py_RETURN_NONE;
}

/* ---- attributes that the standard library's code reads ---- */

static PyObject *
get_thread_id(PyObject *op, void *Py_UNUSED(closure))
{
    unsigned long thread_id = LoopObject_CAST(op)->thread_id;
    if (thread_id == 0) {
        Py_RETURN_NONE;
    }
    return PyLong_FromUnsignedLong(thread_id);
}

static int
set_thread_id(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    LoopObject *loop = LoopObject_CAST(op);
    if (loop->holder != 0) {
        /* __init__() called again, a second thread that tries to run it, or nonsense: it stays its thread's. */
        return 0;
    }
    if (value == NULL || value == Py_None) {
        loop->thread_id = 0;
        return 0;
    }
    unsigned long ident = PyLong_AsUnsignedLong(value);
    if (ident == (unsigned long)-1 && PyErr_Occurred()) {
        return -1;
    }
    loop->thread_id = ident;
    return 0;
}

/* `_ready` and `_scheduled` are true views; assigning to them, as the base's __init__() does, has no effect. */
static int
ignore_assignment(PyObject *Py_UNUSED(op), PyObject *Py_UNUSED(value), void *Py_UNUSED(closure))
{
    return 0;
}

static int
list_ready(LoopObject *loop, PyObject *list)
{
    Ready *ready = &loop->ready;
    for (size_t i = 0; i < ready->count; i++) {
        if (PyList_Append(list, ready->entries[(ready->head + i) & ready->mask].owner) < 0) {
            return -1;
        }
    }
    return 0;
}

static PyObject *
get_ready(PyObject *op, void *Py_UNUSED(closure))
{
    LoopObject *loop = LoopObject_CAST(op);
    PyObject *list = PyList_New(0);
    int err = list == NULL ? -1 : 0;
    /* Without a GIL, the queue of a loop that runs in another thread cannot be looked at. */
    unsigned long outer = loop->holder;
    (void)outer; /* not read with a GIL */
    bool held = HAVE_FREE_THREADING ? hold(loop) : true;
    if (err == 0 && held) {
        err = list_ready(loop, list);
    }
    if (HAVE_FREE_THREADING && held && outer != compat_thread_ident()) {
        loop->holder = 0;
    }
    if (err == 0) {
        err = inbox_list(&loop->inbox, list);
    }
    PyObject *view = err < 0 ? NULL : PyList_AsTuple(list);
    Py_XDECREF(list);
    return view;
}

static PyObject *
get_scheduled(PyObject *op, void *Py_UNUSED(closure))
{
    return timers_snapshot(&LoopObject_CAST(op)->timers);
}

static PyObject *
get_flag(PyObject *op, void *closure)
{
    return PyBool_FromLong(*((_Atomic bool *)((char *)op + (size_t)closure)));
}

static void
note_times_records(LoopObject *loop)
{
    loop->times_records = loop->debug || loop->slow_ns != 0;
}

static int
set_flag(PyObject *op, PyObject *value, void *closure)
{
    int truth = value == NULL ? 0 : PyObject_IsTrue(value);
    if (truth < 0) {
        return -1;
    }
    *((_Atomic bool *)((char *)op + (size_t)closure)) = truth != 0;
    note_times_records(LoopObject_CAST(op));
    return 0;
}

PyDoc_STRVAR(Loop_set_slow_seconds_doc, "_set_slow_seconds($self, seconds, /)\n--\n\n"
                                        "From how many seconds on _call_slow_hook() is called; None for never.");

static PyObject *
Loop_set_slow_seconds(PyObject *op, PyObject *seconds)
{
    LoopObject *loop = LoopObject_CAST(op);
    double value = seconds == Py_None ? -1.0 : PyFloat_AsDouble(seconds);
    if (value == -1.0 && PyErr_Occurred()) {
        return NULL;
    }
    /* 0 is everything: what takes no nanosecond at all does not exist. */
    loop->slow_ns = seconds == Py_None ? 0 : value < 1e-9 ? 1 : value < 1e9 ? (uint64_t)(value * 1e9) : UINT64_MAX;
    note_times_records(loop);
    Py_RETURN_NONE;
}

/* ---- replaced methods ---- */

/* Is it the same method, given to the same type or to a subclass (see Loop_own_methods())? */
static bool
is_same_method(PyObject *found, PyObject *original)
{
    return Py_IS_TYPE(found, &PyMethodDescr_Type) && Py_IS_TYPE(original, &PyMethodDescr_Type) &&
           ((PyMethodDescrObject *)found)->d_method == ((PyMethodDescrObject *)original)->d_method;
}

/* Is `name`, looked up on the type of `op`, still the method of _core.Loop? */
static bool
type_keeps(LoopObject *loop, PyObject *name)
{
    PyObject *found = PyObject_GetAttr((PyObject *)Py_TYPE(loop), name);
    PyObject *original = PyObject_GetAttr((PyObject *)loop->state->LoopType, name);
    bool same = found != NULL && original != NULL && is_same_method(found, original);
    Py_XDECREF(found);
    Py_XDECREF(original);
    PyErr_Clear();
    return same;
}

static bool
instance_keeps(LoopObject *loop, PyObject *name)
{
    int found = loop->dict == NULL ? 0 : PyDict_Contains(loop->dict, name);
    if (found < 0) {
        PyErr_Clear();
    }
    return found == 0;
}

/* Finds out which methods are our own. Called when the loop is made, when a run starts, and at each assignment. */
static void
note_replaced_methods(LoopObject *loop)
{
    State *state = loop->state;
    loop->native_call_soon = instance_keeps(loop, state->str_call_soon) && type_keeps(loop, state->str_call_soon);
    loop->native_call_at = instance_keeps(loop, state->str_call_at) && type_keeps(loop, state->str_call_at);
    loop->native_time = instance_keeps(loop, state->str_time) && type_keeps(loop, state->str_time);
}

/* The same for is_running(), which nobody asks for the answer beforehand. */
static bool
type_keeps_is_running(LoopObject *loop)
{
    PyTypeObject *type = Py_TYPE(loop);
    unsigned version = compat_type_version(type);
    if (LIKELY(version != 0 && version == loop->running_version)) {
        return true;
    }
    if (type->tp_getattro != PyObject_GenericGetAttr || !type_keeps(loop, loop->state->str_is_running)) {
        return false;
    }
    /* The first look may have given the type its number; the next one finds it. */
    if (version == compat_type_version(type)) {
        loop->running_version = version;
    }
    return true;
}

bool
loop_keeps_is_running(LoopObject *loop)
{
    return type_keeps_is_running(loop) && instance_keeps(loop, loop->state->str_is_running);
}

static int
Loop_setattro(PyObject *op, PyObject *name, PyObject *value)
{
    int err = PyObject_GenericSetAttr(op, name, value);
    LoopObject *loop = LoopObject_CAST(op);
    if (err == 0 && PyUnicode_Check(name) &&
        (PyUnicode_Compare(name, loop->state->str_call_soon) == 0 ||
         PyUnicode_Compare(name, loop->state->str_call_at) == 0 ||
         PyUnicode_Compare(name, loop->state->str_time) == 0)) {
        note_replaced_methods(loop);
    }
    return err;
}

PyDoc_STRVAR(Loop_note_replaced_doc, "_note_replaced_methods($self, /)\n--\n\n"
                                     "Look again which methods a subclass, a patch or the instance replaced.");

static PyObject *
Loop_note_replaced(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    note_replaced_methods(LoopObject_CAST(op));
    Py_RETURN_NONE;
}

/* ---- life ---- */

static int
open_parts(LoopObject *loop)
{
    const LoopHooks *all[] = {loop->state->coro_hooks, loop->state->io_hooks, loop->state->pool_hooks};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        if (all[i] != NULL && all[i]->open != NULL && all[i]->open(loop) < 0) {
            return -1;
        }
    }
    return 0;
}

/* Sets up libuv; 0 or -1 with an exception, with nothing left behind. */
static int
open_uv(LoopObject *loop)
{
    int err;
    uv_loop_t *uv = park_take(loop->state, &err);
    if (uv == NULL) {
        uverror_raise(err);
        return -1;
    }
    uv->data = loop;
    err = inbox_open(&loop->inbox, uv);
    if (err < 0) {
        goto fail_inbox;
    }
    err = sleep_open(loop, uv);
    if (err < 0) {
        goto fail_sleep;
    }
    loop->uv = uv;
    loop->opened = true;
    return 0;

fail_sleep:
    inbox_close(&loop->inbox);
    inbox_destroy(&loop->inbox);
fail_inbox:
    park_give(loop->state, uv);
    uverror_raise(err);
    return -1;
}

static PyObject *
Loop_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    State *state = state_of_type(type);
    if (state == NULL) {
        return NULL;
    }
    LoopObject *loop = (LoopObject *)type->tp_alloc(type, 0);
    if (loop == NULL) {
        return NULL;
    }
    loop->state = state;
    loop->no_variables = state->contexts.no_variables;
    loop->context_switch = context_by_calls(state);
    loop->module = Py_NewRef(PyType_GetModuleByDef(type, &core_module));
    loop->timer_fd = -1;
    loop->clock_resolution = 1e-9;
    loop->poll_interval_ns = POLL_INTERVAL_NS;
    loop->free_handles.most = loop->free_timers.most = HANDLE_FREE_MAX;
    loop->may_spin = true;
    spin_init(&loop->job_spin, SPIN_MAX_NS);
    spin_init(&loop->call_spin, SPIN_CALL_MAX_NS);
    spin_init(&loop->caller_spin, SPIN_CALL_MAX_NS);
    loop->pid = getpid();
    note_replaced_methods(loop);
    loop->gate = HAVE_FREE_THREADING ? gate_new(state) : NULL;
    if (HAVE_FREE_THREADING && loop->gate == NULL) {
        loop->closed = true;
        Py_DECREF(loop);
        return NULL;
    }
    if (ready_init(&loop->ready) < 0 || open_uv(loop) < 0 || open_parts(loop) < 0) {
        /* What was opened is closed by dealloc; __del__() has nothing to close or to warn of. */
        loop->closed = true;
        Py_DECREF(loop);
        return NULL;
    }
    return (PyObject *)loop;
}

static int
Loop_traverse(PyObject *op, visitproc visit, void *arg)
{
    LoopObject *loop = LoopObject_CAST(op);
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(loop->module);
    Py_VISIT(loop->dict);
    Py_VISIT(loop->pending);
    Py_VISIT(loop->current_handle);
    int err = ready_traverse(&loop->ready, visit, arg);
    if (err == 0) {
        err = timers_traverse(&loop->timers, visit, arg);
    }
    if (err == 0) {
        err = inbox_traverse(&loop->inbox, visit, arg);
    }
    const LoopHooks *all[] = {loop->state->coro_hooks, loop->state->io_hooks, loop->state->pool_hooks};
    for (size_t i = 0; err == 0 && i < sizeof(all) / sizeof(all[0]); i++) {
        if (all[i] != NULL && all[i]->traverse != NULL) {
            err = all[i]->traverse(loop, visit, arg);
        }
    }
    return err;
}

static int
Loop_clear(PyObject *op)
{
    LoopObject *loop = LoopObject_CAST(op);
    const LoopHooks *all[] = {loop->state->pool_hooks, loop->state->io_hooks, loop->state->coro_hooks};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        if (all[i] != NULL && all[i]->clear != NULL) {
            all[i]->clear(loop);
        }
    }
    timers_clear(&loop->timers);
    ready_clear(&loop->ready);
    Py_CLEAR(loop->pending);
    Py_CLEAR(loop->current_handle);
    Py_CLEAR(loop->dict);
    return 0;
}

static void
Loop_dealloc(PyObject *op)
{
    LoopObject *loop = LoopObject_CAST(op);
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    if (loop->weakrefs != NULL) {
        PyObject_ClearWeakRefs(op);
    }
    (void)Loop_clear(op);
    loop->closed = true;
    /* Who has set it for running need not have taken it back. */
    loop->thread_id = 0;
    if (loop->uv != NULL) {
        /* The child of a fork leaves the shared epoll set alone; a failure here can only leak. */
        PyObject *exc = compat_take_exception();
        bool usable = rearm_after_fork(loop) == 0;
        PyErr_Clear();
        close_uv(loop, usable ? park_give : park_abandon);
        if (exc != NULL) {
            compat_restore_exception(exc);
        }
    } else {
        abandon_parts(loop);
    }
    if (loop->opened) {
        inbox_destroy(&loop->inbox);
    }
    ready_free(&loop->ready);
    handle_free_list_clear(loop);
    metrics_free(&loop->metrics);
    Py_XDECREF(loop->gate);
    PyObject *module = loop->module;
    type->tp_free(op);
    Py_DECREF(type);
    Py_XDECREF(module);
}

static int
add_method(PyTypeObject *type, PyMethodDef *method)
{
    PyObject *descriptor = PyDescr_NewMethod(type, method);
    if (descriptor == NULL) {
        return -1;
    }
    int err = PyObject_SetAttrString((PyObject *)type, method->ml_name, descriptor);
    Py_DECREF(descriptor);
    return err;
}

int
loop_add_methods(PyTypeObject *type, PyMethodDef *methods)
{
    for (PyMethodDef *method = methods; method->ml_name != NULL; method++) {
        if (add_method(type, method) < 0) {
            return -1;
        }
    }
    return 0;
}

PyDoc_STRVAR(Loop_own_methods_doc, "_own_methods($type, /)\n--\n\n"
                                   "Give a subclass the native methods that it does not replace as its own: those of\n"
                                   "exactly the type of the object are what the interpreter calls directly.");

static PyObject *
Loop_own_methods(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    PyTypeObject *type = (PyTypeObject *)op;
    State *state = state_of_type(type);
    if (state == NULL) {
        return NULL;
    }
    PyObject *name, *method;
    Py_ssize_t position = 0;
    while (PyDict_Next(state->LoopType->tp_dict, &position, &name, &method)) {
        int known = Py_IS_TYPE(method, &PyMethodDescr_Type) ? PyDict_Contains(type->tp_dict, name) : 1;
        if (known < 0 || (known == 0 && add_method(type, ((PyMethodDescrObject *)method)->d_method) < 0)) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

#define FASTCALL_KEYWORDS(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef Loop_methods[] = {
    {"call_soon", FASTCALL_KEYWORDS(Loop_call_soon), METH_FASTCALL | METH_KEYWORDS, Loop_call_soon_doc},
    {"call_soon_threadsafe", FASTCALL_KEYWORDS(Loop_call_soon_threadsafe), METH_FASTCALL | METH_KEYWORDS,
     Loop_call_soon_threadsafe_doc},
    {"call_later", FASTCALL_KEYWORDS(Loop_call_later), METH_FASTCALL | METH_KEYWORDS, Loop_call_later_doc},
    {"call_at", FASTCALL_KEYWORDS(Loop_call_at), METH_FASTCALL | METH_KEYWORDS, Loop_call_at_doc},
    {"time", Loop_time, METH_NOARGS,
     "time($self, /)\n--\n\nReturn the time of the loop in seconds: time.monotonic(). See asyncio.loop.time()."},
    {"stop", Loop_stop, METH_NOARGS,
     "stop($self, /)\n--\n\nEnd run_forever() after the current turn. See asyncio.loop.stop()."},
    {"is_running", Loop_is_running, METH_NOARGS,
     "is_running($self, /)\n--\n\nReturn True while the loop runs. See asyncio.loop.is_running()."},
    {"is_closed", Loop_is_closed, METH_NOARGS,
     "is_closed($self, /)\n--\n\nReturn True after close(). See asyncio.loop.is_closed()."},
    {"get_debug", Loop_get_debug, METH_NOARGS,
     "get_debug($self, /)\n--\n\nReturn True in debug mode. See asyncio.loop.get_debug()."},
    {"_check_closed", Loop_check_closed, METH_NOARGS, NULL},
    {"_make_handle", Loop_make_handle, METH_VARARGS, Loop_make_handle_doc},
    {"_add_callback", Loop_add_callback, METH_O, Loop_add_callback_doc},
    {"_add_callback_signalsafe", Loop_add_callback_signalsafe, METH_O, NULL},
    {"_timer_handle_cancelled", Loop_timer_handle_cancelled, METH_O, NULL},
    {"_write_to_self", Loop_write_to_self, METH_NOARGS, NULL},
    {"_run_turns", Loop_run_turns, METH_NOARGS, Loop_run_turns_doc},
    {"_run_once", Loop_run_once, METH_NOARGS, Loop_run_once_doc},
    {"_close_core", Loop_close_core, METH_NOARGS, Loop_close_core_doc},
    {"_note_replaced_methods", Loop_note_replaced, METH_NOARGS, Loop_note_replaced_doc},
    {"_own_methods", Loop_own_methods, METH_NOARGS | METH_CLASS, Loop_own_methods_doc},
    {"_read_metrics", Loop_read_metrics, METH_NOARGS,
     "_read_metrics($self, /)\n--\n\nWhat the core counts, as a dict; metrics() adds to it."},
    {"set_metrics", Loop_set_metrics, METH_O,
     "set_metrics($self, timed, /)\n--\n\n"
     "Switch on, or off, what metrics() can only tell with a look at the clock; FASTLOOP_METRICS=1 does it, too."},
    {"_set_slow_seconds", Loop_set_slow_seconds, METH_O, Loop_set_slow_seconds_doc},
    {NULL},
};

static PyObject *
get_knows_contexts(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(LoopObject_CAST(op)->no_variables != NULL);
}

static int
set_knows_contexts(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    int truth = value == NULL ? 0 : PyObject_IsTrue(value);
    if (truth < 0) {
        return -1;
    }
    LoopObject *loop = LoopObject_CAST(op);
    loop->no_variables = truth != 0 ? loop->state->contexts.no_variables : NULL;
    return 0;
}

#define FLAG(field) (void *)offsetof(LoopObject, field)

static PyGetSetDef Loop_getset[] = {
    {"_ready", get_ready, ignore_assignment, NULL, NULL},
    {"_scheduled", get_scheduled, ignore_assignment, NULL, NULL},
    {"_thread_id", get_thread_id, set_thread_id, NULL, NULL},
    {"_closed", get_flag, ignore_assignment, NULL, FLAG(closed)},
    {"_stopping", get_flag, set_flag, NULL, FLAG(stopping)},
    {"_debug", get_flag, set_flag, NULL, FLAG(debug)},
    {"_may_spin", get_flag, set_flag, NULL, FLAG(may_spin)},
    {"_knows_contexts", get_knows_contexts, set_knows_contexts, NULL, NULL},
    {"_current_handle", get_current_handle, set_current_handle, NULL, NULL},
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {NULL},
};

static PyMemberDef Loop_members[] = {
    {"_clock_resolution", T_DOUBLE, offsetof(LoopObject, clock_resolution), 0, NULL},
    {"_poll_interval_ns", T_ULONGLONG, offsetof(LoopObject, poll_interval_ns), 0, NULL},
    {"__dictoffset__", T_PYSSIZET, offsetof(LoopObject, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(LoopObject, weakrefs), READONLY, NULL},
    {NULL},
};

PyDoc_STRVAR(Loop_doc, "The native part of fastloop.Loop: scheduling, timers, polling.");

static PyType_Slot Loop_slots[] = {
    {Py_tp_doc, (void *)Loop_doc},   {Py_tp_new, Loop_new},
    {Py_tp_setattro, Loop_setattro}, {Py_tp_traverse, Loop_traverse},
    {Py_tp_clear, Loop_clear},       {Py_tp_dealloc, Loop_dealloc},
    {Py_tp_methods, Loop_methods},   {Py_tp_getset, Loop_getset},
    {Py_tp_members, Loop_members},   {0, NULL},
};

PyType_Spec Loop_spec = {
    .name = "fastloop._core.Loop",
    .basicsize = sizeof(LoopObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = Loop_slots,
};
