/* Arguments of METH_FASTCALL | METH_KEYWORDS methods. */

#include "base/args.h"

PyObject *
args_by_keyword(const char *method, const char *name, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *found = nargs > 0 ? args[0] : NULL;
    Py_ssize_t count = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *given = PyTuple_GET_ITEM(kwnames, i);
        if (PyUnicode_CompareWithASCIIString(given, name) != 0) {
            PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", method, given);
            return NULL;
        }
        if (found != NULL) {
            PyErr_Format(PyExc_TypeError, "%s() got multiple values for argument '%s'", method, name);
            return NULL;
        }
        found = args[nargs + i];
    }
    if (nargs > 1) {
        PyErr_Format(PyExc_TypeError, "%s() takes 2 positional arguments but %zd were given", method, nargs + 1);
        return NULL;
    }
    if (found == NULL) {
        PyErr_Format(PyExc_TypeError, "%s() missing 1 required positional argument: '%s'", method, name);
    }
    return found;
}

PyObject *
args_call_sorted(State *state, const char *name, args_function function, PyObject *self, PyObject *const *args,
                 Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *module = PyImport_ImportModule("fastloop._arguments");
    PyObject *sorter = module == NULL ? NULL : PyObject_GetAttrString(module, name);
    Py_ssize_t count = nargs + (kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames));
    PyObject **stack = sorter == NULL ? NULL : PyMem_New(PyObject *, count + 1);
    PyObject *sorted = NULL;
    if (stack != NULL) {
        stack[0] = self;
        for (Py_ssize_t i = 0; i < count; i++) {
            stack[i + 1] = args[i];
        }
        /* The positional arguments, and the context as the last item. */
        sorted = PyObject_Vectorcall(sorter, stack, (size_t)nargs + 1, kwnames);
    } else if (sorter != NULL) {
        PyErr_NoMemory();
    }
    PyMem_Free(stack);
    Py_XDECREF(sorter);
    Py_XDECREF(module);
    PyObject *names = sorted == NULL ? NULL : PyTuple_Pack(1, state->str_context);
    PyObject *result = NULL;
    if (names != NULL) {
        result = function(self, &PyTuple_GET_ITEM(sorted, 0), PyTuple_GET_SIZE(sorted) - 1, names);
    }
    Py_XDECREF(names);
    Py_XDECREF(sorted);
    return result;
}
