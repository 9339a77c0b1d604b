/* Future: the fast ways in and out of asyncio's own struct.

   Everything that is not hot is inherited from _asyncio.Future, which finds its fields where it left them. Invariant:
   at every call-out the object is in a state that the base's methods could have left. */

#include "coro/future.h"

#include "coro/awaiter.h"
#include "coro/registry.h"
#include "coro/task.h"

/* ---- scheduling ---- */

int
coro_call_soon(State *state, PyObject *loop, PyObject *callback, PyObject *arg, PyObject *context)
{
    if (coro_is_loop(state, loop)) {
        return loop_call_soon(LoopObject_CAST(loop), callback, &arg, arg == NULL ? 0 : 1, context);
    }
    PyObject *stack[4] = {loop, callback, arg, context};
    size_t nargs = 3;
    if (arg == NULL) {
        stack[2] = context;
        nargs = 2;
    }
    PyObject *handle = PyObject_VectorcallMethod(state->str_call_soon, stack, nargs | PY_VECTORCALL_ARGUMENTS_OFFSET,
                                                 state->coro->kw_context);
    Py_XDECREF(handle);
    return handle == NULL ? -1 : 0;
}

/* Queues one callback of a future that is done. */
ALWAYS_INLINE int
queue_callback(State *state, LoopObject *native, BaseFuture *fut, PyObject *callback, PyObject *context)
{
    if (native != NULL && Py_IS_TYPE(callback, state->coro->WakeupType)) {
        PyObject *task = WakeupObject_CAST(callback)->task;
        if (BaseFuture_CAST(task)->loop == fut->loop && PyContext_CheckExact(BaseTask_CAST(task)->context)) {
            return loop_push(native, task_wakeup_run, task, (PyObject *)fut);
        }
    }
    return coro_call_soon(state, fut->loop, callback, (PyObject *)fut, context);
}

/* After a callback could not be queued: keeps the first error in `*raised`; false if the others are given up, too. Where
   memory has ended the next one may be a task's wake-up, which takes none. */
static bool
goes_on_after_error(PyObject **raised)
{
    bool goes_on = PyErr_ExceptionMatches(PyExc_MemoryError);
    if (*raised == NULL) {
        *raised = compat_take_exception();
    } else {
        PyErr_Clear();
    }
    return goes_on;
}

/* The same: is it a task's wake-up, to be left in the future until the loop calls future_wake_late()? */
static bool
waits_for_memory(State *state, BaseFuture *fut, PyObject *callback)
{
    if (!PyErr_ExceptionMatches(PyExc_MemoryError) || !Py_IS_TYPE(callback, state->coro->WakeupType) ||
        !coro_is_loop(state, fut->loop)) {
        return false;
    }
    PyErr_Clear();
    LoopObject *loop = LoopObject_CAST(fut->loop);
    loop->has_late_wakeups = true;
    inbox_wake_if_waiting(&loop->inbox);
    return true;
}

/* Takes the first items off a list that is ours alone. Needs no memory. */
static void
drop_first(PyObject *list, Py_ssize_t count)
{
    Py_ssize_t left = PyList_GET_SIZE(list) - count;
    Py_SET_SIZE(list, 0);
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_DECREF(PyList_GET_ITEM(list, i));
    }
    for (Py_ssize_t i = 0; i < left; i++) {
        PyList_SET_ITEM(list, i, PyList_GET_ITEM(list, count + i));
    }
    Py_SET_SIZE(list, left);
}

/* Queues the callbacks of the list. */
static int
queue_callbacks(State *state, LoopObject *native, BaseFuture *fut, PyObject *list, PyObject *raised)
{
    bool goes_on = true;
    for (Py_ssize_t i = 0; goes_on && i < PyList_GET_SIZE(list); i++) {
        PyObject *pair = PyList_GET_ITEM(list, i);
        PyObject *callback = PyTuple_GET_ITEM(pair, 0);
        if (LIKELY(queue_callback(state, native, fut, callback, PyTuple_GET_ITEM(pair, 1)) == 0)) {
            continue;
        }
        if (fut->callbacks == NULL && waits_for_memory(state, fut, callback)) {
            drop_first(list, i);
            fut->callbacks = Py_NewRef(list);
            break;
        }
        goes_on = goes_on_after_error(&raised);
    }
    if (LIKELY(raised == NULL)) {
        return 0;
    }
    compat_restore_exception(raised);
    return -1;
}

int
future_notify(State *state, BaseFuture *fut)
{
    PyObject *callback = fut->callback0;
    PyObject *context = fut->context0;
    PyObject *more = fut->callbacks;
    if (callback == NULL && more == NULL) {
        return 0;
    }
    /* They are ours from here on: call_soon() may run Python code that looks at the future again. */
    fut->callback0 = NULL;
    fut->context0 = NULL;
    LoopObject *native = loop_if_native(state, fut->loop);
    PyObject *raised = NULL;
    bool goes_on = true;
    if (callback != NULL) {
        if (UNLIKELY(queue_callback(state, native, fut, callback, context) < 0)) {
            if (fut->callback0 == NULL && waits_for_memory(state, fut, callback)) {
                fut->callback0 = callback;
                fut->context0 = context;
                return 0;
            }
            goes_on = goes_on_after_error(&raised);
        }
        if (Py_IS_TYPE(callback, state->coro->WakeupType)) {
            wakeup_release(callback, native == NULL ? NULL : coro_part_here(native));
        } else {
            Py_DECREF(callback);
        }
        Py_XDECREF(context);
        more = fut->callbacks;
    }
    if (LIKELY(more == NULL && raised == NULL)) {
        return 0;
    }
    fut->callbacks = NULL;
    if (more == NULL || !goes_on) {
        Py_XDECREF(more);
        compat_restore_exception(raised);
        return -1;
    }
    int err = queue_callbacks(state, native, fut, more, raised);
    Py_DECREF(more);
    return err;
}

/* Queues the wake-ups that were left in what a task waits for; -1 with an exception. */
static int
wake_late(State *state, PyObject *task)
{
    CoroState *coro = state->coro;
    PyObject *awaited = NULL;
    if (PyObject_TypeCheck(task, coro->TaskType)) {
        FL_BEGIN_CRITICAL_SECTION(task);
        awaited = Py_XNewRef(BaseTask_CAST(task)->fut_waiter);
        FL_END_CRITICAL_SECTION();
    }
    int err = 0;
    /* Of a subclass of ours, too: what future_notify() has completed. */
    if (awaited != NULL && PyObject_TypeCheck(awaited, coro->FutureType)) {
        FL_BEGIN_CRITICAL_SECTION(awaited);
        if (BaseFuture_CAST(awaited)->state != FUTURE_PENDING) {
            err = future_notify(state, BaseFuture_CAST(awaited));
        }
        FL_END_CRITICAL_SECTION();
    }
    Py_XDECREF(awaited);
    return err;
}

void
future_wake_late(LoopObject *loop)
{
    loop->has_late_wakeups = false;
    CoroState *coro = loop->state->coro;
    PyObject *tasks = PyObject_CallMethod(coro->helpers, "all_tasks", "O", loop);
    PyObject *iterator = tasks == NULL ? NULL : PyObject_GetIter(tasks);
    PyObject *task;
    while (iterator != NULL && (task = PyIter_Next(iterator)) != NULL) {
        int err = wake_late(loop->state, task);
        Py_DECREF(task);
        if (err < 0) {
            break;
        }
    }
    Py_XDECREF(iterator);
    Py_XDECREF(tasks);
    if (PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_MemoryError)) {
            /* In the next turn, then. */
            PyErr_Clear();
            loop->has_late_wakeups = true;
        } else {
            loop_report(loop, "Waking tasks failed", NULL);
        }
    }
}

int
future_add_another_callback(State *state, BaseFuture *fut, PyObject *callback, PyObject *context)
{
    if (fut->state != FUTURE_PENDING) {
        return queue_callback(state, loop_if_native(state, fut->loop), fut, callback, context);
    }
    PyObject *pair = PyTuple_Pack(2, callback, context);
    if (pair == NULL) {
        return -1;
    }
    if (fut->callbacks == NULL) {
        PyObject *list = PyList_New(0);
        if (list == NULL) {
            Py_DECREF(pair);
            return -1;
        }
        fut->callbacks = list;
    }
    int err = PyList_Append(fut->callbacks, pair);
    Py_DECREF(pair);
    return err;
}

/* ---- completing ---- */

int
future_finish(State *state, BaseFuture *fut, PyObject *result)
{
    Py_XSETREF(fut->result, result);
    future_set_state(fut, FUTURE_FINISHED);
    return future_notify(state, fut);
}

int
future_fail(State *state, BaseFuture *fut, PyObject *exc)
{
    Py_XSETREF(fut->exception, Py_NewRef(exc));
    Py_XSETREF(fut->exception_tb, PyException_GetTraceback(exc));
    future_set_state(fut, FUTURE_FINISHED);
    if (future_notify(state, fut) < 0) {
        return -1;
    }
    fut->log_tb = 1;
    return 0;
}

int
future_cancel(State *state, BaseFuture *fut, PyObject *msg)
{
    fut->log_tb = 0;
    if (UNLIKELY(fut->state != FUTURE_PENDING)) {
        return 0;
    }
    future_set_state(fut, FUTURE_CANCELLED);
    Py_XSETREF(fut->cancel_msg, Py_XNewRef(msg));
    return future_notify(state, fut);
}

PyObject *
future_make_cancelled_error(CoroState *coro, BaseFuture *fut)
{
    PyObject *exc = fut->cancelled_exc;
    if (exc != NULL) {
        fut->cancelled_exc = NULL;
        return exc;
    }
    if (fut->cancel_msg == NULL || fut->cancel_msg == Py_None) {
        return PyObject_CallNoArgs(coro->CancelledError);
    }
    return PyObject_CallOneArg(coro->CancelledError, fut->cancel_msg);
}

int
future_check_pending(State *state, BaseFuture *fut)
{
    if (fut->loop == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Future object is not initialized.");
        return -1;
    }
    if (fut->state != FUTURE_PENDING) {
        PyErr_SetString(state->coro->InvalidStateError, "invalid state");
        return -1;
    }
    return 0;
}

int
coro_complete_future(State *state, PyObject *future, PyObject *result)
{
    if (!Py_IS_TYPE(future, state->coro->FutureType)) {
        return 0;
    }
    BaseFuture *fut = BaseFuture_CAST(future);
    int err = 0;
    FL_BEGIN_CRITICAL_SECTION(future);
    if (fut->loop == NULL || fut->state != FUTURE_CANCELLED) {
        err = future_check_pending(state, fut);
        if (err == 0) {
            err = future_finish(state, fut, Py_NewRef(result));
        }
    }
    FL_END_CRITICAL_SECTION();
    return err < 0 ? -1 : 1;
}

/* ---- making ---- */

bool
coro_look_up_unpatched(PyObject *dict, PyObject *name, PyTypeObject *original)
{
#if HAVE_FREE_THREADING
    PyObject *found;
    (void)PyDict_GetItemRef(dict, name, &found);
    Py_XDECREF(found);
#else
    PyObject *found = PyDict_GetItemWithError(dict, name);
#endif
    return found == (PyObject *)original;
}

int
future_remember_origin(CoroState *coro, BaseFuture *fut)
{
    PyObject *stack = PyObject_CallNoArgs(coro->extract_stack);
    if (stack == NULL) {
        return -1;
    }
    Py_XSETREF(fut->source_tb, stack);
    return 0;
}

int
future_reset(State *state, PyObject *op, PyObject *loop)
{
    PyObject *keywords = PyDict_New();
    if (keywords == NULL) {
        return -1;
    }
    int err = PyDict_SetItem(keywords, state->coro->str_loop, loop);
    if (err == 0) {
        err = state->coro->base_future->tp_init(op, state->coro->empty_tuple, keywords);
    }
    Py_DECREF(keywords);
    return err;
}

CoroPart *
future_free_lists(State *state, PyObject *loop)
{
    return loop != NULL && coro_is_loop(state, loop) ? coro_part_here(LoopObject_CAST(loop)) : NULL;
}

PyObject *
future_new(LoopObject *loop)
{
    CoroState *coro = loop->state->coro;
    CoroPart *part = coro_part_here(loop);
    if (UNLIKELY(
            !coro->native || (loop->coro != NULL && !loop->coro->use_native) ||
            !coro_is_unpatched(coro, coro->futures_dict, &coro->known_future, coro->str_Future, coro->base_future))) {
        return PyObject_CallMethodOneArg(coro->base_loop, coro->str_create_future, (PyObject *)loop);
    }
    PyObject *op = part == NULL ? NULL : freelist_pop(&part->free_futures);
    if (op != NULL) {
        (void)PyObject_Init(op, coro->FutureType);
        PyObject_GC_Track(op);
    } else {
        op = coro->FutureType->tp_alloc(coro->FutureType, 0);
        if (op == NULL) {
            return NULL;
        }
    }
    BaseFuture_CAST(op)->loop = Py_NewRef((PyObject *)loop);
    if (UNLIKELY(loop->debug) && future_remember_origin(coro, BaseFuture_CAST(op)) < 0) {
        Py_CLEAR(op);
    }
    return op;
}

/* ---- freeing ---- */

void
future_clear_references(BaseFuture *fut)
{
    Py_CLEAR(fut->callback0);
    Py_CLEAR(fut->context0);
    Py_CLEAR(fut->callbacks);
    Py_CLEAR(fut->exception);
    Py_CLEAR(fut->exception_tb);
    Py_CLEAR(fut->source_tb);
    Py_CLEAR(fut->cancel_msg);
    Py_CLEAR(fut->cancelled_exc);
#if HAVE_AWAITED_BY
    Py_CLEAR(fut->awaited_by);
#endif
}

void
future_forget_step(PyObject *op)
{
    PyObject *loop = BaseFuture_CAST(op)->loop;
    State *state = loop != NULL && future_is_exact(op) ? state_of_exact(op) : NULL;
    if (state != NULL && coro_is_loop(state, loop) && future_follows_step(LoopObject_CAST(loop))) {
        loop_leave_task(LoopObject_CAST(loop));
    }
}

static void
Future_finalize(PyObject *op)
{
    future_forget_step(op);
    future_base_of(op, Future_dealloc)->tp_finalize(op);
}

void
future_dealloc_by_base(PyObject *op, destructor dealloc)
{
    /* Before 3.12 the base leaves the finaliser of a subclass to the subclass. */
    if (PyObject_CallFinalizerFromDealloc(op) < 0) {
        return;
    }
    /* The finaliser may have run before. Nobody must find the object now; the base takes it for tracked. */
    PyObject_GC_UnTrack(op);
    future_forget_step(op);
    PyObject_GC_Track(op);
#if !HAVE_HEAP_BASE_TYPES
    PyTypeObject *type = Py_TYPE(op);
#endif
    future_base_of(op, dealloc)->tp_dealloc(op);
#if !HAVE_HEAP_BASE_TYPES
    Py_DECREF(type);
#endif
}

void
Future_dealloc(PyObject *op)
{
    BaseFuture *fut = BaseFuture_CAST(op);
    PyTypeObject *type = Py_TYPE(op);
    State *state = type->tp_dealloc == Future_dealloc ? state_of_exact(op) : NULL;
    if (state == NULL || fut->loop == NULL || fut->log_tb || !future_is_recyclable(state->coro, op)) {
        future_dealloc_by_base(op, Future_dealloc);
        return;
    }
    PyObject *loop = fut->loop;
    LoopObject *native = coro_is_loop(state, loop) ? LoopObject_CAST(loop) : NULL;
    bool bare = future_is_bare(fut);
    PyObject_GC_UnTrack(op);
    if (future_follows_step(native) && !(bare && future_value_is_simple(fut->result))) {
        loop_leave_task(native);
    }
    future_clear_fields(fut, bare);
    fut->loop = NULL;
    CoroPart *part = native == NULL ? NULL : coro_part_here(native);
    if (part == NULL || !freelist_push(&part->free_futures, op)) {
        type->tp_free(op);
    }
    Py_DECREF(type);
    Py_DECREF(loop);
}

/* ---- methods ---- */

PyDoc_STRVAR(Future_set_result_doc, "set_result($self, result, /)\n--\n\n"
                                    "Mark the future done and set its result.\n\n"
                                    "Raises InvalidStateError if it is done already. See asyncio.Future.set_result().");

/* One of these methods is called with a task: asyncio's list of tasks has only those that are pending. */
static inline void
leave_tasks(State *state, PyObject *op)
{
    if (UNLIKELY(!Py_IS_TYPE(op, state->coro->FutureType)) && PyObject_TypeCheck(op, state->coro->TaskType)) {
        registry_remove(TaskObject_CAST(op));
    }
}

static PyObject *
Future_set_result(PyObject *op, PyObject *result)
{
    State *state = future_state(op);
    if (state == NULL) {
        return NULL;
    }
    BaseFuture *fut = BaseFuture_CAST(op);
    int err;
    FL_BEGIN_CRITICAL_SECTION(op);
    err = future_check_pending(state, fut);
    if (err == 0) {
        leave_tasks(state, op);
        err = future_finish(state, fut, Py_NewRef(result));
    }
    FL_END_CRITICAL_SECTION();
    if (err < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyObject *
future_call_base(PyTypeObject *base, PyObject *name, PyObject *op, PyObject *const *args, Py_ssize_t nargs,
                 PyObject *kwnames)
{
#if !HAVE_FREE_THREADING
    State *state = state_of_object(op);
    if (state == NULL || future_make_context(state, BaseFuture_CAST(op)) < 0) {
        return NULL;
    }
#endif
    PyObject *method = PyObject_GetAttr((PyObject *)base, name);
    if (method == NULL) {
        return NULL;
    }
    /* Some of them crash (3.13.0) when bound by __get__() without the type. */
    descrgetfunc bind = Py_TYPE(method)->tp_descr_get;
    PyObject *bound = bind == NULL ? Py_NewRef(method) : bind(method, op, (PyObject *)Py_TYPE(op));
    PyObject *result = bound == NULL ? NULL : PyObject_Vectorcall(bound, args, (size_t)nargs, kwnames);
    Py_XDECREF(bound);
    Py_DECREF(method);
    return result;
}

PyDoc_STRVAR(Future_set_exception_doc, "set_exception($self, exception, /)\n--\n\n"
                                       "Mark the future done and set an exception.\n\n"
                                       "Raises InvalidStateError if it is done already, TypeError for what cannot be "
                                       "raised. See asyncio.Future.set_exception().");

/* As set_result(); whatever is not plainly an exception is left to the base. */
static PyObject *
Future_set_exception(PyObject *op, PyObject *exception)
{
    State *state = future_state(op);
    if (state == NULL) {
        return NULL;
    }
    BaseFuture *fut = BaseFuture_CAST(op);
    int err = 0;
    bool plain = PyExceptionInstance_Check(exception) && !PyErr_GivenExceptionMatches(exception, PyExc_StopIteration);
    FL_BEGIN_CRITICAL_SECTION(op);
    plain = plain && fut->loop != NULL && fut->state == FUTURE_PENDING;
    if (plain) {
        leave_tasks(state, op);
        err = future_fail(state, fut, exception);
    }
    FL_END_CRITICAL_SECTION();
    if (!plain) {
        return future_call_base(state->coro->base_future, state->coro->str_set_exception, op, &exception, 1, NULL);
    }
    if (err < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

#if HAVE_UNLOCKED_FUTURES

PyObject *
future_call_locked(PyObject *op, const UnlockedMethod *method, PyObject *const *args, Py_ssize_t nargs,
                   PyObject *kwnames)
{
    enum { ROOM = 4 };
    CoroState *coro = state_of_object(op)->coro;
    bool is_task = PyObject_TypeCheck(op, coro->base_task);
    Py_ssize_t count = nargs + (kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames));
    PyObject *stack[ROOM] = {op};
    bool fits = count < ROOM;
    for (Py_ssize_t i = 0; fits && i < count; i++) {
        stack[i + 1] = args[i];
    }
    PyObject *result;
    FL_BEGIN_INNER_CRITICAL_SECTION(op);
    result =
        fits ? PyObject_Vectorcall(method->methods[is_task], stack, (size_t)nargs + 1, kwnames)
             : future_call_base(is_task ? coro->base_task : coro->base_future, method->name, op, args, nargs, kwnames);
    FL_END_INNER_CRITICAL_SECTION();
    return result;
}

/* The base's descriptor of the attribute, borrowed; NULL with an exception. */
static PyObject *
base_attribute(PyObject *op, void *closure)
{
    State *state = state_of_object(op);
    if (state == NULL) {
        return NULL;
    }
    UnlockedMethod *attribute = (UnlockedMethod *)((char *)state->coro + (size_t)closure);
    return attribute->methods[PyObject_TypeCheck(op, state->coro->base_task)];
}

PyObject *
future_get_locked(PyObject *op, void *closure)
{
    PyObject *descriptor = base_attribute(op, closure);
    if (descriptor == NULL) {
        return NULL;
    }
    PyObject *value;
    FL_BEGIN_INNER_CRITICAL_SECTION(op);
    value = Py_TYPE(descriptor)->tp_descr_get(descriptor, op, (PyObject *)Py_TYPE(op));
    FL_END_INNER_CRITICAL_SECTION();
    return value;
}

int
future_set_locked(PyObject *op, PyObject *value, void *closure)
{
    PyObject *descriptor = base_attribute(op, closure);
    if (descriptor == NULL) {
        return -1;
    }
    int err;
    FL_BEGIN_INNER_CRITICAL_SECTION(op);
    err = Py_TYPE(descriptor)->tp_descr_set(descriptor, op, value);
    FL_END_INNER_CRITICAL_SECTION();
    return err;
}

#define X(method, ...)                                                                                               \
    static PyObject *locked_##method(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)       \
    {                                                                                                                \
        State *state = state_of_object(op);                                                                          \
        return state == NULL ? NULL : future_call_locked(op, &state->coro->unlocked_##method, args, nargs, kwnames); \
    }
UNLOCKED_METHODS(X)
#undef X

static PyObject *
Future_done(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(future_state_of(BaseFuture_CAST(op)) != FUTURE_PENDING);
}

static PyObject *
Future_cancelled(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(future_state_of(BaseFuture_CAST(op)) == FUTURE_CANCELLED);
}

static PyGetSetDef Future_getset[] = {
#define X(name) {#name, future_get_locked, future_set_locked, NULL, (void *)offsetof(CoroState, unlocked_##name)},
    UNLOCKED_ATTRIBUTES(X)
#undef X
        {NULL},
};

/* It asks for the callbacks twice, and expects the same answer. */
static PyObject *
Future_repr(PyObject *op)
{
    State *state = state_of_object(op);
    if (state == NULL) {
        return NULL;
    }
    PyObject *text;
    FL_BEGIN_INNER_CRITICAL_SECTION(op);
    text = state->coro->base_future->tp_repr(op);
    FL_END_INNER_CRITICAL_SECTION();
    return text;
}

static int
Future_init(PyObject *op, PyObject *args, PyObject *kwargs)
{
    State *state = state_of_object(op);
    if (state == NULL) {
        return -1;
    }
    int err;
    FL_BEGIN_CRITICAL_SECTION(op);
    err = state->coro->base_future->tp_init(op, args, kwargs);
    FL_END_CRITICAL_SECTION();
    return err;
}

#endif

PyDoc_STRVAR(Future_cancel_doc, "cancel($self, /, msg=None)\n--\n\n"
                                "Cancel the future and schedule its callbacks.\n\n"
                                "Returns False if it is done already. See asyncio.Future.cancel().");

static PyObject *
Future_cancel(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    State *state = future_state(op);
    if (state == NULL) {
        return NULL;
    }
    BaseFuture *fut = BaseFuture_CAST(op);
    Py_ssize_t count = nargs + (kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames));
    if (count > 1 || fut->loop == NULL ||
        (count > nargs && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), "msg") != 0)) {
        return future_call_base(state->coro->base_future, state->coro->str_cancel, op, args, nargs, kwnames);
    }
    int err;
    bool pending;
    FL_BEGIN_CRITICAL_SECTION(op);
    pending = fut->state == FUTURE_PENDING;
    leave_tasks(state, op);
    err = future_cancel(state, fut, count == 0 ? Py_None : args[0]);
    FL_END_CRITICAL_SECTION();
    return err < 0 ? NULL : PyBool_FromLong(pending);
}

static PyMethodDef Future_methods[] = {
#if HAVE_UNLOCKED_FUTURES
#define X(name, parameters, doc)                                                       \
    {#name, (PyCFunction)(void (*)(void))locked_##name, METH_FASTCALL | METH_KEYWORDS, \
     #name parameters "\n--\n\n" doc " See asyncio."},
    UNLOCKED_METHODS(X)
#undef X
        {"done", Future_done, METH_NOARGS, "done($self, /)\n--\n\nReturn True if the future is done. See asyncio."},
    {"cancelled", Future_cancelled, METH_NOARGS,
     "cancelled($self, /)\n--\n\nReturn True if the future was cancelled. See asyncio."},
#endif
#if !HAVE_FREE_THREADING
    {"add_done_callback", (PyCFunction)(void (*)(void))future_add_done_callback, METH_FASTCALL | METH_KEYWORDS,
     "add_done_callback($self, fn, /, *, context=<unrepresentable>)\n--\n\n"
     "Have fn(self) called by the loop once it is done. See asyncio.Future.add_done_callback()."},
#endif
    {"set_result", Future_set_result, METH_O, Future_set_result_doc},
    {"set_exception", Future_set_exception, METH_O, Future_set_exception_doc},
    {"cancel", (PyCFunction)(void (*)(void))Future_cancel, METH_FASTCALL | METH_KEYWORDS, Future_cancel_doc},
    {NULL},
};

PyDoc_STRVAR(Future_doc, "Future(*, loop=None)\n--\n\n"
                         "asyncio.Future, made by fastloop's loops.\n\n"
                         "loop defaults to the running or current loop. See asyncio.Future.");

#if !HAVE_HEAP_BASE_TYPES
static int
Future_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    return future_base_of(op, Future_dealloc)->tp_traverse(op, visit, arg);
}

static int
Future_clear(PyObject *op)
{
    return future_base_of(op, Future_dealloc)->tp_clear(op);
}
#endif

#if !HAVE_FREE_THREADING
static PyGetSetDef Future_getset[] = {
    {"_callbacks", future_get_callbacks, future_set_callbacks, NULL, NULL},
    {NULL},
};
#endif

static PyType_Slot Future_slots[] = {
    {Py_tp_doc, (void *)Future_doc},   {Py_tp_dealloc, Future_dealloc}, {Py_tp_finalize, Future_finalize},
#if !HAVE_HEAP_BASE_TYPES
    {Py_tp_traverse, Future_traverse}, {Py_tp_clear, Future_clear},
#endif
#if !HAVE_FREE_THREADING
    {Py_tp_getset, Future_getset},
#endif
#if HAVE_UNLOCKED_FUTURES
    {Py_tp_init, Future_init},         {Py_tp_getset, Future_getset},   {Py_tp_repr, Future_repr},
#endif
    {Py_tp_methods, Future_methods},   {Py_tp_iter, Future_await},      {Py_am_await, Future_await},       {0, NULL},
};

PyType_Spec Future_spec = {
    .name = "fastloop.Future",
    .basicsize = sizeof(BaseFuture),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE
#if !HAVE_HEAP_BASE_TYPES
             | Py_TPFLAGS_HAVE_GC
#endif
    ,
    .slots = Future_slots,
};
