/* Two small objects: the iterator behind `await future`, and the callback that wakes a task. */

#ifndef FASTLOOP_CORO_AWAITER_H
#define FASTLOOP_CORO_AWAITER_H

#include "coro/future.h"

/* What a task gives to add_done_callback(): called with the future, it resumes the task. */
typedef struct {
    PyObject_HEAD
    PyObject *task; /* strong; NULL while parked */
    vectorcallfunc vectorcall;
} WakeupObject;

#define WakeupObject_CAST(op) ((WakeupObject *)(op))

extern PyType_Spec Awaiter_spec;
extern PyType_Spec Wakeup_spec;

/* Slot `am_await` and `tp_iter` of our types. */
PyObject *Future_await(PyObject *op);

PyObject *wakeup_new(State *state, PyObject *task);
/* Drops a reference, by parking the object if it was the last one. */
void wakeup_release(PyObject *op, CoroPart *part);

#endif
