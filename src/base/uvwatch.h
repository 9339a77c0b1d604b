/* Telling the system what libuv shall watch, before libuv does: when the system refuses (no memory, no watches left, a file
   that cannot be polled) libuv ends the process, and this gives the error. */

#ifndef FASTLOOP_BASE_UVWATCH_H
#define FASTLOOP_BASE_UVWATCH_H

#include "compat.h"

/* Does for one watcher what the next poll would do: no system call more than libuv alone would make. Nothing where the
   system knows the watcher already. 0 or a negative libuv code, and then the watcher is left out of the next poll, until
   it is started or stopped again. */
int uvwatch_register(uv_loop_t *uv, uv__io_t *watcher);

/* The same for the descriptors that libuv opens for a loop of its own. */
int uvwatch_register_own(uv_loop_t *uv);

#endif
