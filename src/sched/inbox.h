/* The inbox: how other threads put records into the ready queue.

   Any thread may push. The first push since the last drain wakes the loop through a uv_async, later ones do not; the
   loop's thread drains into the ready queue. After inbox_close() every push is refused. */

#ifndef FASTLOOP_SCHED_INBOX_H
#define FASTLOOP_SCHED_INBOX_H

#include "sched/ready.h"

typedef struct {
    uv_mutex_t lock;
    ReadyEntry *entries;
    size_t count;
    size_t capacity;
    bool signalled; /* a wake-up is under way */
    bool open;
    uv_cond_t handle_done; /* a thread-safe handle has run */
    int handle_waiters;    /* threads that wait for it */
    uv_async_t *async;     /* allocated apart: libuv may need it after us */
} Inbox;

/* 0, or a negative libuv code. */
int inbox_open(Inbox *inbox, LoopObject *loop, uv_loop_t *uv);
/* Refuses further pushes, drops what is queued and closes the uv_async. */
void inbox_close(Inbox *inbox);
/* The end, when no other thread can know the loop any more. */
void inbox_destroy(Inbox *inbox);

/* Appends a record (new references) and wakes the loop. -1 with MemoryError, or RuntimeError after the close. */
int inbox_push_threadsafe(Inbox *inbox, ready_run run, PyObject *owner, PyObject *arg);
/* Wakes the loop, with nothing to run. */
void inbox_wake_threadsafe(Inbox *inbox);
/* Moves everything to the ready queue. -1 with MemoryError; what did not fit stays queued. */
int inbox_drain(Inbox *inbox, Ready *ready);
int inbox_traverse(Inbox *inbox, visitproc visit, void *arg);

#endif
