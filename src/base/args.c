/* Arguments of METH_FASTCALL | METH_KEYWORDS methods. */

#include "base/args.h"

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
