/* What asyncio.gather() does when one of those that it waits for is done. */

#ifndef FASTLOOP_CORO_GATHER_H
#define FASTLOOP_CORO_GATHER_H

#include "coro/coro.h"

/* Gets to know asyncio's function; where it is not as expected, gather_run() is never called. -1 with an exception. */
int gather_exec(State *state);

/* State.run_known, for the callback that gather() gives to its children. */
int gather_run(LoopObject *loop, PyObject *function, PyObject *const *args, Py_ssize_t nargs);

#endif
