/* The iterator behind `await future`, and the wake-up callback of a task. Both are recycled through the loop. */

#include "coro/awaiter.h"

#include "base/contexts.h"
#include "coro/task.h"

typedef struct {
    PyObject_HEAD
    BaseFuture *fut;     /* strong; NULL once exhausted */
    LoopObject *loop;    /* strong; NULL when the future's loop is none of ours */
    bool kept_exception; /* it raised the StopIteration that the loop keeps */
} AwaiterObject;

#define AwaiterObject_CAST(op) ((AwaiterObject *)(op))

/* Both lie in the free lists as they are, tracked and with one reference: found by gc.get_objects(), for one, they are
   empty objects like any other, and are not used again while somebody holds them. */

/* ---- the iterator ---- */

/* An unused one, or NULL. */
static AwaiterObject *
unpark_awaiter(CoroPart *part)
{
    PyObject *parked;
    while ((parked = freelist_pop(&part->free_awaiters)) != NULL) {
        if (LIKELY(is_unshared(parked))) {
            return (AwaiterObject *)parked;
        }
        Py_DECREF(parked);
    }
    return NULL;
}

PyObject *
Future_await(PyObject *op)
{
    State *state = future_state(op);
    if (state == NULL) {
        return NULL;
    }
    BaseFuture *fut = BaseFuture_CAST(op);
    if (fut->loop == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Future object is not initialized.");
        return NULL;
    }
    LoopObject *loop = coro_is_loop(state, fut->loop) ? LoopObject_CAST(fut->loop) : NULL;
    CoroPart *part = loop == NULL ? NULL : coro_part_here(loop);
    AwaiterObject *it = part == NULL ? NULL : unpark_awaiter(part);
    if (UNLIKELY(it == NULL)) {
        it = PyObject_GC_New(AwaiterObject, state->coro->AwaiterType);
        if (it == NULL) {
            return NULL;
        }
        it->fut = NULL;
        it->loop = NULL;
        PyObject_GC_Track(it);
    }
    it->fut = (BaseFuture *)Py_NewRef(op);
    it->loop = (LoopObject *)Py_XNewRef((PyObject *)loop);
    it->kept_exception = false;
    return (PyObject *)it;
}

/* One step, as far as it needs the future's lock: `*done` says whether the future is, and then the result is set unless
   result() has to say it. -1 with an exception. */
static int
step_lock_held(BaseFuture *fut, bool *done, PyObject **result)
{
    *done = fut->state != FUTURE_PENDING;
    if (*done) {
        if (LIKELY(fut->state == FUTURE_FINISHED && fut->exception == NULL)) {
            fut->log_tb = 0;
            *result = Py_NewRef(fut->result);
        }
        return 0;
    }
    if (fut->blocking) {
        PyErr_SetString(PyExc_RuntimeError, "await wasn't used with future");
        return -1;
    }
    fut->blocking = 1;
    *result = Py_NewRef((PyObject *)fut);
    return 0;
}

/* New reference to the future of an iterator, NULL when it is exhausted. */
static BaseFuture *
future_of(AwaiterObject *it)
{
    PyObject *fut;
    FL_BEGIN_CRITICAL_SECTION(it);
    fut = Py_XNewRef((PyObject *)it->fut);
    FL_END_CRITICAL_SECTION();
    return (BaseFuture *)fut;
}

/* Ends the iteration. */
static void
exhaust(AwaiterObject *it)
{
    BaseFuture *fut;
    FL_BEGIN_CRITICAL_SECTION(it);
    fut = it->fut;
    it->fut = NULL;
    FL_END_CRITICAL_SECTION();
    Py_XDECREF((PyObject *)fut);
}

/* One step of the iteration. An exhausted iterator fails without an exception, as the standard one does. */
static PySendResult
Awaiter_am_send(PyObject *op, PyObject *Py_UNUSED(value), PyObject **result)
{
    AwaiterObject *it = AwaiterObject_CAST(op);
    BaseFuture *fut = future_of(it);
    *result = NULL;
    if (fut == NULL) {
        return PYGEN_ERROR;
    }
    int err;
    bool done;
    FL_BEGIN_CRITICAL_SECTION(fut);
    err = step_lock_held(fut, &done, result);
    FL_END_CRITICAL_SECTION();
    if (err == 0 && done) {
        exhaust(it);
        if (UNLIKELY(*result == NULL)) {
            /* result() raises as the running version does. */
            CoroState *coro = coro_of_exact(op);
            *result = coro == NULL ? NULL : PyObject_CallOneArg(coro->future_result, (PyObject *)fut);
        }
    }
    Py_DECREF((PyObject *)fut);
    if (*result == NULL) {
        return PYGEN_ERROR;
    }
    return done ? PYGEN_RETURN : PYGEN_NEXT;
}

/* May this StopIteration, which only the cache holds, be raised again? Its arguments are filled in place. */
static bool
is_unused(PyObject *exc)
{
    PyBaseExceptionObject *base = (PyBaseExceptionObject *)exc;
    return is_unshared(exc) && base->traceback == NULL && base->context == NULL && base->cause == NULL &&
           base->dict == NULL && PyTuple_CheckExact(base->args) && is_unshared(base->args) &&
           PyTuple_GET_SIZE(base->args) == 1;
}

/* Puts another value in; what it held is dropped last. Steals two references. */
ALWAYS_INLINE void
refill(PyObject *exc, PyObject *value)
{
    PyObject *args = ((PyBaseExceptionObject *)exc)->args;
    PyObject *first = PyTuple_GET_ITEM(args, 0);
    PyObject *second = ((PyStopIterationObject *)exc)->value;
    PyTuple_SET_ITEM(args, 0, value);
    if (PyType_IS_GC(Py_TYPE(value)) && UNLIKELY(!PyObject_GC_IsTracked(args))) {
        /* The collector left it out when it held nothing but None. */
        PyObject_GC_Track(args);
    }
    ((PyStopIterationObject *)exc)->value = value;
    Py_DECREF(first);
    Py_XDECREF(second);
}

/* Raises StopIteration(value); steals `value`. */
static void
raise_stop_iteration(PyObject *value)
{
    /* A tuple is a value like any other: it must not become the arguments. */
    PyObject *exc = PyObject_CallOneArg(PyExc_StopIteration, value);
    Py_DECREF(value);
    if (exc != NULL) {
        compat_restore_exception(exc);
    }
}

/* The same for a future that gave None, as the iterator of the running asyncio does: whether None is an argument of the
   exception depends on the release (3.13.2 changed it). */
static void
raise_stop_with_none(AwaiterObject *it, BaseFuture *fut)
{
    CoroState *coro = coro_of_exact((PyObject *)it);
    PyObject *standard = coro == NULL ? NULL : coro->base_future->tp_as_async->am_await((PyObject *)fut);
    if (standard != NULL) {
        PyObject *result = Py_TYPE(standard)->tp_iternext(standard);
        Py_XDECREF(result);
        Py_DECREF(standard);
    }
    if (!PyErr_Occurred()) {
        PyErr_SetNone(PyExc_StopIteration);
    }
}

/* raise_stop_iteration(), with the exception that the loop keeps for it where there is one; the iterator empties it when
   it dies, which is right after the value was taken, unless somebody iterates by hand. */
static void
raise_result(AwaiterObject *it, PyObject *value)
{
    CoroPart *part = it->loop == NULL ? NULL : coro_part_here(it->loop);
    PyObject *exc = part == NULL ? NULL : part->stop_iteration;
    if (LIKELY(exc != NULL && is_unused(exc))) {
        it->kept_exception = true;
        Py_INCREF(exc);
        refill(exc, Py_NewRef(value));
        compat_restore_exception(exc);
        return;
    }
    /* One for the next time. Where nothing runs, the collector may close the loop meanwhile. */
    exc = part == NULL ? NULL : PyObject_CallOneArg(PyExc_StopIteration, Py_None);
    PyErr_Clear();
    part = exc == NULL ? NULL : coro_part_here(it->loop);
    if (part != NULL) {
        Py_XSETREF(part->stop_iteration, exc);
    } else {
        Py_XDECREF(exc);
    }
    raise_stop_iteration(value);
}

/* Does it matter to nobody, and take little memory, if the value is kept a while longer? */
static inline bool
may_be_kept(PyObject *value)
{
#if HAVE_COMPACT_LONG
    return PyLong_CheckExact(value) && PyUnstable_Long_IsCompact((PyLongObject *)value);
#else
    return PyLong_CheckExact(value) && Py_ABS(Py_SIZE(value)) <= 1;
#endif
}

/* After use. One that somebody holds, or has put a traceback on, is given up. */
static void
empty_kept_exception(CoroPart *part)
{
    PyObject *exc = part->stop_iteration;
    if (exc == NULL) {
        return;
    }
    if (UNLIKELY(!is_unused(exc))) {
        Py_CLEAR(part->stop_iteration);
    } else if (!may_be_kept(((PyStopIterationObject *)exc)->value)) {
        refill(exc, Py_NewRef(Py_NewRef(Py_None)));
    }
}

#if !HAVE_FREE_THREADING
/* An error, or an iteration that has ended. */
NEVER_INLINE PyObject *
fail_to_iterate(PyObject *op)
{
    PyObject *result;
    (void)Awaiter_am_send(op, Py_None, &result);
    return result;
}
#endif

static PyObject *
Awaiter_iternext(PyObject *op)
{
    AwaiterObject *it = AwaiterObject_CAST(op);
#if HAVE_FREE_THREADING
    PyObject *result;
    /* The end of an iteration that gives None needs no exception, but somebody may want to see it. */
    BaseFuture *seen = UNLIKELY(compat_exceptions_are_seen()) ? future_of(it) : NULL;
    if (Awaiter_am_send(op, Py_None, &result) == PYGEN_RETURN) {
        if (result != Py_None) {
            raise_result(it, Py_NewRef(result));
        } else if (seen != NULL) {
            raise_stop_with_none(it, seen);
        }
        Py_CLEAR(result);
    }
    Py_XDECREF((PyObject *)seen);
    return result;
#else
    /* What nearly every await does, without the calls: it begins, and it ends with a result. */
    BaseFuture *fut = it->fut;
    if (LIKELY(fut != NULL)) {
        if (fut->state == FUTURE_PENDING && LIKELY(!fut->blocking)) {
            fut->blocking = 1;
            return Py_NewRef((PyObject *)fut);
        }
        if (fut->state == FUTURE_FINISHED && LIKELY(fut->exception == NULL)) {
            fut->log_tb = 0;
            it->fut = NULL;
            if (fut->result != Py_None) {
                raise_result(it, Py_NewRef(fut->result));
            } else if (UNLIKELY(compat_exceptions_are_seen())) {
                raise_stop_with_none(it, fut);
            }
            Py_DECREF((PyObject *)fut);
            return NULL;
        }
    }
    return fail_to_iterate(op);
#endif
}

PyDoc_STRVAR(Awaiter_send_doc, "send($self, value, /)\n--\n\nResume; the value is not looked at.");

static PyObject *
Awaiter_send(PyObject *op, PyObject *value)
{
    PyObject *result;
    BaseFuture *fut = future_of(AwaiterObject_CAST(op));
    bool returned = Awaiter_am_send(op, value, &result) == PYGEN_RETURN;
    if (returned && result == Py_None) {
        Py_CLEAR(result);
        raise_stop_with_none(AwaiterObject_CAST(op), fut);
    } else if (returned) {
        raise_stop_iteration(result);
        result = NULL;
    }
    Py_XDECREF((PyObject *)fut);
    if (result == NULL && !PyErr_Occurred()) {
        PyErr_SetNone(PyExc_StopIteration);
    }
    return result;
}

PyDoc_STRVAR(Awaiter_throw_doc, "throw($self, type, value=None, traceback=None, /)\n--\n\n"
                                "Raise an exception and end the iteration.");

/* visitproc: ends the visit with 1 at `arg`. */
static int
is_same(PyObject *op, void *arg)
{
    return op == arg;
}

/* Rare, and its checks and warnings differ between versions: a standard iterator does it. */
static PyObject *
Awaiter_throw(PyObject *op, PyObject *args)
{
    AwaiterObject *it = AwaiterObject_CAST(op);
    CoroState *coro = coro_of_exact(op);
    if (coro == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the module fastloop._core is gone");
        return NULL;
    }
    BaseFuture *fut = future_of(it);
    PyObject *standard = fut == NULL ? PyObject_CallMethod(coro->helpers, "fresh_generator", NULL)
                                     : coro->base_future->tp_as_async->am_await((PyObject *)fut);
    PyObject *method = standard == NULL ? NULL : PyObject_GetAttr(standard, coro->str_throw);
    PyObject *result = method == NULL ? NULL : PyObject_Call(method, args, NULL);
    Py_XDECREF(method);
    if (standard != NULL && PyErr_Occurred() && fut != NULL) {
        /* The future is given up only if the arguments were right: then the standard one gave it up, too. */
        PyObject *exc = compat_take_exception();
        if (Py_TYPE(standard)->tp_traverse(standard, is_same, fut) == 0) {
            exhaust(it);
        }
        compat_restore_exception(exc);
    }
    Py_XDECREF((PyObject *)fut);
    Py_XDECREF(standard);
    return result;
}

PyDoc_STRVAR(Awaiter_close_doc, "close($self, /)\n--\n\nEnd the iteration.");

static PyObject *
Awaiter_close(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    exhaust(AwaiterObject_CAST(op));
    Py_RETURN_NONE;
}

/* No tp_clear: what cycles go through is the future, which clears itself. The collector could otherwise clear an object
   of its garbage that was parked, and is in use again, meanwhile. */
static int
Awaiter_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT((PyObject *)AwaiterObject_CAST(op)->fut);
    Py_VISIT((PyObject *)AwaiterObject_CAST(op)->loop);
    return 0;
}

/* Keeps the object, which has just lost its last reference, for the next await. False if there is no room for it. */
static bool
park_awaiter(AwaiterObject *it, CoroPart *part)
{
    if (HAVE_FREE_THREADING || part == NULL || !freelist_push(&part->free_awaiters, (PyObject *)it)) {
        return false;
    }
    _Py_NewReference((PyObject *)it);
    return true;
}

static void
Awaiter_dealloc(PyObject *op)
{
    AwaiterObject *it = AwaiterObject_CAST(op);
    PyTypeObject *type = Py_TYPE(op);
    LoopObject *loop = it->loop;
    PyObject *fut = (PyObject *)it->fut;
    bool kept_exception = it->kept_exception;
    it->loop = NULL;
    it->fut = NULL;
    it->kept_exception = false;
    CoroPart *part = loop == NULL ? NULL : coro_part_here(loop);
    if (!park_awaiter(it, part)) {
        PyObject_GC_UnTrack(op);
        PyObject_GC_Del(op);
        Py_DECREF(type);
    }
    Py_XDECREF(fut);
    if (kept_exception) {
        assert(loop != NULL);
        part = coro_part_here(loop);
        if (part != NULL) {
            empty_kept_exception(part);
        }
    }
    Py_XDECREF((PyObject *)loop);
}

static PyMethodDef Awaiter_methods[] = {
    {"send", Awaiter_send, METH_O, Awaiter_send_doc},
    {"throw", Awaiter_throw, METH_VARARGS, Awaiter_throw_doc},
    {"close", Awaiter_close, METH_NOARGS, Awaiter_close_doc},
    {NULL},
};

static PyType_Slot Awaiter_slots[] = {
    {Py_tp_dealloc, Awaiter_dealloc},
    {Py_tp_traverse, Awaiter_traverse},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, Awaiter_iternext},
    {Py_tp_methods, Awaiter_methods},
    {Py_am_send, Awaiter_am_send},
    {0, NULL},
};

PyType_Spec Awaiter_spec = {
    .name = "fastloop._core.FutureIter",
    .basicsize = sizeof(AwaiterObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Awaiter_slots,
};

/* ---- the wake-up ---- */

/* Called by a loop that is not ours, in debug mode, or by hand: the caller has entered the context. */
static PyObject *
Wakeup_vectorcall(PyObject *op, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    if (PyVectorcall_NARGS(nargsf) != 1 || (kwnames != NULL && PyTuple_GET_SIZE(kwnames) != 0)) {
        PyErr_SetString(PyExc_TypeError, "task_wakeup() takes exactly one argument");
        return NULL;
    }
    if (WakeupObject_CAST(op)->task == NULL) {
        Py_RETURN_NONE;
    }
    PyObject *task = Py_NewRef(WakeupObject_CAST(op)->task);
    State *state = state_of_object(task);
    int err = -1;
    FL_BEGIN_CRITICAL_SECTION(task);
    if (state != NULL) {
        err = task_wakeup(state, BaseTask_CAST(task), args[0]);
    }
    FL_END_CRITICAL_SECTION();
    Py_DECREF(task);
    if (err < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyObject *
wakeup_new(State *state, PyObject *task)
{
    CoroPart *part = future_free_lists(state, BaseFuture_CAST(task)->loop);
    PyObject *parked = part == NULL ? NULL : freelist_pop(&part->free_wakeups);
    if (parked != NULL) {
        if (LIKELY(is_unshared(parked))) {
            WakeupObject_CAST(parked)->task = Py_NewRef(task);
            return parked;
        }
        /* Found by gc.get_objects(), for one. */
        Py_DECREF(parked);
    }
    WakeupObject *wakeup = PyObject_GC_New(WakeupObject, state->coro->WakeupType);
    if (wakeup == NULL) {
        return NULL;
    }
    wakeup->vectorcall = Wakeup_vectorcall;
    wakeup->task = Py_NewRef(task);
    PyObject_GC_Track(wakeup);
    return (PyObject *)wakeup;
}

void
wakeup_release(PyObject *op, CoroPart *part)
{
    if (LIKELY(part != NULL && is_unshared(op)) && LIKELY(freelist_push(&part->free_wakeups, op))) {
        PyObject *task = WakeupObject_CAST(op)->task;
        WakeupObject_CAST(op)->task = NULL;
        Py_DECREF(task);
        return;
    }
    Py_DECREF(op);
}

static int
Wakeup_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(WakeupObject_CAST(op)->task);
    return 0;
}

static void
Wakeup_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    PyObject *task = WakeupObject_CAST(op)->task;
    WakeupObject_CAST(op)->task = NULL;
    PyObject_GC_Del(op);
    Py_DECREF(type);
    Py_XDECREF(task);
}

/* The task's type; a parked object, which nobody should find, has none. */
static PyTypeObject *
type_of_task(PyObject *op)
{
    PyObject *task = WakeupObject_CAST(op)->task;
    return Py_TYPE(task == NULL ? op : task);
}

static PyObject *
Wakeup_repr(PyObject *op)
{
    return PyUnicode_FromFormat("<built-in method task_wakeup of %s object at %p>", type_of_task(op)->tp_name,
                                WakeupObject_CAST(op)->task);
}

static PyObject *
get_name(PyObject *Py_UNUSED(op), void *Py_UNUSED(closure))
{
    return PyUnicode_FromString("task_wakeup");
}

static PyObject *
get_qualified_name(PyObject *op, void *Py_UNUSED(closure))
{
    PyObject *owner = PyType_GetQualName(type_of_task(op));
    PyObject *name = owner == NULL ? NULL : PyUnicode_FromFormat("%U.task_wakeup", owner);
    Py_XDECREF(owner);
    return name;
}

static PyObject *
get_task(PyObject *op, void *Py_UNUSED(closure))
{
    PyObject *task = WakeupObject_CAST(op)->task;
    return Py_NewRef(task == NULL ? Py_None : task);
}

static PyGetSetDef Wakeup_getset[] = {
    {"__name__", get_name, NULL, NULL, NULL},
    {"__qualname__", get_qualified_name, NULL, NULL, NULL},
    {"__self__", get_task, NULL, "the task", NULL},
    {NULL},
};

static PyMemberDef Wakeup_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(WakeupObject, vectorcall), READONLY, NULL},
    {NULL},
};

static PyType_Slot Wakeup_slots[] = {
    {Py_tp_dealloc, Wakeup_dealloc},
    {Py_tp_traverse, Wakeup_traverse},
    {Py_tp_repr, Wakeup_repr},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_getset, Wakeup_getset},
    {Py_tp_members, Wakeup_members},
    {0, NULL},
};

PyType_Spec Wakeup_spec = {
    .name = "fastloop._core.task_wakeup",
    .basicsize = sizeof(WakeupObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_HAVE_VECTORCALL,
    .slots = Wakeup_slots,
};
