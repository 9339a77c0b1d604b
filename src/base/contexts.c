/* The check of the description of a context, once per import. */

#include "base/contexts.h"

#if !HAVE_FREE_THREADING

/* Is `context` as it should be while it is not entered? */
static bool
is_left(PyObject *context)
{
    ContextObject *seen = ContextObject_CAST(context);
    return seen->previous == NULL && seen->entered == 0;
}

/* ... and while it is the current one, entered from `previous`? */
static bool
is_entered(PyObject *context, PyObject *previous)
{
    ContextObject *seen = ContextObject_CAST(context);
    return PyThreadState_Get()->context == context && seen->previous == previous && seen->entered == 1;
}

static bool
has_value(PyObject *variable, PyObject *expected)
{
    PyObject *value;
    if (PyContextVar_Get(variable, NULL, &value) < 0) {
        PyErr_Clear();
        return false;
    }
    Py_XDECREF(value);
    return value == expected;
}

/* One enters `outer` and `inner` by the calls and leaves them by our functions, or the other way round; in between a variable
   is set, which only the inner one shows then. 1, 0, or -1 with an exception. */
static int
verify_switches(PyObject *outer, PyObject *inner, PyObject *variable, bool by_calls)
{
    PyThreadState *known = PyThreadState_Get();
    PyThreadState *enter_known = by_calls ? NULL : known, *exit_known = by_calls ? known : NULL;
    PyObject *before = known->context;
    PyObject *no_variables = ContextObject_CAST(outer)->variables;
    if (context_enter(enter_known, outer) < 0) {
        return -1;
    }
    bool right = is_entered(outer, before) && has_value(variable, NULL);
    if (context_enter(enter_known, inner) < 0) {
        (void)PyContext_Exit(outer);
        return -1;
    }
    right = right && is_entered(inner, outer) && has_value(variable, NULL);
    PyObject *token = PyContextVar_Set(variable, Py_None);
    right =
        right && token != NULL && has_value(variable, Py_None) && ContextObject_CAST(inner)->variables != no_variables;
    PyObject *copy = token == NULL ? NULL : PyContext_CopyCurrent();
    int err = copy == NULL ? -1 : 0;
    right = right && copy != NULL && ContextObject_CAST(copy)->variables == ContextObject_CAST(inner)->variables;
    if (!right) {
        /* Nothing is written by a description that is wrong. */
        exit_known = NULL;
    }
    Py_XDECREF(token);
    Py_XDECREF(copy);
    if (context_exit(exit_known, inner) < 0) {
        err = -1;
    }
    right = right && is_left(inner) && is_entered(outer, before) && has_value(variable, NULL);
    if (context_exit(exit_known, outer) < 0) {
        err = -1;
    }
    right = right && is_left(outer) && known->context == before;
    return err < 0 ? -1 : right;
}

/* The weak references, and the variables of one that the collector has cleared. */
static int
verify_fields(PyObject *context)
{
    ContextObject *seen = ContextObject_CAST(context);
    PyObject *reference = PyWeakref_NewRef(context, NULL);
    if (reference == NULL) {
        return -1;
    }
    bool right = seen->weakrefs == reference;
    Py_DECREF(reference);
    right = right && seen->weakrefs == NULL && seen->variables != NULL;
    return PyContext_Type.tp_clear(context) == 0 && right && seen->variables == NULL;
}

static int
verify(PyObject *const contexts[4], PyObject *variable)
{
    for (int i = 0; i < 4; i++) {
        ContextObject *seen = ContextObject_CAST(contexts[i]);
        if (!is_left(contexts[i]) || seen->variables == NULL || seen->weakrefs != NULL ||
            seen->variables != ContextObject_CAST(contexts[0])->variables) {
            return 0;
        }
    }
    int right = verify_switches(contexts[0], contexts[1], variable, true);
    if (right > 0) {
        right = verify_switches(contexts[0], contexts[2], variable, false);
    }
    return right > 0 ? verify_fields(contexts[3]) : right;
}

int
contexts_verify(PyObject **no_variables)
{
    *no_variables = NULL;
    if (PyContext_Type.tp_basicsize != (Py_ssize_t)sizeof(ContextObject) ||
        PyContext_Type.tp_weaklistoffset != (Py_ssize_t)offsetof(ContextObject, weakrefs)) {
        return 0;
    }
    PyObject *contexts[4] = {PyContext_New(), PyContext_New(), PyContext_New(), PyContext_New()};
    PyObject *variable = PyContextVar_New("fastloop", NULL);
    int known = variable == NULL ? -1 : 1;
    for (int i = 0; i < 4; i++) {
        known = contexts[i] == NULL ? -1 : known;
    }
    known = known < 0 ? -1 : verify(contexts, variable);
    if (known > 0) {
        *no_variables = Py_NewRef(ContextObject_CAST(contexts[0])->variables);
    }
    for (int i = 0; i < 4; i++) {
        Py_XDECREF(contexts[i]);
    }
    Py_XDECREF(variable);
    return known < 0 ? -1 : 0;
}

#else

int
contexts_verify(PyObject **no_variables)
{
    /* Nothing is used a second time there, and entering is not what costs. */
    *no_variables = NULL;
    return 0;
}

#endif
