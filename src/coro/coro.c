/* The layer's part of the module state and of the loop: set-up, free lists, create_task() and create_future(). */

#include "coro/coro.h"

#include "base/functions.h"
#include "coro/awaiter.h"
#include "coro/chain.h"
#include "coro/future.h"
#include "coro/gather.h"
#include "coro/registry.h"
#include "coro/step.h"
#include "coro/task.h"

/* ---- the part of a loop ---- */

/* Of each kind, in all some 700 bytes for a task that waits for a future. */
enum { FREE_MAX = 16384 };

static int
open_part(LoopObject *loop)
{
    loop->coro = PyMem_Calloc(1, sizeof(CoroPart));
    if (loop->coro == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    CoroPart *part = loop->coro;
    part->free_futures.most = part->free_tasks.most = part->free_awaiters.most = part->free_wakeups.most = FREE_MAX;
    CoroState *coro = loop->state->coro;
    part->use_native = coro->native;
    if (coro->loop_type == NULL) {
        coro->loop_type = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(loop));
    }
    return 0;
}

static int
traverse_part(LoopObject *loop, visitproc visit, void *arg)
{
    if (loop->coro != NULL) {
        Py_VISIT(loop->coro->task_factory);
        Py_VISIT(loop->coro->stop_iteration);
        for (int i = 0; i < loop->coro->free_wakeups.count; i++) {
            Py_VISIT(loop->coro->free_wakeups.objects[i]);
        }
        for (int i = 0; i < loop->coro->free_awaiters.count; i++) {
            Py_VISIT(loop->coro->free_awaiters.objects[i]);
        }
    }
    return 0;
}

static void
clear_part(LoopObject *loop)
{
    if (loop->coro != NULL) {
        Py_CLEAR(loop->coro->task_factory);
        Py_CLEAR(loop->coro->stop_iteration);
    }
}

/* Those that lie in their list as objects with a reference. */
static void
drop_parked(FreeList *list, int count)
{
    while (count-- > 0 && list->count > 0) {
        Py_DECREF(freelist_pop(list));
    }
}

static void
trim_part(LoopObject *loop, uint64_t elapsed_ns)
{
    CoroPart *part = coro_part_here(loop);
    if (part == NULL) {
        return;
    }
    freelist_delete(&part->free_futures, freelist_excess(&part->free_futures, elapsed_ns));
    drop_parked(&part->free_awaiters, freelist_excess(&part->free_awaiters, elapsed_ns));
    drop_parked(&part->free_wakeups, freelist_excess(&part->free_wakeups, elapsed_ns));
    task_free_parked(&part->free_tasks, freelist_excess(&part->free_tasks, elapsed_ns));
}

static void
abandon_part(LoopObject *loop)
{
    CoroPart *part = loop->coro;
    if (part == NULL) {
        return;
    }
    clear_part(loop);
    /* Without a GIL, another thread may be looking at the part of a loop that is closed; it goes with the loop. */
    bool keep = HAVE_FREE_THREADING && loop->holder != 0;
    if (!keep) {
        /* Objects that die from now on are freed, not parked. */
        loop->coro = NULL;
    }
    freelist_delete(&part->free_futures, part->free_futures.count);
    task_free_parked(&part->free_tasks, part->free_tasks.count);
    drop_parked(&part->free_awaiters, part->free_awaiters.count);
    drop_parked(&part->free_wakeups, part->free_wakeups.count);
    FreeList *const lists[] = {&part->free_futures, &part->free_tasks, &part->free_awaiters, &part->free_wakeups};
    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
        freelist_free(lists[i]);
    }
    if (!keep) {
        PyMem_Free(part);
    }
}

const LoopHooks coro_hooks = {
    .open = open_part,
    .abandon = abandon_part,
    .trim = trim_part,
    .traverse = traverse_part,
    .clear = clear_part,
};

/* ---- methods of the loop ---- */

PyDoc_STRVAR(Loop_create_future_doc, "create_future($self, /)\n--\n\n"
                                     "Return a new asyncio.Future of this loop. See asyncio.loop.create_future().");

static PyObject *
Loop_create_future(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return future_new(LoopObject_CAST(op));
}

/* What create_task() was called with. Borrowed; None where not given, and NULL for `eager_start`. */
typedef struct {
    PyObject *coroutine;
    PyObject *name;
    PyObject *context;
    PyObject *eager_start;
} TaskArguments;

/* False when the arguments are not the ordinary ones: the base's create_task() knows what to do with them. */
static bool
read_task_arguments(CoroState *coro, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, TaskArguments *given)
{
    *given = (TaskArguments){.name = Py_None, .context = Py_None};
    if (nargs != 1) {
        return false;
    }
    given->coroutine = args[0];
    Py_ssize_t count = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        PyObject *value = args[nargs + i];
        if (name == coro->str_name) {
            given->name = value;
        } else if (name == PyTuple_GET_ITEM(coro->kw_context, 0)) {
            given->context = value;
        } else if (name == coro->str_eager_start && coro->free_keywords) {
            given->eager_start = value;
        } else {
            return false;
        }
    }
    return true;
}

static PyObject *
create_task_by_base(LoopObject *loop, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    CoroState *coro = loop->state->coro;
    PyObject *method = PyObject_GetAttr(coro->base_loop, coro->str_create_task);
    Py_ssize_t count = nargs + (kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames));
    PyObject **stack = method == NULL ? NULL : PyMem_New(PyObject *, count + 1);
    PyObject *task = NULL;
    if (stack != NULL) {
        stack[0] = (PyObject *)loop;
        for (Py_ssize_t i = 0; i < count; i++) {
            stack[i + 1] = args[i];
        }
        task = PyObject_Vectorcall(method, stack, nargs + 1, kwnames);
    } else if (method != NULL) {
        PyErr_NoMemory();
    }
    PyMem_Free(stack);
    Py_XDECREF(method);
    return task;
}

/* Is create_task() of the base the standard library's? It is what ddtrace wraps to see every task. */
static bool
keeps_base_create_task(State *state)
{
    CoroState *coro = state->coro;
    unsigned version = ((PyTypeObject *)coro->base_loop)->tp_version_tag;
    if (LIKELY(version != 0 && version == coro->base_loop_version && coro->create_task_code != NULL &&
               PyFunction_GET_CODE(coro->base_create_task) == coro->create_task_code)) {
        return true;
    }
    PyObject *method = PyObject_GetAttr(coro->base_loop, coro->str_create_task);
    bool same = function_is_original(method, state->base_events_globals);
    if (same) {
        coro->base_loop_version = ((PyTypeObject *)coro->base_loop)->tp_version_tag;
        Py_XSETREF(coro->create_task_code, Py_NewRef(PyFunction_GET_CODE(method)));
        Py_XSETREF(coro->base_create_task, Py_NewRef(method));
    }
    Py_XDECREF(method);
    PyErr_Clear();
    return same;
}

/* Up to 3.13 create_task() names what the factory has made: after the first step. */
static PyObject *
new_task_of_eager_factory(LoopObject *loop, const TaskArguments *given)
{
    PyObject *task = task_new(loop, given->coroutine, Py_None, given->context, true);
    if (task != NULL && (given->name != Py_None || loop->state->coro->names_none) &&
        task_set_name(loop->state->coro, task, given->name) < 0) {
        Py_CLEAR(task);
    }
    return task;
}

#if HAVE_FREE_TASK_KEYWORDS
#define CREATE_TASK_SIGNATURE "create_task($self, coro, **kwargs)\n--\n\n"
#else
#define CREATE_TASK_SIGNATURE "create_task($self, coro, *, name=None, context=None)\n--\n\n"
#endif

PyDoc_STRVAR(Loop_create_task_doc, CREATE_TASK_SIGNATURE
             "Schedule a coroutine and return its asyncio.Task, or what the task factory returns.\n\n"
             "Raises TypeError when coro is no coroutine, RuntimeError when the loop is closed. See\n"
             "asyncio.loop.create_task().");

static PyObject *
Loop_create_task(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    LoopObject *loop = LoopObject_CAST(op);
    CoroState *coro = loop->state->coro;
    if (UNLIKELY(loop->closed || loop->coro == NULL)) {
        /* Its errors, in its order. */
        return create_task_by_base(loop, args, nargs, kwnames);
    }
    PyObject *factory = loop->coro->task_factory;
    TaskArguments given;
    bool eager = factory != NULL && factory == coro->eager_task_factory;
    if (UNLIKELY(!loop->coro->use_native || (factory != NULL && !eager) || !keeps_base_create_task(loop->state) ||
                 !coro_is_unpatched(coro, coro->tasks_dict, &coro->known_task, coro->str_Task, coro->base_task) ||
                 !read_task_arguments(coro, args, nargs, kwnames, &given))) {
        return create_task_by_base(loop, args, nargs, kwnames);
    }
    if (given.eager_start != NULL) { /* GCOV_EXCL_START: an asyncio that passes keywords on to its tasks */
        int truth = PyObject_IsTrue(given.eager_start);
        if (truth < 0) {
            return NULL;
        }
        /* The factory refuses a second value for the argument. */
        if (eager) {
            return create_task_by_base(loop, args, nargs, kwnames);
        }
        eager = truth != 0;
    } /* GCOV_EXCL_STOP */
    if (eager && given.eager_start == NULL && coro->names_later) {
        return new_task_of_eager_factory(loop, &given);
    }
    return task_new(loop, given.coroutine, given.name, given.context, eager);
}

PyMethodDef coro_loop_methods[] = {
    {"create_future", Loop_create_future, METH_NOARGS, Loop_create_future_doc},
    {"create_task", (PyCFunction)(void (*)(void))Loop_create_task, METH_FASTCALL | METH_KEYWORDS, Loop_create_task_doc},
    {NULL},
};

static PyObject *
get_task_factory(PyObject *op, void *Py_UNUSED(closure))
{
    CoroPart *part = LoopObject_CAST(op)->coro;
    return Py_NewRef(part == NULL || part->task_factory == NULL ? Py_None : part->task_factory);
}

static int
set_task_factory(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    CoroPart *part = LoopObject_CAST(op)->coro;
    if (part != NULL) {
        Py_XSETREF(part->task_factory, value == NULL || value == Py_None ? NULL : Py_NewRef(value));
    }
    return 0;
}

static PyObject *
get_use_native(PyObject *op, void *Py_UNUSED(closure))
{
    CoroPart *part = LoopObject_CAST(op)->coro;
    return PyBool_FromLong(part != NULL && part->use_native);
}

static int
set_use_native(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    LoopObject *loop = LoopObject_CAST(op);
    int truth = value == NULL ? 0 : PyObject_IsTrue(value);
    if (truth < 0) {
        return -1;
    }
    if (loop->coro != NULL) {
        loop->coro->use_native = truth != 0 && loop->state->coro->native;
    }
    return 0;
}

static PyGetSetDef loop_getset[] = {
    {"_task_factory", get_task_factory, set_task_factory, "what create_task() calls, or None", NULL},
    {"_use_native_tasks", get_use_native, set_use_native, "whether tasks and futures are fastloop's own", NULL},
};

static int
add_loop_attributes(PyTypeObject *type)
{
    for (size_t i = 0; i < sizeof(loop_getset) / sizeof(loop_getset[0]); i++) {
        PyObject *descriptor = PyDescr_NewGetSet(type, &loop_getset[i]);
        if (descriptor == NULL) {
            return -1;
        }
        int err = PyObject_SetAttrString((PyObject *)type, loop_getset[i].name, descriptor);
        Py_DECREF(descriptor);
        if (err < 0) {
            return -1;
        }
    }
    return 0;
}

/* ---- the module state ---- */

/* Attribute of a module, or the module itself where `attribute` is NULL. */
static PyObject *
import_from(const char *module_name, const char *attribute)
{
    PyObject *module = PyImport_ImportModule(module_name);
    if (module == NULL || attribute == NULL) {
        return module;
    }
    PyObject *value = PyObject_GetAttrString(module, attribute);
    Py_DECREF(module);
    return value;
}

static int
import_everything(CoroState *coro)
{
#define X(field, module, attribute)               \
    coro->field = import_from(module, attribute); \
    if (coro->field == NULL) {                    \
        return -1;                                \
    }
    CORO_IMPORTS(X)
#undef X
#define X(field, module, attribute)                          \
    coro->field = import_from(module, attribute);            \
    if (coro->field == NULL) {                               \
        if (!PyErr_ExceptionMatches(PyExc_AttributeError)) { \
            return -1;                                       \
        }                                                    \
        PyErr_Clear();                                       \
    }
    CORO_OPTIONAL_IMPORTS(X)
#undef X
#define X(field, text)                                    \
    coro->str_##field = PyUnicode_InternFromString(text); \
    if (coro->str_##field == NULL) {                      \
        return -1;                                        \
    }
    CORO_NAMES(X)
#undef X
    coro->kw_context = Py_BuildValue("(N)", PyUnicode_InternFromString("context"));
    coro->empty_tuple = PyTuple_New(0);
    coro->helpers = PyImport_ImportModule("fastloop._coro");
    return coro->kw_context == NULL || coro->empty_tuple == NULL || coro->helpers == NULL ? -1 : 0;
}

/* Asks a question of fastloop._coro; -1 with an exception. */
static int
ask_helper(CoroState *coro, const char *function, bool *yes)
{
    PyObject *answer = PyObject_CallMethod(coro->helpers, function, NULL);
    *yes = answer == Py_True;
    Py_XDECREF(answer);
    return answer == NULL ? -1 : 0;
}

/* Can objects be recycled? Only if one with attributes differs from one without in what we look at. */
static int
find_recycle(CoroState *coro)
{
    PyObject *op = coro->FutureType->tp_alloc(coro->FutureType, 0);
    if (op == NULL) {
        return -1;
    }
    coro->fresh_values = layout_values_header(op);
    bool before = layout_has_dict(op, coro->fresh_values) || layout_has_weakrefs(op);
    int err = PyObject_SetAttrString(op, "probe", Py_None);
    bool with_dict = layout_has_dict(op, coro->fresh_values);
    PyObject *reference = err < 0 ? NULL : PyWeakref_NewRef(op, NULL);
    coro->recycle = reference != NULL && !before && with_dict && layout_has_weakrefs(op);
    Py_DECREF(op);
    Py_XDECREF(reference);
    return reference == NULL ? -1 : 0;
}

/* Of what both bases have, asyncio.Task's methods are a task's: our Future comes first in the order of its bases. */
static int
take_methods_of_base(CoroState *coro)
{
    PyObject *names[] = {
        coro->str_set_result,
        coro->str_set_exception,
#if !HAVE_UNLOCKED_FUTURES
        coro->str_cancel,
#endif
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        PyObject *method = PyObject_GetAttr((PyObject *)coro->base_task, names[i]);
        int err = method == NULL ? -1 : PyDict_SetItem(coro->TaskType->tp_dict, names[i], method);
        Py_XDECREF(method);
        if (err < 0) {
            return -1;
        }
    }
    PyType_Modified(coro->TaskType);
    return 0;
}

#if HAVE_UNLOCKED_FUTURES
static int
find_unlocked(CoroState *coro, UnlockedMethod *method, const char *name)
{
    method->name = PyUnicode_InternFromString(name);
    PyTypeObject *bases[2] = {coro->base_future, coro->base_task};
    for (int i = 0; method->name != NULL && i < 2; i++) {
        method->methods[i] = PyObject_GetAttr((PyObject *)bases[i], method->name);
        if (method->methods[i] == NULL) {
            /* Only tasks have each of them. */
            if (i == 1 || !PyErr_ExceptionMatches(PyExc_AttributeError)) {
                return -1;
            }
            PyErr_Clear();
        }
    }
    return method->name == NULL ? -1 : 0;
}
#endif

static int
make_types(PyObject *module, CoroState *coro)
{
#define X(name, ...)                                              \
    if (find_unlocked(coro, &coro->unlocked_##name, #name) < 0) { \
        return -1;                                                \
    }
    UNLOCKED_NAMES(X)
#undef X

    coro->FutureType = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Future_spec, (PyObject *)coro->base_future);
    /* As of the standard types, Task is a subclass of Future. */
    PyObject *bases = coro->FutureType == NULL ? NULL : PyTuple_Pack(2, coro->FutureType, coro->base_task);
    if (bases == NULL) {
        return -1;
    }
    coro->TaskType = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Task_spec, bases);
    Py_DECREF(bases);
    coro->AwaiterType = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Awaiter_spec, NULL);
    coro->WakeupType = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Wakeup_spec, NULL);
    coro->StepType = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Step_spec, NULL);
    if (coro->FutureType == NULL || coro->TaskType == NULL || coro->AwaiterType == NULL || coro->WakeupType == NULL ||
        coro->StepType == NULL || take_methods_of_base(coro) < 0) {
        return -1;
    }
#define X(name) compat_share_type(coro->name##Type);
    CORO_TYPES(X)
#undef X
    coro->future_result = PyObject_GetAttrString((PyObject *)coro->base_future, "result");
    if (coro->future_result == NULL) {
        return -1;
    }
    return find_recycle(coro);
}

PyObject *
coro_find_codes(CoroState *coro, const char *function)
{
    PyObject *codes = PyObject_CallMethod(coro->helpers, function, NULL);
    if (codes == Py_None) {
        Py_CLEAR(codes);
    }
    return codes;
}

/* State.run_known. */
static int
run_known(LoopObject *loop, PyObject *function, PyObject *const *args, Py_ssize_t nargs)
{
    /* Somebody may call _run() of a handle whose loop is closed. */
    if (loop->debug || loop->coro == NULL || !loop->coro->use_native || function_is_watched(function)) {
        return 0;
    }
    bool is_gather = PyFunction_GET_CODE(function) == loop->state->known_codes[KNOWN_GATHER];
    return is_gather ? gather_run(loop, function, args, nargs) : chain_run(loop, function, args, nargs);
}

int
coro_exec(PyObject *module, State *state)
{
    CoroState *coro = PyMem_Calloc(1, sizeof(CoroState));
    if (coro == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    state->coro = coro;
    registry_init(coro);
    if (import_everything(coro) < 0 || ask_helper(coro, "create_task_takes_any_keyword", &coro->free_keywords) < 0 ||
        ask_helper(coro, "create_task_names_later", &coro->names_later) < 0 ||
        ask_helper(coro, "create_task_names_none", &coro->names_none) < 0 ||
        ask_helper(coro, "task_checks_context", &coro->checks_context) < 0) {
        return -1;
    }
    PyObject *base_future = PyObject_GetAttrString(coro->asyncio_module, "Future");
    PyObject *base_task = PyObject_GetAttrString(coro->asyncio_module, "Task");
    int known = base_future == NULL || base_task == NULL ? -1 : layout_verify(base_future, base_task);
    coro->base_future = (PyTypeObject *)base_future;
    coro->base_task = (PyTypeObject *)base_task;
    if (known < 0 || (known > 0 && make_types(module, coro) < 0)) {
        return -1;
    }
    coro->native = known > 0;
    if (coro->native && (chain_exec(state) < 0 || gather_exec(state) < 0)) {
        return -1;
    }
    state->run_known = run_known;
#if HAVE_DICT_ENTRIES
    int dicts_known = dicts_verify();
    if (dicts_known < 0) {
        return -1;
    }
    coro->dicts_known = dicts_known > 0;
#endif
#if HAVE_RUNNING_TASK_SLOT
    if (layout_find_running_task(coro->asyncio_module, coro->swap_current_task, &coro->running_at) < 0) {
        return -1;
    }
    state->running_at = coro->running_at;
#endif
    state->leave_task = current_task_forget;
    state->run_step = task_step_run;
    state->run_wakeup = task_wakeup_run;
    state->wake_late = future_wake_late;
    PyObject *future_type = known > 0 ? (PyObject *)coro->FutureType : base_future;
    PyObject *task_type = known > 0 ? (PyObject *)coro->TaskType : base_task;
    if (PyModule_AddObjectRef(module, "Future", future_type) < 0 ||
        PyModule_AddObjectRef(module, "Task", task_type) < 0 ||
        PyModule_AddObjectRef(module, "native_tasks", known > 0 ? Py_True : Py_False) < 0) {
        return -1;
    }
    return add_loop_attributes(state->LoopType);
}

int
coro_traverse(State *state, visitproc visit, void *arg)
{
    CoroState *coro = state->coro;
    if (coro == NULL) {
        return 0;
    }
#define X(field, module, attribute) Py_VISIT(coro->field);
    CORO_IMPORTS(X)
    CORO_OPTIONAL_IMPORTS(X)
#undef X
#define X(name) Py_VISIT(coro->name##Type);
    CORO_TYPES(X)
#undef X
    Py_VISIT(coro->base_future);
    Py_VISIT(coro->base_task);
    Py_VISIT(coro->loop_type);
    Py_VISIT(coro->helpers);
    Py_VISIT(coro->chain_codes);
    Py_VISIT(coro->gather_codes);
    Py_VISIT(coro->base_create_task);
    Py_VISIT(coro->future_result);
#define X(method, ...)                            \
    Py_VISIT(coro->unlocked_##method.methods[0]); \
    Py_VISIT(coro->unlocked_##method.methods[1]);
    UNLOCKED_NAMES(X)
#undef X
    return 0;
}

void
coro_clear(State *state)
{
    CoroState *coro = state->coro;
    if (coro == NULL) {
        return;
    }
#define X(field, module, attribute) Py_CLEAR(coro->field);
    CORO_IMPORTS(X)
    CORO_OPTIONAL_IMPORTS(X)
#undef X
#define X(field, text) Py_CLEAR(coro->str_##field);
    CORO_NAMES(X)
#undef X
#define X(name) Py_CLEAR(coro->name##Type);
    CORO_TYPES(X)
#undef X
    Py_CLEAR(coro->base_future);
    Py_CLEAR(coro->base_task);
    Py_CLEAR(coro->loop_type);
    Py_CLEAR(coro->helpers);
    memset(state->known_codes, 0, sizeof(state->known_codes));
    Py_CLEAR(coro->chain_codes);
    Py_CLEAR(coro->gather_codes);
    Py_CLEAR(coro->base_create_task);
    Py_CLEAR(coro->create_task_code);
    Py_CLEAR(coro->future_result);
    Py_CLEAR(coro->kw_context);
    Py_CLEAR(coro->empty_tuple);
#define X(method, ...)                            \
    Py_CLEAR(coro->unlocked_##method.name);       \
    Py_CLEAR(coro->unlocked_##method.methods[0]); \
    Py_CLEAR(coro->unlocked_##method.methods[1]);
    UNLOCKED_NAMES(X)
#undef X
}

void
coro_free(State *state)
{
    coro_clear(state);
    PyMem_Free(state->coro);
    state->coro = NULL;
}
