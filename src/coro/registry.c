/* How our tasks are seen by asyncio.all_tasks() and asyncio.current_task().

   Up to 3.13 asyncio keeps a WeakSet of tasks; adding to it costs more than the rest of create_task(). We link ours
   into a ring instead, and the existing WeakSet becomes an instance of a subclass whose iteration adds them (see
   fastloop/_coro.py). Without a GIL there are several rings, each with a lock. From 3.14 on a task has a node in the
   standard's own list. */

#include "coro/registry.h"

/* ---- all_tasks ---- */

static inline void
unlink_node(TaskNode *node)
{
    if (node->next != NULL) {
        node->prev->next = node->next;
        node->next->prev = node->prev;
        node->next = NULL;
        node->prev = NULL;
    }
}

static void
make_ring(TaskNode *ring)
{
    ring->next = ring;
    ring->prev = ring;
}

void
registry_init(CoroState *coro)
{
    make_ring(&coro->tasks);
#if HAVE_SHARED_TASK_LIST
    for (int i = 0; i < TASK_SHARDS; i++) {
        make_ring(&coro->shards[i].tasks);
    }
#endif
}

#if HAVE_OWN_TASK_LIST

/* asyncio keeps these functions for good: they must not keep the module, which a subinterpreter would then never free.
   The module (new) and its part, which is NULL when the module is no more; -1 with an exception. */
static int
take_module(PyObject *reference, PyObject **module, CoroState **coro)
{
    *module = PyObject_CallNoArgs(reference);
    if (*module == NULL) {
        return -1;
    }
    *coro = *module == Py_None ? NULL : state_of_module(*module)->coro;
    return 0;
}

static PyObject *
list_for_helper(PyObject *reference, PyObject *Py_UNUSED(ignored))
{
    PyObject *module;
    CoroState *coro;
    if (take_module(reference, &module, &coro) < 0) {
        return NULL;
    }
    PyObject *list = coro == NULL ? PyList_New(0) : registry_list(coro);
    Py_DECREF(module);
    return list;
}

/* asyncio._unregister_task(), of anything: takes a task of ours off the list. */
static PyObject *
forget_for_helper(PyObject *reference, PyObject *op)
{
    PyObject *module;
    CoroState *coro;
    if (take_module(reference, &module, &coro) < 0) {
        return NULL;
    }
    if (coro != NULL && PyObject_TypeCheck(op, coro->TaskType)) {
        registry_remove(TaskObject_CAST(op));
    }
    Py_DECREF(module);
    Py_RETURN_NONE;
}

static PyMethodDef list_methods[] = {{"native_tasks", list_for_helper, METH_NOARGS, NULL}, {NULL}};
static PyMethodDef forget_methods[] = {{"forget_task", forget_for_helper, METH_O, NULL}, {NULL}};

/* Has the standard WeakSet show our tasks. Done with the first task, so that importing fastloop changes nothing. */
static int
install(CoroState *coro)
{
    PyObject *module = PyType_GetModule(coro->TaskType);
    PyObject *reference = module == NULL ? NULL : PyWeakref_NewRef(module, NULL);
    PyObject *lister = reference == NULL ? NULL : PyCFunction_New(list_methods, reference);
    PyObject *forget = lister == NULL ? NULL : PyCFunction_New(forget_methods, reference);
    Py_XDECREF(reference);
    PyObject *result = forget == NULL ? NULL : PyObject_CallMethod(coro->helpers, "show_tasks", "OO", lister, forget);
    coro->standard_registry = result == Py_False;
    Py_XDECREF(lister);
    Py_XDECREF(forget);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static int add_to_list(CoroState *coro, TaskObject *task);

/* What only the first task needs, or one in the standard registry. */
NEVER_INLINE int
add_by_standard(CoroState *coro, TaskObject *task)
{
    if (!coro->installed && !atomic_exchange(&coro->installed, true) && install(coro) < 0) {
        coro->installed = false;
        return -1;
    }
    if (!coro->standard_registry) {
        return add_to_list(coro, task);
    }
    PyObject *result = PyObject_CallOneArg(coro->register_task, (PyObject *)task);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int
registry_add(CoroState *coro, TaskObject *task)
{
    return LIKELY(coro->installed && !coro->standard_registry) ? add_to_list(coro, task) : add_by_standard(coro, task);
}

#if HAVE_SHARED_TASK_LIST

static TaskShard *
shard_here(CoroState *coro)
{
    /* Fibonacci hashing: an identifier of a thread is an address, whose last bits say little. */
    return &coro->shards[(uint64_t)compat_thread_ident() * 0x9E3779B97F4A7C15u >> 59];
}

static int
add_to_list(CoroState *coro, TaskObject *task)
{
    if (task->shard != NULL) {
        return 0;
    }
    PyObject *reference = PyWeakref_NewRef((PyObject *)task, NULL);
    if (reference == NULL) {
        return -1;
    }
    TaskShard *shard = shard_here(coro);
    task->shard = shard;
    compat_mutex_lock(&shard->lock);
    task->reference = reference;
    task_link_after(shard->tasks.prev, &task->node);
    shard->count++;
    compat_mutex_unlock(&shard->lock);
    return 0;
}

void
registry_remove(TaskObject *task)
{
    TaskShard *shard = task->shard;
    if (shard == NULL) {
        return;
    }
    task->shard = NULL;
    compat_mutex_lock(&shard->lock);
    PyObject *reference = task->reference;
    task->reference = NULL;
    unlink_node(&task->node);
    shard->count--;
    compat_mutex_unlock(&shard->lock);
    Py_DECREF(reference);
}

/* The weak references of a shard (new), of which there are `*count`, in memory to be freed; NULL with MemoryError. */
static PyObject **
references_of(TaskShard *shard, size_t *count)
{
    PyObject **references = NULL;
    size_t room = 0;
    for (;;) {
        compat_mutex_lock(&shard->lock);
        *count = shard->count;
        if (references != NULL && *count <= room) {
            break;
        }
        compat_mutex_unlock(&shard->lock);
        /* Some more, for those that are made meanwhile. */
        room = *count + *count / 8 + 16;
        PyMem_Free(references);
        references = PyMem_New(PyObject *, room);
        if (references == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
    }
    size_t filled = 0;
    for (TaskNode *node = shard->tasks.next; node != &shard->tasks; node = node->next) {
        TaskObject *task = (TaskObject *)((char *)node - offsetof(TaskObject, node));
        references[filled++] = Py_NewRef(task->reference);
    }
    compat_mutex_unlock(&shard->lock);
    return references;
}

static int
list_shard(TaskShard *shard, PyObject *list)
{
    size_t count;
    PyObject **references = references_of(shard, &count);
    if (references == NULL) {
        return -1;
    }
    int err = 0;
    for (size_t i = 0; i < count; i++) {
        PyObject *task = err < 0 ? NULL : compat_weakref_get(references[i]);
        if (task != NULL) {
            err = PyList_Append(list, task);
            Py_DECREF(task);
        }
        Py_DECREF(references[i]);
    }
    PyMem_Free(references);
    return err;
}

PyObject *
registry_list(CoroState *coro)
{
    PyObject *list = PyList_New(0);
    for (int i = 0; list != NULL && i < TASK_SHARDS; i++) {
        if (list_shard(&coro->shards[i], list) < 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

#else

static int
add_to_list(CoroState *coro, TaskObject *task)
{
    if (task->node.next == NULL) {
        task_link_after(coro->tasks.prev, &task->node);
    }
    return 0;
}

void
registry_remove(TaskObject *task)
{
    unlink_node(&task->node);
}

static PyObject *
task_of_node(TaskNode *node)
{
    return (PyObject *)((char *)node - offsetof(TaskObject, node));
}

/* A subclass's instance stays linked while it is being freed, if its __del__() does not call ours: hands off. */
static bool
is_alive(TaskNode *node)
{
    return Py_REFCNT(task_of_node(node)) > 0;
}

PyObject *
registry_list(CoroState *coro)
{
    for (;;) {
        Py_ssize_t count = 0;
        for (TaskNode *node = coro->tasks.next; node != &coro->tasks; node = node->next) {
            count += is_alive(node);
        }
        PyObject *list = PyList_New(count);
        if (list == NULL) {
            return NULL;
        }
        /* Making the list may have collected garbage, and tasks with it; filling it runs no code. */
        Py_ssize_t filled = 0;
        TaskNode *node = coro->tasks.next;
        for (; node != &coro->tasks; node = node->next) {
            if (!is_alive(node)) {
                continue;
            }
            if (filled == count) { /* GCOV_EXCL_BR_LINE: up to Python 3.11 */
                break;
            }
            PyList_SET_ITEM(list, filled++, Py_NewRef(task_of_node(node)));
        }
        if (node == &coro->tasks && filled == count) { /* GCOV_EXCL_BR_LINE: up to Python 3.11 */
            return list;
        }
        Py_SET_SIZE(list, filled);
        Py_DECREF(list);
    }
}

#endif

#else

PyObject *
registry_list(CoroState *Py_UNUSED(coro))
{
    return PyList_New(0);
}

int
registry_add_anew(CoroState *coro, TaskObject *task)
{
    PyObject *result = PyObject_CallOneArg(coro->register_task, (PyObject *)task);
    Py_XDECREF(result);
#if HAVE_RUNNING_TASK_SLOT
    TaskNode *node = &task->base.node;
    if (result != NULL && node->next != NULL) {
        coro->task_list_at = layout_find_task_list(node);
    }
#endif
    return result == NULL ? -1 : 0;
}

void
registry_remove(TaskObject *task)
{
#if !HAVE_FREE_THREADING
    unlink_node(&task->base.node);
#else
    /* Another thread may walk its list: the standard function stops it if need be. */
    if (task->base.node.next == NULL) {
        return;
    }
    /* A task may die while an exception unwinds the frame that held it. */
    PyObject *raised = compat_take_exception();
    State *state = state_of_object((PyObject *)task);
    PyObject *result = state == NULL ? NULL : PyObject_CallOneArg(state->coro->unregister_task, (PyObject *)task);
    if (result == NULL) {
        PyErr_Clear();
    }
    Py_XDECREF(result);
    if (raised != NULL) {
        compat_restore_exception(raised);
    }
#endif
    (void)unlink_node;
}

#endif

/* ---- current_task ---- */

static PyObject *
swap_by_standard(CoroState *coro, PyObject *loop, PyObject *task)
{
    PyObject *stack[2] = {loop, task};
    return PyObject_Vectorcall(coro->swap_current_task, stack, 2, NULL);
}

#if HAVE_THREAD_STATE_TASKS

PyObject *
current_task_swap(CoroState *coro, LoopObject *Py_UNUSED(native), PyObject *loop, PyObject *task)
{
#if HAVE_RUNNING_TASK_SLOT
    PyObject **running = (PyObject **)((char *)PyThreadState_Get() + coro->running_at);
    if (LIKELY(coro->running_at != 0) && LIKELY(running[0] == loop)) {
        PyObject *previous = running[1] == NULL ? Py_NewRef(Py_None) : running[1];
        running[1] = task == Py_None ? NULL : Py_NewRef(task);
        return previous;
    }
#endif
    return swap_by_standard(coro, loop, task);
}

int
current_task_enter_anew(CoroState *coro, PyObject *loop, PyObject *task)
{
    PyObject *previous = current_task_swap(coro, NULL, loop, task);
    if (previous == NULL) {
        return -1;
    }
    if (LIKELY(previous == Py_None)) {
        Py_DECREF(previous);
        return 0;
    }
    Py_XDECREF(current_task_swap(coro, NULL, loop, previous));
    if (!PyErr_Occurred()) {
        PyErr_Format(PyExc_RuntimeError, "Cannot enter into task %R while another task %R is being executed.", task,
                     previous);
    }
    Py_DECREF(previous);
    return -1;
}

int
current_task_leave_anew(CoroState *coro, PyObject *loop, PyObject *task)
{
    PyObject *previous = current_task_swap(coro, NULL, loop, Py_None);
    if (LIKELY(previous == task)) {
        Py_DECREF(previous);
        return 0;
    }
    if (previous != NULL) {
        Py_XDECREF(current_task_swap(coro, NULL, loop, previous));
        if (!PyErr_Occurred()) {
            PyErr_Format(PyExc_RuntimeError, "Invalid attempt to leave task %R while task %R is entered.", task,
                         previous);
        }
        Py_DECREF(previous);
    }
    return -1;
}

#elif HAVE_FREE_THREADING

/* The dict has one lock for all loops, and an item that comes and goes has it make new tables all the time. Thus an
   entry stays until the next step replaces it, as it does with a GIL (see below). Here loop->left_task is a reference:
   so no task dies while the dict is locked, and none that another thread takes out of it is used after that. */

static int
call_stock(PyObject *function, PyObject *loop, PyObject *task)
{
    PyObject *stack[2] = {loop, task};
    PyObject *result = PyObject_Vectorcall(function, stack, 2, NULL);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

void
current_task_forget(LoopObject *loop)
{
    PyObject *task = loop->left_task;
    loop->left_task = NULL;
    PyObject *raised = compat_take_exception();
    if (call_stock(loop->state->coro->leave_task, (PyObject *)loop, task) < 0) {
        PyErr_WriteUnraisable((PyObject *)loop);
    }
    Py_DECREF(task);
    if (raised != NULL) {
        compat_restore_exception(raised);
    }
}

PyObject *
current_task_swap(CoroState *coro, LoopObject *Py_UNUSED(native), PyObject *loop, PyObject *task)
{
    return swap_by_standard(coro, loop, task);
}

int
current_task_enter(CoroState *coro, LoopObject *native, PyObject *loop, PyObject *task)
{
    PyObject *left = native == NULL ? NULL : native->left_task;
    if (left == NULL) {
        return call_stock(coro->enter_task, loop, task);
    }
    if (left != task && PyDict_SetItem(coro->current_tasks, loop, task) < 0) {
        return -1;
    }
    native->left_task = NULL;
    Py_DECREF(left);
    return 0;
}

int
current_task_leave(CoroState *coro, LoopObject *native, PyObject *loop, PyObject *task)
{
    if (native != NULL && LIKELY(Py_REFCNT(task) > 2)) {
        PyObject *current = compat_dict_get(coro->current_tasks, loop);
        if (LIKELY(current == task)) {
            native->left_task = current;
            return 0;
        }
        Py_XDECREF(current);
        if (current == NULL && PyErr_Occurred()) {
            return -1;
        }
    }
    return call_stock(coro->leave_task, loop, task);
}

#else

/* Takes an item out of a dict: a new reference, or NULL, perhaps with an exception. */
static PyObject *
take_item(PyObject *dict, PyObject *key)
{
#if HAVE_DICT_POP
    PyObject *value;
    (void)PyDict_Pop(dict, key, &value);
    return value;
#else
    PyObject *value = Py_XNewRef(PyDict_GetItemWithError(dict, key));
    if (value != NULL && PyDict_DelItem(dict, key) < 0) {
        Py_CLEAR(value);
    }
    return value;
#endif
}

static int
enter_empty(CoroState *coro, PyObject *loop, PyObject *task)
{
    /* Not PyDict_SetDefault(): that of 3.13 counts an item that it had no memory for. */
    PyObject *current = PyDict_GetItemWithError(coro->current_tasks, loop);
    if (LIKELY(current == NULL)) {
        return PyErr_Occurred() ? -1 : PyDict_SetItem(coro->current_tasks, loop, task);
    }
    PyErr_Format(PyExc_RuntimeError, "Cannot enter into task %R while another task %R is being executed.", task,
                 current);
    return -1;
}

static int
leave_at_once(CoroState *coro, PyObject *loop, PyObject *task)
{
    PyObject *current = take_item(coro->current_tasks, loop);
    if (LIKELY(current == task)) {
        Py_DECREF(current);
        return 0;
    }
    if (current != NULL && PyDict_SetItem(coro->current_tasks, loop, current) < 0) {
        Py_DECREF(current);
        return -1;
    }
    if (!PyErr_Occurred()) {
        PyErr_Format(PyExc_RuntimeError, "Leaving task %R does not match the current task %R.", task,
                     current == NULL ? Py_None : current);
    }
    Py_XDECREF(current);
    return -1;
}

/* Between two steps in a row nobody can look, so the entry of the first stays in the dict until the second replaces it
   (loop->left_task). Where something else runs, loop_leave_task() is called first. */

void
current_task_forget(LoopObject *loop)
{
    PyObject *task = loop->left_task;
    loop->left_task = NULL;
    PyObject *raised = compat_take_exception();
    if (leave_at_once(loop->state->coro, (PyObject *)loop, task) < 0) {
        PyErr_WriteUnraisable((PyObject *)loop);
    }
    if (raised != NULL) {
        compat_restore_exception(raised);
    }
}

/* The dict has this entry now. */
static void
note_shown(CoroState *coro, CoroPart *part, PyObject *loop, PyObject *task)
{
    part->shown_version = compat_dict_version(coro->current_tasks);
    part->shown_slot = coro->dicts_known ? dict_value_slot(coro->current_tasks, loop, task) : NULL;
    part->shown_keys = dict_keys(coro->current_tasks);
}

PyObject *
current_task_swap(CoroState *coro, LoopObject *native, PyObject *loop, PyObject *task)
{
    CoroPart *part = native == NULL || native->left_task != NULL || task == Py_None ? NULL : native->coro;
    PyObject **slot = part == NULL ? NULL : current_task_slot(coro, part);
    if (UNLIKELY(slot == NULL)) {
        return swap_by_standard(coro, loop, task);
    }
    PyObject *previous = *slot;
    *slot = Py_NewRef(task);
    return previous;
}

int
current_task_enter_anew(CoroState *coro, LoopObject *native, PyObject *loop, PyObject *task)
{
    if (native == NULL) {
        return enter_empty(coro, loop, task);
    }
    if (native->left_task != NULL && compat_dict_version(coro->current_tasks) != native->coro->shown_version) {
        current_task_forget(native);
    }
    PyObject *left = native->left_task;
    native->left_task = NULL;
    int err = left == NULL ? enter_empty(coro, loop, task) : PyDict_SetItem(coro->current_tasks, loop, task);
    if (LIKELY(err == 0)) {
        note_shown(coro, native->coro, loop, task);
    } else {
        native->left_task = left;
    }
    return err;
}

int
current_task_leave(CoroState *coro, LoopObject *native, PyObject *loop, PyObject *task)
{
    /* Not if the dict and the record are the last to hold the task: it must not die while the next step runs. And not
       if the dict was changed meanwhile: does it still say what it should? */
    if (native != NULL && LIKELY(Py_REFCNT(task) > 2) && native->coro != NULL &&
        compat_dict_version(coro->current_tasks) == native->coro->shown_version) {
        native->left_task = task;
        return 0;
    }
    return leave_at_once(coro, loop, task);
}

#endif

#if HAVE_THREAD_STATE_TASKS
void
current_task_forget(LoopObject *loop)
{
    loop->left_task = NULL;
}
#endif
