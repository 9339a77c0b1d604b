/* Arguments of METH_FASTCALL | METH_KEYWORDS methods. */

#include "base/args.h"

int
args_context_only(State *state, const char *method, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                  Py_ssize_t required, PyObject **context)
{
    *context = NULL;
    if (nargs < required) {
        PyErr_Format(PyExc_TypeError, "%s() missing %zd required positional argument%s", method, required - nargs,
                     required - nargs == 1 ? "" : "s");
        return -1;
    }
    Py_ssize_t count = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        if (name != state->str_context && PyUnicode_Compare(name, state->str_context) != 0) {
            PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument %R", method, name);
            return -1;
        }
        *context = args[nargs + i] == Py_None ? NULL : args[nargs + i];
    }
    return 0;
}
