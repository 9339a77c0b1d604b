/* What ends the poll of a loop from another thread: an eventfd of our own, or a pipe where the system has none.

   In place of a uv_async: up to libuv 1.44 the loop that such a handle has woken spins until the waker is out of
   uv_async_send(), which takes long when both share a CPU. */

#ifndef FASTLOOP_SCHED_WAKEUP_H
#define FASTLOOP_SCHED_WAKEUP_H

#include "compat.h"

typedef struct {
    uv_poll_t *poll; /* NULL while closed */
    uv_loop_t *uv;
    int read_fd;
    int write_fd;  /* of an eventfd, the same number */
    bool is_quiet; /* nothing need be read, see on_wakeup() */
} Wakeup;

/* Opens it, if it is not open and just at rest. 0, or a negative libuv code with nothing left behind. */
int wakeup_open(Wakeup *wakeup, uv_loop_t *uv);
void wakeup_close(Wakeup *wakeup);
/* From now on it does not keep the uv_loop alive; false if it is not open. */
bool wakeup_rest(Wakeup *wakeup);
/* In a forked child: one that is not the parent's, too. A negative libuv code leaves the old one. */
int wakeup_fork(Wakeup *wakeup);
/* Ends the poll under way, or the next one. From any thread, but not beside wakeup_close(). */
void wakeup_send(Wakeup *wakeup);

#endif
