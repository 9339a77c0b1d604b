/* The gate of a loop: a critical section with a note of who is inside. */

#include "sched/gate.h"

GateObject *
gate_new(State *state)
{
    return (GateObject *)state->GateType->tp_alloc(state->GateType, 0);
}

/* Who comes in while another guest waits outside writes over its note: that one goes in again where it is asked, which
   a critical section allows, only slower. A note never outlives the stay. */
static void
note_guest(GateObject *gate, unsigned long guest)
{
    atomic_store_explicit(&gate->guest, guest, memory_order_relaxed);
}

PyObject *
gate_call(GateObject *gate, PyCFunction function, PyObject *op, PyObject *argument)
{
    PyObject *result;
    Py_INCREF(gate);
    FL_BEGIN_CRITICAL_SECTION(gate);
    note_guest(gate, compat_thread_ident());
    result = function(op, argument);
    note_guest(gate, 0);
    FL_END_CRITICAL_SECTION();
    Py_DECREF(gate);
    return result;
}

PyObject *
gate_call_fast(GateObject *gate, PyCFunctionFastWithKeywords function, PyObject *op, PyObject *const *args,
               Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *result;
    Py_INCREF(gate);
    FL_BEGIN_CRITICAL_SECTION(gate);
    note_guest(gate, compat_thread_ident());
    result = function(op, args, nargs, kwnames);
    note_guest(gate, 0);
    FL_END_CRITICAL_SECTION();
    Py_DECREF(gate);
    return result;
}

PyObject *
gate_call_keywords(GateObject *gate, PyCFunctionWithKeywords function, PyObject *op, PyObject *args, PyObject *kwargs)
{
    PyObject *result;
    Py_INCREF(gate);
    FL_BEGIN_CRITICAL_SECTION(gate);
    note_guest(gate, compat_thread_ident());
    result = function(op, args, kwargs);
    note_guest(gate, 0);
    FL_END_CRITICAL_SECTION();
    Py_DECREF(gate);
    return result;
}

PyObject *
gate_getattro(GateObject *gate, PyObject *op, PyObject *name)
{
    return gate_is_shut(gate) ? gate_call(gate, PyObject_GenericGetAttr, op, name) : PyObject_GenericGetAttr(op, name);
}

/* Called through gate_call_keywords(): one more argument than gate_call() has. `value` is NULL for a deletion. */
static PyObject *
set_attribute(PyObject *op, PyObject *name, PyObject *value)
{
    return PyObject_GenericSetAttr(op, name, value) < 0 ? NULL : Py_NewRef(Py_None);
}

int
gate_setattro(GateObject *gate, PyObject *op, PyObject *name, PyObject *value)
{
    if (!gate_is_shut(gate)) {
        return PyObject_GenericSetAttr(op, name, value);
    }
    PyObject *result = gate_call_keywords(gate, set_attribute, op, name, value);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static void
Gate_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyType_Slot Gate_slots[] = {
    {Py_tp_doc, (void *)"What lets one thread at a time use a loop's objects, where there is no GIL."},
    {Py_tp_dealloc, Gate_dealloc},
    {0, NULL},
};

PyType_Spec Gate_spec = {
    .name = "fastloop._core.Gate",
    .basicsize = sizeof(GateObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Gate_slots,
};
