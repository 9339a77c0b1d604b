/* Contexts that are used a second time: copies of an empty context that nobody holds any more. */

#ifndef FASTLOOP_BASE_CONTEXTS_H
#define FASTLOOP_BASE_CONTEXTS_H

#include "compat.h"

/* Nobody else holds `op`; one reference is ours. */
static inline bool
is_unshared(PyObject *op)
{
    return !HAVE_FREE_THREADING && Py_REFCNT(op) == 1;
}

static inline bool
context_is_empty(PyObject *context)
{
    return PyContext_CheckExact(context) && PyContext_Type.tp_as_mapping->mp_length(context) == 0;
}

static int
context_visit(PyObject *Py_UNUSED(op), void *Py_UNUSED(arg))
{
    return 1;
}

/* The garbage collector takes the variables out of a context that it found unreachable, which is not usable then. It may
   reach the context only after its holder is gone: a spare one is asked again before it serves. */
static inline bool
context_is_whole(PyObject *context)
{
    return PyContext_Type.tp_traverse(context, context_visit, NULL) != 0;
}

/* Is `context`, of which we hold a reference, as good as a new copy of an empty one? */
static inline bool
context_is_spare(PyObject *context)
{
    return is_unshared(context) && PyContext_CheckExact(context) && context_is_whole(context) &&
           context_is_empty(context) && *(PyObject **)((char *)context + PyContext_Type.tp_weaklistoffset) == NULL;
}

/* Would PyContext_CopyCurrent() give an empty context? */
static inline bool
context_current_is_empty(void)
{
    PyObject *current = PyThreadState_Get()->context;
    return current == NULL || context_is_empty(current);
}

/* PyContext_CopyCurrent(); `spare` is NULL or a spare context, whose reference is taken. */
static inline PyObject *
context_copy_current(PyObject *spare)
{
    if (spare != NULL) {
        /* Somebody may have found it meanwhile, by gc.get_objects() for one. */
        if (LIKELY(context_current_is_empty() && context_is_spare(spare))) {
            return spare;
        }
        Py_DECREF(spare);
    }
    return PyContext_CopyCurrent();
}

#endif
