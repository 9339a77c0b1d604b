/* run_coroutine_threadsafe(): the two functions of asyncio that it runs in the thread of the loop, one that starts the task
   and chains it to the concurrent.futures.Future, one that copies the outcome. Less work there is less work that the
   calling thread waits for, with the GIL held and most often on the same processor.

   Both are known by their code, which fastloop._coro.chain_codes() has checked. What can be seen is asyncio's: the task's
   callback is the very function that _chain_future() would have made, and the methods of the future are called. */

#include "coro/chain.h"

#include "base/functions.h"
#include "coro/future.h"

/* The items of chain_codes(). */
enum {
    SUBMIT,
    CHAIN,
    COPY,
    SET_STATE,
    CHECK_CANCEL,
    CHECK_CANCEL_CELLS,
    CALL_SET_STATE,
    CALL_SET_STATE_CELLS,
    KW_LOOP
};

/* What the functions inside _chain_future() share, by name the order of fastloop._coro.CHAIN_CELLS. */
enum { CELL_SET_STATE, CELL_DEST_LOOP, CELL_DESTINATION, CELL_SOURCE, CELL_SOURCE_LOOP, CELLS };

static inline PyObject *
item(CoroState *coro, int which)
{
    return PyTuple_GET_ITEM(coro->chain_codes, which);
}

/* Borrowed, or NULL. */
static inline PyObject *
closure_of(PyObject *function, int place)
{
    return PyCell_GET(PyTuple_GET_ITEM(PyFunction_GetClosure(function), place));
}

/* Is the function still there by that name in asyncio.futures, with its own code? */
static bool
is_original(CoroState *coro, PyObject *name, PyObject *function, int code)
{
    return coro_look_up_unpatched(coro->futures_dict, name, (PyTypeObject *)function) &&
           PyFunction_GET_CODE(function) == item(coro, code);
}

/* op.name(arg); -1 with an exception. */
static int
tell(PyObject *op, PyObject *name, PyObject *arg)
{
    PyObject *none = PyObject_CallMethodOneArg(op, name, arg);
    Py_XDECREF(none);
    return none == NULL ? -1 : 0;
}

/* ---- chaining ---- */

/* A function of asyncio.futures; `which` has the numbers of its cells. */
static PyObject *
make_function(CoroState *coro, PyObject *code, PyObject *which, PyObject *const cells[CELLS])
{
    PyObject *function = PyFunction_New(code, coro->futures_dict);
    Py_ssize_t count = PyBytes_GET_SIZE(which);
    PyObject *closure = function == NULL ? NULL : PyTuple_New(count);
    for (Py_ssize_t i = 0; closure != NULL && i < count; i++) {
        PyTuple_SET_ITEM(closure, i, Py_NewRef(cells[(int)PyBytes_AS_STRING(which)[i]]));
    }
    if (closure == NULL || PyFunction_SetClosure(function, closure) < 0) {
        Py_CLEAR(function);
    }
    Py_XDECREF(closure);
    return function;
}

static int
add_callbacks(State *state, PyObject *source, PyObject *destination, PyObject *check_cancel, PyObject *set_state)
{
    if (tell(destination, state->coro->str_add_done_callback, check_cancel) < 0) {
        return -1;
    }
    PyObject *context = PyContext_CopyCurrent();
    if (context == NULL) {
        return -1;
    }
    int err;
    FL_BEGIN_CRITICAL_SECTION(source);
    err = future_add_callback(state, BaseFuture_CAST(source), set_state, context);
    FL_END_CRITICAL_SECTION();
    Py_DECREF(context);
    return err;
}

/* futures._chain_future(), for a task or future of this loop and a concurrent.futures.Future. */
static int
chain(LoopObject *loop, PyObject *source, PyObject *destination)
{
    State *state = loop->state;
    CoroState *coro = state->coro;
    PyObject *set_state = PyFunction_New(item(coro, SET_STATE), coro->futures_dict);
    PyObject *values[CELLS] = {set_state, Py_None, destination, source, (PyObject *)loop};
    PyObject *cells[CELLS] = {NULL};
    bool made = set_state != NULL;
    for (int i = 0; made && i < CELLS; i++) {
        cells[i] = PyCell_New(values[i]);
        made = cells[i] != NULL;
    }
    PyObject *check =
        made ? make_function(coro, item(coro, CHECK_CANCEL), item(coro, CHECK_CANCEL_CELLS), cells) : NULL;
    PyObject *call =
        check == NULL ? NULL : make_function(coro, item(coro, CALL_SET_STATE), item(coro, CALL_SET_STATE_CELLS), cells);
    int err = call == NULL ? -1 : add_callbacks(state, source, destination, check, call);
    Py_XDECREF(call);
    Py_XDECREF(check);
    Py_XDECREF(set_state);
    for (int i = 0; i < CELLS; i++) {
        Py_XDECREF(cells[i]);
    }
    return err;
}

/* futures._chain_future(ensure_future(coroutine, loop=loop), future) */
static int
start(LoopObject *loop, PyObject *ensure_future, PyObject *coroutine, PyObject *future)
{
    CoroState *coro = loop->state->coro;
    PyObject *args[] = {coroutine, (PyObject *)loop};
    PyObject *task = PyObject_Vectorcall(ensure_future, args, 1, item(coro, KW_LOOP));
    if (task == NULL) {
        return -1;
    }
    int err;
    if (future_is_plain(coro, task) && BaseFuture_CAST(task)->loop == (PyObject *)loop) {
        err = chain(loop, task, future);
    } else {
        /* Of a task factory. */
        PyObject *none = PyObject_CallFunctionObjArgs(coro->chain_future, task, future, NULL);
        Py_XDECREF(none);
        err = none == NULL ? -1 : 0;
    }
    Py_DECREF(task);
    return err;
}

/* Passes the exception that is set on to the future, too. */
static void
pass_on(State *state, PyObject *future)
{
    if (loop_must_propagate()) {
        return;
    }
    PyObject *exc = compat_take_exception();
    PyObject *before = loop_begin_handling(exc);
    int err = method_truth(future, state->coro->str_set_running_or_notify_cancel);
    if (err > 0) {
        err = tell(future, state->coro->str_set_exception, exc);
    }
    loop_end_handling(before);
    if (err < 0) {
        Py_DECREF(exc);
    } else {
        compat_restore_exception(exc);
    }
}

/* callback() inside run_coroutine_threadsafe(). */
static int
run_submit(LoopObject *loop, PyObject *function)
{
    CoroState *coro = loop->state->coro;
    PyObject *coroutine = closure_of(function, 0), *future = closure_of(function, 1);
    if (coroutine == NULL || future == NULL || !Py_IS_TYPE(future, (PyTypeObject *)coro->concurrent_Future) ||
        closure_of(function, 2) != (PyObject *)loop ||
        !is_original(coro, coro->str__chain_future, coro->chain_future, CHAIN)) {
        return 0;
    }
    PyObject *ensure_future = PyObject_GetItem(coro->tasks_dict, coro->str_ensure_future);
    if (ensure_future == NULL) {
        PyErr_Clear();
        return 0;
    }
    /* Somebody may empty the cells. */
    Py_INCREF(coroutine);
    Py_INCREF(future);
    int err = start(loop, ensure_future, coroutine, future);
    if (err < 0) {
        pass_on(loop->state, future);
    }
    Py_DECREF(future);
    Py_DECREF(coroutine);
    Py_DECREF(ensure_future);
    return err < 0 ? -1 : 1;
}

/* ---- the outcome ---- */

/* futures._set_concurrent_future_state() */
static int
copy_state(CoroState *coro, PyObject *future, PyObject *source, PyObject *convert)
{
    int cancelled = method_truth(source, coro->str_cancelled);
    if (cancelled > 0) {
        cancelled = method_truth(future, coro->str_cancel);
    }
    int wanted = cancelled < 0 ? -1 : method_truth(future, coro->str_set_running_or_notify_cancel);
    if (wanted <= 0) {
        return wanted;
    }
    PyObject *exception = PyObject_CallMethodNoArgs(source, coro->str_exception);
    if (exception == NULL) {
        return -1;
    }
    PyObject *name, *value;
    if (exception == Py_None) {
        name = coro->str_set_result;
        value = PyObject_CallMethodNoArgs(source, coro->str_result);
    } else {
        name = coro->str_set_exception;
        value = PyObject_CallOneArg(convert, exception);
    }
    Py_DECREF(exception);
    int err = value == NULL ? -1 : tell(future, name, value);
    Py_XDECREF(value);
    return err;
}

/* _call_set_state() inside _chain_future(), for a concurrent.futures.Future. */
static int
run_call_set_state(LoopObject *loop, PyObject *function, PyObject *source)
{
    CoroState *coro = loop->state->coro;
    PyObject *future = closure_of(function, CELL_DESTINATION);
    if (future == NULL || !Py_IS_TYPE(future, (PyTypeObject *)coro->concurrent_Future) ||
        closure_of(function, CELL_DEST_LOOP) != Py_None || !future_is_plain(coro, source) ||
        BaseFuture_CAST(source)->state == FUTURE_PENDING ||
        !is_original(coro, coro->str__set_concurrent_future_state, coro->set_concurrent_future_state, COPY)) {
        return 0;
    }
    Py_INCREF(future);
    int err = copy_state(coro, future, source, loop->state->convert_future_exc);
    Py_DECREF(future);
    return err < 0 ? -1 : 1;
}

int
chain_run(LoopObject *loop, PyObject *function, PyObject *const *args, Py_ssize_t nargs)
{
    if (PyFunction_GET_CODE(function) == loop->state->known_codes[KNOWN_SUBMIT]) {
        return nargs == 0 ? run_submit(loop, function) : 0;
    }
    return nargs == 1 ? run_call_set_state(loop, function, args[0]) : 0;
}

int
chain_exec(State *state)
{
    CoroState *coro = state->coro;
    coro->chain_codes = coro_find_codes(coro, "chain_codes");
    if (coro->chain_codes == NULL) { /* GCOV_EXCL_BR_LINE: another version of asyncio */
        return PyErr_Occurred() ? -1 : 0;
    }
    state->known_codes[KNOWN_SUBMIT] = item(coro, SUBMIT);
    state->known_codes[KNOWN_COPY] = item(coro, CALL_SET_STATE);
    return 0;
}
