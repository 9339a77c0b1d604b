/* What asyncio.run_coroutine_threadsafe() does in the thread of the loop. */

#ifndef FASTLOOP_CORO_CHAIN_H
#define FASTLOOP_CORO_CHAIN_H

#include "coro/coro.h"

/* Gets to know asyncio's functions; where they are not as expected, chain_run() never runs any. -1 with an exception. */
int chain_exec(State *state);

/* State.run_known, for the two that run_coroutine_threadsafe() uses. */
int chain_run(LoopObject *loop, PyObject *function, PyObject *const *args, Py_ssize_t nargs);

#endif
