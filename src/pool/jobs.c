/* JobQueue: a ring of jobs under a mutex, and a stack of waiting workers.

   Wake-ups go in a chain: a push wakes one worker, and a worker that takes a job and sees more of them wakes the next one
   before it runs its own. So every job finds a worker although the first may block, and workers that would find nothing
   left sleep on. A worker takes its job with the thread state attached: under a GIL, jobs start in the order of the
   queue. One worker at a time may spin for a moment after short jobs, before it blocks; then a push wakes nobody.

   Nothing under the lock calls Python, waits, or lets go of the thread state, and nobody takes it without one; so neither
   a collection nor a fork finds it held. */

#include "pool/jobs.h"

#include "pool/outcome.h"

enum {
    INITIAL_CAPACITY = 64,
    /* Jobs in C never let other threads in by themselves: after so many in a row the worker does. */
    JOBS_PER_RELEASE = 64,
};

/* ---- the ring and the waiting workers, with the lock held ---- */

static bool
reserve_lock_held(JobQueueObject *queue)
{
    if (queue->count < queue->capacity) {
        return true;
    }
    size_t capacity = queue->capacity == 0 ? INITIAL_CAPACITY : queue->capacity * 2;
    Job *jobs = PyMem_RawMalloc(capacity * sizeof(Job));
    if (jobs == NULL) {
        return false;
    }
    for (size_t i = 0; i < queue->count; i++) {
        jobs[i] = queue->jobs[(queue->head + i) & (queue->capacity - 1)];
    }
    PyMem_RawFree(queue->jobs);
    queue->jobs = jobs;
    queue->capacity = capacity;
    queue->head = 0;
    return true;
}

static Job *
job_at_lock_held(JobQueueObject *queue, size_t index)
{
    return &queue->jobs[(queue->head + index) & (queue->capacity - 1)];
}

/* Wakes one waiting worker, unless one is on its way already. */
static void
wake_one_lock_held(JobQueueObject *queue)
{
    Waiter *waiter = queue->waiting;
    if (waiter != NULL && !queue->waking && !queue->spinning) {
        queue->waiting = waiter->next;
        queue->waking = true;
        uv_sem_post(&waiter->wake);
    }
}

/* Appends a job, whose references the queue takes over; false without memory. */
static bool
append_lock_held(JobQueueObject *queue, const Job *job)
{
    if (!reserve_lock_held(queue)) {
        return false;
    }
    *job_at_lock_held(queue, queue->count++) = *job;
    queue->empty = 0;
    if (job->loop != NULL) {
        job->loop->jobs_under_way++;
        job->loop->metrics.jobs++;
        job->loop->metrics.jobs_queued++;
        if (UNLIKELY(job->loop->metrics.timed)) {
            job_at_lock_held(queue, queue->count - 1)->queued_ns = compat_monotonic_ns();
        }
    }
    wake_one_lock_held(queue);
    return true;
}

static Job
take_lock_held(JobQueueObject *queue)
{
    Job job = *job_at_lock_held(queue, 0);
    queue->head = (queue->head + 1) & (queue->capacity - 1);
    if (job.loop != NULL) {
        job.loop->metrics.jobs_queued--;
    }
    if (--queue->count > 0) {
        wake_one_lock_held(queue);
    } else {
        queue->empty = 1;
    }
    return job;
}

/* A waiter that is on the stack of waiting workers now, or NULL without memory. */
static Waiter *
start_waiting_lock_held(JobQueueObject *queue)
{
    Waiter *waiter = queue->spare;
    if (waiter != NULL) {
        queue->spare = waiter->next;
    } else {
        waiter = PyMem_RawMalloc(sizeof(Waiter));
        if (waiter == NULL || uv_sem_init(&waiter->wake, 0) < 0) {
            PyMem_RawFree(waiter);
            return NULL;
        }
    }
    waiter->next = queue->waiting;
    queue->waiting = waiter;
    return waiter;
}

/* ---- jobs ---- */

/* Drops the references of a job that was, or should have been, queued. */
static void
job_clear(Job *job)
{
    PyObject *func = job->func, *args = job->args, *future = job->future, *loop = (PyObject *)job->loop;
    *job = (Job){NULL};
    Py_XDECREF(args);
    Py_XDECREF(func);
    Py_XDECREF(future);
    Py_XDECREF(loop);
}

/* The same for one that has been queued. */
static void
job_finish(Job *job)
{
    if (job->loop != NULL) {
        job->loop->jobs_under_way--;
    }
    job_clear(job);
}

JobOutcome
jobs_submit_threadsafe(JobQueueObject *queue, const Job *job)
{
    JobOutcome outcome;
    uv_mutex_lock(&queue->lock);
    if (queue->closed) {
        outcome = JOB_REFUSED;
    } else if (queue->idle == 0 && !queue->full) {
        outcome = JOB_NO_WORKER;
    } else if (append_lock_held(queue, job)) {
        outcome = JOB_TAKEN;
        if (queue->idle > 0) {
            queue->idle--;
        }
    } else {
        outcome = JOB_FAILED;
    }
    uv_mutex_unlock(&queue->lock);
    if (outcome == JOB_FAILED) {
        PyErr_NoMemory();
    }
    return outcome;
}

/* Queues an item or a job whatever the number of workers; takes over its references when it succeeds. `closing` closes
   the queue at the same time. */
static int
push(JobQueueObject *queue, const Job *job, bool closing)
{
    uv_mutex_lock(&queue->lock);
    bool taken = append_lock_held(queue, job);
    queue->closed = queue->closed || closing;
    uv_mutex_unlock(&queue->lock);
    if (!taken) {
        PyErr_NoMemory();
    }
    return taken ? 0 : -1;
}

/* ---- a worker ---- */

/* Spins until there is something to take; false when nothing came, or spinning does not pay. */
static bool
spin_for_job(JobQueueObject *queue)
{
    uv_mutex_lock(&queue->lock);
    uint64_t budget = 0;
    if (queue->count == 0 && !queue->spinning && queue->job_ns < SPIN_JOB_MAX_NS) {
        budget = spin_budget(&queue->spin, compat_monotonic_ns());
    }
    queue->spinning = queue->spinning || budget > 0;
    uv_mutex_unlock(&queue->lock);
    if (budget == 0) {
        return false;
    }
    state_note_attached(queue->state, -1);
    PyThreadState *thread_state = PyEval_SaveThread();
    bool found = spin_until(&queue->empty, 0, budget);
    if (found && !HAVE_FREE_THREADING) {
        /* Whose job it is has yet to let go of the GIL. */
        (void)spin_until(&queue->state->attached, 0, SPIN_MAX_NS);
    }
    PyEval_RestoreThread(thread_state);
    state_note_attached(queue->state, 1);
    uv_mutex_lock(&queue->lock);
    spin_note(&queue->spin, found);
    queue->spinning = false;
    found = queue->count > 0;
    uv_mutex_unlock(&queue->lock);
    return found;
}

/* Blocks until there may be something to take. -1 with MemoryError. */
static int
wait_for_job(JobQueueObject *queue)
{
    uv_mutex_lock(&queue->lock);
    Waiter *waiter = queue->count > 0 ? NULL : start_waiting_lock_held(queue);
    bool failed = waiter == NULL && queue->count == 0;
    uv_mutex_unlock(&queue->lock);
    if (failed) {
        PyErr_NoMemory();
        return -1;
    }
    if (waiter == NULL) {
        return 0;
    }
    state_note_attached(queue->state, -1);
    PyThreadState *thread_state = PyEval_SaveThread();
    uv_sem_wait(&waiter->wake);
    PyEval_RestoreThread(thread_state);
    state_note_attached(queue->state, 1);
    uv_mutex_lock(&queue->lock);
    waiter->next = queue->spare;
    queue->spare = waiter;
    queue->waking = false;
    uv_mutex_unlock(&queue->lock);
    return 0;
}

/* Takes the oldest job; false when there is none. */
static bool
take(JobQueueObject *queue, Job *job)
{
    uv_mutex_lock(&queue->lock);
    bool found = queue->count > 0;
    if (found) {
        *job = take_lock_held(queue);
    }
    uv_mutex_unlock(&queue->lock);
    return found;
}

static void
add_idle(JobQueueObject *queue, Py_ssize_t workers)
{
    uv_mutex_lock(&queue->lock);
    queue->idle += workers;
    uv_mutex_unlock(&queue->lock);
}

static void
let_others_in(void)
{
    PyThreadState *thread_state = PyEval_SaveThread();
    PyEval_RestoreThread(thread_state);
}

/* Runs a job, and keeps the average of what they take. */
static void
run_timed(JobQueueObject *queue, Job *job)
{
    uint64_t start = compat_monotonic_ns();
    if (UNLIKELY(job->queued_ns != 0)) {
        histogram_add(&job->loop->metrics.timing->job_wait, start - job->queued_ns);
    }
    job_run(job);
    uint64_t taken = compat_monotonic_ns() - start;
    uint32_t average = queue->job_ns;
    average = average - average / 8 + (uint32_t)(taken > UINT32_MAX / 2 ? UINT32_MAX / 2 : taken) / 8;
    queue->job_ns = average;
    job->loop->job_ns = average;
}

/* Does somebody else hold it, or does freeing it run no code? */
static inline bool
dies_silently(PyObject *op)
{
    return Py_REFCNT(op) > 1 || PyLong_CheckExact(op) || PyFloat_CheckExact(op) || PyUnicode_CheckExact(op) ||
           PyBytes_CheckExact(op);
}

/* Does nothing run when the references of a job are dropped? Without a GIL nobody knows. */
static bool
ends_silently(const Job *job)
{
    if (HAVE_FREE_THREADING || !dies_silently(job->func) || !dies_silently(job->future)) {
        return false;
    }
    Py_ssize_t count = job->args == NULL || Py_REFCNT(job->args) > 1 ? 0 : PyTuple_GET_SIZE(job->args);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (!dies_silently(PyTuple_GET_ITEM(job->args, i))) {
            return false;
        }
    }
    return true;
}

/* Tells the loop that there is an outcome for it, and ends the job. A worker with nothing more to do (`idle`) lets the loop
   run first, and is idle for what that submits; with more to do the loop has to wait, and gets many outcomes at once. Nobody
   may count on a worker that has yet to run what its job leaves behind, which may need the loop. Says whether the worker is
   counted as idle now. */
static bool
end_job(JobQueueObject *queue, Job *job, bool idle)
{
    LoopObject *loop = (LoopObject *)Py_NewRef(job->loop);
    bool gives_way = idle && ends_silently(job);
    bool counted = gives_way || queue->counts_each;
    if (!gives_way && !HAVE_FREE_THREADING) {
        inbox_wake_if_waiting(&loop->inbox);
    }
    job_finish(job);
    if (counted) {
        add_idle(queue, 1);
    }
    if (gives_way) {
        state_note_attached(queue->state, -1);
        loop_wake_threadsafe(loop);
        state_note_attached(queue->state, 1);
    }
    Py_DECREF(loop);
    return counted;
}

/* Runs jobs until there is an item, which is returned, or nothing and `block` is false: NULL without an exception. */
static PyObject *
run_jobs_until_item(JobQueueObject *queue, bool block)
{
    unsigned ran = 0;
    bool may_spin = false, counted = false;
    for (;;) {
        Job job;
        if (take(queue, &job)) {
            if (job.future == NULL) {
                return job.func;
            }
            may_spin = job.loop->may_spin;
            run_timed(queue, &job);
            /* The worker function does the same: after each job, or between get_nowait() and get(). */
            counted = end_job(queue, &job, block && queue->empty);
            if (++ran % JOBS_PER_RELEASE == 0) {
                let_others_in();
            }
            continue;
        }
        if (!block) {
            return NULL;
        }
        if (ran > 0 && !counted) {
            add_idle(queue, 1);
        }
        ran = 0;
        if (!(may_spin && spin_for_job(queue)) && wait_for_job(queue) < 0) {
            return NULL;
        }
        may_spin = false;
    }
}

/* The worker function waits inside `except queue.Empty`: no job may see that exception in sys.exc_info(), or have it as the
   __context__ of its own. */
static PyObject *
run_until_item(JobQueueObject *queue, bool block)
{
    PyObject *handled = PyErr_GetHandledException();
    PyErr_SetHandledException(NULL);
    state_note_attached(queue->state, 1);
    PyObject *item = run_jobs_until_item(queue, block);
    state_note_attached(queue->state, -1);
    PyErr_SetHandledException(handled);
    Py_XDECREF(handled);
    return item;
}

/* ---- methods ---- */

PyDoc_STRVAR(JobQueue_put_doc,
             "put($self, item, /)\n--\n\n"
             "Queue an item for get(). None, the worker's sign to stop, also closes the queue for jobs.\n\n"
             "See queue.SimpleQueue.put().");

static PyObject *
JobQueue_put(PyObject *op, PyObject *item)
{
    Job job = {.func = Py_NewRef(item)};
    if (push(JobQueueObject_CAST(op), &job, item == Py_None) < 0) {
        Py_DECREF(item);
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(JobQueue_put_job_doc,
             "put_job($self, func, args, future, loop, /)\n--\n\n"
             "Queue func(*args), whose outcome completes the future in the thread of its loop.\n\n"
             "For a caller who sees to it that there is a worker; args is a tuple or None. False after close().");

static PyObject *
JobQueue_put_job(PyObject *op, PyObject *args)
{
    JobQueueObject *queue = JobQueueObject_CAST(op);
    PyObject *func, *positional, *future, *loop;
    if (!PyArg_ParseTuple(args, "OOOO!:put_job", &func, &positional, &future, queue->state->LoopType, &loop)) {
        return NULL;
    }
    if (positional != Py_None && !PyTuple_Check(positional)) {
        PyErr_SetString(PyExc_TypeError, "args must be a tuple or None");
        return NULL;
    }
    uv_mutex_lock(&queue->lock);
    bool closed = queue->closed;
    uv_mutex_unlock(&queue->lock);
    if (closed) {
        Py_RETURN_FALSE;
    }
    Job job = {
        Py_NewRef(func),
        positional == Py_None ? NULL : Py_NewRef(positional),
        Py_NewRef(future),
        (LoopObject *)Py_NewRef(loop),
    };
    if (push(queue, &job, false) < 0) {
        job_clear(&job);
        return NULL;
    }
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(JobQueue_get_doc,
             "get($self, /, block=True)\n--\n\n"
             "Run the jobs that are queued, wait for more, and return the first item that was put().\n\n"
             "With block false, raise queue.Empty when there is neither. See queue.SimpleQueue.get().");

static PyObject *
get(JobQueueObject *queue, bool block)
{
    PyObject *item = run_until_item(queue, block);
    if (item == NULL && !PyErr_Occurred()) {
        PyErr_SetNone(queue->state->queue_Empty);
    }
    return item;
}

static PyObject *
JobQueue_get(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static char *const names[] = {"block", NULL};
    int block = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|p:get", (char **)names, &block)) {
        return NULL;
    }
    return get(JobQueueObject_CAST(op), block);
}

static PyObject *
JobQueue_get_nowait(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return get(JobQueueObject_CAST(op), false);
}

static PyObject *
JobQueue_qsize(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    JobQueueObject *queue = JobQueueObject_CAST(op);
    uv_mutex_lock(&queue->lock);
    size_t count = queue->count;
    uv_mutex_unlock(&queue->lock);
    return PyLong_FromSize_t(count);
}

PyDoc_STRVAR(JobQueue_acquire_doc, "acquire($self, /, *, timeout=0)\n--\n\n"
                                   "Count on one idle worker; return False when there is none. Never waits.\n\n"
                                   "See threading.Semaphore.acquire().");

static PyObject *
JobQueue_acquire(PyObject *op, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    JobQueueObject *queue = JobQueueObject_CAST(op);
    uv_mutex_lock(&queue->lock);
    bool found = queue->idle > 0;
    queue->idle -= found;
    uv_mutex_unlock(&queue->lock);
    return PyBool_FromLong(found);
}

PyDoc_STRVAR(JobQueue_release_doc,
             "release($self, /)\n--\n\nOne more worker is idle. See threading.Semaphore.release().");

static PyObject *
JobQueue_release(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    add_idle(JobQueueObject_CAST(op), 1);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(JobQueue_set_full_doc,
             "set_full($self, full, /)\n--\n\n"
             "Say whether there are as many workers as there may be, so that jobs just queue up.");

static PyObject *
JobQueue_set_full(PyObject *op, PyObject *value)
{
    JobQueueObject *queue = JobQueueObject_CAST(op);
    int full = PyObject_IsTrue(value);
    if (full < 0) {
        return NULL;
    }
    uv_mutex_lock(&queue->lock);
    queue->full = full;
    uv_mutex_unlock(&queue->lock);
    Py_RETURN_NONE;
}

/* Takes the first job (not item) out; false when there is none. */
static bool
take_job_out(JobQueueObject *queue, Job *job)
{
    uv_mutex_lock(&queue->lock);
    size_t place = 0;
    while (place < queue->count && job_at_lock_held(queue, place)->future == NULL) {
        place++;
    }
    bool found = place < queue->count;
    if (found) {
        *job = *job_at_lock_held(queue, place);
        for (; place > 0; place--) {
            *job_at_lock_held(queue, place) = *job_at_lock_held(queue, place - 1);
        }
        queue->head = (queue->head + 1) & (queue->capacity - 1);
        queue->empty = --queue->count == 0;
        job->loop->metrics.jobs_queued--;
    }
    uv_mutex_unlock(&queue->lock);
    return found;
}

PyDoc_STRVAR(JobQueue_close_doc, "close($self, /)\n--\n\n"
                                 "Take no more jobs (items are still taken).");

static PyObject *
JobQueue_close(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    JobQueueObject *queue = JobQueueObject_CAST(op);
    uv_mutex_lock(&queue->lock);
    queue->closed = true;
    uv_mutex_unlock(&queue->lock);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(JobQueue_take_jobs_doc, "take_jobs($self, /)\n--\n\n"
                                     "Take every job out, run none, and return their (loop, future) pairs in a list.");

static PyObject *
JobQueue_take_jobs(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    PyObject *list = PyList_New(0);
    Job job;
    while (list != NULL && take_job_out(JobQueueObject_CAST(op), &job)) {
        PyObject *pair = PyTuple_Pack(2, (PyObject *)job.loop, job.future);
        if (pair == NULL || PyList_Append(list, pair) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(pair);
        job_finish(&job);
    }
    return list;
}

/* ---- life ---- */

static PyObject *
JobQueue_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *const names[] = {"executor_globals", "counts_each", NULL};
    PyObject *executor_globals;
    int counts_each = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!|p:JobQueue", (char **)names, &PyDict_Type, &executor_globals,
                                     &counts_each)) {
        return NULL;
    }
    State *state = state_of_type(type);
    JobQueueObject *queue = state == NULL ? NULL : (JobQueueObject *)type->tp_alloc(type, 0);
    if (queue == NULL) {
        return NULL;
    }
    queue->state = state;
    queue->module = Py_NewRef(PyType_GetModuleByDef(type, &core_module));
    queue->executor_globals = Py_NewRef(executor_globals);
    queue->counts_each = counts_each;
    spin_init(&queue->spin, SPIN_MAX_NS);
    queue->empty = 1;
    if (uv_mutex_init(&queue->lock) < 0) {
        Py_DECREF(queue);
        return PyErr_NoMemory();
    }
    queue->lock_made = true;
    return (PyObject *)queue;
}

static int
JobQueue_traverse(PyObject *op, visitproc visit, void *arg)
{
    JobQueueObject *queue = JobQueueObject_CAST(op);
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(queue->module);
    Py_VISIT(queue->executor_globals);
    for (size_t i = 0; i < queue->count; i++) {
        Job *job = job_at_lock_held(queue, i);
        Py_VISIT(job->func);
        Py_VISIT(job->args);
        Py_VISIT(job->future);
        Py_VISIT((PyObject *)job->loop);
    }
    return 0;
}

static int
JobQueue_clear(PyObject *op)
{
    JobQueueObject *queue = JobQueueObject_CAST(op);
    Job job;
    while (queue->lock_made && take(queue, &job)) {
        job_finish(&job);
    }
    Py_CLEAR(queue->executor_globals);
    return 0;
}

static void
JobQueue_dealloc(PyObject *op)
{
    JobQueueObject *queue = JobQueueObject_CAST(op);
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    (void)JobQueue_clear(op);
    PyMem_RawFree(queue->jobs);
    /* Nobody waits: a worker holds the queue while it does. */
    while (queue->spare != NULL) {
        Waiter *waiter = queue->spare;
        queue->spare = waiter->next;
        uv_sem_destroy(&waiter->wake);
        PyMem_RawFree(waiter);
    }
    if (queue->lock_made) {
        uv_mutex_destroy(&queue->lock);
    }
    PyObject *module = queue->module;
    type->tp_free(op);
    Py_DECREF(type);
    Py_XDECREF(module);
}

#define WITH_KEYWORDS(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef JobQueue_methods[] = {
    {"put", JobQueue_put, METH_O, JobQueue_put_doc},
    {"put_job", JobQueue_put_job, METH_VARARGS, JobQueue_put_job_doc},
    {"get", WITH_KEYWORDS(JobQueue_get), METH_VARARGS | METH_KEYWORDS, JobQueue_get_doc},
    {"get_nowait", JobQueue_get_nowait, METH_NOARGS, "get_nowait($self, /)\n--\n\nThe same as get(block=False)."},
    {"qsize", JobQueue_qsize, METH_NOARGS,
     "qsize($self, /)\n--\n\nReturn the number of jobs and items that are queued."},
    {"acquire", WITH_KEYWORDS(JobQueue_acquire), METH_VARARGS | METH_KEYWORDS, JobQueue_acquire_doc},
    {"release", JobQueue_release, METH_NOARGS, JobQueue_release_doc},
    {"set_full", JobQueue_set_full, METH_O, JobQueue_set_full_doc},
    {"close", JobQueue_close, METH_NOARGS, JobQueue_close_doc},
    {"take_jobs", JobQueue_take_jobs, METH_NOARGS, JobQueue_take_jobs_doc},
    {NULL},
};

PyDoc_STRVAR(
    JobQueue_doc,
    "JobQueue(executor_globals, counts_each=False)\n--\n\n"
    "The work queue and the count of idle workers of one fastloop.ThreadPool.\n\n"
    "executor_globals is the namespace of the module that the executor's submit() comes from; a submit() from\n"
    "anywhere else is called, not passed by. counts_each says how the running Python's worker function counts\n"
    "idle workers: after every job, or when it finds the queue empty.");

static PyType_Slot JobQueue_slots[] = {
    {Py_tp_doc, (void *)JobQueue_doc},
    {Py_tp_new, JobQueue_new},
    {Py_tp_traverse, JobQueue_traverse},
    {Py_tp_clear, JobQueue_clear},
    {Py_tp_dealloc, JobQueue_dealloc},
    {Py_tp_methods, JobQueue_methods},
    {0, NULL},
};

PyType_Spec JobQueue_spec = {
    .name = "fastloop._core.JobQueue",
    .basicsize = sizeof(JobQueueObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = JobQueue_slots,
};
