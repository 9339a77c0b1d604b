/* Python functions: has one of the standard library been replaced, as tracers do to see calls go by? What does a method
   say? */

#ifndef FASTLOOP_BASE_FUNCTIONS_H
#define FASTLOOP_BASE_FUNCTIONS_H

#include "compat.h"

/* Is the code of a Python function what a compiler made? ddtrace writes bytecode that calls its wrapper into the
   function itself; the wrapper is among the constants there. */
static inline bool
function_is_compiled(PyObject *function)
{
    PyObject *constants = ((PyCodeObject *)PyFunction_GET_CODE(function))->co_consts;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(constants); i++) {
        PyObject *constant = PyTuple_GET_ITEM(constants, i);
        if (PyFunction_Check(constant) || PyMethod_Check(constant) || PyCFunction_Check(constant)) {
            return false;
        }
    }
    return true;
}

/* Is `function` a plain function of the module whose globals these are? A wrapper lives elsewhere or is no function. */
static inline bool
function_is_original(PyObject *function, PyObject *globals)
{
    return function != NULL && PyFunction_Check(function) && PyFunction_GetGlobals(function) == globals &&
           PyFunction_GetClosure(function) == NULL && function_is_compiled(function);
}

/* Would somebody see it being called: a tracer, a profiler, or a tool of sys.monitoring? */
static inline bool
function_is_watched(PyObject *function)
{
    PyThreadState *here = PyThreadState_Get();
    return here->c_profilefunc != NULL || here->c_tracefunc != NULL ||
           compat_code_is_monitored(PyFunction_GET_CODE(function));
}

/* The truth of op.name(): 1 or 0, or -1 with an exception. */
static inline int
method_truth(PyObject *op, PyObject *name)
{
    PyObject *answer = PyObject_CallMethodNoArgs(op, name);
    int truth = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    return truth;
}

#endif
