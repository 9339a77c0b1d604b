/* Handle and TimerHandle: what call_soon() and call_later() return.

   Both are subclasses of asyncio's own types, with fields of ours after the base's slots; every slot of the base is
   shadowed by a getter, so that the base's methods find the same values. Up to three arguments lie inline. A burst of
   callbacks is handles by the ten thousand, so what they hardly ever need is kept out of them. */

#ifndef FASTLOOP_SCHED_HANDLE_H
#define FASTLOOP_SCHED_HANDLE_H

#include "sched/ready.h"

/* Room for the slots of asyncio.Handle and asyncio.TimerHandle (ten words on 3.11 to 3.15); module.c checks it. */
enum { HANDLE_BASE_SLOTS = 10, HANDLE_INLINE_ARGS = 3 };

typedef struct {
    PyObject_HEAD
    PyObject *base_slots[HANDLE_BASE_SLOTS];
    LoopObject *loop;   /* strong; NULL while parked on the free list */
    PyObject *callback; /* NULL once cancelled; the next one while parked */
    PyObject *context;  /* NULL for an empty one that nobody has asked for yet, see context_of() */
    PyObject *args[HANDLE_INLINE_ARGS];
    PyObject *args_tuple;   /* instead of args[] when there are more than three, or when somebody looked */
    unsigned char nargs;    /* number of inline arguments */
    bool cancelled;         /* this and everything about the callback is under the handle's critical section */
    bool threadsafe;        /* made by call_soon_threadsafe(), see handle_run_threadsafe() */
    _Atomic bool running;   /* a thread-safe handle; see there */
    _Atomic bool scheduled; /* a TimerHandle: it is in the heap */
} HandleObject;

typedef struct {
    HandleObject base;
    double when;           /* NaN is kept as minus infinity, which is how the standard heap treats it */
    PyObject *when_object; /* what when() gives back if it is not the float, else NULL */
    size_t heap_index;
} TimerHandleObject;

extern PyType_Spec Handle_spec;
extern PyType_Spec TimerHandle_spec;

/* Finds the slots of asyncio.Handle that keep what only debug mode has. -1 with ImportError. */
int handle_find_slots(State *state);

/* New handle for callback(*args). `context` may be NULL: a copy of the current one. Leaves it to the caller to queue it. */
HandleObject *handle_new(LoopObject *loop, PyObject *callback, PyObject *const *args, Py_ssize_t nargs,
                         PyObject *context);
/* The same, but the collector does not know of it before handle_track(). */
HandleObject *handle_new_untracked(LoopObject *loop, PyObject *callback, PyObject *const *args, Py_ssize_t nargs,
                                   PyObject *context);

/* Hands a handle to the collector, if it was not before. */
void handle_track(PyObject *handle);

/* New timer handle for `when` seconds of the loop's clock, not in the heap yet. `when_object` is what when() gives back:
   NULL for the float itself. */
TimerHandleObject *timer_handle_new(LoopObject *loop, double when, PyObject *when_object, PyObject *callback,
                                    PyObject *const *args, Py_ssize_t nargs, PyObject *context);

/* ready_run of our handles. Who keeps the handle beyond it keeps a tracked one. */
int handle_run(LoopObject *loop, PyObject *owner, PyObject *arg);

/* ready_run of the handles of call_soon_threadsafe(): since 3.14 cancel() and cancelled() of another thread wait while
   the callback runs. */
int handle_run_threadsafe(LoopObject *loop, PyObject *owner, PyObject *arg);

/* ready_run of any other object with `_run()` and `_cancelled`, such as asyncio.Handle. */
int handle_run_foreign(LoopObject *loop, PyObject *owner, PyObject *arg);

/* Reports `exc`, which callback(arg) raised in a record that had no handle, with the handle that call_soon() would have
   made. `arg` may be NULL, and so may `callback`, for which there was no memory then. -1 with an exception that ends
   the run. */
int handle_report(LoopObject *loop, PyObject *exc, PyObject *callback, PyObject *arg, PyObject *context);

/* The handle's record of where it was made, from the Python frame that called us; debug mode only. */
int handle_set_traceback(LoopObject *loop, HandleObject *handle);

/* As many parked handles as a thread makes before it must hand the GIL to the loop, some 200 bytes each. */
enum { HANDLE_FREE_MAX = 131072 };

/* Frees some of many parked handles, which was last done so many nanoseconds ago. */
void handle_free_list_trim(LoopObject *loop, uint64_t elapsed_ns);

/* Frees the parked handles and the spare context of a loop. */
void handle_free_list_clear(LoopObject *loop);

#endif
