/* Future, and what tasks share with it. */

#ifndef FASTLOOP_CORO_FUTURE_H
#define FASTLOOP_CORO_FUTURE_H

#include "coro/coro.h"

extern PyType_Spec Future_spec;
void Future_dealloc(PyObject *op);
void Task_dealloc(PyObject *op);

/* Is the type of a future or task exactly ours? */
static inline bool
future_is_exact(PyObject *op)
{
    return Py_TYPE(op)->tp_dealloc == Future_dealloc || Py_TYPE(op)->tp_dealloc == Task_dealloc;
}

/* The state for an object whose type is exactly one of this module's; NULL late at exit. Cannot fail. */
static inline State *
state_of_exact(PyObject *op)
{
    PyObject *module = ((PyHeapTypeObject *)Py_TYPE(op))->ht_module;
    return module == NULL ? NULL : state_of_module(module);
}

static inline CoroState *
coro_of_exact(PyObject *op)
{
    State *state = state_of_exact(op);
    return state == NULL ? NULL : state->coro;
}

/* The state for an instance of one of our types or of a subclass; NULL with an exception. */
static inline State *
state_of_object(PyObject *op)
{
    return state_of_type(Py_TYPE(op));
}

/* The same for a future or task, quicker for exactly ours. */
static inline State *
future_state(PyObject *op)
{
    PyObject *module = future_is_exact(op) ? ((PyHeapTypeObject *)Py_TYPE(op))->ht_module : NULL;
    return module != NULL ? state_of_module(module) : state_of_object(op);
}

/* The state of a future that another thread may be completing. Changed with the future locked. */
static inline FutureState
future_state_of(BaseFuture *fut)
{
#if HAVE_FREE_THREADING
    return __atomic_load_n(&fut->state, __ATOMIC_ACQUIRE);
#else
    return fut->state;
#endif
}

static inline void
future_set_state(BaseFuture *fut, FutureState state)
{
#if HAVE_FREE_THREADING
    __atomic_store_n(&fut->state, state, __ATOMIC_RELEASE);
#else
    fut->state = state;
#endif
}

/* Is `op` a future whose struct may be used: exactly one of ours, or exactly a standard one? */
static inline bool
future_is_plain(CoroState *coro, PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    return type == coro->FutureType || type == coro->TaskType || type == coro->base_future || type == coro->base_task;
}

/* loop_check(), quicker for the usual type of loop. */
static inline bool
coro_is_loop(State *state, PyObject *op)
{
    return op != NULL && (Py_TYPE(op) == state->coro->loop_type || loop_check(state, op));
}

/* The loop of a future if records may be pushed into its ready queue directly, else NULL. */
static inline LoopObject *
loop_if_native(State *state, PyObject *loop)
{
    if (!coro_is_loop(state, loop)) {
        return NULL;
    }
    LoopObject *native = LoopObject_CAST(loop);
    /* In debug mode everything is a Handle: that is where the checks, tracebacks and slow logs are. */
    return native->native_call_soon && !native->debug ? native : NULL;
}

/* loop.call_soon(callback, arg, context=context) on any loop; `arg` may be NULL. */
int coro_call_soon(State *state, PyObject *loop, PyObject *callback, PyObject *arg, PyObject *context);

/* Is dict[name], in the namespace of an asyncio module, still `original`? Programs replace asyncio's types there. */
bool coro_look_up_unpatched(PyObject *dict, PyObject *name, PyTypeObject *original);
/* The same, where `item` is what is known of it. */
static inline bool
coro_is_unpatched(CoroState *coro, PyObject *dict, KnownItem *item, PyObject *name, PyTypeObject *original)
{
#if HAVE_DICT_ENTRIES
    if (LIKELY(dict_keeps(dict, name, (PyObject *)original, item))) {
        return true;
    }
    bool same = coro_look_up_unpatched(dict, name, original);
    if (same && coro->dicts_known) {
        dict_remember(dict, name, (PyObject *)original, item);
    }
    return same;
#else
    (void)coro;
    (void)item;
    return coro_look_up_unpatched(dict, name, original);
#endif
}

/* Sets the fields that every __init__ sets; `loop` may be None. */
int future_reset(State *state, PyObject *op, PyObject *loop);
/* In debug mode, remembers where the future was made. */
int future_remember_origin(CoroState *coro, BaseFuture *fut);

/* Completes a pending future and queues its callbacks; steals `result`. */
int future_finish(State *state, BaseFuture *fut, PyObject *result);
/* The same with an exception, which must be one that set_exception() takes as it is. */
int future_fail(State *state, BaseFuture *fut, PyObject *exc);
/* 0 if the future can be completed, -1 with the exception that says why not. */
int future_check_pending(State *state, BaseFuture *fut);
int future_cancel(State *state, BaseFuture *fut, PyObject *msg);
/* Queues the callbacks of a future that has just been completed. */
int future_notify(State *state, BaseFuture *fut);
/* State.wake_late: the same once more for those in which there are wake-ups left, for want of memory. */
void future_wake_late(LoopObject *loop);
/* add_done_callback(), where the future is not pending or has a callback already. */
int future_add_another_callback(State *state, BaseFuture *fut, PyObject *callback, PyObject *context);
static inline int
future_add_callback(State *state, BaseFuture *fut, PyObject *callback, PyObject *context)
{
    if (LIKELY(fut->state == FUTURE_PENDING && fut->callback0 == NULL && fut->callbacks == NULL)) {
        fut->callback0 = Py_NewRef(callback);
        fut->context0 = Py_NewRef(context);
        return 0;
    }
    return future_add_another_callback(state, fut, callback, context);
}
/* The CancelledError that a cancelled future raises; the one that cancelled it is handed over once. */
PyObject *future_make_cancelled_error(CoroState *coro, BaseFuture *fut);

/* The method of that name of asyncio's Future or Task, called with the same arguments. */
PyObject *future_call_base(PyTypeObject *base, PyObject *name, PyObject *op, PyObject *const *args, Py_ssize_t nargs,
                           PyObject *kwnames);

#if !HAVE_FREE_THREADING
/* See callbacks.c. Makes the context of the first callback, if there is none yet; -1 with an exception. */
int future_make_context(State *state, BaseFuture *fut);
PyObject *future_add_done_callback(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *future_get_callbacks(PyObject *op, void *closure);
int future_set_callbacks(PyObject *op, PyObject *value, void *closure);
#endif

#if HAVE_UNLOCKED_FUTURES
/* Calls the base's method with the object locked. The base types cannot be changed: `method` has what is theirs. */
PyObject *future_call_locked(PyObject *op, const UnlockedMethod *method, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames);
/* Getter and setter of an attribute, likewise; `closure` is the offset of its UnlockedMethod in CoroState. */
PyObject *future_get_locked(PyObject *op, void *closure);
int future_set_locked(PyObject *op, PyObject *value, void *closure);
#endif

/* Does freeing a value of this type, or NULL, run no code at all? */
static inline bool
future_value_is_simple(PyObject *value)
{
    return value == NULL || LIKELY(value == Py_None || PyLong_CheckExact(value)) || PyUnicode_CheckExact(value) ||
           PyBool_Check(value) || PyBytes_CheckExact(value) || PyFloat_CheckExact(value);
}

/* Does the future hold nothing besides its loop and a result? */
static inline bool
future_is_bare(BaseFuture *fut)
{
    const PyObject *const others[] = {
        fut->callback0,
        fut->context0,
        fut->callbacks,
        fut->exception,
        fut->exception_tb,
        fut->source_tb,
        fut->cancel_msg,
        fut->cancelled_exc,
#if HAVE_AWAITED_BY
        fut->awaited_by
#endif
    };
    uintptr_t any = 0;
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        any |= (uintptr_t)others[i];
    }
    return any == 0;
}

/* Drops all but the result and the loop. */
void future_clear_references(BaseFuture *fut);
/* Makes it, except for its loop, what it was when it was new; `bare` as above. */
static inline void
future_clear_fields(BaseFuture *fut, bool bare)
{
    if (!bare) {
        future_clear_references(fut);
    }
    Py_CLEAR(fut->result);
#if HAVE_AWAITED_BY
    fut->is_task = 0;
    fut->awaited_by_is_set = 0;
#endif
    fut->state = FUTURE_PENDING;
    fut->log_tb = 0;
    fut->blocking = 0;
}

/* Does asyncio.current_task() still answer with the task whose step is over? A wake-up leaves it to the future that it has
   woken for to do something about that, if it is freed and what it holds may run code. */
static inline bool
future_follows_step(LoopObject *native)
{
    return native != NULL && loop_is_held_here(native) && loop_follows_step(native);
}
/* Has asyncio.current_task() tell the truth then, if `op` is of exactly our types. */
void future_forget_step(PyObject *op);

/* asyncio's type that one of ours, which has this `dealloc`, is made from; `op` is of ours or of a subclass. */
static inline PyTypeObject *
future_base_of(PyObject *op, destructor dealloc)
{
    PyTypeObject *type = Py_TYPE(op);
    while (type->tp_dealloc != dealloc) {
        type = type->tp_base;
    }
    return type->tp_base;
}

/* May the object go to a free list? Its type must be exactly ours. */
static inline bool
future_is_recyclable(CoroState *coro, PyObject *op)
{
    return coro->recycle && !layout_has_weakrefs(op) && !layout_has_dict(op, coro->fresh_values) &&
           !PyObject_GC_IsFinalized(op);
}
/* The free lists of a loop, if this thread may touch them. */
static inline CoroPart *
coro_part_here(LoopObject *loop)
{
    return loop_is_held_here(loop) ? loop->coro : NULL;
}
/* The same for any object that is given as a loop. */
CoroPart *future_free_lists(State *state, PyObject *loop);
/* What asyncio's own type does for the end of an object of type `dealloc`. */
void future_dealloc_by_base(PyObject *op, destructor dealloc);

#endif
