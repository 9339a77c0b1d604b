/* Every difference between CPython and libuv versions, by the name of a capability.

   No other file looks at PY_VERSION_HEX, UV_VERSION_HEX or a platform macro. */

#ifndef FASTLOOP_COMPAT_H
#define FASTLOOP_COMPAT_H

/* clock_gettime(), accept4() and their like under -std=c11. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <stdbool.h>
#include <stddef.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

/* libuv 1.44, as uv_version() writes it. */
#define LIBUV_MINIMUM ((1 << 16) | (44 << 8))
#if UV_VERSION_HEX < LIBUV_MINIMUM
#error "fastloop needs libuv 1.44 or later"
#endif

#if PY_VERSION_HEX < 0x030B0000
#error "fastloop needs CPython 3.11 or later"
#endif

/* Multi-phase init slots that say which interpreters may load the module. */
#if PY_VERSION_HEX >= 0x030C0000
#define HAVE_MULTIPLE_INTERPRETERS_SLOT 1
#else
#define HAVE_MULTIPLE_INTERPRETERS_SLOT 0
#endif

#if PY_VERSION_HEX >= 0x030D0000
#define HAVE_GIL_SLOT 1
#else
#define HAVE_GIL_SLOT 0
#endif

/* PyErr_GetRaisedException() and PyErr_SetRaisedException() came with 3.12. */
#if PY_VERSION_HEX >= 0x030C0000
#define HAVE_RAISED_EXCEPTION 1
#else
#define HAVE_RAISED_EXCEPTION 0
#endif

/* What an int of one digit looks like is public since 3.12. */
#if PY_VERSION_HEX >= 0x030C0000
#define HAVE_COMPACT_LONG 1
#else
#define HAVE_COMPACT_LONG 0
#endif

/* asyncio keeps the running task of a thread in its thread state since 3.14. */
#if PY_VERSION_HEX >= 0x030E0000
#define HAVE_THREAD_STATE_TASKS 1
#else
#define HAVE_THREAD_STATE_TASKS 0
#endif

/* Of the Python that this is compiled for: 0x30E is 3.14. */
#define COMPAT_PYTHON_VERSION (PY_VERSION_HEX >> 16)

/* A C function may watch which context is the current one (since 3.14), see base/contexts.h. */
#if PY_VERSION_HEX >= 0x030E0000
#define HAVE_CONTEXT_WATCHERS 1
#else
#define HAVE_CONTEXT_WATCHERS 0
#endif

/* How many words behind the public part of a thread state certainly belong to it, too. */
#if PY_VERSION_HEX >= 0x030F0000
#define COMPAT_THREAD_STATE_WORDS 24
#else
#define COMPAT_THREAD_STATE_WORDS 8
#endif

/* asyncio's own futures and tasks are safe for threads without a GIL since 3.14. */
#if defined(Py_GIL_DISABLED) && PY_VERSION_HEX < 0x030E0000
#define HAVE_UNLOCKED_FUTURES 1
#else
#define HAVE_UNLOCKED_FUTURES 0
#endif

/* create_task() shows **kwargs, not the names of its keywords. */
#define HAVE_FREE_TASK_KEYWORDS (PY_VERSION_HEX >= 0x030E0000)

/* A handle of call_soon_threadsafe() answers other threads only when its callback does not run (since 3.14). */
#if PY_VERSION_HEX >= 0x030E0000
#define HAVE_BLOCKING_HANDLES 1
#else
#define HAVE_BLOCKING_HANDLES 0
#endif

/* A bytearray is a block of memory of its own, that its fields describe; since 3.15 it is that of a bytes object, which
   bytearray.take_bytes() hands over. */
#if PY_VERSION_HEX >= 0x030F0000
#define HAVE_BYTEARRAY_MEMORY 0
#else
#define HAVE_BYTEARRAY_MEMORY 1
#endif

#ifdef Py_GIL_DISABLED
#define HAVE_FREE_THREADING 1
#else
#define HAVE_FREE_THREADING 0
#endif

/* Per-object locks; without the free-threaded build they cost nothing. */
#if PY_VERSION_HEX >= 0x030D0000
#define FL_BEGIN_CRITICAL_SECTION(op) Py_BEGIN_CRITICAL_SECTION(op)
#define FL_END_CRITICAL_SECTION() Py_END_CRITICAL_SECTION()
#else
#define FL_BEGIN_CRITICAL_SECTION(op) {
#define FL_END_CRITICAL_SECTION() }
#endif

/* Would a tracer see an exception that the interpreter itself catches? Since 3.13 a tool of sys.monitoring counts, too: the
   thread state has the number of its last change, above the bits of what the interpreter is to look after. */
static inline bool
compat_exceptions_are_seen(void)
{
    PyThreadState *thread = PyThreadState_Get();
#if PY_VERSION_HEX >= 0x030D0000
    return __atomic_load_n(&thread->eval_breaker, __ATOMIC_RELAXED) >> 8 != 0;
#else
    return thread->c_tracefunc != NULL;
#endif
}

/* May a tool of sys.monitoring (since 3.12) want to hear of what this code does? In 3.12, one that wants to hear of everything
   is only known of by a code that has run under its eyes. */
static inline bool
compat_code_is_monitored(PyObject *code)
{
#if PY_VERSION_HEX >= 0x030C0000
    return ((PyCodeObject *)code)->_co_monitoring != NULL ||
           (PY_VERSION_HEX >= 0x030D0000 && compat_exceptions_are_seen());
#else
    (void)code;
    return false;
#endif
}

#if HAVE_UNLOCKED_FUTURES
/* Has this thread locked the object in the critical section that it is in right now? To take that lock a second time is a
   thousand times slower, up to 3.13: the thread waits for itself, which makes it let go of the first. */
static inline bool
compat_is_locked_here(PyObject *op)
{
    uintptr_t innermost = PyThreadState_Get()->critical_section;
    return innermost != 0 && (innermost & 3) == 0 && ((PyCriticalSection *)innermost)->_cs_mutex == &op->ob_mutex;
}

/* A critical section that is often entered inside of one of the same object. */
#define FL_BEGIN_INNER_CRITICAL_SECTION(op)                    \
    {                                                          \
        PyCriticalSection _inner;                              \
        const bool _is_outermost = !compat_is_locked_here(op); \
        if (_is_outermost) {                                   \
            PyCriticalSection_Begin(&_inner, op);              \
        }
#define FL_END_INNER_CRITICAL_SECTION() \
    if (_is_outermost) {                \
        PyCriticalSection_End(&_inner); \
    }                                   \
    }
#endif

#if PY_VERSION_HEX < 0x030D0000
/* Under this name since 3.13. */
typedef _PyCFunctionFastWithKeywords PyCFunctionFastWithKeywords;
#endif

/* A lock for what the GIL protects where there is one: then it is nothing at all. Nothing under it may call Python. */
#if HAVE_FREE_THREADING
typedef PyMutex CompatMutex;
#define compat_mutex_lock(mutex) PyMutex_Lock(mutex)
#define compat_mutex_unlock(mutex) PyMutex_Unlock(mutex)
#else
typedef struct {
    char unused;
} CompatMutex;
#define compat_mutex_lock(mutex) (void)(mutex)
#define compat_mutex_unlock(mutex) (void)(mutex)
#endif

/* What each object counts itself on is a type that was made from a spec: from 3.14 on in one count for each thread, in
   3.13 in one for all, so that threads that make objects take its cache line from each other. The classes of Python code
   are immortal there, at the latest when there is a second thread; with this so is a new type, in the interpreter that
   lives as long as the process. */
static inline void
compat_share_type(PyTypeObject *type)
{
#if HAVE_FREE_THREADING && PY_VERSION_HEX < 0x030E0000
    if (PyInterpreterState_Get() == PyInterpreterState_Main()) {
        Py_SET_REFCNT((PyObject *)type, PY_SSIZE_T_MAX);
    }
#else
    (void)type;
#endif
}

#if defined(__linux__)
#define HAVE_EPOLL 1
#define HAVE_TIMERFD 1
#define HAVE_EVENTFD 1
#define HAVE_ACCEPT4 1
#define HAVE_SOCKET_FLAGS 1
#define HAVE_SCHED_GETAFFINITY 1
#else
#define HAVE_EPOLL 0
#define HAVE_TIMERFD 0
#define HAVE_EVENTFD 0
#define HAVE_ACCEPT4 0
#define HAVE_SOCKET_FLAGS 0
#define HAVE_SCHED_GETAFFINITY 0
#endif

#if defined(__GLIBC__)
#include <malloc.h>
#define HAVE_MALLOC_TRIM 1
#else
#define HAVE_MALLOC_TRIM 0
#endif

/* A write to a closed connection must not raise SIGPIPE; Python ignores that signal where this flag is missing. */
#if defined(__APPLE__)
#define COMPAT_MSG_NOSIGNAL 0
#else
#define COMPAT_MSG_NOSIGNAL MSG_NOSIGNAL
#endif

#if defined(__APPLE__) || defined(__FreeBSD__)
#define HAVE_KQUEUE 1
#else
#define HAVE_KQUEUE 0
#endif

#if defined(__GNUC__) || defined(__clang__)
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
/* For the parts of one hot path that are functions so that it can be read. */
#define ALWAYS_INLINE __attribute__((always_inline)) static inline
/* For what is rarely called where the rest of the function needs no registers to be saved. */
#define NEVER_INLINE __attribute__((noinline)) static
#else
#define ALWAYS_INLINE static inline
#define NEVER_INLINE static
#define LIKELY(x) (x)
#define UNLIKELY(x) (x)
#endif

/* A hot function that lends out the addresses of scalars, but has no array: it needs no guard against overruns. */
#if defined(__has_attribute)
#if __has_attribute(no_stack_protector)
#define UNGUARDED __attribute__((no_stack_protector))
#endif
#endif
#ifndef UNGUARDED
#define UNGUARDED
#endif

/* threading.get_ident(), without a call into the interpreter: it is asked for with every callback. */
static inline unsigned long
compat_thread_ident(void)
{
    return (unsigned long)pthread_self();
}

/* Makes a bytes object that nobody else refers to one of `size` bytes, which is not more than it had. */
static inline void
compat_bytes_renew(PyObject *bytes, Py_ssize_t size)
{
#if defined(__GNUC__) || defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#endif
    ((PyBytesObject *)bytes)->ob_shash = -1;
#if defined(__GNUC__) || defined(__clang__)
#pragma GCC diagnostic pop
#endif
    Py_SET_SIZE((PyVarObject *)bytes, size);
    PyBytes_AS_STRING(bytes)[size] = '\0';
}

/* The number of a class that every change of it takes away, 0 for none. */
static inline unsigned
compat_type_version(PyTypeObject *type)
{
#if HAVE_FREE_THREADING
    return __atomic_load_n(&type->tp_version_tag, __ATOMIC_RELAXED);
#else
    return type->tp_version_tag;
#endif
}

/* A new reference to the value of a dict's item; NULL when it has none, or with an exception. */
static inline PyObject *
compat_dict_get(PyObject *dict, PyObject *key)
{
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *value;
    (void)PyDict_GetItemRef(dict, key, &value);
    return value;
#else
    return Py_XNewRef(PyDict_GetItemWithError(dict, key));
#endif
}

/* Up to 3.13 a dict carries a number that every change of any dict makes a new one: equal numbers, unchanged dict. The
   interpreter itself stopped using it in 3.12, and says so to every other user. */
#if PY_VERSION_HEX < 0x030E0000 && !defined(Py_GIL_DISABLED)
#define HAVE_DICT_VERSION 1
static inline uint64_t
compat_dict_version(PyObject *dict)
{
#if defined(__GNUC__) || defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#endif
    return ((PyDictObject *)dict)->ma_version_tag;
#if defined(__GNUC__) || defined(__clang__)
#pragma GCC diagnostic pop
#endif
}
/* Does somebody want to hear of every change? Since 3.12 that is noted in the low bits of the version. */
static inline bool
compat_dict_is_watched(PyObject *dict)
{
#if PY_VERSION_HEX >= 0x030C0000
    return (compat_dict_version(dict) & 0xFF) != 0;
#else
    (void)dict;
    return false;
#endif
}
#else
#define HAVE_DICT_VERSION 0
#endif

/* The system tells the error of a TCP connection to the first call after it, whether that reads or writes. */
#if defined(__linux__)
#define HAVE_ERRORS_TOLD_ONCE 1
#else
#define HAVE_ERRORS_TOLD_ONCE 0
#endif

/* The clock of time.monotonic(), in nanoseconds; uv_hrtime() is another one on macOS. */
static inline uint64_t
compat_monotonic_ns(void)
{
#if defined(__APPLE__)
    return clock_gettime_nsec_np(CLOCK_UPTIME_RAW);
#else
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
#endif
}

/* A counter of the CPU that rises steadily, at a rate of its own; the clock where there is none. */
static inline uint64_t
compat_ticks(void)
{
#if defined(__x86_64__) || defined(__i386__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t ticks;
    __asm__ __volatile__("mrs %0, cntvct_el0" : "=r"(ticks));
    return ticks;
#else
    return compat_monotonic_ns();
#endif
}

/* On how many CPUs may this thread run? */
static inline int
compat_usable_cpus(void)
{
#if HAVE_SCHED_GETAFFINITY
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
        return CPU_COUNT(&set);
    }
#endif
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
}

/* Gives the free pages that the allocator holds between others back to the system, where it does not do so by itself. */
static inline void
compat_trim_memory(void)
{
#if HAVE_MALLOC_TRIM
    (void)malloc_trim(0);
#endif
}

/* Tells the CPU that this is a loop that waits for another one. */
static inline void
compat_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* New reference to the exception that is set, which is cleared; NULL if none is. */
static inline PyObject *
compat_take_exception(void)
{
#if HAVE_RAISED_EXCEPTION
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (type == NULL) {
        return NULL;
    }
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL) {
        PyException_SetTraceback(value, traceback);
        Py_DECREF(traceback);
    }
    Py_DECREF(type);
    return value;
#endif
}

/* New reference to what a weak reference refers to; NULL without an exception when that is gone. */
static inline PyObject *
compat_weakref_get(PyObject *ref)
{
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *object;
    (void)PyWeakref_GetRef(ref, &object);
    return object;
#else
    PyObject *object = PyWeakref_GET_OBJECT(ref);
    return object == Py_None ? NULL : Py_NewRef(object);
#endif
}

/* Sets an exception; steals the reference. */
static inline void
compat_restore_exception(PyObject *exc)
{
#if HAVE_RAISED_EXCEPTION
    PyErr_SetRaisedException(exc);
#else
    PyErr_Restore(Py_NewRef((PyObject *)Py_TYPE(exc)), exc, PyException_GetTraceback(exc));
#endif
}

#endif
