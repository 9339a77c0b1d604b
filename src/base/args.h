/* Arguments of METH_FASTCALL | METH_KEYWORDS methods. */

#ifndef FASTLOOP_BASE_ARGS_H
#define FASTLOOP_BASE_ARGS_H

#include "state.h"

/* For methods of the shape f(a, b, *args, context=None): at least `required` positional arguments and no keyword but
   `context`, which comes back borrowed (NULL when absent or None). -1 with the TypeError of a Python function. */
int args_context_only(State *state, const char *method, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                      Py_ssize_t required, PyObject **context);

#endif
