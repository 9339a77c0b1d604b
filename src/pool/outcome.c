/* From a worker thread back to the future: one record in the loop's inbox, of the future and the result or exception.

   Only the thread of the loop touches the future; the worker just asks whether it was cancelled. A loop that is closed
   gets nothing, as with asyncio.wrap_future(). */

#include "pool/outcome.h"

#include "base/functions.h"

/* An outcome that the future refused: StopIteration on older Pythons, or somebody else has completed the future. */
static int
report_refusal(LoopObject *loop, PyObject *future)
{
    if (loop_must_propagate()) {
        return -1;
    }
    loop_report(loop, "Exception while completing the future of run_in_executor()", "future", future, NULL);
    return 0;
}

/* ready_run: future.set_result(result), unless it was cancelled meanwhile. */
static int
deliver_result(LoopObject *loop, PyObject *future, PyObject *result)
{
    State *state = loop->state;
    int done = state->complete_future == NULL ? 0 : state->complete_future(state, future, result);
    if (done == 0) {
        done = method_truth(future, state->str_cancelled);
    }
    if (done == 0) {
        PyObject *none = PyObject_CallMethodOneArg(future, state->str_set_result, result);
        Py_XDECREF(none);
        done = none == NULL ? -1 : 1;
    }
    return done < 0 ? report_refusal(loop, future) : 0;
}

/* ready_run: future.set_exception(), unless it was cancelled meanwhile. */
static int
deliver_exception(LoopObject *loop, PyObject *future, PyObject *exception)
{
    State *state = loop->state;
    int done = method_truth(future, state->str_cancelled);
    if (done == 0) {
        /* concurrent.futures.CancelledError and its kin become asyncio's. */
        PyObject *converted = PyObject_CallOneArg(state->convert_future_exc, exception);
        PyObject *none =
            converted == NULL ? NULL : PyObject_CallMethodOneArg(future, state->str_set_exception, converted);
        Py_XDECREF(converted);
        Py_XDECREF(none);
        done = none == NULL ? -1 : 1;
    }
    return done < 0 ? report_refusal(loop, future) : 0;
}

static void
send_outcome(Job *job, ready_run deliver, PyObject *value)
{
    if (loop_push_quietly(job->loop, deliver, job->future, value) < 0) {
        /* The loop is closed: nobody wants to know. Without memory the outcome is lost, and it is said. */
        if (PyErr_ExceptionMatches(PyExc_RuntimeError)) {
            PyErr_Clear();
        } else {
            PyErr_WriteUnraisable(job->func);
        }
    }
}

void
job_run(Job *job)
{
    int cancelled = method_truth(job->future, job->loop->state->str_cancelled);
    if (cancelled > 0) {
        return;
    }
    if (cancelled < 0) {
        /* A future of a kind of its own: the loop's thread will hear of it again. */
        PyErr_Clear();
    }
    PyObject *const *args = job->args == NULL ? NULL : &PyTuple_GET_ITEM(job->args, 0);
    size_t nargs = job->args == NULL ? 0 : (size_t)PyTuple_GET_SIZE(job->args);
    PyObject *result = PyObject_Vectorcall(job->func, args, nargs, NULL);
    if (result != NULL) {
        send_outcome(job, deliver_result, result);
        Py_DECREF(result);
        return;
    }
    PyObject *exception = compat_take_exception();
    send_outcome(job, deliver_exception, exception);
    Py_DECREF(exception);
}
