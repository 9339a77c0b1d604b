/* add_done_callback(): the context of a callback is made when the callback runs.

   A new context that nobody has seen is like any other, so State.contexts.unused stands for it in the field of the base. Who
   asks for `_callbacks` finds a real one there, and so do the methods of the base that ours call; a handle that gets it makes
   one when it needs it. Only who calls a method of asyncio.Future unbound can get at the one that is shared: by its
   `_callbacks`, or by a call_soon() that has replaced the loop's after the callback was added. It stands for nothing once
   somebody has used it. */

#include "coro/future.h"

#if !HAVE_FREE_THREADING

/* May `unused` stand for a copy of the current context? */
static inline bool
stands_for_new(const KnownContexts *known)
{
    return context_is_unused(known->unused, known->no_variables) && context_current_is_empty(known->no_variables);
}

PyObject *
future_add_done_callback(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    State *state = future_state(op);
    if (state == NULL) {
        return NULL;
    }
    BaseFuture *fut = BaseFuture_CAST(op);
    LoopObject *native = loop_if_native(state, fut->loop);
    /* A wake-up runs in the context of its task, unless it is added by hand. */
    if (UNLIKELY(nargs != 1 || kwnames != NULL || native == NULL || native->no_variables == NULL ||
                 Py_IS_TYPE(args[0], state->coro->WakeupType))) {
        return future_call_base(state->coro->base_future, state->coro->str_add_done_callback, op, args, nargs, kwnames);
    }
    bool is_further = fut->state == FUTURE_PENDING && (fut->callback0 != NULL || fut->callbacks != NULL);
    PyObject *context = !is_further && LIKELY(stands_for_new(&state->contexts)) ? Py_NewRef(state->contexts.unused)
                                                                                : PyContext_CopyCurrent();
    int err = context == NULL ? -1 : future_add_callback(state, fut, args[0], context);
    Py_XDECREF(context);
    if (err < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

int
future_make_context(State *state, BaseFuture *fut)
{
    if (LIKELY(fut->context0 == NULL || fut->context0 != state->contexts.unused)) {
        return 0;
    }
    PyObject *context = PyContext_New();
    if (context == NULL) {
        return -1;
    }
    /* Making it may have run code. */
    if (fut->context0 == state->contexts.unused) {
        Py_SETREF(fut->context0, context);
    } else {
        Py_DECREF(context);
    }
    return 0;
}

/* The base's descriptor of `_callbacks`; new. */
static PyObject *
base_callbacks(PyObject *op)
{
    State *state = state_of_object(op);
    return state == NULL ? NULL : PyObject_GetAttrString((PyObject *)state->coro->base_future, "_callbacks");
}

PyObject *
future_get_callbacks(PyObject *op, void *Py_UNUSED(closure))
{
    State *state = state_of_object(op);
    if (state == NULL) {
        return NULL;
    }
    if (future_make_context(state, BaseFuture_CAST(op)) < 0) {
        return NULL;
    }
    PyObject *attribute = base_callbacks(op);
    PyObject *value =
        attribute == NULL ? NULL : Py_TYPE(attribute)->tp_descr_get(attribute, op, (PyObject *)Py_TYPE(op));
    Py_XDECREF(attribute);
    return value;
}

int
future_set_callbacks(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    PyObject *attribute = base_callbacks(op);
    int err = attribute == NULL ? -1 : Py_TYPE(attribute)->tp_descr_set(attribute, op, value);
    Py_XDECREF(attribute);
    return err;
}

#endif
