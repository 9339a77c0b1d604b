/* The check of the description of a context, once per import. */

#include "base/contexts.h"

#include <string.h>

static const uint8_t nobody_watches = 0;

#if !HAVE_FREE_THREADING

/* ---- who watches ---- */

#if HAVE_CONTEXT_WATCHERS

/* The head of the interpreter's runtime, meant for those who read it from outside: sizes and offsets. Not there, or another
   one, in a Python that we do not know. */
extern const struct {
    char cookie[8];
    uint64_t version;
    uint64_t free_threaded;
    uint64_t of_runtime[3];
    uint64_t interpreter_size;
} _PyRuntime __attribute__((weak));

static int
watch_nothing(PyContextEvent Py_UNUSED(event), PyObject *Py_UNUSED(op))
{
    return 0;
}

/* What follows the table of the interpreter's context watchers, of which `number` is ours; NULL if there is no such table. */
static const uint8_t *
find_end_of_table(int number)
{
    enum { WATCHERS = 8 };
    const uintptr_t *words = (const uintptr_t *)PyThreadState_Get()->interp;
    size_t count = _PyRuntime.interpreter_size / sizeof(uintptr_t);
    const uint8_t *found = NULL;
    for (size_t i = (size_t)number; i - (size_t)number + WATCHERS < count; i++) {
        if (__atomic_load_n(&words[i], __ATOMIC_RELAXED) != (uintptr_t)watch_nothing) {
            continue;
        }
        if (found != NULL) {
            return NULL;
        }
        found = (const uint8_t *)&words[i - (size_t)number + WATCHERS];
    }
    return found;
}

/* KnownContexts.watchers, a byte that has a bit for each watcher: found by adding one for a moment. The tables of other
   watchers have such bytes, too, and they lie together. */
static const uint8_t *
find_watchers(void)
{
    static const uint8_t unknown = 1;
    if (&_PyRuntime == NULL || memcmp(_PyRuntime.cookie, "xdebugpy", sizeof(_PyRuntime.cookie)) != 0 ||
        _PyRuntime.version >> 16 != COMPAT_PYTHON_VERSION) {
        return &unknown;
    }
    uint8_t with[sizeof(uintptr_t)];
    int number = PyContext_AddWatcher(watch_nothing);
    const uint8_t *behind = number < 0 ? NULL : find_end_of_table(number);
    if (behind != NULL) {
        memcpy(with, behind, sizeof(with));
    }
    if (number < 0 || PyContext_ClearWatcher(number) < 0) {
        PyErr_Clear();
        return &unknown;
    }
    const uint8_t *found = NULL;
    for (size_t i = 0; behind != NULL && i < sizeof(with); i++) {
        if (with[i] == behind[i]) {
            continue;
        }
        if (found != NULL || with[i] != (behind[i] | 1 << number)) {
            return &unknown;
        }
        found = &behind[i];
    }
    return found == NULL ? &unknown : found;
}

#else

static const uint8_t *
find_watchers(void)
{
    return &nobody_watches;
}

#endif

/* ---- the struct ---- */

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
verify_switches(PyObject *outer, PyObject *inner, PyObject *variable, const ContextSwitch *enter,
                const ContextSwitch *leave)
{
    const ContextSwitch by_calls = {.watchers = &nobody_watches};
    PyThreadState *here = PyThreadState_Get();
    PyObject *before = here->context;
    PyObject *no_variables = ContextObject_CAST(outer)->variables;
    if (context_enter(enter, outer) < 0) {
        return -1;
    }
    bool right = is_entered(outer, before) && has_value(variable, NULL);
    if (context_enter(enter, inner) < 0) {
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
        leave = &by_calls;
    }
    Py_XDECREF(token);
    Py_XDECREF(copy);
    if (context_exit(leave, inner) < 0) {
        err = -1;
    }
    right = right && is_left(inner) && is_entered(outer, before) && has_value(variable, NULL);
    if (context_exit(leave, outer) < 0) {
        err = -1;
    }
    right = right && is_left(outer) && here->context == before;
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
    /* Also where somebody watches, or that is not known: what matters is what is written. */
    const ContextSwitch by_calls = {.watchers = &nobody_watches};
    const ContextSwitch by_us = {.thread = PyThreadState_Get(), .watchers = &nobody_watches};
    int right = verify_switches(contexts[0], contexts[1], variable, &by_calls, &by_us);
    if (right > 0) {
        right = verify_switches(contexts[0], contexts[2], variable, &by_us, &by_calls);
    }
    return right > 0 ? verify_fields(contexts[3]) : right;
}

int
contexts_verify(KnownContexts *known)
{
    *known = (KnownContexts){.watchers = find_watchers()};
    if (PyContext_Type.tp_basicsize != (Py_ssize_t)sizeof(ContextObject) ||
        PyContext_Type.tp_weaklistoffset != (Py_ssize_t)offsetof(ContextObject, weakrefs)) {
        return 0;
    }
    PyObject *contexts[4] = {PyContext_New(), PyContext_New(), PyContext_New(), PyContext_New()};
    PyObject *variable = PyContextVar_New("fastloop", NULL);
    int right = variable == NULL ? -1 : 1;
    for (int i = 0; i < 4; i++) {
        right = contexts[i] == NULL ? -1 : right;
    }
    right = right < 0 ? -1 : verify(contexts, variable);
    if (right > 0) {
        known->unused = Py_NewRef(contexts[0]);
        known->no_variables = Py_NewRef(ContextObject_CAST(contexts[0])->variables);
    }
    for (int i = 0; i < 4; i++) {
        Py_XDECREF(contexts[i]);
    }
    Py_XDECREF(variable);
    return right < 0 ? -1 : 0;
}

#else

int
contexts_verify(KnownContexts *known)
{
    /* Nothing is used a second time there, and entering is not what costs. */
    *known = (KnownContexts){.watchers = &nobody_watches};
    return 0;
}

#endif
