/* loop.run_in_executor(): straight into the work queue of a fastloop.ThreadPool where nobody can tell the difference,
   else through asyncio's own.

   The difference could be told where something in between has been replaced, as tracers do that carry their context
   into threads: `submit` of the executor, `start` or `run` of threading.Thread, run_in_executor() of BaseEventLoop, or
   call_soon_threadsafe() of the loop. Each call looks again; a look costs less than a hundredth of the hop. */

#include "pool/pool.h"

#include "base/functions.h"

/* ---- what must be as it was ---- */

/* An attribute, or NULL without an exception. */
static PyObject *
look_up(PyObject *op, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(op, name);
    if (value == NULL) {
        PyErr_Clear();
    }
    return value;
}

/* Is attribute `name` of a class a plain function of that module? */
static bool
class_keeps(PyObject *type, PyObject *name, PyObject *globals)
{
    PyObject *function = look_up(type, name);
    bool same = function_is_original(function, globals);
    Py_XDECREF(function);
    return same;
}

/* Is attribute `name` of an instance a method that is a plain function of that module? */
static bool
instance_keeps(PyObject *op, PyObject *name, PyObject *globals)
{
    PyObject *method = look_up(op, name);
    bool same =
        method != NULL && PyMethod_Check(method) && function_is_original(PyMethod_GET_FUNCTION(method), globals);
    Py_XDECREF(method);
    return same;
}

/* Is loop.call_soon_threadsafe() the native one? */
static bool
keeps_call_soon_threadsafe(LoopObject *loop)
{
    State *state = loop->state;
    PyObject *method = look_up((PyObject *)loop, state->str_call_soon_threadsafe);
    bool same = method != NULL && PyCFunction_Check(method) && PyCFunction_GET_SELF(method) == (PyObject *)loop &&
                PyCFunction_GET_FUNCTION(method) == state->call_soon_threadsafe;
    Py_XDECREF(method);
    return same;
}

/* An attribute of the loop that the standard library keeps as a bool. */
static bool
loop_flag(LoopObject *loop, PyObject *name)
{
    PyObject *value = look_up((PyObject *)loop, name);
    bool set = value != NULL && value != Py_False;
    Py_XDECREF(value);
    return set;
}

static bool
nothing_replaced(LoopObject *loop)
{
    State *state = loop->state;
    PyObject *thread = state->threading_Thread;
    return loop_flag(loop, state->str__use_native_pool) && keeps_call_soon_threadsafe(loop) &&
           class_keeps(state->asyncio_BaseEventLoop, state->str_run_in_executor, state->base_events_globals) &&
           class_keeps(thread, state->str_start, state->threading_globals) &&
           class_keeps(thread, state->str_run, state->threading_globals);
}

/* The work queue of an executor whose submit() need not be called; NULL without an exception for every other. */
static JobQueueObject *
queue_of_executor(State *state, PyObject *executor)
{
    PyObject *op = look_up(executor, state->str__work_queue);
    if (op == NULL || !Py_IS_TYPE(op, state->JobQueueType)) {
        Py_XDECREF(op);
        return NULL;
    }
    JobQueueObject *queue = JobQueueObject_CAST(op);
    if (!instance_keeps(executor, state->str_submit, queue->executor_globals)) {
        Py_CLEAR(queue);
    }
    return queue;
}

/* The default executor, which is made when it is needed for the first time; NULL with an exception, or without one when
   asyncio's own code shall see to it. */
static PyObject *
default_executor(LoopObject *loop)
{
    State *state = loop->state;
    if (loop_flag(loop, state->str__executor_shutdown_called)) {
        return NULL;
    }
    PyObject *executor = PyObject_GetAttr((PyObject *)loop, state->str__default_executor);
    if (executor != Py_None) {
        return executor;
    }
    Py_DECREF(executor);
    PyObject *module = PyImport_ImportModule("fastloop.pool");
    executor = module == NULL ? NULL : PyObject_CallMethod(module, "new_default_executor", NULL);
    Py_XDECREF(module);
    if (executor == Py_None) {
        Py_CLEAR(executor);
    } else if (executor != NULL && PyObject_SetAttr((PyObject *)loop, state->str__default_executor, executor) < 0) {
        Py_CLEAR(executor);
    }
    return executor;
}

/* ---- handing a job over ---- */

/* Has the executor queue the job and start a worker for it, if it may. 1, 0 when it may not, -1 with an exception. */
static int
submit_with_worker(State *state, PyObject *executor, const Job *job)
{
    PyObject *args = job->args == NULL ? Py_None : job->args;
    PyObject *taken = PyObject_CallMethodObjArgs(executor, state->str__submit_job, job->func, args, job->future,
                                                 (PyObject *)job->loop, NULL);
    int truth = taken == NULL ? -1 : PyObject_IsTrue(taken);
    Py_XDECREF(taken);
    return truth;
}

static void
drop_references(Job *job)
{
    Py_XDECREF(job->args);
    Py_XDECREF(job->func);
    Py_XDECREF(job->future);
    Py_XDECREF((PyObject *)job->loop);
}

/* The future of func(*args) as a job for `executor`; NULL with an exception, or without one when the executor does not
   take it. */
static PyObject *
submit(LoopObject *loop, PyObject *executor, JobQueueObject *queue, PyObject *const *args, Py_ssize_t nargs)
{
    State *state = loop->state;
    PyObject *future = PyObject_CallMethodNoArgs((PyObject *)loop, state->str_create_future);
    if (future == NULL) {
        return NULL;
    }
    Job job = {.func = Py_NewRef(args[0]), .future = Py_NewRef(future), .loop = (LoopObject *)Py_NewRef(loop)};
    if (nargs > 1) {
        job.args = PyTuple_New(nargs - 1);
        for (Py_ssize_t i = 1; job.args != NULL && i < nargs; i++) {
            PyTuple_SET_ITEM(job.args, i - 1, Py_NewRef(args[i]));
        }
    }
    JobOutcome outcome = nargs > 1 && job.args == NULL ? JOB_FAILED : jobs_submit_threadsafe(queue, &job);
    if (LIKELY(outcome == JOB_TAKEN)) {
        return future;
    }
    int taken = outcome == JOB_FAILED ? -1 : 0;
    if (outcome == JOB_NO_WORKER) {
        taken = submit_with_worker(state, executor, &job);
    }
    drop_references(&job);
    if (taken <= 0) {
        Py_CLEAR(future);
    }
    return future;
}

/* ---- run_in_executor() ---- */

/* The native way: the future, or NULL with an exception, or without one when asyncio's own way is to be taken. */
static PyObject *
run_natively(LoopObject *loop, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *executor = args[0] == Py_None ? default_executor(loop) : Py_NewRef(args[0]);
    if (executor == NULL) {
        return NULL;
    }
    JobQueueObject *queue = queue_of_executor(loop->state, executor);
    PyObject *future = NULL;
    if (queue != NULL) {
        future = submit(loop, executor, queue, args + 1, nargs - 1);
        Py_DECREF(queue);
    }
    Py_DECREF(executor);
    return future;
}

/* BaseEventLoop.run_in_executor(self, ...). */
static PyObject *
run_as_asyncio(LoopObject *loop, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    State *state = loop->state;
    PyObject *method = PyObject_GetAttr(state->asyncio_BaseEventLoop, state->str_run_in_executor);
    Py_ssize_t given = nargs + (kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames));
    PyObject **stack = method == NULL ? NULL : PyMem_New(PyObject *, given + 1);
    PyObject *future = NULL;
    if (stack != NULL) {
        stack[0] = (PyObject *)loop;
        for (Py_ssize_t i = 0; i < given; i++) {
            stack[1 + i] = args[i];
        }
        future = PyObject_Vectorcall(method, stack, (size_t)nargs + 1, kwnames);
    } else if (method != NULL) {
        PyErr_NoMemory();
    }
    PyMem_Free(stack);
    Py_XDECREF(method);
    return future;
}

PyDoc_STRVAR(
    Loop_run_in_executor_doc,
    "run_in_executor($self, executor, func, *args)\n--\n\n"
    "Call func(*args) in a thread and return a future of its result.\n\n"
    "executor is a concurrent.futures.Executor, or None for the default one. fastloop.ThreadPool, which is what\n"
    "the default executor is, is served natively. Raises RuntimeError when the loop is closed or the executor is\n"
    "shut down. See asyncio.loop.run_in_executor().");

static PyObject *
Loop_run_in_executor(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    LoopObject *loop = LoopObject_CAST(op);
    /* What asyncio refuses, and everything in debug mode, is left to it. */
    if (kwnames == NULL && nargs >= 2 && !loop->closed && !loop->debug && nothing_replaced(loop)) {
        PyObject *future = run_natively(loop, args, nargs);
        if (future != NULL || PyErr_Occurred()) {
            return future;
        }
    }
    return run_as_asyncio(loop, args, nargs, kwnames);
}

static PyMethodDef loop_methods[] = {
    {"run_in_executor", (PyCFunction)(void (*)(void))Loop_run_in_executor, METH_FASTCALL | METH_KEYWORDS,
     Loop_run_in_executor_doc},
    {NULL},
};

/* Remembers which C function call_soon_threadsafe() is. */
static int
remember_call_soon_threadsafe(State *state)
{
    PyObject *method = PyObject_GetAttr((PyObject *)state->LoopType, state->str_call_soon_threadsafe);
    if (method == NULL) {
        return -1;
    }
    state->call_soon_threadsafe = ((PyMethodDescrObject *)method)->d_method->ml_meth;
    Py_DECREF(method);
    return 0;
}

int
pool_exec(State *state)
{
    /* FASTLOOP_DISABLE=pool sets it to False on the instance. */
    if (PyObject_SetAttr((PyObject *)state->LoopType, state->str__use_native_pool, Py_True) < 0 ||
        remember_call_soon_threadsafe(state) < 0) {
        return -1;
    }
    return loop_add_methods(state->LoopType, loop_methods);
}
