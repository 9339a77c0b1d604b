/* The structs of asyncio's own Future and Task, as far as `_asyncio` keeps them private.

   Our types add (almost) nothing to them: the state of a future lives in the fields of its base, so that every method
   of asyncio.Future and asyncio.Task, bound or unbound, every debugger and every other C extension sees the truth.
   There are three known layouts. layout_verify() compares them at import with standard objects; when anything differs,
   fastloop uses the standard types. */

#ifndef FASTLOOP_CORO_LAYOUT_H
#define FASTLOOP_CORO_LAYOUT_H

#include "state.h"

/* Dict and weak references lie before the object, and flags are bit fields (3.13 and later). */
#define HAVE_FUTURE_BIT_FIELDS HAVE_GIL_SLOT
/* Futures know who awaits them, and tasks are linked into a list of their thread (3.14 and later). */
#define HAVE_AWAITED_BY HAVE_THREAD_STATE_TASKS
/* The base types are heap types: they visit and drop the type of an instance themselves (3.12 and later). */
#define HAVE_HEAP_BASE_TYPES HAVE_RAISED_EXCEPTION
/* Tasks can start eagerly (3.12 and later). */
#define HAVE_EAGER_TASKS HAVE_RAISED_EXCEPTION
/* PyDict_Pop() (3.13 and later). */
#define HAVE_DICT_POP HAVE_GIL_SLOT
/* We keep our own list of live tasks: the standard registry is a WeakSet. */
#define HAVE_OWN_TASK_LIST (!HAVE_AWAITED_BY)
/* Several, rather, each with a lock. */
#define HAVE_SHARED_TASK_LIST (HAVE_OWN_TASK_LIST && HAVE_FREE_THREADING)

/* The running task is found in the thread state, where no other thread looks. */
#define HAVE_RUNNING_TASK_SLOT (HAVE_THREAD_STATE_TASKS && !HAVE_FREE_THREADING)

typedef enum { FUTURE_PENDING, FUTURE_CANCELLED, FUTURE_FINISHED } FutureState;

typedef struct {
    PyObject_HEAD
    PyObject *loop;      /* NULL before __init__ */
    PyObject *callback0; /* the first callback; further ones in `callbacks` */
    PyObject *context0;
    PyObject *callbacks; /* list of (callback, context) */
    PyObject *exception;
    PyObject *exception_tb;
    PyObject *result;
    PyObject *source_tb;
    PyObject *cancel_msg;
#if HAVE_FUTURE_BIT_FIELDS
    PyObject *cancelled_exc;
#if HAVE_AWAITED_BY
    PyObject *awaited_by; /* a waiter, or a set of them */
#endif
    FutureState state;
#if HAVE_AWAITED_BY
    char is_task;
    char awaited_by_is_set;
#endif
    unsigned log_tb : 1;
    unsigned blocking : 1;
    unsigned must_cancel : 1; /* a task's from here on */
    unsigned log_destroy_pending : 1;
#else
    FutureState state;
    int log_tb;
    int blocking;
    PyObject *dict;
    PyObject *weakrefs;
    PyObject *cancelled_exc;
#endif
} BaseFuture;

typedef struct TaskNode {
    struct TaskNode *next;
    struct TaskNode *prev;
} TaskNode;

/* Tasks that one of some threads made, so that threads seldom meet; on a cache line of its own. */
typedef struct {
    TaskNode tasks; /* a ring of them */
    size_t count;
    CompatMutex lock; /* of everything here, and of `node` and `reference` of the tasks */
    char apart[64];
} TaskShard;

typedef struct {
    BaseFuture fut;
#if HAVE_FUTURE_BIT_FIELDS
    int num_cancels_requested;
#endif
    PyObject *fut_waiter;
    PyObject *coro;
    PyObject *name;
    PyObject *context;
#if HAVE_AWAITED_BY
    TaskNode node;
#if HAVE_FREE_THREADING
    uintptr_t thread_id;
#endif
#endif
#if !HAVE_FUTURE_BIT_FIELDS
    int must_cancel;
    int log_destroy_pending;
    int num_cancels_requested;
#endif
} BaseTask;

#define BaseFuture_CAST(op) ((BaseFuture *)(op))
#define BaseTask_CAST(op) ((BaseTask *)(op))

#if HAVE_FUTURE_BIT_FIELDS
#define TASK_FLAGS(task) (&(task)->fut)
#else
#define TASK_FLAGS(task) (task)
#endif

/* Is the description above that of the running asyncio? 1 or 0, or -1 with an exception. */
int layout_verify(PyObject *base_future, PyObject *base_task);

/* The dict of a future as it is stored (not created), and whether it has attributes of its own. */
bool layout_has_dict(PyObject *op, uint32_t fresh_values);
bool layout_has_weakrefs(PyObject *op);
/* The state of the attribute values that newer versions keep behind an object; 0 where there are none. */
uint32_t layout_values_header(PyObject *op);

#if HAVE_RUNNING_TASK_SLOT
/* Finds where a thread's state keeps the running loop and, behind it, the running task, which `swap` replaces: the offset,
   or 0 where they are not found. -1 with an exception. */
int layout_find_running_task(PyObject *asyncio_module, PyObject *swap, size_t *offset);
/* Finds the list of a thread's tasks, of which `node` has just become the last: its offset, or 0. */
size_t layout_find_task_list(TaskNode *node);
#endif

/* Where automatic names of tasks come from. */
typedef struct {
    uint64_t *counter;    /* asyncio's own, or NULL where it cannot be found */
    uint64_t own_counter; /* used instead */
    bool lazy;            /* asyncio keeps the number of an automatic name as an int until somebody asks */
} TaskNames;

/* Looks for asyncio's counter in the state of its module. `make_task` makes a standard task without a name. -1 with
   an exception. */
int layout_find_name_counter(PyObject *asyncio_module, PyObject *make_task, TaskNames *names);

#endif
