/* A uv_poll that watches one descriptor for reading, in an allocation of its own that libuv hands back when it is closed. */

#ifndef FASTLOOP_BASE_UVPOLL_H
#define FASTLOOP_BASE_UVPOLL_H

#include "compat.h"

/* Starts it, with `data` for the callback. 0, or a negative libuv code and `*poll` NULL. */
int uvpoll_open(uv_loop_t *uv, int fd, uv_poll_cb callback, void *data, uv_poll_t **poll);

/* Closes it if it is open; its `data` is NULL from now on. */
void uvpoll_close(uv_poll_t **poll);

#endif
