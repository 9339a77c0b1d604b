/* Arguments of METH_FASTCALL | METH_KEYWORDS methods. */

#ifndef FASTLOOP_BASE_ARGS_H
#define FASTLOOP_BASE_ARGS_H

#include "state.h"

typedef PyObject *(*args_function)(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);

/* For methods of the shape f(a, b, *args, context=None): can the arguments be taken as they stand? With at least
   `required` positional ones and no keyword but `context`, which comes back borrowed (NULL when absent or None). */
static inline bool
args_are_plain(State *state, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, Py_ssize_t required,
               PyObject **context)
{
    *context = NULL;
    if (UNLIKELY(nargs < required)) {
        return false;
    }
    if (LIKELY(kwnames == NULL || PyTuple_GET_SIZE(kwnames) == 0)) {
        return true;
    }
    /* What asyncio's own tasks and futures give is an equal string, but none that is interned. */
    PyObject *name = PyTuple_GET_ITEM(kwnames, 0);
    if (PyTuple_GET_SIZE(kwnames) > 1 ||
        (name != state->str_context && PyUnicode_Compare(name, state->str_context) != 0)) {
        return false;
    }
    *context = args[nargs] == Py_None ? NULL : args[nargs];
    return true;
}

/* The argument of a method f(name): args[0], or the one keyword `name`. NULL with the TypeError of a Python function called
   `method`. */
PyObject *args_by_keyword(const char *method, const char *name, PyObject *const *args, Py_ssize_t nargs,
                          PyObject *kwnames);

static inline PyObject *
args_only(const char *method, const char *name, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    return LIKELY(nargs == 1 && kwnames == NULL) ? args[0] : args_by_keyword(method, name, args, nargs, kwnames);
}

/* Any other call: calls `function` again with arguments that are plain, sorted by the function `name` of
   fastloop._arguments, which raises the TypeErrors of the standard method. */
PyObject *args_call_sorted(State *state, const char *name, args_function function, PyObject *self,
                           PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);

#endif
