/* How a loop with nothing to do waits: until an event, a wake-up or the next timer, with the thread state given away. */

#ifndef FASTLOOP_SCHED_SLEEP_H
#define FASTLOOP_SCHED_SLEEP_H

#include "sched/ready.h"

/* 0 or a negative libuv code. */
int sleep_open(LoopObject *loop, uv_loop_t *uv);
void sleep_close(LoopObject *loop);
/* In a forked child: a timerfd of its own. 0 or a negative libuv code. */
int sleep_fork(LoopObject *loop);

/* Blocks in the poll until something happens, at the latest until the earliest timer is due. `*clock` is compat_monotonic_ns()
   before, and afterwards. 1 when it has polled, 0 when something came before that, -1 with an exception (of a replaced
   loop.time()). */
int sleep_until_event(LoopObject *loop, uint64_t *clock);

#endif
