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
#include <stdint.h>
#include <time.h>
#include <uv.h>

#if UV_VERSION_HEX < ((1 << 16) | (44 << 8))
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

/* asyncio keeps the running task of a thread in its thread state since 3.14. */
#if PY_VERSION_HEX >= 0x030E0000
#define HAVE_THREAD_STATE_TASKS 1
#else
#define HAVE_THREAD_STATE_TASKS 0
#endif

/* create_task() shows **kwargs, not the names of its keywords. */
#define HAVE_FREE_TASK_KEYWORDS (PY_VERSION_HEX >= 0x030E0000)

/* A handle of call_soon_threadsafe() answers other threads only when its callback does not run (since 3.14). */
#if PY_VERSION_HEX >= 0x030E0000
#define HAVE_BLOCKING_HANDLES 1
#else
#define HAVE_BLOCKING_HANDLES 0
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

/* PyUnstable_Module_SetGIL and friends are not needed: the slot says it all. */

#if defined(__linux__)
#define HAVE_EPOLL 1
#define HAVE_TIMERFD 1
#define HAVE_ACCEPT4 1
#else
#define HAVE_EPOLL 0
#define HAVE_TIMERFD 0
#define HAVE_ACCEPT4 0
#endif

#if defined(__APPLE__) || defined(__FreeBSD__)
#define HAVE_KQUEUE 1
#else
#define HAVE_KQUEUE 0
#endif

#if defined(__GNUC__) || defined(__clang__)
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#else
#define LIKELY(x) (x)
#define UNLIKELY(x) (x)
#endif

/* threading.get_ident(), without a call into the interpreter: it is asked for with every callback. */
static inline unsigned long
compat_thread_ident(void)
{
    return (unsigned long)pthread_self();
}

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
