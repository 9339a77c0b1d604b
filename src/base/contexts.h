/* Contexts, as cheap as they can be: entered and left without the calls, and a second time used where nobody can tell. The
   struct of a context is private to CPython. contexts_verify() compares our description at import; when anything differs,
   or FASTLOOP_DISABLE=contexts says so, `no_variables` is NULL below and the C API does it all. */

#ifndef FASTLOOP_BASE_CONTEXTS_H
#define FASTLOOP_BASE_CONTEXTS_H

#include "state.h"

typedef struct {
    PyObject_HEAD
    PyObject *previous;  /* owned while it is entered: what was current before; else NULL */
    PyObject *variables; /* a mapping that never changes; NULL once the collector has cleared the context */
    PyObject *weakrefs;
    int entered;
} ContextObject;

#define ContextObject_CAST(op) ((ContextObject *)(op))

/* What it takes to enter a context without the call. */
typedef struct {
    PyThreadState *thread;   /* the calling thread's; NULL where contexts are not known */
    const uint8_t *watchers; /* 0 while nobody watches the interpreter's contexts, which C code can since 3.14 */
} ContextSwitch;

/* Compares the description with contexts of the running Python. Sets all of `*known`; the objects are new references, or NULL
   if the description is wrong, or there is no GIL. -1 with an exception. */
int contexts_verify(KnownContexts *known);

/* Nobody else holds `op`; one reference is ours. */
static inline bool
is_unshared(PyObject *op)
{
    return !HAVE_FREE_THREADING && Py_REFCNT(op) == 1;
}

/* Would somebody be told that a context is entered? */
static inline bool
context_is_watched(const ContextSwitch *by)
{
    return HAVE_CONTEXT_WATCHERS && *by->watchers != 0;
}

/* May the calling thread switch contexts without the calls? */
static inline bool
context_may_switch(const ContextSwitch *by)
{
    return by->thread != NULL && !context_is_watched(by);
}

/* PyContext_Enter(). */
ALWAYS_INLINE int
context_enter(const ContextSwitch *by, PyObject *context)
{
    if (LIKELY(context_may_switch(by) && PyContext_CheckExact(context) && !ContextObject_CAST(context)->entered)) {
        ContextObject_CAST(context)->entered = 1;
        ContextObject_CAST(context)->previous = by->thread->context;
        by->thread->context = Py_NewRef(context);
        by->thread->context_ver++;
        return 0;
    }
    return PyContext_Enter(context);
}

/* PyContext_Exit(). The caller has a reference of its own. */
ALWAYS_INLINE int
context_exit(const ContextSwitch *by, PyObject *context)
{
    if (LIKELY(context_may_switch(by) && by->thread->context == context && ContextObject_CAST(context)->entered)) {
        by->thread->context = ContextObject_CAST(context)->previous;
        by->thread->context_ver++;
        ContextObject_CAST(context)->previous = NULL;
        ContextObject_CAST(context)->entered = 0;
        Py_DECREF(context);
        return 0;
    }
    return PyContext_Exit(context);
}

/* Would PyContext_CopyCurrent() give an empty context? */
static inline bool
context_current_is_empty(PyObject *no_variables)
{
    PyObject *current = PyThreadState_Get()->context;
    return current == NULL || (no_variables != NULL && ContextObject_CAST(current)->variables == no_variables) ||
           PyContext_Type.tp_as_mapping->mp_length(current) == 0;
}

/* Has nobody used the context that stands for a new one? */
static inline bool
context_is_unused(PyObject *unused, PyObject *no_variables)
{
    return ContextObject_CAST(unused)->variables == no_variables && !ContextObject_CAST(unused)->entered;
}

/* Is `context`, of which we hold a reference, as good as a new copy of an empty one? The collector takes the variables out
   of one that it found unreachable, which it may reach only after its holder is gone: a spare one is asked again before
   it serves. */
static inline bool
context_is_spare(PyObject *context, PyObject *no_variables)
{
    return no_variables != NULL && is_unshared(context) && PyContext_CheckExact(context) &&
           ContextObject_CAST(context)->variables == no_variables && ContextObject_CAST(context)->weakrefs == NULL;
}

/* PyContext_CopyCurrent(); `spare` is NULL or a spare context, whose reference is taken. */
static inline PyObject *
context_copy_current(PyObject *no_variables, PyObject *spare)
{
    if (spare != NULL) {
        /* Somebody may have found it meanwhile, by gc.get_objects() for one. */
        if (LIKELY(context_current_is_empty(no_variables) && context_is_spare(spare, no_variables))) {
            return spare;
        }
        Py_DECREF(spare);
    }
    return PyContext_CopyCurrent();
}

#endif
