/* What is awaited: futures and tasks. This header is what the other layers see.

   Future and Task are subclasses of asyncio's own, with the state in the fields of the base (see layout.h). A task's
   step is a record in the ready queue; see task.c. Where the private structs of asyncio are not as described, `native`
   is false and the loop uses the standard types. */

#ifndef FASTLOOP_CORO_H
#define FASTLOOP_CORO_H

#include "coro/dicts.h"
#include "coro/layout.h"
#include "sched/loop.h"

enum { TASK_SHARDS = 32 };

/* Attributes of other modules: X(field, module, attribute). */
#define CORO_IMPORTS(X)                                             \
    X(asyncio_module, "_asyncio", NULL)                             \
    X(CancelledError, "asyncio.exceptions", "CancelledError")       \
    X(InvalidStateError, "asyncio.exceptions", "InvalidStateError") \
    X(extract_stack, "traceback", "extract_stack")                  \
    X(iscoroutine, "asyncio.coroutines", "iscoroutine")             \
    X(base_loop, "asyncio.base_events", "BaseEventLoop")            \
    X(tasks_dict, "asyncio.tasks", "__dict__")                      \
    X(futures_dict, "asyncio.futures", "__dict__")                  \
    X(futures_module, "asyncio.futures", NULL)                      \
    X(register_task, "_asyncio", "_register_task")                  \
    X(unregister_task, "_asyncio", "_unregister_task")              \
    X(enter_task, "_asyncio", "_enter_task")                        \
    X(leave_task, "_asyncio", "_leave_task")

/* The same, of some versions only: NULL in the others. */
#define CORO_OPTIONAL_IMPORTS(X)                                                      \
    X(eager_task_factory, "asyncio.tasks", "eager_task_factory")                      \
    X(current_tasks, "_asyncio", "_current_tasks")                                    \
    X(swap_current_task, "_asyncio", "_swap_current_task")                            \
    X(concurrent_Future, "concurrent.futures._base", "Future")                        \
    X(chain_future, "asyncio.futures", "_chain_future")                               \
    X(set_concurrent_future_state, "asyncio.futures", "_set_concurrent_future_state") \
    X(add_to_awaited_by, "_asyncio", "future_add_to_awaited_by")                      \
    X(discard_from_awaited_by, "_asyncio", "future_discard_from_awaited_by")          \
    X(gathering_type, "asyncio.tasks", "_GatheringFuture")

#define CORO_NAMES(X)                                                   \
    X(throw, "throw")                                                   \
    X(cancel, "cancel")                                                 \
    X(result, "result")                                                 \
    X(set_result, "set_result")                                         \
    X(set_exception, "set_exception")                                   \
    X(get_loop, "get_loop")                                             \
    X(_loop, "_loop")                                                   \
    X(add_done_callback, "add_done_callback")                           \
    X(blocking, "_asyncio_future_blocking")                             \
    X(loop, "loop")                                                     \
    X(name, "name")                                                     \
    X(eager_start, "eager_start")                                       \
    X(Task, "Task")                                                     \
    X(Future, "Future")                                                 \
    X(create_task, "create_task")                                       \
    X(create_future, "create_future")                                   \
    X(ensure_future, "ensure_future")                                   \
    X(cancelled, "cancelled")                                           \
    X(done, "done")                                                     \
    X(_cancel_requested, "_cancel_requested")                           \
    X(futures, "futures")                                               \
    X(future_discard_from_awaited_by, "future_discard_from_awaited_by") \
    X(exception, "exception")                                           \
    X(None, "None")                                                     \
    X(_chain_future, "_chain_future")                                   \
    X(_set_concurrent_future_state, "_set_concurrent_future_state")     \
    X(set_running_or_notify_cancel, "set_running_or_notify_cancel")

#define CORO_TYPES(X) \
    X(Future)         \
    X(Task)           \
    X(Awaiter)        \
    X(Wakeup)         \
    X(Step)

#if HAVE_UNLOCKED_FUTURES
/* Methods of asyncio's own types that change, or look at, what another thread may be completing or running, with their
   parameters as asyncio shows them. */
#define UNLOCKED_METHODS(X)                                                                                    \
    X(add_done_callback, "($self, fn, /, *, context=<unrepresentable>)",                                       \
      "Have fn(self) called by the loop once it is done.")                                                     \
    X(remove_done_callback, "($self, fn, /)", "Take all callbacks away that are equal to fn, and count them.") \
    X(exception, "($self, /)", "The exception that was set, or None.")                                         \
    X(result, "($self, /)", "The result; or raises the exception.")                                            \
    X(_make_cancelled_error, "($self, /)", "The CancelledError to raise.")
/* Those of tasks only. */
#define UNLOCKED_TASK_METHODS(X)                                                            \
    X(get_coro, "($self, /)", "The coroutine.")                                             \
    X(get_context, "($self, /)", "The context in which the coroutine runs.")                \
    X(get_stack, "($self, /, *, limit=None)", "The frames of the coroutine.")               \
    X(print_stack, "($self, /, *, limit=None, file=None)", "Print where the coroutine is.") \
    X(cancelling, "($self, /)", "How many requests to cancel there are.")                   \
    X(uncancel, "($self, /)", "Take one request to cancel back, and count those left.")
/* Attributes, and of tasks only. _asyncio_future_blocking, which is asked for often, is none of them. */
#define UNLOCKED_ATTRIBUTES(X) \
    X(_state)                  \
    X(_callbacks)              \
    X(_result)                 \
    X(_exception)              \
    X(_log_traceback)          \
    X(_source_traceback)       \
    X(_cancel_message)
#define UNLOCKED_TASK_ATTRIBUTES(X) \
    X(_coro)                        \
    X(_fut_waiter)                  \
    X(_must_cancel)                 \
    X(_log_destroy_pending)
#define UNLOCKED_NAMES(X)    \
    UNLOCKED_METHODS(X)      \
    UNLOCKED_ATTRIBUTES(X)   \
    UNLOCKED_TASK_METHODS(X) \
    UNLOCKED_TASK_ATTRIBUTES(X) X(cancel)
#else
#define UNLOCKED_NAMES(X)
#endif

/* The name of one, and what asyncio's Future (NULL for what is a task's only) and Task have by it. */
typedef struct {
    PyObject *name;
    PyObject *methods[2];
} UnlockedMethod;

/* Of one module object. */
typedef struct CoroState {
    bool native;              /* the structs are as layout.h says */
    bool recycle;             /* an object without attributes can be told from one with */
    bool standard_registry;   /* ... or not: asyncio's set is of an unknown kind, they are in it one by one */
    _Atomic bool installed;   /* our tasks are seen by asyncio.all_tasks() */
    bool checks_context;      /* Task.__init__() refuses a context that is none */
    bool free_keywords;       /* BaseEventLoop.create_task() passes any keyword on to the task */
    bool names_later;         /* it names what a task factory has made, ... */
    bool names_none;          /* ... "None" if no name is given */
    bool dicts_known;         /* dicts.h knows them */
    _Atomic bool names_known; /* `names` is set */
#if HAVE_RUNNING_TASK_SLOT
    size_t running_at;   /* State's */
    size_t task_list_at; /* see layout_find_task_list() */
#endif
    TaskNames names;
    KnownItem known_task; /* that the namespaces of asyncio's modules have the original types */
    KnownItem known_future;
    KnownItem known_discard;
    KnownItem known_futures_module;
    unsigned gathering_version; /* of the type of what gather() returns, when its methods were the future's */
    unsigned base_loop_version; /* of the type BaseEventLoop, when its create_task() was the original */
    PyObject *create_task_code; /* of that method */
    PyObject *base_create_task; /* that method */
    uint32_t fresh_values;      /* see layout_values_header() */
    TaskNode tasks;             /* ring of our live tasks, where HAVE_OWN_TASK_LIST */
#if HAVE_SHARED_TASK_LIST
    TaskShard shards[TASK_SHARDS]; /* instead */
#endif

    /* Ours; NULL unless native. */
#define X(name) PyTypeObject *name##Type;
    CORO_TYPES(X)
#undef X
    PyTypeObject *base_future; /* asyncio's */
    PyTypeObject *loop_type;   /* of the first loop that was made, to know most loops at a glance */
    PyTypeObject *base_task;

#define X(field, module, attribute) PyObject *field;
    CORO_IMPORTS(X)
    CORO_OPTIONAL_IMPORTS(X)
#undef X
#define X(field, text) PyObject *str_##field;
    CORO_NAMES(X)
#undef X
    PyObject *chain_codes;   /* see chain.c; NULL where asyncio is not as known */
    PyObject *gather_codes;  /* see gather.c; likewise */
    PyObject *helpers;       /* the module fastloop._coro */
    PyObject *future_result; /* a method of asyncio.Future */
    PyObject *kw_context;    /* ("context",) */
    PyObject *empty_tuple;
#define X(name, ...) UnlockedMethod unlocked_##name;
    UNLOCKED_NAMES(X)
#undef X
    CompatMutex names_lock; /* of the names of all tasks, once others can see them */
} CoroState;

/* Of one loop. Used by the thread of the loop only. */
typedef struct CoroPart {
    bool use_native;          /* loop._use_native_tasks */
    PyObject *task_factory;   /* loop._task_factory; NULL stands for None */
    PyObject *stop_iteration; /* reused while nobody else holds it */
    uint64_t shown_version;   /* of asyncio's dict of current tasks, when it was right */
    PyObject **shown_slot;    /* where a dict of that version has our entry's value; NULL when that is not known */
    void *shown_keys;         /* dict_keys() for that */
    FreeList free_futures;
    FreeList free_tasks;
    FreeList free_awaiters;
    FreeList free_wakeups;
} CoroPart;

/* For module.c: make and drop the layer's part of the module state. */
int coro_exec(PyObject *module, State *state);
int coro_traverse(State *state, visitproc visit, void *arg);
void coro_clear(State *state);
void coro_free(State *state);

/* What a function of fastloop._coro that looks for asyncio's codes has found (a new reference), or NULL for nothing: another
   version of asyncio, or an exception. */
PyObject *coro_find_codes(CoroState *coro, const char *function);

extern const LoopHooks coro_hooks;
extern PyMethodDef coro_loop_methods[];
/* State.complete_future. */
int coro_complete_future(State *state, PyObject *future, PyObject *result);

/* New future of this loop: ours, or what BaseEventLoop.create_future() makes. */
PyObject *future_new(LoopObject *loop);

#endif
