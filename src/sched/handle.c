/* Handle and TimerHandle. Instances are made by the loop only and recycled through its free lists.

   asyncio promises nothing to a thread that cancels or looks at a handle of another one's loop; without a GIL, critical
   sections of the handle keep such a thread from damaging anything.

   Ownership: a handle holds its loop; the ready queue or the heap holds the handle. cancel() drops the callback and
   its arguments at once and takes a timer out of the heap. */

#include "sched/handle.h"

#include <math.h>

#include "base/contexts.h"
#include "sched/loop.h"

#define HandleObject_CAST(op) ((HandleObject *)(op))
#define TimerHandleObject_CAST(op) ((TimerHandleObject *)(op))

/* ---- the base's slots that are used ---- */

static Py_ssize_t
find_slot(PyObject *type, const char *name)
{
    Py_ssize_t offset = -1;
    PyObject *descriptor = PyObject_GetAttrString(type, name);
    if (descriptor != NULL && Py_IS_TYPE(descriptor, &PyMemberDescr_Type)) {
        offset = ((PyMemberDescrObject *)descriptor)->d_member->offset;
    }
    if (offset < 0) {
        PyErr_Format(PyExc_ImportError, "fastloop does not know this Python's %R", type);
    }
    Py_XDECREF(descriptor);
    return offset;
}

int
handle_find_slots(State *state)
{
    state->handle_source_traceback_at = find_slot(state->asyncio_Handle, "_source_traceback");
    state->handle_repr_at = find_slot(state->asyncio_Handle, "_repr");
    return state->handle_source_traceback_at < 0 || state->handle_repr_at < 0 ? -1 : 0;
}

/* Where a handle was made; NULL outside of debug mode. */
static inline PyObject **
source_traceback_of(HandleObject *handle, State *state)
{
    return (PyObject **)((char *)handle + state->handle_source_traceback_at);
}

/* What cancel() keeps in debug mode. */
static inline PyObject **
repr_of(HandleObject *handle, State *state)
{
    return (PyObject **)((char *)handle + state->handle_repr_at);
}

/* ---- making ---- */

static inline FreeList *
free_list_of(LoopObject *loop, PyTypeObject *type)
{
    return type == loop->state->HandleType ? &loop->free_handles : &loop->free_timers;
}

static HandleObject *
take_parked(LoopObject *loop, PyTypeObject *type)
{
    PyObject *handle = freelist_pop(free_list_of(loop, type));
    if (handle != NULL) {
        (void)PyObject_Init(handle, type);
    }
    return (HandleObject *)handle;
}

void
handle_track(PyObject *handle)
{
    if (!PyObject_GC_IsTracked(handle)) {
        PyObject_GC_Track(handle);
    }
}

/* An untracked handle with everything but the type's own fields set. */
static HandleObject *
make(LoopObject *loop, PyTypeObject *type, PyObject *callback, PyObject *const *args, Py_ssize_t nargs,
     PyObject *context)
{
    PyObject *args_tuple = NULL;
    if (nargs > HANDLE_INLINE_ARGS) {
        args_tuple = PyTuple_New(nargs);
        if (args_tuple == NULL) {
            return NULL;
        }
        for (Py_ssize_t i = 0; i < nargs; i++) {
            PyTuple_SET_ITEM(args_tuple, i, Py_NewRef(args[i]));
        }
        nargs = 0;
    }
    HandleObject *handle = loop_is_held_here(loop) ? take_parked(loop, type) : NULL;
    if (handle == NULL) {
        handle = (HandleObject *)type->tp_alloc(type, 0);
        if (handle == NULL) {
            Py_XDECREF(args_tuple);
            return NULL;
        }
        PyObject_GC_UnTrack(handle);
    }
    handle->callback = NULL;
    handle->context = NULL;
    if (context != NULL && context != Py_None) {
        /* One that stands for a new one is made by context_of(). */
        handle->context = context == loop->state->contexts.unused ? NULL : Py_NewRef(context);
    } else if (!context_current_is_empty(loop->no_variables)) {
        handle->context = PyContext_CopyCurrent();
        if (handle->context == NULL) {
            Py_XDECREF(args_tuple);
            Py_DECREF(handle);
            return NULL;
        }
    }
    handle->loop = (LoopObject *)Py_NewRef(loop);
    handle->callback = Py_NewRef(callback);
    for (Py_ssize_t i = 0; i < nargs; i++) {
        handle->args[i] = Py_NewRef(args[i]);
    }
    handle->nargs = (unsigned char)nargs;
    handle->args_tuple = args_tuple;
    handle->cancelled = false;
    handle->threadsafe = false;
    return handle;
}

int
handle_set_traceback(LoopObject *loop, HandleObject *handle)
{
    PyObject *stack = PyObject_CallMethodNoArgs((PyObject *)loop, loop->state->str__extract_stack);
    if (stack == NULL) {
        return -1;
    }
    Py_XSETREF(*source_traceback_of(handle, loop->state), stack);
    return 0;
}

HandleObject *
handle_new_untracked(LoopObject *loop, PyObject *callback, PyObject *const *args, Py_ssize_t nargs, PyObject *context)
{
    HandleObject *handle = make(loop, loop->state->HandleType, callback, args, nargs, context);
    if (handle != NULL && UNLIKELY(loop->debug) && handle_set_traceback(loop, handle) < 0) {
        Py_CLEAR(handle);
    }
    return handle;
}

HandleObject *
handle_new(LoopObject *loop, PyObject *callback, PyObject *const *args, Py_ssize_t nargs, PyObject *context)
{
    HandleObject *handle = handle_new_untracked(loop, callback, args, nargs, context);
    if (handle != NULL) {
        handle_track((PyObject *)handle);
    }
    return handle;
}

TimerHandleObject *
timer_handle_new(LoopObject *loop, double when, PyObject *when_object, PyObject *callback, PyObject *const *args,
                 Py_ssize_t nargs, PyObject *context)
{
    TimerHandleObject *handle =
        TimerHandleObject_CAST(make(loop, loop->state->TimerHandleType, callback, args, nargs, context));
    if (handle == NULL) {
        return NULL;
    }
    PyObject_GC_Track(handle);
    handle->when = when;
    handle->when_object = Py_XNewRef(when_object);
    if (UNLIKELY(isnan(when))) {
        /* The standard heap takes a NaN for due at once, and gives it back. */
        handle->when = -INFINITY;
        if (when_object == NULL) {
            handle->when_object = PyFloat_FromDouble(when);
        }
        if (handle->when_object == NULL) {
            Py_DECREF(handle);
            return NULL;
        }
    }
    if (UNLIKELY(loop->debug) && handle_set_traceback(loop, &handle->base) < 0) {
        Py_CLEAR(handle);
    }
    return handle;
}

/* ---- contexts ---- */

/* The context of a handle, made now if nobody has asked for it yet: an empty one. NULL with MemoryError, or without an
   exception when the collector has cleared the handle. */
static PyObject *
context_of(HandleObject *handle)
{
    PyObject *context;
    FL_BEGIN_CRITICAL_SECTION(handle);
    context = Py_XNewRef(handle->context);
    FL_END_CRITICAL_SECTION();
    LoopObject *loop = handle->loop;
    if (context != NULL || loop == NULL) {
        return context;
    }
    if (!HAVE_FREE_THREADING) {
        context = loop->spare_context;
        loop->spare_context = NULL;
    }
    /* Somebody may have found it meanwhile, by gc.get_objects() for one. */
    if (context == NULL || UNLIKELY(!context_is_spare(context, loop->no_variables))) {
        Py_XDECREF(context);
        context = PyContext_New();
        if (context == NULL) {
            return NULL;
        }
    }
    FL_BEGIN_CRITICAL_SECTION(handle);
    if (handle->context == NULL) {
        handle->context = Py_NewRef(context);
    } else {
        Py_SETREF(context, Py_NewRef(handle->context));
    }
    FL_END_CRITICAL_SECTION();
    return context;
}

/* Keeps the context of a handle that has run for the next one, if nobody can tell. */
static inline void
spare_context(LoopObject *loop, HandleObject *handle)
{
    if (!HAVE_FREE_THREADING && loop->spare_context == NULL && handle->context != NULL && !loop->closed &&
        context_is_spare(handle->context, loop->no_variables)) {
        loop->spare_context = handle->context;
        handle->context = NULL;
    }
}

/* ---- running ---- */

/* What a handle calls, with references of its own: the callee may cancel the handle, and so may another thread. */
typedef struct {
    PyObject *callback;                      /* NULL when there is nothing to call any more */
    PyObject *context;                       /* NULL while it is not needed */
    PyObject *tuple;                         /* the arguments, or NULL ... */
    PyObject *stack[1 + HANDLE_INLINE_ARGS]; /* ... and then they are here, behind one free place */
    int nargs;
} Call;

static inline void
get_call(HandleObject *handle, Call *call)
{
    call->callback = call->context = NULL;
    FL_BEGIN_CRITICAL_SECTION(handle);
    if (LIKELY(!handle->cancelled && handle->callback != NULL)) {
        call->callback = Py_NewRef(handle->callback);
        call->tuple = Py_XNewRef(handle->args_tuple);
        call->nargs = handle->nargs;
        for (int i = 0; i < handle->nargs; i++) {
            call->stack[1 + i] = Py_NewRef(handle->args[i]);
        }
    }
    FL_END_CRITICAL_SECTION();
}

static inline void
drop_call(Call *call)
{
    for (int i = 0; i < call->nargs; i++) {
        Py_DECREF(call->stack[1 + i]);
    }
    Py_XDECREF(call->tuple);
    Py_XDECREF(call->context);
    Py_DECREF(call->callback);
}

/* context.run(callback, *args) for a context that is none, which only fails or not when it is used. */
static PyObject *
call_in_foreign_context(Call *call)
{
    Py_ssize_t nargs = call->tuple == NULL ? call->nargs : PyTuple_GET_SIZE(call->tuple);
    PyObject *run = PyObject_GetAttrString(call->context, "run");
    PyObject *args = run == NULL ? NULL : PyTuple_New(nargs + 1);
    PyObject *result = NULL;
    if (args != NULL) {
        PyTuple_SET_ITEM(args, 0, Py_NewRef(call->callback));
        for (Py_ssize_t i = 0; i < nargs; i++) {
            PyObject *value = call->tuple == NULL ? call->stack[1 + i] : PyTuple_GET_ITEM(call->tuple, i);
            PyTuple_SET_ITEM(args, i + 1, Py_NewRef(value));
        }
        result = PyObject_CallObject(run, args);
    }
    Py_XDECREF(args);
    Py_XDECREF(run);
    return result;
}

/* Is it a function of asyncio that there may be a native version of? */
static inline bool
is_known(State *state, Call *call)
{
    if (!PyFunction_Check(call->callback) || call->tuple != NULL) {
        return false;
    }
    PyObject *code = PyFunction_GET_CODE(call->callback);
    return code == state->known_codes[KNOWN_GATHER] || code == state->known_codes[KNOWN_COPY] ||
           code == state->known_codes[KNOWN_SUBMIT];
}

/* Calls callback(*args) in the context of the handle; `by` as for context_enter(). */
static PyObject *
call_in_context(LoopObject *loop, const ContextSwitch *by, HandleObject *handle, Call *call)
{
    call->context = context_of(handle);
    if (UNLIKELY(call->context == NULL)) {
        return NULL;
    }
    if (UNLIKELY(!PyContext_CheckExact(call->context))) {
        return call_in_foreign_context(call);
    }
    PyObject *result = NULL;
    if (context_enter(by, call->context) == 0) {
        int known = is_known(loop->state, call)
                        ? loop->state->run_known(loop, call->callback, call->stack + 1, call->nargs)
                        : 0;
        if (known != 0) {
            result = known < 0 ? NULL : Py_NewRef(Py_None);
        } else if (call->tuple != NULL) {
            result = PyObject_Call(call->callback, call->tuple, NULL);
        } else {
            size_t nargsf = (size_t)call->nargs | PY_VECTORCALL_ARGUMENTS_OFFSET;
            result = PyObject_Vectorcall(call->callback, call->stack + 1, nargsf, NULL);
        }
        if (context_exit(by, call->context) < 0) {
            Py_CLEAR(result);
        }
    }
    return result;
}

/* Passes an exception to loop._report_handle_error(handle, exc), which builds the standard context. -1 with one that ends
   the run. */
static int
report(LoopObject *loop, PyObject *handle, PyObject *exc)
{
    PyObject *before = loop_begin_handling(exc);
    PyObject *result =
        PyObject_CallMethodObjArgs((PyObject *)loop, loop->state->str__report_handle_error, handle, exc, NULL);
    loop_end_handling(before);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* The same with the exception that is set. */
static int
report_error(LoopObject *loop, PyObject *handle)
{
    if (loop_must_propagate()) {
        return -1;
    }
    PyObject *exc = compat_take_exception();
    int err = report(loop, handle, exc);
    Py_DECREF(exc);
    return err;
}

int
handle_report(LoopObject *loop, PyObject *exc, PyObject *callback, PyObject *arg, PyObject *context)
{
    HandleObject *handle =
        callback == NULL ? NULL : make(loop, loop->state->HandleType, callback, &arg, arg == NULL ? 0 : 1, context);
    if (handle == NULL) {
        /* For want of memory, then, without. */
        compat_restore_exception(Py_NewRef(exc));
        loop_report(loop, "Exception in callback", NULL);
        return 0;
    }
    PyObject_GC_Track(handle);
    int err = report(loop, (PyObject *)handle, exc);
    Py_DECREF(handle);
    return err;
}

/* Calls what the handle has to call. -1 with an exception that ends the run. */
static inline int
run_call(LoopObject *loop, const ContextSwitch *by, HandleObject *handle)
{
    State *state = loop->state;
    Call call;
    get_call(handle, &call);
    if (call.callback == NULL) {
        return 0;
    }
    int done = 0;
    if (call.callback == state->set_result_unless_cancelled && state->complete_future != NULL && call.nargs == 2 &&
        !context_is_watched(by)) {
        /* The end of an asyncio.sleep(): nothing of it can see the context. */
        done = state->complete_future(state, call.stack[1], call.stack[2]);
    }
    if (done == 0) {
        PyObject *result = call_in_context(loop, by, handle, &call);
        done = result == NULL ? -1 : 1;
        Py_XDECREF(result);
    }
    int err = done < 0 ? report_error(loop, (PyObject *)handle) : 0;
    drop_call(&call);
    spare_context(loop, handle);
    return err;
}

int
handle_run(LoopObject *loop, PyObject *owner, PyObject *Py_UNUSED(arg))
{
    int err = run_call(loop, &loop->context_switch, HandleObject_CAST(owner));
    if (UNLIKELY(Py_REFCNT(owner) > 1)) {
        handle_track(owner);
    }
    return err;
}

/* With a GIL the lock is only taken for the others' sake: they take it before they let go of the GIL to wait. */
int /* GCOV_EXCL_START: Python 3.14 and later */
handle_run_threadsafe(LoopObject *loop, PyObject *owner, PyObject *arg)
{
    HandleObject *handle = HandleObject_CAST(owner);
    Inbox *inbox = &loop->inbox;
    inbox_lock(inbox);
    atomic_store_explicit(&handle->running, true, memory_order_relaxed);
    inbox_unlock(inbox);
    int err = handle_run(loop, owner, arg);
    inbox_lock(inbox);
    atomic_store_explicit(&handle->running, false, memory_order_relaxed);
    bool waited_for = atomic_load_explicit(&inbox->handle_waiters, memory_order_relaxed) > 0;
    inbox_unlock(inbox);
    if (UNLIKELY(waited_for)) {
        uv_mutex_lock(&inbox->lock);
        uv_cond_broadcast(&inbox->handle_done);
        uv_mutex_unlock(&inbox->lock);
    }
    return err;
} /* GCOV_EXCL_STOP */

/* Waits while another thread runs the callback of a thread-safe handle, as asyncio's _ThreadSafeHandle does. */
static void
wait_while_running(HandleObject *handle)
{
    if (LIKELY(!handle->threadsafe) || handle->loop == NULL) {
        return;
    }
    /* GCOV_EXCL_START: Python 3.14 and later */
    Inbox *inbox = &handle->loop->inbox;
    uv_mutex_lock(&inbox->lock);
    /* It runs in the thread that holds the loop. */
    if (!handle->running || handle->loop->holder == compat_thread_ident()) {
        uv_mutex_unlock(&inbox->lock);
        return;
    }
    inbox->handle_waiters++;
    PyThreadState *thread_state = PyEval_SaveThread();
    while (handle->running) {
        uv_cond_wait(&inbox->handle_done, &inbox->lock);
    }
    inbox->handle_waiters--;
    uv_mutex_unlock(&inbox->lock);
    PyEval_RestoreThread(thread_state);
    /* GCOV_EXCL_STOP */
}

int
handle_run_foreign(LoopObject *loop, PyObject *owner, PyObject *Py_UNUSED(arg))
{
    PyObject *cancelled = PyObject_GetAttr(owner, loop->state->str__cancelled);
    int skip = cancelled == NULL ? -1 : PyObject_IsTrue(cancelled);
    Py_XDECREF(cancelled);
    if (skip == 0) {
        PyObject *result = PyObject_CallMethodNoArgs(owner, loop->state->str__run);
        Py_XDECREF(result);
        skip = result == NULL ? -1 : 0;
    }
    return skip < 0 ? report_error(loop, owner) : 0;
}

/* ---- methods ---- */

/* Drops the callback and its arguments. */
static void
drop_callback(HandleObject *handle)
{
    PyObject *args[HANDLE_INLINE_ARGS], *callback, *tuple;
    int nargs;
    FL_BEGIN_CRITICAL_SECTION(handle);
    nargs = handle->nargs;
    for (int i = 0; i < nargs; i++) {
        args[i] = handle->args[i];
    }
    callback = handle->callback;
    tuple = handle->args_tuple;
    handle->nargs = 0;
    handle->callback = handle->args_tuple = NULL;
    FL_END_CRITICAL_SECTION();
    for (int i = 0; i < nargs; i++) {
        Py_DECREF(args[i]);
    }
    Py_XDECREF(tuple);
    Py_XDECREF(callback);
}

/* Sets `cancelled`; was it set before? */
static bool
mark_cancelled(HandleObject *handle)
{
    bool before;
    FL_BEGIN_CRITICAL_SECTION(handle);
    before = handle->cancelled;
    handle->cancelled = true;
    FL_END_CRITICAL_SECTION();
    return before;
}

static bool
is_cancelled(HandleObject *handle)
{
    bool cancelled;
    FL_BEGIN_CRITICAL_SECTION(handle);
    cancelled = handle->cancelled;
    FL_END_CRITICAL_SECTION();
    return cancelled;
}

/* Replaces a field that other threads may look at; steals the value. */
static void
replace(HandleObject *handle, PyObject **field, PyObject *value)
{
    PyObject *old;
    FL_BEGIN_CRITICAL_SECTION(handle);
    old = *field;
    *field = value;
    FL_END_CRITICAL_SECTION();
    Py_XDECREF(old);
}

PyDoc_STRVAR(Handle_cancel_doc, "cancel($self, /)\n--\n\n"
                                "Cancel the callback; does nothing if it was cancelled or has run.\n\n"
                                "See asyncio.Handle.cancel().");

static PyObject *
Handle_cancel(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    HandleObject *handle = HandleObject_CAST(op);
    wait_while_running(handle);
    if (handle->loop == NULL || mark_cancelled(handle)) {
        Py_RETURN_NONE;
    }
    if (UNLIKELY(handle->loop->debug)) {
        /* Kept for messages such as "Executing <Handle ...> took 2.5 seconds". */
        PyObject *repr = PyObject_Repr(op);
        if (repr == NULL) {
            return NULL;
        }
        replace(handle, repr_of(handle, handle->loop->state), repr);
    }
    if (handle->scheduled) {
        timers_remove(&handle->loop->timers, TimerHandleObject_CAST(op));
    }
    drop_callback(handle);
    Py_RETURN_NONE;
}

static PyObject *
Handle_cancelled(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    wait_while_running(HandleObject_CAST(op));
    return PyBool_FromLong(is_cancelled(HandleObject_CAST(op)));
}

static PyObject *
Handle_get_context(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    PyObject *context = context_of(HandleObject_CAST(op));
    return context != NULL || PyErr_Occurred() ? context : Py_NewRef(Py_None);
}

static PyObject *
Handle_run(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    LoopObject *loop = (LoopObject *)Py_XNewRef(HandleObject_CAST(op)->loop);
    if (loop == NULL) {
        Py_RETURN_NONE;
    }
    handle_track(op);
    /* Any thread may do this. */
    const ContextSwitch by = context_by_calls(loop->state);
    int err = run_call(loop, &by, HandleObject_CAST(op));
    Py_DECREF(loop);
    if (err < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
TimerHandle_when(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    TimerHandleObject *handle = TimerHandleObject_CAST(op);
    if (handle->when_object != NULL) {
        return Py_NewRef(handle->when_object);
    }
    return PyFloat_FromDouble(handle->when);
}

/* ---- the base's slots, by getters ---- */

/* New reference to a field, or to None. */
static PyObject *
new_or_none(HandleObject *handle, PyObject **field)
{
    PyObject *value;
    FL_BEGIN_CRITICAL_SECTION(handle);
    value = Py_NewRef(*field == NULL ? Py_None : *field);
    FL_END_CRITICAL_SECTION();
    return value;
}

static PyObject *
get_callback(PyObject *op, void *Py_UNUSED(closure))
{
    return new_or_none(HandleObject_CAST(op), &HandleObject_CAST(op)->callback);
}

/* The arguments as a tuple, made on demand and kept, for they are one object to everybody who looks. */
static PyObject *
args_lock_held(HandleObject *handle)
{
    if (handle->callback == NULL) {
        Py_RETURN_NONE;
    }
    if (handle->args_tuple == NULL) {
        PyObject *tuple = PyTuple_New(handle->nargs);
        if (tuple == NULL) {
            return NULL;
        }
        if (PyTuple_GET_SIZE(tuple) != handle->nargs || handle->args_tuple != NULL) {
            /* The collector ran something that cancelled the handle, or looked at it. */
            Py_DECREF(tuple);
            return args_lock_held(handle);
        }
        for (int i = 0; i < handle->nargs; i++) {
            PyTuple_SET_ITEM(tuple, i, Py_NewRef(handle->args[i]));
        }
        handle->args_tuple = tuple;
    }
    return Py_NewRef(handle->args_tuple);
}

static PyObject *
get_args(PyObject *op, void *Py_UNUSED(closure))
{
    PyObject *args;
    FL_BEGIN_CRITICAL_SECTION(op);
    args = args_lock_held(HandleObject_CAST(op));
    FL_END_CRITICAL_SECTION();
    return args;
}

static PyObject *
get_cancelled(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(is_cancelled(HandleObject_CAST(op)));
}

static PyObject *
get_loop(PyObject *op, void *Py_UNUSED(closure))
{
    return new_or_none(HandleObject_CAST(op), (PyObject **)&HandleObject_CAST(op)->loop);
}

static PyObject *
get_context(PyObject *op, void *Py_UNUSED(closure))
{
    return Handle_get_context(op, NULL);
}

static PyObject *
get_source_traceback(PyObject *op, void *Py_UNUSED(closure))
{
    HandleObject *handle = HandleObject_CAST(op);
    State *state = state_of_type(Py_TYPE(op));
    return state == NULL ? NULL : new_or_none(handle, source_traceback_of(handle, state));
}

static int
set_source_traceback(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    HandleObject *handle = HandleObject_CAST(op);
    State *state = state_of_type(Py_TYPE(op));
    if (state == NULL) {
        return -1;
    }
    replace(handle, source_traceback_of(handle, state), Py_XNewRef(value == Py_None ? NULL : value));
    return 0;
}

static PyObject *
get_repr(PyObject *op, void *Py_UNUSED(closure))
{
    HandleObject *handle = HandleObject_CAST(op);
    State *state = state_of_type(Py_TYPE(op));
    return state == NULL ? NULL : new_or_none(handle, repr_of(handle, state));
}

static int
set_repr(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    HandleObject *handle = HandleObject_CAST(op);
    State *state = state_of_type(Py_TYPE(op));
    if (state == NULL) {
        return -1;
    }
    replace(handle, repr_of(handle, state), Py_XNewRef(value == Py_None ? NULL : value));
    return 0;
}

static PyObject *
get_when(PyObject *op, void *Py_UNUSED(closure))
{
    return TimerHandle_when(op, NULL);
}

static PyObject *
get_scheduled(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(HandleObject_CAST(op)->scheduled);
}

/* ---- life ---- */

/* The index of the base's list of weak references among its slots. */
static inline size_t
weak_list_index(HandleObject *handle)
{
    size_t offset = (size_t)Py_TYPE(handle)->tp_weaklistoffset;
    return (offset - offsetof(HandleObject, base_slots)) / sizeof(PyObject *);
}

/* Has debug mode, or somebody through the base's own descriptor, set a slot of the base? All of them are NULL otherwise. */
static inline bool
has_base_slots(HandleObject *handle)
{
    uintptr_t any = 0;
    for (size_t i = 0; i < HANDLE_BASE_SLOTS; i++) {
        any |= (uintptr_t)handle->base_slots[i];
    }
    return any != 0;
}

static void
clear_base_slots(HandleObject *handle)
{
    for (size_t i = 0; i < HANDLE_BASE_SLOTS; i++) {
        if (i != weak_list_index(handle)) {
            Py_CLEAR(handle->base_slots[i]);
        }
    }
}

static int
Handle_traverse(PyObject *op, visitproc visit, void *arg)
{
    HandleObject *handle = HandleObject_CAST(op);
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(handle->loop);
    Py_VISIT(handle->callback);
    Py_VISIT(handle->context);
    for (int i = 0; i < handle->nargs; i++) {
        Py_VISIT(handle->args[i]);
    }
    Py_VISIT(handle->args_tuple);
    for (size_t i = 0; i < HANDLE_BASE_SLOTS; i++) {
        if (i != weak_list_index(handle)) {
            Py_VISIT(handle->base_slots[i]);
        }
    }
    return 0;
}

static int
Handle_clear(PyObject *op)
{
    HandleObject *handle = HandleObject_CAST(op);
    drop_callback(handle);
    Py_CLEAR(handle->context);
    if (UNLIKELY(has_base_slots(handle))) {
        clear_base_slots(handle);
    }
    Py_CLEAR(handle->loop);
    return 0;
}

static int
TimerHandle_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(TimerHandleObject_CAST(op)->when_object);
    return Handle_traverse(op, visit, arg);
}

static int
TimerHandle_clear(PyObject *op)
{
    Py_CLEAR(TimerHandleObject_CAST(op)->when_object);
    return Handle_clear(op);
}

/* Keeps an empty handle for the next one of its loop; false when it must be freed. */
static bool
park(LoopObject *loop, HandleObject *handle)
{
    return loop_is_held_here(loop) && !loop->closed &&
           freelist_push(free_list_of(loop, Py_TYPE(handle)), (PyObject *)handle);
}

static void
Handle_dealloc(PyObject *op)
{
    HandleObject *handle = HandleObject_CAST(op);
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    /* A handle whose argument is a handle, and so on: the chain must not use up the stack. */
    Py_TRASHCAN_BEGIN(op, type->tp_dealloc) if (*(PyObject **)((char *)op + type->tp_weaklistoffset) != NULL)
    {
        PyObject_ClearWeakRefs(op);
    }
    /* Our reference keeps the loop alive until the handle is parked with it. */
    LoopObject *loop = (LoopObject *)Py_XNewRef(handle->loop);
    (void)type->tp_clear(op);
    if (loop == NULL || !park(loop, handle)) {
        type->tp_free(op);
    }
    Py_DECREF(type);
    Py_XDECREF(loop);
    Py_TRASHCAN_END
}

void
handle_free_list_trim(LoopObject *loop, uint64_t elapsed_ns)
{
    freelist_delete(&loop->free_handles, freelist_excess(&loop->free_handles, elapsed_ns));
    freelist_delete(&loop->free_timers, freelist_excess(&loop->free_timers, elapsed_ns));
}

void
handle_free_list_clear(LoopObject *loop)
{
    freelist_delete(&loop->free_handles, loop->free_handles.count);
    freelist_delete(&loop->free_timers, loop->free_timers.count);
    freelist_free(&loop->free_handles);
    freelist_free(&loop->free_timers);
    Py_CLEAR(loop->spare_context);
}

static PyMethodDef Handle_methods[] = {
    {"cancel", Handle_cancel, METH_NOARGS, Handle_cancel_doc},
    {"cancelled", Handle_cancelled, METH_NOARGS,
     "cancelled($self, /)\n--\n\nReturn True if the callback was cancelled. See asyncio.Handle.cancelled()."},
    {"get_context", Handle_get_context, METH_NOARGS,
     "get_context($self, /)\n--\n\nReturn the contextvars.Context of the callback. See asyncio.Handle.get_context()."},
    {"_run", Handle_run, METH_NOARGS, NULL},
    {NULL},
};

static PyMethodDef TimerHandle_methods[] = {
    {"cancel", Handle_cancel, METH_NOARGS, Handle_cancel_doc},
    {"cancelled", Handle_cancelled, METH_NOARGS,
     "cancelled($self, /)\n--\n\nReturn True if the callback was cancelled. See asyncio.Handle.cancelled()."},
    {"get_context", Handle_get_context, METH_NOARGS,
     "get_context($self, /)\n--\n\nReturn the contextvars.Context of the callback. See asyncio.Handle.get_context()."},
    {"_run", Handle_run, METH_NOARGS, NULL},
    {"when", TimerHandle_when, METH_NOARGS,
     "when($self, /)\n--\n\nReturn the scheduled time, in seconds of loop.time(). See asyncio.TimerHandle.when()."},
    {NULL},
};

#define BASE_GETSETS                                                                            \
    {"_callback", get_callback, NULL, NULL, NULL}, {"_args", get_args, NULL, NULL, NULL},       \
        {"_cancelled", get_cancelled, NULL, NULL, NULL}, {"_loop", get_loop, NULL, NULL, NULL}, \
        {"_context", get_context, NULL, NULL, NULL},                                            \
        {"_source_traceback", get_source_traceback, set_source_traceback, NULL, NULL},          \
    {                                                                                           \
        "_repr", get_repr, set_repr, NULL, NULL                                                 \
    }

static PyGetSetDef Handle_getset[] = {BASE_GETSETS, {NULL}};

static PyGetSetDef TimerHandle_getset[] = {
    BASE_GETSETS,
    {"_when", get_when, NULL, NULL, NULL},
    {"_scheduled", get_scheduled, NULL, NULL, NULL},
    {NULL},
};

static PyType_Slot Handle_slots[] = {
    {Py_tp_doc, "A callback scheduled by fastloop; an asyncio.Handle. Made by loop.call_soon() only."},
    {Py_tp_methods, Handle_methods},
    {Py_tp_getset, Handle_getset},
    {Py_tp_traverse, Handle_traverse},
    {Py_tp_clear, Handle_clear},
    {Py_tp_dealloc, Handle_dealloc},
    {0, NULL},
};

static PyType_Slot TimerHandle_slots[] = {
    {Py_tp_doc, "A callback scheduled by fastloop for a time; an asyncio.TimerHandle. Made by loop.call_at() only."},
    {Py_tp_methods, TimerHandle_methods},
    {Py_tp_getset, TimerHandle_getset},
    {Py_tp_traverse, TimerHandle_traverse},
    {Py_tp_clear, TimerHandle_clear},
    {Py_tp_dealloc, Handle_dealloc},
    {0, NULL},
};

PyType_Spec Handle_spec = {
    .name = "fastloop._core.Handle",
    .basicsize = sizeof(HandleObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Handle_slots,
};

PyType_Spec TimerHandle_spec = {
    .name = "fastloop._core.TimerHandle",
    .basicsize = sizeof(TimerHandleObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = TimerHandle_slots,
};
