/* Task. */

#ifndef FASTLOOP_CORO_TASK_H
#define FASTLOOP_CORO_TASK_H

#include "coro/future.h"

typedef struct {
    BaseTask base;
#if HAVE_OWN_TASK_LIST
    TaskNode node; /* in CoroState.tasks, or in its shard's, while pending; both NULL when not */
#endif
#if HAVE_SHARED_TASK_LIST
    TaskShard *shard;    /* NULL when not in one */
    PyObject *reference; /* a weak one to the task: another thread may read it while the task dies */
#endif
} TaskObject;

#define TaskObject_CAST(op) ((TaskObject *)(op))

extern PyType_Spec Task_spec;

/* New task of a loop of ours. `name` and `context` may be None. */
PyObject *task_new(LoopObject *loop, PyObject *coroutine, PyObject *name, PyObject *context, bool eager);

/* set_name() of a task that is exactly ours. -1 with an exception. */
int task_set_name(CoroState *coro, PyObject *task, PyObject *name);

#if HAVE_AWAITED_BY
/* asyncio.future_discard_from_awaited_by() of any future; -1 with an exception. */
int task_discard_awaited_by(CoroState *coro, PyObject *awaited, PyObject *task);
#endif

/* Frees so many parked tasks, or those that there are. May run Python code. */
void task_free_parked(FreeList *list, int count);

/* ready_run of a step: `arg` is an exception to throw, or NULL. */
int task_step_run(LoopObject *loop, PyObject *owner, PyObject *arg);
/* ready_run of a wake-up: `arg` is the future that is done. */
int task_wakeup_run(LoopObject *loop, PyObject *owner, PyObject *arg);
/* The same by somebody else, who has entered the task's context. -1 with an exception. */
int task_step(State *state, BaseTask *task, PyObject *exc);
int task_wakeup(State *state, BaseTask *task, PyObject *future);

#endif
