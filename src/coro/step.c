/* The step of a task as a callback. As asyncio's own, it keeps the exception that it throws, so that the handle has no
   argument, and it shows its task as `__self__`, by which debug mode names the task. */

#include "coro/step.h"

#include "coro/task.h"

typedef struct {
    PyObject_HEAD
    PyObject *task; /* strong; NULL once cleared, and `exc` too */
    PyObject *exc;  /* strong, or NULL */
} StepObject;

#define StepObject_CAST(op) ((StepObject *)(op))

PyObject *
step_new(State *state, PyObject *task, PyObject *exc)
{
    StepObject *step = PyObject_GC_New(StepObject, state->coro->StepType);
    if (step == NULL) {
        return NULL;
    }
    step->task = Py_NewRef(task);
    step->exc = Py_XNewRef(exc);
    PyObject_GC_Track(step);
    return (PyObject *)step;
}

/* Called by the loop, which has entered the context. */
static PyObject *
Step_call(PyObject *op, PyObject *args, PyObject *kwargs)
{
    if (kwargs != NULL && PyDict_GET_SIZE(kwargs) != 0) {
        PyErr_SetString(PyExc_TypeError, "function takes no keyword arguments");
        return NULL;
    }
    if (PyTuple_GET_SIZE(args) != 0) {
        PyErr_SetString(PyExc_TypeError, "function takes no positional arguments");
        return NULL;
    }
    if (StepObject_CAST(op)->task == NULL) {
        Py_RETURN_NONE;
    }
    PyObject *task = Py_NewRef(StepObject_CAST(op)->task);
    PyObject *exc = Py_XNewRef(StepObject_CAST(op)->exc);
    State *state = state_of_object(task);
    int err = -1;
    FL_BEGIN_CRITICAL_SECTION(task);
    if (state != NULL) {
        err = task_step(state, BaseTask_CAST(task), exc);
    }
    FL_END_CRITICAL_SECTION();
    Py_XDECREF(exc);
    Py_DECREF(task);
    if (err < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static int
Step_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(StepObject_CAST(op)->task);
    Py_VISIT(StepObject_CAST(op)->exc);
    return 0;
}

static int
Step_clear(PyObject *op)
{
    Py_CLEAR(StepObject_CAST(op)->task);
    Py_CLEAR(StepObject_CAST(op)->exc);
    return 0;
}

static void
Step_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    (void)Step_clear(op);
    PyObject_GC_Del(op);
    Py_DECREF(type);
}

static PyObject *
get_task(PyObject *op, void *Py_UNUSED(closure))
{
    PyObject *task = StepObject_CAST(op)->task;
    return Py_NewRef(task == NULL ? Py_None : task);
}

static PyGetSetDef Step_getset[] = {
    {"__self__", get_task, NULL, "the task", NULL},
    {NULL},
};

static PyType_Slot Step_slots[] = {
    {Py_tp_dealloc, Step_dealloc}, {Py_tp_traverse, Step_traverse}, {Py_tp_clear, Step_clear},
    {Py_tp_call, Step_call},       {Py_tp_getset, Step_getset},     {0, NULL},
};

PyType_Spec Step_spec = {
    .name = "fastloop._core.TaskStepMethWrapper",
    .basicsize = sizeof(StepObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Step_slots,
};
