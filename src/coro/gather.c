/* asyncio.gather(): the callback that it gives to each of its children, for the usual child, one that has a result. The last
   one collects the results. Known by its code, which fastloop._coro.gather_codes() has checked; all that is unusual, or can
   be seen, is left to the function itself, and then nothing has been changed yet. */

#include "coro/gather.h"

#include "coro/future.h"
#include "coro/task.h"

#include <limits.h>

#if !HAVE_FREE_THREADING

/* The cells of the function, in the order of their names. */
enum { CHILDREN, FINISHED_COUNT, COUNT, OUTER, RETURN_EXCEPTIONS, CELLS };

/* Is it of ours, done, with a result, and has nobody given it attributes that hide methods? */
static inline bool
has_result(CoroState *coro, PyObject *op)
{
    BaseFuture *fut = BaseFuture_CAST(op);
    return (Py_IS_TYPE(op, coro->TaskType) || Py_IS_TYPE(op, coro->FutureType)) && fut->state == FUTURE_FINISHED &&
           fut->exception == NULL && fut->result != NULL && coro->recycle && !layout_has_dict(op, coro->fresh_values);
}

/* Has the type of what gather() returns the methods of asyncio.Future, and does looking at an instance run no code? */
static bool
is_ordinary_type(CoroState *coro, PyTypeObject *type)
{
    unsigned version = type->tp_version_tag;
    if (LIKELY(version != 0 && version == coro->gathering_version)) {
        return true;
    }
    PyObject *names[] = {coro->str_done, coro->str_set_result};
    PyObject *hiding = PyObject_GetAttr((PyObject *)type, coro->str__cancel_requested);
    bool same =
        hiding == NULL && type->tp_getattro == PyObject_GenericGetAttr && PyType_IsSubtype(type, coro->base_future);
    Py_XDECREF(hiding);
    PyErr_Clear();
    for (int i = 0; i < 2 && same; i++) {
        PyObject *own = PyObject_GetAttr((PyObject *)type, names[i]);
        PyObject *original = PyObject_GetAttr((PyObject *)coro->base_future, names[i]);
        same = own != NULL && own == original;
        Py_XDECREF(own);
        Py_XDECREF(original);
    }
    PyErr_Clear();
    if (same) {
        coro->gathering_version = type->tp_version_tag;
    }
    return same;
}

/* Is op.name the method of a type that is as above, and not an attribute of the instance? */
static bool
is_method(PyObject *op, PyObject *name)
{
    PyObject *method = PyObject_GetAttr(op, name);
    bool same = method != NULL && PyCFunction_Check(method) && PyCFunction_GET_SELF(method) == op;
    Py_XDECREF(method);
    PyErr_Clear();
    return same;
}

/* Of that type: are done() and set_result() not hidden, and is nobody cancelling it? */
static bool
is_ordinary_outer(CoroState *coro, PyObject *op, bool is_last)
{
    if (!is_method(op, coro->str_done)) {
        return false;
    }
    if (!is_last) {
        return true;
    }
    PyObject *requested = PyObject_GetAttr(op, coro->str__cancel_requested);
    bool cancelling = requested != Py_False;
    Py_XDECREF(requested);
    PyErr_Clear();
    return !cancelling && is_method(op, coro->str_set_result);
}

/* The results of the children (new), or NULL if there is something else among them. */
static PyObject *
collect(CoroState *coro, PyObject *children)
{
    PyObject *results = PyList_CheckExact(children) ? PyList_New(PyList_GET_SIZE(children)) : NULL;
    if (results == NULL) {
        PyErr_Clear();
        return NULL;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(results); i++) {
        /* Making the list may have run code. */
        PyObject *child = i < PyList_GET_SIZE(children) ? PyList_GET_ITEM(children, i) : NULL;
        if (child == NULL || !has_result(coro, child)) {
            Py_DECREF(results);
            return NULL;
        }
        PyList_SET_ITEM(results, i, Py_NewRef(BaseFuture_CAST(child)->result));
    }
    return results;
}

/* What one call has to do with. */
typedef struct {
    PyObject *function; /* borrowed, as is the child */
    PyObject *child;
    PyObject *outer;
    PyObject *children;
    PyObject *waiter; /* to be forgotten by the child, or NULL */
    long finished;    /* with this child */
    bool is_last;
} Call;

static void
drop(Call *call)
{
    Py_XDECREF(call->outer);
    Py_XDECREF(call->children);
    Py_XDECREF(call->waiter);
}

/* Reads the number in a cell: from 0 to what leaves room for one more; -1 if there is something else. */
static long
number_in(PyObject *cell)
{
    PyObject *op = PyCell_GET(cell);
    int overflow = 0;
    long number = op != NULL && PyLong_CheckExact(op) ? PyLong_AsLongAndOverflow(op, &overflow) : -1;
    return overflow != 0 || number < 0 || number == LONG_MAX ? -1 : number;
}

/* Who is to be forgotten, in `*waiter` (new); false where the function is not called as gather() has it called. */
static bool
find_waiter(CoroState *coro, PyObject *function, PyObject **waiter)
{
    PyObject *defaults = PyFunction_GET_DEFAULTS(function);
#if HAVE_AWAITED_BY
    if (defaults == NULL || PyTuple_GET_SIZE(defaults) != 1 ||
        !coro_is_unpatched(coro, coro->tasks_dict, &coro->known_futures_module, coro->str_futures,
                           (PyTypeObject *)coro->futures_module) ||
        !coro_is_unpatched(coro, coro->futures_dict, &coro->known_discard, coro->str_future_discard_from_awaited_by,
                           (PyTypeObject *)coro->discard_from_awaited_by)) {
        return false;
    }
    if (PyTuple_GET_ITEM(defaults, 0) != Py_None) {
        *waiter = Py_NewRef(PyTuple_GET_ITEM(defaults, 0));
    }
    return true;
#else
    (void)coro;
    (void)waiter;
    return defaults == NULL;
#endif
}

/* Fills in the rest of the call, which the caller drops; false where there is anything unusual about it. */
static bool
understand(CoroState *coro, Call *call)
{
    PyObject *closure = PyFunction_GET_CLOSURE(call->function);
    if (!has_result(coro, call->child) || closure == NULL || PyTuple_GET_SIZE(closure) != CELLS ||
        PyFunction_GET_GLOBALS(call->function) != coro->tasks_dict ||
        !find_waiter(coro, call->function, &call->waiter)) {
        return false;
    }
    call->outer = PyCell_Get(PyTuple_GET_ITEM(closure, OUTER));
    call->children = PyCell_Get(PyTuple_GET_ITEM(closure, CHILDREN));
    long finished = number_in(PyTuple_GET_ITEM(closure, FINISHED_COUNT));
    long count = number_in(PyTuple_GET_ITEM(closure, COUNT));
    if (finished < 0 || count < 0 || call->outer == NULL || call->children == NULL ||
        !Py_IS_TYPE(call->outer, (PyTypeObject *)coro->gathering_type) ||
        !is_ordinary_type(coro, Py_TYPE(call->outer))) {
        return false;
    }
    call->finished = finished + 1;
    call->is_last = call->finished == count && BaseFuture_CAST(call->outer)->state == FUTURE_PENDING;
    return is_ordinary_outer(coro, call->outer, call->is_last);
}

/* One more is done: 1, or 0 when there is no memory for the number, or -1 with an exception. */
static int
count_child(CoroState *coro, const Call *call)
{
    PyObject *number = PyLong_FromLong(call->finished);
    if (number == NULL) {
        PyErr_Clear();
        return 0;
    }
    int err = PyCell_Set(PyTuple_GET_ITEM(PyFunction_GET_CLOSURE(call->function), FINISHED_COUNT), number);
    Py_DECREF(number);
#if HAVE_AWAITED_BY
    if (err == 0 && call->waiter != NULL) {
        err = task_discard_awaited_by(coro, call->child, call->waiter);
    }
#else
    (void)coro;
#endif
    return err < 0 ? -1 : 1;
}

/* The last one: the results go out. 1 when that was done, 0 when it is to be left to the function, -1 with an exception. */
static int
finish(CoroState *coro, const Call *call)
{
    PyObject *results = collect(coro, call->children);
    if (results == NULL) {
        return 0;
    }
    /* The collector may have run code meanwhile: is everything as it was? */
    Call now = {.function = call->function, .child = call->child};
    int done = 0;
    if (understand(coro, &now) && now.is_last && now.outer == call->outer && now.children == call->children) {
        done = count_child(coro, &now);
    }
    if (done > 0) {
        PyObject *none = PyObject_CallMethodOneArg(now.outer, coro->str_set_result, results);
        done = none == NULL ? -1 : 1;
        Py_XDECREF(none);
    }
    drop(&now);
    Py_DECREF(results);
    return done;
}

int
gather_run(LoopObject *loop, PyObject *function, PyObject *const *args, Py_ssize_t nargs)
{
    CoroState *coro = loop->state->coro;
    /* Up to 3.12, a tool that watches everything gets to know a code when it runs; that of gather() has run. */
    if (nargs != 1 || compat_code_is_monitored(PyTuple_GET_ITEM(coro->gather_codes, 1))) {
        return 0;
    }
    Call call = {.function = function, .child = args[0]};
    int done = 0;
    if (understand(coro, &call)) {
        done = call.is_last ? finish(coro, &call) : count_child(coro, &call);
    }
    drop(&call);
    return done;
}

int
gather_exec(State *state)
{
    CoroState *coro = state->coro;
    coro->gather_codes = coro_find_codes(coro, "gather_codes");
    if (coro->gather_codes == NULL) { /* GCOV_EXCL_BR_LINE: another version of asyncio */
        return PyErr_Occurred() ? -1 : 0;
    }
    state->known_codes[KNOWN_GATHER] = PyTuple_GET_ITEM(coro->gather_codes, 0);
    return 0;
}

#else

int
gather_run(LoopObject *Py_UNUSED(loop), PyObject *Py_UNUSED(function), PyObject *const *Py_UNUSED(args),
           Py_ssize_t Py_UNUSED(nargs))
{
    return 0;
}

int
gather_exec(State *Py_UNUSED(state))
{
    return 0;
}

#endif
