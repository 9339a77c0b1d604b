/* asyncio.all_tasks() and asyncio.current_task(). */

#ifndef FASTLOOP_CORO_REGISTRY_H
#define FASTLOOP_CORO_REGISTRY_H

#include "coro/layout.h"
#include "coro/task.h"

/* Makes the lists, empty. */
void registry_init(CoroState *coro);

static inline void
task_link_after(TaskNode *where, TaskNode *node)
{
    node->prev = where;
    node->next = where->next;
    where->next->prev = node;
    where->next = node;
}

/* Makes a task visible to all_tasks() until it is done or gone. */
#if HAVE_OWN_TASK_LIST
int registry_add(CoroState *coro, TaskObject *task);
#else
int registry_add_anew(CoroState *coro, TaskObject *task);

static inline int
registry_add(CoroState *coro, TaskObject *task)
{
#if HAVE_RUNNING_TASK_SLOT
    TaskNode *node = &task->base.node;
    if (node->next != NULL) {
        return 0;
    }
    if (LIKELY(coro->task_list_at != 0)) {
        TaskNode *list = (TaskNode *)((char *)PyThreadState_Get() + coro->task_list_at);
        task_link_after(list->prev, node);
        return 0;
    }
#endif
    return registry_add_anew(coro, task);
}
#endif
/* Takes a task out; does nothing if it is not in. */
void registry_remove(TaskObject *task);
/* List of the tasks in our own list (new references). */
PyObject *registry_list(CoroState *coro);

/* A task begins or ends a step. `native` is its loop if the step is a record of it, whose end may be noted later; NULL
   if not. -1 with an exception. */
#if HAVE_DICT_VERSION
int current_task_enter_anew(CoroState *coro, LoopObject *native, PyObject *loop, PyObject *task);

/* Where the dict, unchanged since the last step, has its entry, or NULL. A store there takes a tenth of PyDict_SetItem(); the
   dict has the same keys as before, and nobody but us looks at the version of this one. */
static inline PyObject **
current_task_slot(CoroState *coro, CoroPart *part)
{
    bool is_unchanged = compat_dict_version(coro->current_tasks) == part->shown_version &&
                        part->shown_keys == dict_keys(coro->current_tasks);
    return LIKELY(is_unchanged) ? part->shown_slot : NULL;
}

ALWAYS_INLINE int
current_task_enter(CoroState *coro, LoopObject *native, PyObject *loop, PyObject *task)
{
    PyObject **slot = native == NULL || native->left_task == NULL ? NULL : current_task_slot(coro, native->coro);
    if (UNLIKELY(slot == NULL)) {
        return current_task_enter_anew(coro, native, loop, task);
    }
    native->left_task = NULL;
    Py_SETREF(*slot, Py_NewRef(task));
    return 0;
}
int current_task_leave(CoroState *coro, LoopObject *native, PyObject *loop, PyObject *task);
#elif HAVE_THREAD_STATE_TASKS
int current_task_enter_anew(CoroState *coro, PyObject *loop, PyObject *task);
int current_task_leave_anew(CoroState *coro, PyObject *loop, PyObject *task);

/* Where the state of the thread that runs `native` keeps the running task; NULL where that is not known, and if another loop
   runs. */
static inline PyObject **
current_task_slot(LoopObject *native, PyObject *loop)
{
    return LIKELY(native != NULL && native->running != NULL) && LIKELY(native->running[0] == loop) ? &native->running[1]
                                                                                                   : NULL;
}

ALWAYS_INLINE int
current_task_enter(CoroState *coro, LoopObject *native, PyObject *loop, PyObject *task)
{
    PyObject **slot = current_task_slot(native, loop);
    if (UNLIKELY(slot == NULL || *slot != NULL)) {
        return current_task_enter_anew(coro, loop, task);
    }
    *slot = Py_NewRef(task);
    return 0;
}

ALWAYS_INLINE int
current_task_leave(CoroState *coro, LoopObject *native, PyObject *loop, PyObject *task)
{
    PyObject **slot = current_task_slot(native, loop);
    if (UNLIKELY(slot == NULL || *slot != task)) {
        return current_task_leave_anew(coro, loop, task);
    }
    *slot = NULL;
    Py_DECREF(task);
    return 0;
}
#else
int current_task_enter(CoroState *coro, LoopObject *native, PyObject *loop, PyObject *task);
int current_task_leave(CoroState *coro, LoopObject *native, PyObject *loop, PyObject *task);
#endif
/* State.leave_task */
void current_task_forget(LoopObject *loop);
/* Puts `task` (or None) in and returns what was there (or None). `native` is the loop if it is one of ours, or NULL. */
PyObject *current_task_swap(CoroState *coro, LoopObject *native, PyObject *loop, PyObject *task);

#endif
