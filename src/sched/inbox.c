/* The inbox: an array under a mutex, and the wake-up.

   Nothing under the lock calls Python or waits, so it may be taken with the thread state attached. */

#include "sched/inbox.h"

#include <sched.h>

#include "base/uverror.h"
#include "sched/loop.h"
#include "sched/park.h"

int
inbox_open(Inbox *inbox, uv_loop_t *uv)
{
    int err = uv_mutex_init(&inbox->lock);
    if (err < 0) {
        return err;
    }
    err = uv_cond_init(&inbox->handle_done);
    if (err < 0) {
        goto fail_cond;
    }
    inbox->wakeup = park_wakeup(uv);
    err = wakeup_open(inbox->wakeup, uv);
    if (err < 0) {
        goto fail_wakeup;
    }
    inbox->open = true;
    return 0;

fail_wakeup:
    uv_cond_destroy(&inbox->handle_done);
fail_cond:
    uv_mutex_destroy(&inbox->lock);
    return err;
}

void
inbox_close(Inbox *inbox)
{
    if (!inbox->open) {
        return;
    }
    inbox_lock(inbox);
    inbox->open = false;
    /* They need nothing of us, and no GIL, to be done with the descriptor. */
    while (inbox->senders > 0) {
        sched_yield();
    }
    ReadyEntry *entries = inbox->entries;
    size_t count = inbox->count;
    inbox->entries = NULL;
    inbox->count = inbox->capacity = 0;
    inbox_unlock(inbox);

    for (size_t i = 0; i < count; i++) {
        Py_DECREF(entries[i].owner);
        Py_XDECREF(entries[i].arg);
    }
    PyMem_RawFree(entries);
}

void
inbox_destroy(Inbox *inbox)
{
    uv_cond_destroy(&inbox->handle_done);
    uv_mutex_destroy(&inbox->lock);
}

int
inbox_fork(Inbox *inbox)
{
    inbox_lock(inbox);
    int err = wakeup_fork(inbox->wakeup);
    inbox_unlock(inbox);
    return err;
}

/* Room for one more record; called with the lock held. */
static bool /* GCOV_EXCL_START: only without a GIL */
reserve_lock_held(Inbox *inbox)
{
    if (inbox->count < inbox->capacity) {
        return true;
    }
    size_t capacity = inbox->capacity == 0 ? 64 : inbox->capacity * 2;
    ReadyEntry *entries = PyMem_RawRealloc(inbox->entries, capacity * sizeof(ReadyEntry));
    if (entries == NULL) {
        return false;
    }
    inbox->entries = entries;
    inbox->capacity = capacity;
    return true;
} /* GCOV_EXCL_STOP */

/* With the lock held: the descriptor is another loop's, or closed, when inbox_close() has been. */
static void
wake_if_waiting_lock_held(Inbox *inbox)
{
    if (inbox->waiting > WOKEN && atomic_exchange(&inbox->waiting, WOKEN) == BLOCKED && inbox->open) {
        wakeup_send(inbox->wakeup);
    }
}

void
inbox_wake_if_waiting(Inbox *inbox)
{
    inbox_lock(inbox);
    wake_if_waiting_lock_held(inbox);
    inbox_unlock(inbox);
}

bool
inbox_begin_send(Inbox *inbox)
{
    if (LIKELY(inbox->waiting <= WOKEN) || !inbox->open) {
        return false;
    }
    inbox->senders++;
    return true;
}

bool
inbox_send_released(Inbox *inbox)
{
    int before = inbox->waiting;
    if (before > WOKEN) {
        before = atomic_exchange(&inbox->waiting, WOKEN);
    }
    if (before == BLOCKED) {
        wakeup_send(inbox->wakeup);
    }
    inbox->senders--;
    return before == SPINNING;
}

int /* GCOV_EXCL_START: only without a GIL */
inbox_push_threadsafe(Inbox *inbox, ready_run run, PyObject *owner, PyObject *arg)
{
    enum { PUSHED, CLOSED, NO_MEMORY } outcome = CLOSED;
    inbox_lock(inbox);
    if (inbox->open) {
        outcome = reserve_lock_held(inbox) ? PUSHED : NO_MEMORY;
    }
    if (outcome == PUSHED) {
        inbox->entries[inbox->count] = (ReadyEntry){run, Py_NewRef(owner), Py_XNewRef(arg)};
        inbox->count++;
        wake_if_waiting_lock_held(inbox);
    }
    inbox_unlock(inbox);
    if (outcome == CLOSED) {
        PyErr_SetString(PyExc_RuntimeError, "Event loop is closed");
    } else if (outcome == NO_MEMORY) {
        PyErr_NoMemory();
    }
    return outcome == PUSHED ? 0 : -1;
} /* GCOV_EXCL_STOP */

void
inbox_wake_threadsafe(Inbox *inbox)
{
    inbox_lock(inbox);
    if (inbox->open) {
        wakeup_send(inbox->wakeup);
    }
    inbox_unlock(inbox);
}

void /* GCOV_EXCL_START: only without a GIL are there records */
inbox_drain(Inbox *inbox, Ready *ready)
{
    if (!inbox_has_records(inbox)) {
        return;
    }
    inbox_lock(inbox);
    size_t taken = 0;
    while (taken < inbox->count && ready_has_room(ready)) {
        ready->entries[(ready->head + ready->count++) & ready->mask] = inbox->entries[taken++];
    }
    for (size_t i = taken; i < inbox->count; i++) {
        inbox->entries[i - taken] = inbox->entries[i];
    }
    inbox->count -= taken;
    inbox_unlock(inbox);
} /* GCOV_EXCL_STOP */

int
inbox_list(Inbox *inbox, PyObject *list)
{
    for (size_t i = 0;; i++) {
        inbox_lock(inbox);
        PyObject *owner = i < inbox->count ? Py_NewRef(inbox->entries[i].owner) : NULL;
        inbox_unlock(inbox);
        if (owner == NULL) {
            return 0;
        }
        int err = PyList_Append(list, owner);
        Py_DECREF(owner);
        if (err < 0) {
            return -1;
        }
    }
}

int
inbox_traverse(Inbox *inbox, visitproc visit, void *arg)
{
    /* Without the lock: a collection runs with the other threads stopped or out of the interpreter, and none of them
       can be inside the lock then (nothing under it lets go of the thread state). */
    for (size_t i = 0; i < inbox->count; i++) {
        Py_VISIT(inbox->entries[i].owner);
        Py_VISIT(inbox->entries[i].arg);
    }
    return 0;
}
