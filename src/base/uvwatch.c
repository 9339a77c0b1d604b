/* A uv__io_t is a watched descriptor of libuv: `pevents` is what is asked for, `events` what the system was told. Where
   they differ it waits in a ring of the loop for the next poll. It stands in libuv's public headers as part of its ABI,
   so its layout stays through all 1.x. */

#include "base/uvwatch.h"

#if HAVE_EPOLL

#include <errno.h>
#include <sys/epoll.h>

_Static_assert(sizeof(((uv__io_t *)0)->watcher_queue) == 2 * sizeof(void *), "two links");

/* Takes it out of the ring. Which of the links goes forward makes no difference. */
static void
unlink_watcher(uv__io_t *watcher)
{
    void **links = (void **)&watcher->watcher_queue;
    void **one = links[0], **other = links[1];
    one[1] = other;
    other[0] = one;
    links[0] = links[1] = links;
}

int
uvwatch_register(uv_loop_t *uv, uv__io_t *watcher)
{
    if (watcher->events != 0 || watcher->pevents == 0) {
        return 0;
    }
    struct epoll_event event = {.events = watcher->pevents, .data = {.fd = watcher->fd}};
    if (epoll_ctl(uv_backend_fd(uv), EPOLL_CTL_ADD, watcher->fd, &event) < 0) {
        if (errno == EEXIST) {
            /* It was paused: libuv is about to find the same, and changes what is watched, which cannot fail. */
            return 0;
        }
        int err = uv_translate_sys_error(errno);
        unlink_watcher(watcher);
        return err;
    }
    unlink_watcher(watcher);
    watcher->events = watcher->pevents;
    return 0;
}

int
uvwatch_register_own(uv_loop_t *uv)
{
    int first_error = 0;
    for (unsigned fd = 0; fd < uv->nwatchers; fd++) {
        uv__io_t *watcher = uv->watchers[fd];
        if (watcher == &uv->async_io_watcher || watcher == &uv->signal_io_watcher) {
            int err = uvwatch_register(uv, watcher);
            first_error = first_error < 0 ? first_error : err;
        }
    }
    return first_error;
}

#else

int
uvwatch_register(uv_loop_t *Py_UNUSED(uv), uv__io_t *Py_UNUSED(watcher))
{
    return 0;
}

int
uvwatch_register_own(uv_loop_t *Py_UNUSED(uv))
{
    return 0;
}

#endif
