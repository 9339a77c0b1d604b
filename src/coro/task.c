/* Task: a coroutine driven by records in the ready queue.

   A step is the record (task_step_run, task, exception or NULL), a wake-up (task_wakeup_run, task, future): no Handle,
   no wrapper object. They are used when the loop is exactly ours, unpatched and not in debug mode; on every other loop
   the same steps go through its public call_soon(). Everything that is not hot is inherited from _asyncio.Task.
   Invariant: exactly one wake-up, step record or step callback is under way for a pending task that has been started,
   unless its coroutine runs. */

#include "coro/task.h"

#include "base/contexts.h"
#include "coro/awaiter.h"
#include "coro/registry.h"
#include "coro/step.h"

/* ---- scheduling a step ---- */

/* step_soon() by the public call_soon() of any loop. */
static int
step_by_call_soon(State *state, BaseTask *task, PyObject *exc)
{
    PyObject *callback = step_new(state, (PyObject *)task, exc);
    if (callback == NULL) {
        return -1;
    }
    /* A foreign call_soon() may run code that replaces the task's fields. */
    PyObject *context = Py_NewRef(task->context);
    PyObject *loop = Py_NewRef(task->fut.loop);
    int err = coro_call_soon(state, loop, callback, NULL, context);
    Py_DECREF(loop);
    Py_DECREF(context);
    Py_DECREF(callback);
    return err;
}

/* Has the task resumed in the next turn, with an exception if `exc` is not NULL. */
ALWAYS_INLINE int
step_soon(State *state, BaseTask *task, PyObject *exc)
{
    LoopObject *native = loop_if_native(state, task->fut.loop);
    if (LIKELY(native != NULL && PyContext_CheckExact(task->context))) {
        return loop_push(native, task_step_run, (PyObject *)task, exc);
    }
    return step_by_call_soon(state, task, exc);
}

/* Has RuntimeError(message) thrown into the coroutine in the next turn; steals `message`. */
static int
error_soon(State *state, BaseTask *task, PyObject *message)
{
    PyObject *exc = message == NULL ? NULL : PyObject_CallOneArg(PyExc_RuntimeError, message);
    Py_XDECREF(message);
    if (exc == NULL) {
        return -1;
    }
    int err = step_soon(state, task, exc);
    Py_DECREF(exc);
    return err;
}

/* A task that cannot be resumed, or cannot wait, for want of memory must not stay pending for ever: the coroutine is told
   by the MemoryError that is set, in the next turn, and where that is impossible as well the task ends with it. `thrown`
   is what was to be thrown. Any other exception stays; -1 with an exception. */
static int
tell_of_no_memory(State *state, BaseTask *task, PyObject *thrown)
{
    if (!PyErr_ExceptionMatches(PyExc_MemoryError) || task->fut.state != FUTURE_PENDING) {
        return -1;
    }
    PyObject *exc = compat_take_exception();
    bool again = thrown != NULL && PyErr_GivenExceptionMatches(thrown, PyExc_MemoryError);
    int err = again ? -1 : step_soon(state, task, exc);
    if (err < 0) {
        PyErr_Clear();
        registry_remove(TaskObject_CAST(task));
        err = task->fut.state == FUTURE_PENDING ? future_fail(state, &task->fut, exc) : 0;
    }
    Py_DECREF(exc);
    return err;
}

/* ---- what a coroutine yields ---- */

/* 1 if `awaited` was told to cancel and agreed, 0 if not, -1 with an exception. */
static int
forward_cancel(CoroState *coro, BaseTask *task, PyObject *awaited)
{
    PyObject *msg = Py_NewRef(task->fut.cancel_msg == NULL ? Py_None : task->fut.cancel_msg);
    PyObject *answer = PyObject_CallMethodOneArg(awaited, coro->str_cancel, msg);
    Py_DECREF(msg);
    int agreed = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    return agreed;
}

/* The task waits for `awaited` from now on; a cancellation that came in the meantime goes there. */
ALWAYS_INLINE int
set_waiter(CoroState *coro, BaseTask *task, PyObject *awaited)
{
    Py_XSETREF(task->fut_waiter, Py_NewRef(awaited));
    if (LIKELY(!TASK_FLAGS(task)->must_cancel)) {
        return 0;
    }
    int agreed = forward_cancel(coro, task, awaited);
    if (agreed > 0) {
        TASK_FLAGS(task)->must_cancel = 0;
    }
    return agreed < 0 ? -1 : 0;
}

#if HAVE_AWAITED_BY
static int
add_awaited_by(CoroState *coro, PyObject *awaited, PyObject *task)
{
    BaseFuture *fut = BaseFuture_CAST(awaited);
    if (LIKELY(fut->awaited_by == NULL && !HAVE_FREE_THREADING)) {
        fut->awaited_by = Py_NewRef(task);
        return 0;
    }
    PyObject *result = PyObject_CallFunctionObjArgs(coro->add_to_awaited_by, awaited, task, NULL);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int
task_discard_awaited_by(CoroState *coro, PyObject *awaited, PyObject *task)
{
    BaseFuture *fut = BaseFuture_CAST(awaited);
    if (LIKELY(!HAVE_FREE_THREADING && !fut->awaited_by_is_set)) {
        if (fut->awaited_by == task) {
            Py_CLEAR(fut->awaited_by);
        }
        return 0;
    }
    PyObject *result = PyObject_CallFunctionObjArgs(coro->discard_from_awaited_by, awaited, task, NULL);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static inline bool
is_future(CoroState *coro, PyObject *op)
{
    return PyObject_TypeCheck(op, coro->base_future) || PyObject_TypeCheck(op, coro->base_task);
}
#endif

static int
different_loop(State *state, BaseTask *task, PyObject *awaited)
{
    return error_soon(state, task,
                      PyUnicode_FromFormat("Task %R got Future %R attached to a different loop", task, awaited));
}

static int
yield_instead_of_await(State *state, BaseTask *task, PyObject *awaited)
{
    return error_soon(state, task,
                      PyUnicode_FromFormat("yield was used instead of yield from in task %R with %R", task, awaited));
}

/* Waits for a future whose struct we know. */
ALWAYS_INLINE int
wait_for_plain(State *state, BaseTask *task, PyObject *awaited)
{
    CoroState *coro = state->coro;
    BaseFuture *fut = BaseFuture_CAST(awaited);
    if (UNLIKELY(fut->loop != task->fut.loop)) {
        return different_loop(state, task, awaited);
    }
    if (UNLIKELY(!fut->blocking)) {
        return yield_instead_of_await(state, task, awaited);
    }
    PyObject *wakeup = wakeup_new(state, (PyObject *)task);
    if (wakeup == NULL) {
        return -1;
    }
    int err = 0;
    FL_BEGIN_CRITICAL_SECTION(awaited);
#if HAVE_AWAITED_BY
    err = add_awaited_by(coro, awaited, (PyObject *)task);
#endif
    fut->blocking = 0;
    if (err == 0) {
        err = future_add_callback(state, fut, wakeup, task->context);
    }
    FL_END_CRITICAL_SECTION();
    Py_DECREF(wakeup);
    return err < 0 ? -1 : set_waiter(coro, task, awaited);
}

/* Attribute or NULL; a missing one is no error. New reference. */
static int
optional_attribute(PyObject *op, PyObject *name, PyObject **value)
{
    *value = PyObject_GetAttr(op, name);
    if (*value == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError)) {
            return -1;
        }
        PyErr_Clear();
    }
    return 0;
}

/* The loop of any object that behaves like a future. */
static PyObject *
loop_of(CoroState *coro, PyObject *op)
{
    PyObject *method;
    if (optional_attribute(op, coro->str_get_loop, &method) < 0) {
        return NULL;
    }
    if (method == NULL) {
        return PyObject_GetAttr(op, coro->str__loop);
    }
    PyObject *loop = PyObject_CallNoArgs(method);
    Py_DECREF(method);
    return loop;
}

/* Waits for an object of another make that has `_asyncio_future_blocking`. */
static int
wait_for_foreign(State *state, BaseTask *task, PyObject *awaited, bool blocking)
{
    CoroState *coro = state->coro;
    PyObject *loop = loop_of(coro, awaited);
    if (loop == NULL) {
        return -1;
    }
    Py_DECREF(loop);
    if (loop != task->fut.loop) {
        return different_loop(state, task, awaited);
    }
    if (!blocking) {
        return yield_instead_of_await(state, task, awaited);
    }
#if HAVE_AWAITED_BY
    if (is_future(coro, awaited)) {
        PyObject *added = PyObject_CallFunctionObjArgs(coro->add_to_awaited_by, awaited, task, NULL);
        if (added == NULL) {
            return -1;
        }
        Py_DECREF(added);
    }
#endif
    if (PyObject_SetAttr(awaited, coro->str_blocking, Py_False) < 0) {
        return -1;
    }
    PyObject *wakeup = wakeup_new(state, (PyObject *)task);
    if (wakeup == NULL) {
        return -1;
    }
    PyObject *stack[3] = {awaited, wakeup, task->context};
    PyObject *result = PyObject_VectorcallMethod(coro->str_add_done_callback, stack, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET,
                                                 coro->kw_context);
    Py_DECREF(wakeup);
    Py_XDECREF(result);
    return result == NULL ? -1 : set_waiter(coro, task, awaited);
}

/* What to do with anything but None and the plain futures. */
static int
wait_for_other(State *state, BaseTask *task, PyObject *awaited)
{
    PyObject *blocking;
    if (optional_attribute(awaited, state->coro->str_blocking, &blocking) < 0) {
        return -1;
    }
    if (blocking != NULL && blocking != Py_None) {
        int truth = PyObject_IsTrue(blocking);
        Py_DECREF(blocking);
        return truth < 0 ? -1 : wait_for_foreign(state, task, awaited, truth != 0);
    }
    Py_XDECREF(blocking);
    int is_generator = PyObject_IsInstance(awaited, (PyObject *)&PyGen_Type);
    if (is_generator < 0) {
        return -1;
    }
    return error_soon(state, task,
                      is_generator ? PyUnicode_FromFormat("yield was used instead of yield from for "
                                                          "generator in task %R with %R",
                                                          task, awaited)
                                   : PyUnicode_FromFormat("Task got bad yield: %R", awaited));
}

ALWAYS_INLINE int
wait_for(State *state, BaseTask *task, PyObject *awaited)
{
    if (awaited == Py_None) {
        return step_soon(state, task, NULL);
    }
    if (UNLIKELY(awaited == (PyObject *)task)) {
        return error_soon(state, task, PyUnicode_FromFormat("Task cannot await on itself: %R", task));
    }
    if (LIKELY(future_is_plain(state->coro, awaited))) {
        return wait_for_plain(state, task, awaited);
    }
    return wait_for_other(state, task, awaited);
}

/* ---- a step ---- */

/* The coroutine has returned; steals `result`. */
ALWAYS_INLINE int
finish(State *state, BaseTask *task, PyObject *result)
{
    registry_remove(TaskObject_CAST(task));
    if (UNLIKELY(TASK_FLAGS(task)->must_cancel)) {
        /* Cancelled just before the coroutine stopped. */
        TASK_FLAGS(task)->must_cancel = 0;
        int err = future_cancel(state, &task->fut, task->fut.cancel_msg);
        Py_DECREF(result);
        return err;
    }
    /* Somebody may have completed the task from inside by asyncio.Future's methods. */
    if (UNLIKELY(future_check_pending(state, &task->fut) < 0)) {
        Py_DECREF(result);
        return -1;
    }
    return future_finish(state, &task->fut, result);
}

/* The coroutine has raised the exception that is set, or StopIteration if it is no real coroutine. */
static int
fail(State *state, BaseTask *task)
{
    CoroState *coro = state->coro;
    PyObject *exc = compat_take_exception();
    if (exc == NULL || PyErr_GivenExceptionMatches(exc, PyExc_StopIteration)) {
        PyObject *value = exc == NULL ? NULL : ((PyStopIterationObject *)exc)->value;
        PyObject *result = Py_NewRef(value == NULL ? Py_None : value);
        Py_XDECREF(exc);
        return finish(state, task, result);
    }
    registry_remove(TaskObject_CAST(task));
    if (PyErr_GivenExceptionMatches(exc, coro->CancelledError)) {
        Py_XSETREF(task->fut.cancelled_exc, exc);
        return future_cancel(state, &task->fut, NULL);
    }
    if (future_check_pending(state, &task->fut) < 0 || future_fail(state, &task->fut, exc) < 0) {
        Py_DECREF(exc);
        return -1;
    }
    if (PyErr_GivenExceptionMatches(exc, PyExc_KeyboardInterrupt) ||
        PyErr_GivenExceptionMatches(exc, PyExc_SystemExit)) {
        compat_restore_exception(exc);
        return -1;
    }
    Py_DECREF(exc);
    return 0;
}

/* Resumes the coroutine, with `exc` thrown into it if that is not NULL. */
static PySendResult
resume(CoroState *coro, PyObject *coroutine, PyObject *exc, PyObject **result)
{
    if (LIKELY(exc == NULL)) {
        /* PyIter_Send() without its questions. */
        return LIKELY(PyCoro_CheckExact(coroutine)) ? PyCoro_Type.tp_as_async->am_send(coroutine, Py_None, result)
                                                    : PyIter_Send(coroutine, Py_None, result);
    }
    *result = PyObject_CallMethodOneArg(coroutine, coro->str_throw, exc);
    return *result == NULL ? PYGEN_ERROR : PYGEN_NEXT;
}

/* The exception to throw instead of `exc` because the task has been told to cancel; NULL with an exception. New. */
static PyObject *
exception_for_cancel(CoroState *coro, BaseTask *task, PyObject *exc)
{
    PyObject *thrown;
    if (exc != NULL && PyErr_GivenExceptionMatches(exc, coro->CancelledError)) {
        thrown = Py_NewRef(exc);
    } else {
        thrown = future_make_cancelled_error(coro, &task->fut);
    }
    if (thrown != NULL) {
        TASK_FLAGS(task)->must_cancel = 0;
    }
    return thrown;
}

static int
refuse_done(CoroState *coro, BaseTask *task, PyObject *exc)
{
    PyErr_Format(coro->InvalidStateError,
                 HAVE_THREAD_STATE_TASKS ? "__step(): already done: %R %R" : "_step(): already done: %R %R", task,
                 exc == NULL ? Py_None : exc);
    return -1;
}

/* Resumes the coroutine and acts on what it does; the task is the current one. */
ALWAYS_INLINE int
advance(State *state, BaseTask *task, PyObject *exc)
{
    CoroState *coro = state->coro;
    if (UNLIKELY(task->fut.state != FUTURE_PENDING)) {
        return refuse_done(coro, task, exc);
    }
    PyObject *thrown = NULL;
    if (UNLIKELY(TASK_FLAGS(task)->must_cancel)) {
        thrown = exception_for_cancel(coro, task, exc);
        if (thrown == NULL) {
            return tell_of_no_memory(state, task, exc);
        }
        exc = thrown;
    }
    Py_CLEAR(task->fut_waiter);
    if (UNLIKELY(task->coro == NULL || task->coro == Py_None)) {
        Py_XDECREF(thrown);
        PyErr_SetString(PyExc_RuntimeError, "uninitialized Task object");
        return -1;
    }
    PyObject *coroutine = Py_NewRef(task->coro);
    PyObject *result;
    PySendResult sent = resume(coro, coroutine, exc, &result);
    Py_DECREF(coroutine);
    Py_XDECREF(thrown);
    if (UNLIKELY(sent == PYGEN_ERROR)) {
        return fail(state, task);
    }
    int err;
    if (sent == PYGEN_RETURN) {
        err = finish(state, task, result);
    } else {
        err = wait_for(state, task, result);
        Py_DECREF(result);
    }
    /* With a waiter set, something will wake it. */
    return UNLIKELY(err < 0) && task->fut_waiter == NULL ? tell_of_no_memory(state, task, NULL) : err;
}

/* The end of a step that failed: of two errors the coroutine's counts. -1. */
static int
leave_failed(State *state, PyObject *loop, PyObject *task)
{
    PyObject *raised = compat_take_exception();
    (void)current_task_leave(state->coro, NULL, loop, task);
    if (raised != NULL) {
        PyErr_Clear();
        compat_restore_exception(raised);
    }
    return -1;
}

/* A step as a record of `native`, or by whoever else, who holds `loop` meanwhile. */
ALWAYS_INLINE int
step(State *state, LoopObject *native, PyObject *loop, BaseTask *task, PyObject *exc)
{
    if (UNLIKELY(current_task_enter(state->coro, native, loop, (PyObject *)task) < 0)) {
        return tell_of_no_memory(state, task, exc);
    }
    if (UNLIKELY(advance(state, task, exc) < 0)) {
        return leave_failed(state, loop, (PyObject *)task);
    }
    /* What was thrown dies outside of the step. */
    return current_task_leave(state->coro, exc != NULL ? NULL : native, loop, (PyObject *)task);
}

int
task_step(State *state, BaseTask *task, PyObject *exc)
{
    if (UNLIKELY(task->fut.loop == NULL)) {
        /* A second __init__() failed. */
        PyErr_SetString(PyExc_RuntimeError, "Task object is not initialized.");
        return -1;
    }
    PyObject *loop = Py_NewRef(task->fut.loop);
    int err = step(state, NULL, loop, task, exc);
    Py_DECREF(loop);
    return err;
}

/* task_step() as a record of `native`, in place; NULL if it is none. */
ALWAYS_INLINE int
step_of(State *state, LoopObject *native, BaseTask *task, PyObject *exc)
{
    if (LIKELY(native != NULL && task->fut.loop == (PyObject *)native)) {
        return step(state, native, (PyObject *)native, task, exc);
    }
    if (native != NULL) {
        /* __init__() has given it to another loop meanwhile. */
        loop_leave_task(native);
    }
    return task_step(state, task, exc);
}

/* ---- a wake-up ---- */

/* What a done future hands to the task that waited: `*exc` is the exception to throw (new) or NULL. */
ALWAYS_INLINE int
outcome_of_plain(CoroState *coro, BaseFuture *fut, PyObject **exc)
{
    *exc = NULL;
    if (LIKELY(fut->state == FUTURE_FINISHED)) {
        fut->log_tb = 0;
        if (LIKELY(fut->exception == NULL)) {
            return 0;
        }
        /* Dropping the old traceback may run code that starts the future afresh. */
        PyObject *exception = Py_NewRef(fut->exception);
        PyObject *traceback = fut->exception_tb;
        fut->exception_tb = NULL;
        int err = PyException_SetTraceback(exception, traceback == NULL ? Py_None : traceback);
        Py_XDECREF(traceback);
        if (err < 0) {
            Py_DECREF(exception);
            return -1;
        }
        *exc = exception;
        return 0;
    }
    if (fut->state == FUTURE_CANCELLED) {
        *exc = future_make_cancelled_error(coro, fut);
        return *exc == NULL ? -1 : 0;
    }
    PyErr_SetString(coro->InvalidStateError, "Result is not set.");
    return -1;
}

static int
outcome_of_other(CoroState *coro, PyObject *op, PyObject **exc)
{
    *exc = NULL;
    PyObject *result = PyObject_CallMethodNoArgs(op, coro->str_result);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* task_wakeup(), in place. */
ALWAYS_INLINE int
wakeup(State *state, LoopObject *native, BaseTask *task, PyObject *future)
{
    CoroState *coro = state->coro;
    bool plain = future_is_plain(coro, future);
#if HAVE_AWAITED_BY
    if ((plain || is_future(coro, future)) && task_discard_awaited_by(coro, future, (PyObject *)task) < 0) {
        return tell_of_no_memory(state, task, NULL);
    }
#endif
    PyObject *exc;
    int err;
    if (native != NULL && UNLIKELY(!plain || BaseFuture_CAST(future)->exception != NULL)) {
        /* result() of a subclass, and what an old traceback holds, may run code. */
        loop_leave_task(native);
    }
    FL_BEGIN_CRITICAL_SECTION(future);
    err = LIKELY(plain) ? outcome_of_plain(coro, BaseFuture_CAST(future), &exc) : outcome_of_other(coro, future, &exc);
    FL_END_CRITICAL_SECTION();
    if (UNLIKELY(err < 0)) {
        exc = compat_take_exception();
    }
    err = step_of(state, native, task, exc);
    Py_XDECREF(exc);
    return err;
}

int
task_wakeup(State *state, BaseTask *task, PyObject *future)
{
    return wakeup(state, NULL, task, future);
}

/* ---- records ---- */

/* The end of a record with an error: one that leaves run_forever() is passed on, any other is reported as that of the
   callback which call_soon() would have had. */
static int
report_error(LoopObject *loop, PyObject *task, PyObject *arg, PyObject *context, bool is_wakeup)
{
    loop_leave_task(loop);
    if (loop_must_propagate()) {
        return -1;
    }
    PyObject *exc = compat_take_exception();
    PyObject *callback = is_wakeup ? wakeup_new(loop->state, task) : step_new(loop->state, task, arg);
    int err = handle_report(loop, exc, callback, is_wakeup ? arg : NULL, context);
    Py_XDECREF(callback);
    Py_DECREF(exc);
    return err;
}

UNGUARDED int
task_step_run(LoopObject *loop, PyObject *owner, PyObject *arg)
{
    /* The fields of the task may be replaced while it runs. */
    PyObject *context = Py_NewRef(BaseTask_CAST(owner)->context);
    int err = context_enter(&loop->context_switch, context);
    if (LIKELY(err == 0)) {
        FL_BEGIN_CRITICAL_SECTION(owner);
        err = step_of(loop->state, loop, BaseTask_CAST(owner), arg);
        FL_END_CRITICAL_SECTION();
        err = context_exit(&loop->context_switch, context) < 0 ? -1 : err;
    }
    if (UNLIKELY(err < 0)) {
        err = report_error(loop, owner, arg, context, false);
    }
    Py_DECREF(context);
    return err;
}

/* Is the last reference to what the task waited for dropped without anybody noticing? What is ours, and of this loop, says
   when it is freed, see future_follows_step(). */
static inline bool
may_be_dropped(LoopObject *loop, PyObject *awaited)
{
    CoroState *coro = loop->state->coro;
    return Py_REFCNT(awaited) > 1 || ((Py_IS_TYPE(awaited, coro->TaskType) || Py_IS_TYPE(awaited, coro->FutureType)) &&
                                      BaseFuture_CAST(awaited)->loop == (PyObject *)loop);
}

UNGUARDED int
task_wakeup_run(LoopObject *loop, PyObject *owner, PyObject *arg)
{
    PyObject *context = Py_NewRef(BaseTask_CAST(owner)->context);
    int err = context_enter(&loop->context_switch, context);
    if (LIKELY(err == 0)) {
        FL_BEGIN_CRITICAL_SECTION(owner);
        err = wakeup(loop->state, loop, BaseTask_CAST(owner), arg);
        FL_END_CRITICAL_SECTION();
        err = context_exit(&loop->context_switch, context) < 0 ? -1 : err;
    }
    if (UNLIKELY(err < 0)) {
        err = report_error(loop, owner, arg, context, true);
    }
    Py_DECREF(context);
    if (loop_follows_step(loop) && UNLIKELY(!may_be_dropped(loop, arg))) {
        loop_leave_task(loop);
    }
    return err;
}

/* ---- starting ---- */

#if HAVE_EAGER_TASKS
static int
run_eagerly(State *state, BaseTask *task)
{
    CoroState *coro = state->coro;
    PyObject *loop = Py_NewRef(task->fut.loop);
    PyObject *context = Py_NewRef(task->context);
    LoopObject *native = coro_is_loop(state, loop) ? LoopObject_CAST(loop) : NULL;
    const ContextSwitch by = native == NULL ? context_by_calls(state) : loop_context_switch(native);
    PyObject *previous = current_task_swap(coro, native, loop, (PyObject *)task);
    if (previous == NULL) {
        Py_DECREF(loop);
        Py_DECREF(context);
        return -1;
    }
    int err = registry_add(coro, TaskObject_CAST(task));
    if (err == 0) {
        err = context_enter(&by, context);
        if (err == 0) {
            FL_BEGIN_CRITICAL_SECTION(task);
            err = advance(state, task, NULL);
            FL_END_CRITICAL_SECTION();
            if (context_exit(&by, context) < 0) {
                err = -1;
            }
        }
    }
    PyObject *raised = compat_take_exception();
    PyObject *current = current_task_swap(coro, native, loop, previous);
    if (current == NULL) {
        err = -1;
    }
    if (raised != NULL) {
        PyErr_Clear();
        compat_restore_exception(raised);
    }
    Py_XDECREF(current);
    Py_DECREF(previous);
    Py_DECREF(loop);
    Py_DECREF(context);
    if (task->fut.state != FUTURE_PENDING) {
        /* Not NULL: get_coro() of the first 3.12 takes it for granted. */
        PyObject *coroutine;
        FL_BEGIN_CRITICAL_SECTION(task);
        coroutine = task->coro;
        task->coro = Py_NewRef(Py_None);
        FL_END_CRITICAL_SECTION();
        Py_XDECREF(coroutine);
    }
    return err;
}

/* 1 if the task's loop runs, 0 if not, -1 with an exception. Without a GIL, not if it runs in another thread: it has
   tasks of its own to step. */
static int
loop_runs(State *state, PyObject *loop)
{
    if (coro_is_loop(state, loop)) {
        LoopObject *native = LoopObject_CAST(loop);
        if (!loop_is_held_here(native)) {
            return 0;
        }
        if (LIKELY(loop_keeps_is_running(native))) {
            return native->thread_id != 0;
        }
    }
    PyObject *answer = PyObject_CallMethodNoArgs(loop, state->str_is_running);
    int runs = answer == NULL ? -1 : Py_IsTrue(answer);
    Py_XDECREF(answer);
    return runs;
}
#endif

ALWAYS_INLINE int
start(State *state, BaseTask *task, bool eager)
{
#if HAVE_EAGER_TASKS
    if (eager) {
        int runs = loop_runs(state, task->fut.loop);
        if (runs != 0) {
            return runs < 0 ? -1 : run_eagerly(state, task);
        }
    }
#else
    (void)eager;
#endif
    if (step_soon(state, task, NULL) < 0) {
        return -1;
    }
    return registry_add(state->coro, TaskObject_CAST(task));
}

/* ---- making ---- */

/* "Task-N"; several times faster than a format. */
static PyObject * /* GCOV_EXCL_START: up to Python 3.12 */
format_name(uint64_t number)
{
    enum { PREFIX_LENGTH = 5, DIGITS_MAX = 20 };
    char text[PREFIX_LENGTH + DIGITS_MAX] = "Task-";
    char digits[DIGITS_MAX];
    int count = 0;
    do {
        digits[count++] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    int length = PREFIX_LENGTH;
    while (count > 0) {
        text[length++] = digits[--count];
    }
    return PyUnicode_FromStringAndSize(text, length);
} /* GCOV_EXCL_STOP */

/* Renumbers an int that nobody else holds, in place; false if it cannot be. */
ALWAYS_INLINE bool
renumber(PyObject *spare, uint64_t number)
{
#if HAVE_COMPACT_LONG
    if (PyLong_CheckExact(spare) && is_unshared(spare) && number < PyLong_BASE &&
        PyUnstable_Long_IsCompact((PyLongObject *)spare) && PyUnstable_Long_CompactValue((PyLongObject *)spare) > 0) {
        ((PyLongObject *)spare)->long_value.ob_digit[0] = (digit)number;
        return true;
    }
#else
    (void)spare;
    (void)number;
#endif
    return false;
}

/* Finds out where automatic names come from; -1 with an exception. */
static int
find_names(CoroState *coro)
{
    TaskNames names = {NULL};
    PyObject *make_task = PyObject_GetAttrString(coro->helpers, "make_task");
    int err = make_task == NULL ? -1 : layout_find_name_counter(coro->asyncio_module, make_task, &names);
    Py_XDECREF(make_task);
    compat_mutex_lock(&coro->names_lock);
    /* Another thread may have found them meanwhile, and count already. */
    if (err == 0 && !coro->names_known) {
        coro->names = names;
        coro->names_known = true;
    }
    compat_mutex_unlock(&coro->names_lock);
    return err;
}

/* `spare` is NULL or the name of a task that is gone, whose reference is taken. */
ALWAYS_INLINE PyObject *
automatic_name(CoroState *coro, PyObject *spare)
{
    TaskNames *names = &coro->names;
    if (UNLIKELY(!coro->names_known) && find_names(coro) < 0) {
        Py_XDECREF(spare);
        return NULL;
    }
    uint64_t *counter = names->counter == NULL ? &names->own_counter : names->counter;
#if HAVE_FREE_THREADING
    uint64_t number = __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED);
#else
    uint64_t number = ++*counter;
#endif
    if (spare != NULL) {
        if (names->lazy && renumber(spare, number)) {
            return spare;
        }
        Py_DECREF(spare);
    }
    return names->lazy ? PyLong_FromUnsignedLongLong(number) : format_name(number);
}

/* The name to keep for what the user gave, which may be None. Takes the reference to `spare`. */
ALWAYS_INLINE PyObject *
make_name(CoroState *coro, PyObject *name, PyObject *spare)
{
    if (name == Py_None) {
        return automatic_name(coro, spare);
    }
    Py_XDECREF(spare);
    return PyUnicode_CheckExact(name) ? Py_NewRef(name) : PyObject_Str(name);
}

static int
check_coroutine(CoroState *coro, PyObject *coroutine)
{
    if (LIKELY(PyCoro_CheckExact(coroutine))) {
        return 0;
    }
    PyObject *answer = PyObject_CallOneArg(coro->iscoroutine, coroutine);
    int truth = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    if (truth == 0) {
        PyErr_Format(PyExc_TypeError, "a coroutine was expected, got %R", coroutine);
    }
    return truth > 0 ? 0 : -1;
}

/* Sets the task's own fields, in the order of the standard __init__; the future's have been set. */
ALWAYS_INLINE int
set_up(State *state, BaseTask *task, PyObject *coroutine, PyObject *name, PyObject *context)
{
    CoroState *coro = state->coro;
#if HAVE_AWAITED_BY
    task->fut.is_task = 1;
#endif
    if (check_coroutine(coro, coroutine) < 0) {
        TASK_FLAGS(task)->log_destroy_pending = 0;
        return -1;
    }
    if (UNLIKELY(coro->checks_context) && context != Py_None && !PyContext_CheckExact(context)) {
        TASK_FLAGS(task)->log_destroy_pending = 0;
        PyErr_Format(PyExc_TypeError, "a contextvars.Context was expected, got %.200s", Py_TYPE(context)->tp_name);
        return -1;
    }
    /* Of a new object: the one that it was parked with. */
    PyObject *spare = NULL;
    if (task->coro == NULL && task->context != NULL) {
        spare = task->context;
        task->context = NULL;
    }
    PyObject *own;
    if (context == Py_None) {
        own = context_copy_current(state->contexts.no_variables, spare);
    } else {
        Py_XDECREF(spare);
        own = Py_NewRef(context);
    }
    if (own == NULL) {
        return -1;
    }
    Py_XSETREF(task->context, own);
    Py_CLEAR(task->fut_waiter);
#if HAVE_AWAITED_BY && HAVE_FREE_THREADING
    task->thread_id = _Py_ThreadId();
    PyUnstable_EnableTryIncRef((PyObject *)task);
#endif
    TASK_FLAGS(task)->must_cancel = 0;
    TASK_FLAGS(task)->log_destroy_pending = 1;
    task->num_cancels_requested = 0;
    Py_XSETREF(task->coro, Py_NewRef(coroutine));
    PyObject *old_name = task->name;
    task->name = NULL;
    task->name = make_name(coro, name, old_name);
    return task->name == NULL ? -1 : 0;
}

UNGUARDED PyObject *
task_new(LoopObject *loop, PyObject *coroutine, PyObject *name, PyObject *context, bool eager)
{
    State *state = loop->state;
    CoroState *coro = state->coro;
    CoroPart *part = coro_part_here(loop);
    PyObject *op = part == NULL ? NULL : freelist_pop(&part->free_tasks);
    if (op != NULL) {
        (void)PyObject_Init(op, coro->TaskType);
        PyObject_GC_Track(op);
    } else {
        op = coro->TaskType->tp_alloc(coro->TaskType, 0);
        if (op == NULL) {
            return NULL;
        }
    }
    BaseTask *task = BaseTask_CAST(op);
    task->fut.loop = Py_NewRef((PyObject *)loop);
    if ((UNLIKELY(loop->debug) && future_remember_origin(coro, &task->fut) < 0) ||
        set_up(state, task, coroutine, name, context) < 0 || start(state, task, eager) < 0) {
        Py_CLEAR(op);
    }
    return op;
}

/* Some getters of some versions of the base take these fields for granted, also before __init__(). */
static PyObject *
Task_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    PyObject *op = type->tp_alloc(type, 0);
    if (op != NULL) {
        BaseTask_CAST(op)->coro = Py_NewRef(Py_None);
        BaseTask_CAST(op)->context = Py_NewRef(Py_None);
    }
    return op;
}

static int
Task_init(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {
        "coro",
        "loop",
        "name",
        "context",
#if HAVE_EAGER_TASKS
        "eager_start",
#endif
        NULL
    };
    PyObject *coroutine, *loop = Py_None, *name = Py_None, *context = Py_None;
    int eager = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, HAVE_EAGER_TASKS ? "O|$OOOp:Task" : "O|$OOO:Task", (char **)keywords,
                                     &coroutine, &loop, &name, &context, &eager)) {
        return -1;
    }
    State *state = state_of_object(op);
    if (state == NULL || future_reset(state, op, loop) < 0) {
        return -1;
    }
    BaseTask *task = BaseTask_CAST(op);
    return set_up(state, task, coroutine, name, context) < 0 ? -1 : start(state, task, eager != 0);
}

/* ---- freeing ---- */

/* Nobody is told when this coroutine, which has ended, is freed. */
static inline bool
is_unwatched(PyObject *coroutine)
{
    return PyCoro_CheckExact(coroutine) && *(PyObject **)((char *)coroutine + PyCoro_Type.tp_weaklistoffset) == NULL;
}

/* Does freeing a task that is bare otherwise run no code at all? */
static inline bool
dies_silently(BaseTask *task, bool keeps_name, bool keeps_context)
{
    return task->fut_waiter == NULL && future_value_is_simple(task->fut.result) &&
           (keeps_name || future_value_is_simple(task->name)) &&
           (keeps_context || task->context == NULL || Py_REFCNT(task->context) > 1) &&
           (task->coro == NULL || task->coro == Py_None || Py_REFCNT(task->coro) > 1 || is_unwatched(task->coro));
}

/* The end of a task that there is something to tell about, or that is no memory for another one. */
static void
dealloc_with_finalizer(CoroState *coro, PyObject *op)
{
    if (PyObject_CallFinalizerFromDealloc(op) < 0) {
        /* The exception handler, for one, saved it: it is a task as before. __init__() may just have failed. */
        PyObject *exc = compat_take_exception();
        if (coro != NULL && BaseFuture_CAST(op)->state == FUTURE_PENDING &&
            registry_add(coro, TaskObject_CAST(op)) < 0) {
            PyErr_WriteUnraisable(op);
        }
        if (exc != NULL) {
            compat_restore_exception(exc);
        }
        return;
    }
    registry_remove(TaskObject_CAST(op));
    future_dealloc_by_base(op, Task_dealloc);
}

void
Task_dealloc(PyObject *op)
{
    BaseTask *task = BaseTask_CAST(op);
    PyTypeObject *type = Py_TYPE(op);
    State *state = type->tp_dealloc == Task_dealloc ? state_of_exact(op) : NULL;
    CoroState *coro = state == NULL ? NULL : state->coro;
    bool silent = !task->fut.log_tb && (task->fut.state != FUTURE_PENDING || !TASK_FLAGS(task)->log_destroy_pending);
    if (coro == NULL || task->fut.loop == NULL || !silent || !future_is_recyclable(coro, op)) {
        dealloc_with_finalizer(coro, op);
        return;
    }
    PyObject *loop = task->fut.loop;
    LoopObject *native = coro_is_loop(state, loop) ? LoopObject_CAST(loop) : NULL;
    /* The next task of this memory can use the name and the context. */
    bool keeps_name = task->name != NULL && PyLong_CheckExact(task->name) && is_unshared(task->name);
    bool keeps_context =
        task->context != NULL && native != NULL && context_is_spare(task->context, native->no_variables);
    bool bare = future_is_bare(&task->fut);
    PyObject_GC_UnTrack(op);
    registry_remove(TaskObject_CAST(op));
    if (future_follows_step(native) && !(bare && dies_silently(task, keeps_name, keeps_context))) {
        loop_leave_task(native);
    }
    future_clear_fields(&task->fut, bare);
    Py_CLEAR(task->fut_waiter);
    Py_CLEAR(task->coro);
    if (!keeps_name) {
        Py_CLEAR(task->name);
    }
    if (!keeps_context) {
        Py_CLEAR(task->context);
    }
    TASK_FLAGS(task)->must_cancel = 0;
    TASK_FLAGS(task)->log_destroy_pending = 0;
    task->num_cancels_requested = 0;
    task->fut.loop = NULL;
    CoroPart *part = native == NULL ? NULL : coro_part_here(native);
    if (part == NULL || !freelist_push(&part->free_tasks, op)) {
        Py_CLEAR(task->name);
        Py_CLEAR(task->context);
        type->tp_free(op);
    }
    Py_DECREF(type);
    Py_DECREF(loop);
}

void
task_free_parked(FreeList *list, int count)
{
    while (count-- > 0 && list->count > 0) {
        PyObject *op = freelist_pop(list);
        Py_CLEAR(BaseTask_CAST(op)->name);
        Py_CLEAR(BaseTask_CAST(op)->context);
        PyObject_GC_Del(op);
    }
}

/* ---- names ---- */

/* Gives the task another name, if `expected` is NULL or the one that it has. Steals `name`. */
static void
replace_name(CoroState *coro, BaseTask *task, PyObject *expected, PyObject *name)
{
    compat_mutex_lock(&coro->names_lock);
    if (expected == NULL || task->name == expected) {
        PyObject *old = task->name;
        task->name = name;
        name = old;
    }
    compat_mutex_unlock(&coro->names_lock);
    Py_XDECREF(name);
}

int
task_set_name(CoroState *coro, PyObject *task, PyObject *name)
{
    PyObject *text = PyUnicode_CheckExact(name) ? Py_NewRef(name)
                     : name == Py_None          ? Py_NewRef(coro->str_None)
                                                : PyObject_Str(name);
    if (text == NULL) {
        return -1;
    }
    replace_name(coro, BaseTask_CAST(task), NULL, text);
    return 0;
}

/* ---- what the base does not do ---- */

static void
Task_finalize(PyObject *op)
{
    future_forget_step(op);
#if HAVE_OWN_TASK_LIST
    /* The collector clears weak references before it finalises, so the standard registry forgets the task here, too. */
    registry_remove(TaskObject_CAST(op));
#endif
    if (BaseFuture_CAST(op)->loop == NULL) {
        /* Never initialised: there is nobody to report to, which the base does not check. */
        TASK_FLAGS(BaseTask_CAST(op))->log_destroy_pending = 0;
    }
    future_base_of(op, Task_dealloc)->tp_finalize(op);
}

#if !HAVE_HEAP_BASE_TYPES
static int
Task_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    return future_base_of(op, Task_dealloc)->tp_traverse(op, visit, arg);
}

static int
Task_clear(PyObject *op)
{
    return future_base_of(op, Task_dealloc)->tp_clear(op);
}
#endif

#if HAVE_UNLOCKED_FUTURES

#define X(method, ...)                                                                                               \
    static PyObject *locked_##method(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)       \
    {                                                                                                                \
        State *state = state_of_object(op);                                                                          \
        return state == NULL ? NULL : future_call_locked(op, &state->coro->unlocked_##method, args, nargs, kwnames); \
    }
UNLOCKED_TASK_METHODS(X)
#undef X

/* asyncio's own lets go of the task while it waits for the lock of what the task awaits. By then the task may await something
   else, which has to be told, too. */
static PyObject *
Task_cancel(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    State *state = state_of_object(op);
    if (state == NULL) {
        return NULL;
    }
    BaseTask *task = BaseTask_CAST(op);
    PyObject *result, *told;
    FL_BEGIN_INNER_CRITICAL_SECTION(op);
    /* The base asks it without a reference of its own. */
    told = Py_XNewRef(task->fut_waiter);
    result = future_call_locked(op, &state->coro->unlocked_cancel, args, nargs, kwnames);
    while (result != NULL && TASK_FLAGS(task)->must_cancel && task->fut.state == FUTURE_PENDING &&
           task->fut_waiter != NULL && task->fut_waiter != told) {
        Py_XSETREF(told, Py_NewRef(task->fut_waiter));
        int agreed = forward_cancel(state->coro, task, told);
        if (agreed < 0) {
            Py_CLEAR(result);
        } else if (agreed > 0 && task->fut_waiter == told) {
            /* Otherwise a step has taken note of it already, and it may be another request by now. */
            TASK_FLAGS(task)->must_cancel = 0;
        }
    }
    if (result == Py_True && TASK_FLAGS(task)->must_cancel && task->fut.state != FUTURE_PENDING) {
        /* It has ended meanwhile, and nobody was told. */
        TASK_FLAGS(task)->must_cancel = 0;
        Py_SETREF(result, Py_NewRef(Py_False));
    }
    FL_END_INNER_CRITICAL_SECTION();
    Py_XDECREF(told);
    return result;
}

/* The name, or None (new), as the base keeps it: an automatic one is an int until somebody asks. */
static PyObject *
read_name(CoroState *coro, BaseTask *task)
{
    compat_mutex_lock(&coro->names_lock);
    PyObject *name = Py_NewRef(task->name == NULL ? Py_None : task->name);
    compat_mutex_unlock(&coro->names_lock);
    return name;
}

static PyObject *
Task_get_name(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    State *state = state_of_object(op);
    if (state == NULL) {
        return NULL;
    }
    PyObject *name = read_name(state->coro, BaseTask_CAST(op));
    if (!PyLong_CheckExact(name)) {
        return name;
    }
    PyObject *text = PyUnicode_FromFormat("Task-%S", name);
    if (text != NULL) {
        replace_name(state->coro, BaseTask_CAST(op), name, Py_NewRef(text));
    }
    Py_DECREF(name);
    return text;
}

static PyObject *
Task_set_name(PyObject *op, PyObject *value)
{
    State *state = state_of_object(op);
    if (state == NULL || task_set_name(state->coro, op, value) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* It looks at the frames of the coroutine, which must not run meanwhile. */
static PyObject *
Task_repr(PyObject *op)
{
    PyObject *text;
    FL_BEGIN_INNER_CRITICAL_SECTION(op);
    text = future_base_of(op, Task_dealloc)->tp_repr(op);
    FL_END_INNER_CRITICAL_SECTION();
    return text;
}

static PyMethodDef Task_methods[] = {
#define X(name, parameters, doc)                                                       \
    {#name, (PyCFunction)(void (*)(void))locked_##name, METH_FASTCALL | METH_KEYWORDS, \
     #name parameters "\n--\n\n" doc " See asyncio."},
    UNLOCKED_TASK_METHODS(X)
#undef X
        {"cancel", (PyCFunction)(void (*)(void))Task_cancel, METH_FASTCALL | METH_KEYWORDS,
         "cancel($self, /, msg=None)\n--\n\nHave CancelledError thrown into the coroutine. See asyncio."},
    {"get_name", Task_get_name, METH_NOARGS, "get_name($self, /)\n--\n\nReturn the name. See asyncio."},
    {"set_name", Task_set_name, METH_O, "set_name($self, value, /)\n--\n\nGive it another name. See asyncio."},
    {NULL},
};

static PyGetSetDef Task_getset[] = {
#define X(name) {#name, future_get_locked, future_set_locked, NULL, (void *)offsetof(CoroState, unlocked_##name)},
    UNLOCKED_TASK_ATTRIBUTES(X)
#undef X
        {NULL},
};

#endif

PyDoc_STRVAR(Task_doc, "Task(coro, *, loop=None, name=None, context=None, eager_start=False)\n--\n\n"
                       "asyncio.Task, made by fastloop's loops.\n\n"
                       "Works on any loop. Raises TypeError when coro is no coroutine. See asyncio.Task.");

static PyType_Slot Task_slots[] = {
    {Py_tp_doc, (void *)Task_doc},   {Py_tp_new, Task_new},           {Py_tp_init, Task_init},
    {Py_tp_dealloc, Task_dealloc},   {Py_tp_finalize, Task_finalize},
#if !HAVE_HEAP_BASE_TYPES
    {Py_tp_traverse, Task_traverse}, {Py_tp_clear, Task_clear},
#endif
#if HAVE_UNLOCKED_FUTURES
    {Py_tp_methods, Task_methods},   {Py_tp_getset, Task_getset},     {Py_tp_repr, Task_repr},
#endif
    {Py_tp_iter, Future_await},      {Py_am_await, Future_await},     {0, NULL},
};

PyType_Spec Task_spec = {
    .name = "fastloop.Task",
    .basicsize = sizeof(TaskObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE
#if !HAVE_HEAP_BASE_TYPES
             | Py_TPFLAGS_HAVE_GC
#endif
    ,
    .slots = Task_slots,
};
