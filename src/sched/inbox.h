/* The inbox: how other threads put records into the ready queue, and how they wake the loop.

   Where there is a GIL, it is the lock of the ready queue too: loop_push() appends to that from any thread, and the
   array here stays empty. On free-threaded builds the loop's thread drains the array into the ready queue.

   A loop that is about to wait says so in `waiting`, looks once more whether there is something to do, and only then
   blocks. Who pushes does it in the opposite order: the record first, then a look at `waiting`. So no wake-up is lost,
   and a loop that does not wait costs nobody a system call. After inbox_close() every push is refused.

   Who wakes a loop on behalf of other threads does it without the GIL; inbox_close() waits for these. */

#ifndef FASTLOOP_SCHED_INBOX_H
#define FASTLOOP_SCHED_INBOX_H

#include "sched/ready.h"
#include "sched/wakeup.h"

typedef enum {
    NOT_WAITING,
    WOKEN,    /* it was one of the following, and somebody has had something for it */
    SPINNING, /* it looks at `waiting` again and again */
    BLOCKED,  /* in the poll, or just before it */
} Waiting;

typedef struct {
    uv_mutex_t lock;
    ReadyEntry *entries;
    _Atomic size_t count;
    size_t capacity;
    _Atomic int waiting; /* a Waiting */
    bool open;
    _Atomic int senders;        /* threads inside inbox_send_released() */
    uv_cond_t handle_done;      /* a thread-safe handle has run */
    _Atomic int handle_waiters; /* threads that wait for it */
    Wakeup *wakeup;             /* of the uv_loop, which keeps it beyond inbox_close() */
} Inbox;

/* 0, or a negative libuv code with nothing left behind. */
int inbox_open(Inbox *inbox, uv_loop_t *uv);
/* In a forked child, after uv_loop_fork(): a wake-up that is not the parent's, too. A negative libuv code on failure. */
int inbox_fork(Inbox *inbox);
/* Refuses further pushes and wake-ups, drops what is queued. */
void inbox_close(Inbox *inbox);
/* The end, when no other thread can know the loop any more. */
void inbox_destroy(Inbox *inbox);

/* Appends a record (new references) and wakes the loop. -1 with MemoryError, or RuntimeError after the close. */
int inbox_push_threadsafe(Inbox *inbox, ready_run run, PyObject *owner, PyObject *arg);
/* Ends the poll under way, or the next one. */
void inbox_wake_threadsafe(Inbox *inbox);
/* Ends the wait under way, if the loop waits. The record for it must have been queued before. */
void inbox_wake_if_waiting(Inbox *inbox);
/* With a GIL, the same without that: what inbox_begin_send() says to be necessary, and only that, is to be sent. Says
   whether the loop was spinning. */
bool inbox_begin_send(Inbox *inbox);
bool inbox_send_released(Inbox *inbox);
/* Moves everything to the ready queue; what there is no memory for stays, and what is ready makes room. */
void inbox_drain(Inbox *inbox, Ready *ready);
/* Appends the owners of the records to a list; -1 with an exception. */
int inbox_list(Inbox *inbox, PyObject *list);
int inbox_traverse(Inbox *inbox, visitproc visit, void *arg);

/* The lock of everything in an inbox but what handles wait for; with a GIL, that is it. */
static inline void
inbox_lock(Inbox *inbox)
{
    if (HAVE_FREE_THREADING) {
        uv_mutex_lock(&inbox->lock);
    }
}

static inline void
inbox_unlock(Inbox *inbox)
{
    if (HAVE_FREE_THREADING) {
        uv_mutex_unlock(&inbox->lock);
    }
}

/* Is there anything to drain? */
static inline bool
inbox_has_records(Inbox *inbox)
{
    return HAVE_FREE_THREADING && atomic_load_explicit(&inbox->count, memory_order_seq_cst) > 0;
}

#endif
