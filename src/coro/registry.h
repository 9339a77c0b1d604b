/* asyncio.all_tasks() and asyncio.current_task(). */

#ifndef FASTLOOP_CORO_REGISTRY_H
#define FASTLOOP_CORO_REGISTRY_H

#include "coro/task.h"

/* Makes the lists, empty. */
void registry_init(CoroState *coro);

/* Makes a task visible to all_tasks() until it is done or gone. */
int registry_add(CoroState *coro, TaskObject *task);
/* Takes a task out; does nothing if it is not in. */
void registry_remove(TaskObject *task);
/* List of the tasks in our own list (new references). */
PyObject *registry_list(CoroState *coro);

/* A task begins or ends a step. `native` is its loop if the step is a record of it, whose end may be noted later; NULL
   if not. -1 with an exception. */
int current_task_enter(CoroState *coro, LoopObject *native, PyObject *loop, PyObject *task);
int current_task_leave(CoroState *coro, LoopObject *native, PyObject *loop, PyObject *task);
/* State.leave_task */
void current_task_forget(LoopObject *loop);
/* Puts `task` (or None) in and returns what was there (or None). `native` is the loop if it is one of ours, or NULL. */
PyObject *current_task_swap(CoroState *coro, LoopObject *native, PyObject *loop, PyObject *task);

#endif
