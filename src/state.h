/* The state of one `_core` module object: types, interned names and imports.

   Each thing is listed once; the lists expand in module.c into exec, traverse and clear. Code reaches the state
   through an object (`loop->state`); only `tp_new` asks PyType_GetModuleByDef. */

#ifndef FASTLOOP_STATE_H
#define FASTLOOP_STATE_H

#include "compat.h"

#include <stdatomic.h>

/* Heap types made by module.c, as `PyTypeObject *NameType`. */
#define STATE_TYPES(X) \
    X(Gate)            \
    X(Loop)            \
    X(Handle)          \
    X(TimerHandle)     \
    X(SocketTransport) \
    X(Datagram)        \
    X(SockOp)          \
    X(Listener)        \
    X(TLSConnection)   \
    X(Connector)       \
    X(JobQueue)

/* Interned strings, as `PyObject *str_name`. */
#define STATE_NAMES(X)           \
    X(call_soon)                 \
    X(call_at)                   \
    X(is_running)                \
    X(_call_replaced_call_at)    \
    X(time)                      \
    X(context)                   \
    X(message)                   \
    X(exception)                 \
    X(handle)                    \
    X(source_traceback)          \
    X(call_exception_handler)    \
    X(_run)                      \
    X(_cancelled)                \
    X(_check_thread)             \
    X(_check_callback)           \
    X(_report_handle_error)      \
    X(_report_slow_callback)     \
    X(_call_slow_hook)           \
    X(_extract_stack)            \
    X(_handle_signal)            \
    X(connection_made)           \
    X(connection_lost)           \
    X(data_received)             \
    X(eof_received)              \
    X(datagram_received)         \
    X(error_received)            \
    X(accept)                    \
    X(setblocking)               \
    X(connect)                   \
    X(sendto)                    \
    X(throw)                     \
    X(done)                      \
    X(get_buffer)                \
    X(buffer_updated)            \
    X(pause_writing)             \
    X(resume_writing)            \
    X(socket)                    \
    X(sockname)                  \
    X(peername)                  \
    X(_io_refs)                  \
    X(_attach)                   \
    X(_detach)                   \
    X(_sockets)                  \
    X(_clients)                  \
    X(_active_count)             \
    X(_accepts_natively)         \
    X(_accept_connection2)       \
    X(_make_socket_transport)    \
    X(create_task)               \
    X(_pending_removals)         \
    X(_remove)                   \
    X(data)                      \
    X(add)                       \
    X(discard)                   \
    X(_call_connection_lost)     \
    X(cancel)                    \
    X(set_result)                \
    X(set_exception)             \
    X(create_future)             \
    X(cancelled)                 \
    X(call_soon_threadsafe)      \
    X(run_in_executor)           \
    X(submit)                    \
    X(start)                     \
    X(run)                       \
    X(_work_queue)               \
    X(_submit_job)               \
    X(_default_executor)         \
    X(_executor_shutdown_called) \
    X(_use_native_pool)          \
    X(_use_native_streams)       \
    X(__class__)                 \
    X(__dict__)                  \
    X(_buffer)                   \
    X(_eof)                      \
    X(_exception)                \
    X(_limit)                    \
    X(_loop)                     \
    X(_paused)                   \
    X(_stream_reader_wr)         \
    X(_transport)                \
    X(_waiter)                   \
    X(pause_reading)             \
    X(resume_reading)

/* Attributes of other modules, as `PyObject *name`: X(field, module, attribute). */
#define STATE_IMPORTS(X)                                                              \
    X(asyncio_Handle, "asyncio.events", "Handle")                                     \
    X(asyncio_TimerHandle, "asyncio.events", "TimerHandle")                           \
    X(set_result_unless_cancelled, "asyncio.futures", "_set_result_unless_cancelled") \
    X(asyncio_FlowControlMixin, "asyncio.transports", "_FlowControlMixin")            \
    X(asyncio_BufferedProtocol, "asyncio.protocols", "BufferedProtocol")              \
    X(asyncio_TransportSocket, "asyncio.trsock", "TransportSocket")                   \
    X(asyncio_Server, "asyncio.base_events", "Server")                                \
    X(asyncio_constants, "asyncio", "constants")                                      \
    X(asyncio_logger, "asyncio.log", "logger")                                        \
    X(stock_SocketTransport, "asyncio.selector_events", "_SelectorSocketTransport")   \
    X(stock_Datagram, "asyncio.selector_events", "_SelectorDatagramTransport")        \
    X(stock_SelectorLoop, "asyncio.selector_events", "BaseSelectorEventLoop")         \
    X(socket_socket, "socket", "socket")                                              \
    X(signal_set_wakeup_fd, "_signal", "set_wakeup_fd")                               \
    X(weakref_WeakValueDictionary, "weakref", "WeakValueDictionary")                  \
    X(weakref_WeakSet, "weakref", "WeakSet")                                          \
    X(weakrefset_globals, "_weakrefset", "__dict__")                                  \
    X(asyncio_BaseEventLoop, "asyncio.base_events", "BaseEventLoop")                  \
    X(base_events_globals, "asyncio.base_events", "__dict__")                         \
    X(convert_future_exc, "asyncio.futures", "_convert_future_exc")                   \
    X(asyncio_SSLProtocol, "asyncio.sslproto", "SSLProtocol")                         \
    X(asyncio_SSLProtocolState, "asyncio.sslproto", "SSLProtocolState")               \
    X(queue_Empty, "_queue", "Empty")                                                 \
    X(threading_Thread, "threading", "Thread")                                        \
    X(threading_globals, "threading", "__dict__")

typedef struct LoopHooks LoopHooks;
struct LoopObject;

/* What contexts_verify() in base/contexts.h has found. */
typedef struct {
    /* The mapping that every context without variables has; NULL where contexts are not known. */
    PyObject *no_variables;
    /* A context that nobody enters: it stands for one that is made when it is needed. Likewise. */
    PyObject *unused;
    /* 0 while nobody watches the interpreter's contexts, which C code can since 3.14. Not 0 either where that is unknown. */
    const uint8_t *watchers;
} KnownContexts;

/* The functions of asyncio that there are native versions of: two that run_coroutine_threadsafe() uses, one of gather(). */
enum { KNOWN_SUBMIT, KNOWN_COPY, KNOWN_GATHER, KNOWN_CODES };

typedef struct State {
#define X(name) PyTypeObject *name##Type;
    STATE_TYPES(X)
#undef X
#define X(name) PyObject *str_##name;
    STATE_NAMES(X)
#undef X
#define X(name, module, attribute) PyObject *name;
    STATE_IMPORTS(X)
#undef X
    /* How the layers above sched/ take part in the life of a loop; set once by module.c. */
    const LoopHooks *io_hooks;
    const LoopHooks *coro_hooks;
    const LoopHooks *pool_hooks;
    /* Threads of loops and workers that are likely to hold the GIL now: a hint for those that spin. */
    _Atomic int attached;
    PyCFunction call_soon_threadsafe; /* the method of the Loop type, for pool/ */
    struct CoroState *coro;           /* coro/'s part of the module state */
    struct OpenSSL *openssl;          /* what _ssl uses, see io/openssl.h; NULL until it is asked for and found */
    /* What the native streams need, NULL before the first. */
    _Atomic(struct StreamState *) streams;
    /* coro/'s native futures._set_result_unless_cancelled(future, result), or NULL: 1 when it was done, 0 when the
       future is none of ours, -1 with an exception. */
    int (*complete_future)(struct State *state, PyObject *future, PyObject *result);
    /* coro/'s native versions of the functions of asyncio that have one of these codes: 1 when it was run, 0 when it is to be
       called, -1 with an exception. The codes are borrowed, NULL without. */
    PyObject *known_codes[KNOWN_CODES];
    int (*run_known)(struct LoopObject *loop, PyObject *function, PyObject *const *args, Py_ssize_t nargs);
    KnownContexts contexts;
    /* Where the state of a thread keeps asyncio's running loop and, behind it, the running task; 0 where that is not known. */
    size_t running_at;
    _Atomic(uv_loop_t *) parked_loop; /* sched/park.c's, or NULL */
    /* Offsets of slots of asyncio.Handle, see handle_find_slots(). */
    Py_ssize_t handle_source_traceback_at;
    Py_ssize_t handle_repr_at;
    /* See loop_leave_task() in sched/loop.h: has asyncio.current_task() forget `loop->left_task`. */
    void (*leave_task)(struct LoopObject *loop);
    /* The functions of the records before which that need not be done (ready_run). */
    int (*run_step)(struct LoopObject *loop, PyObject *owner, PyObject *arg);
    int (*run_wakeup)(struct LoopObject *loop, PyObject *owner, PyObject *arg);
    /* Queues the wake-ups for which there was no memory (`loop->has_late_wakeups`). */
    void (*wake_late)(struct LoopObject *loop);
} State;

extern PyModuleDef core_module;

static inline State *
state_of_module(PyObject *module)
{
    return (State *)PyModule_GetState(module);
}

/* A thread of ours takes the GIL, or lets go of it. Without a GIL nobody asks, and the count would only keep the threads
   of several loops waiting for each other. */
static inline void
state_note_attached(State *state, int change)
{
    if (!HAVE_FREE_THREADING) {
        atomic_fetch_add_explicit(&state->attached, change, memory_order_relaxed);
    }
}

/* The state for a type of this module or a subclass of one; NULL with an exception. */
static inline State *
state_of_type(PyTypeObject *type)
{
    PyObject *module = PyType_GetModuleByDef(type, &core_module);
    return module == NULL ? NULL : state_of_module(module);
}

#endif
