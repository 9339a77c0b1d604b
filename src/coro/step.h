/* What a task gives to call_soon() of a loop that takes no records: called without arguments, it resumes the task. */

#ifndef FASTLOOP_CORO_STEP_H
#define FASTLOOP_CORO_STEP_H

#include "coro/future.h"

extern PyType_Spec Step_spec;

/* `exc` is what to throw into the coroutine, or NULL. New reference, or NULL with an exception. */
PyObject *step_new(State *state, PyObject *task, PyObject *exc);

#endif
