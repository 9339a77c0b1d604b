/* One closed uv_loop per interpreter waits for the next Loop: making and closing one costs a dozen system calls.

   A parked uv_loop has no request and no handle but that of the wake-up, which stays with it. Its descriptors may be
   closed by anybody while it waits (a daemon closes every number), and a forked child shares them with its parent, so
   both are looked at before it is used again. */

#ifndef FASTLOOP_SCHED_PARK_H
#define FASTLOOP_SCHED_PARK_H

#include "sched/wakeup.h"
#include "state.h"

/* The parked uv_loop, or a new one; NULL with a negative libuv code in `err`. */
uv_loop_t *park_take(State *state, int *err);
/* The wake-up that belongs to it: open, or not yet. */
Wakeup *park_wakeup(uv_loop_t *uv);
/* Takes a uv_loop back whose handles are closed or on their way: parks it, or closes it. */
void park_give(State *state, uv_loop_t *uv);
/* In a forked child: gives the uv_loop an empty set in place of its parent's, from which whatever libuv closes would be
   taken away. A negative libuv code when it has none now: then it must not poll. */
int park_leave_parents_set(uv_loop_t *uv);
/* The end of a uv_loop of a forked child that could not be re-armed; its handles are on their way to be closed. What
   libuv allocated may be lost. */
void park_abandon(State *state, uv_loop_t *uv);
/* Closes the parked one (module.c, at the end). */
void park_clear(State *state);

#endif
