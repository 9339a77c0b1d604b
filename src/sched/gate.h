/* What stands in for the GIL where there is none: the gate of a loop.

   The loop and the objects that belong to it (transports, the poller's tables) are made for one thread at a time. On
   free-threaded builds the thread that runs the loop is inside the gate, and whoever else uses such an object goes in
   first: gate_is_shut() at the top of a method, and the method again by gate_call(). The gate is a critical section, so
   who waits for something, or lets go of its thread state, is outside meanwhile: nobody gets stuck for it. The code behind
   it must stand what it must stand with a GIL, and also that a contended lock of another object (a dict's, a future's)
   lets others in. The loop's thread comes out with each poll that
   lets go of the thread state, thus between two callbacks; a callback that never waits keeps the others out.

   With a GIL there is no gate: `loop->gate` is NULL and gate_is_shut() false. */

#ifndef FASTLOOP_SCHED_GATE_H
#define FASTLOOP_SCHED_GATE_H

#include "state.h"

typedef struct {
    PyObject_HEAD
    _Atomic unsigned long owner; /* the thread that runs the loop, or closes it; 0 for none */
    _Atomic unsigned long guest; /* the other thread that went in last and has not left; 0 for none */
} GateObject;

extern PyType_Spec Gate_spec;

/* New reference; NULL with MemoryError. With a GIL there is none: not to be called. */
GateObject *gate_new(State *state);

/* Must this thread go in first? Objects that are not complete have no gate. */
static inline bool
gate_is_shut(GateObject *gate)
{
    if (!HAVE_FREE_THREADING || gate == NULL) {
        return false;
    }
    unsigned long here = compat_thread_ident();
    return atomic_load_explicit(&gate->owner, memory_order_relaxed) != here &&
           atomic_load_explicit(&gate->guest, memory_order_relaxed) != here;
}

/* function(op, ...) inside the gate: one for each way in which Python calls a method. `gate` is kept alive. */
PyObject *gate_call(GateObject *gate, PyCFunction function, PyObject *op, PyObject *argument);
PyObject *gate_call_fast(GateObject *gate, PyCFunctionFastWithKeywords function, PyObject *op, PyObject *const *args,
                         Py_ssize_t nargs, PyObject *kwnames);
PyObject *gate_call_keywords(GateObject *gate, PyCFunctionWithKeywords function, PyObject *op, PyObject *args,
                             PyObject *kwargs);

/* For the slots of the types: getters and setters are called inside, too. */
PyObject *gate_getattro(GateObject *gate, PyObject *op, PyObject *name);
int gate_setattro(GateObject *gate, PyObject *op, PyObject *name, PyObject *value);

#endif
