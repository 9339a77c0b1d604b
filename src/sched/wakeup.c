/* The wake-up: one descriptor to write to, and one that the loop's poll watches. */

#include "sched/wakeup.h"

#include <errno.h>
#include <unistd.h>

#include "base/lowfds.h"
#include "base/uvpoll.h"

#if HAVE_EPOLL
#include <sys/epoll.h>
#endif
#if HAVE_EVENTFD
#include <sys/eventfd.h>
#endif

#if HAVE_EVENTFD

static int
open_fds(Wakeup *wakeup)
{
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    fd = fd < 0 ? -errno : lowfds_leave(fd);
    if (fd < 0) {
        return fd;
    }
    wakeup->read_fd = wakeup->write_fd = fd;
    return 0;
}

static void
close_fds(Wakeup *wakeup)
{
    close(wakeup->read_fd);
}

#else

static int
open_fds(Wakeup *wakeup)
{
    uv_file pair[2];
    int err = uv_pipe(pair, UV_NONBLOCK_PIPE, UV_NONBLOCK_PIPE);
    if (err < 0) {
        return err;
    }
    wakeup->read_fd = lowfds_leave(pair[0]);
    wakeup->write_fd = lowfds_leave(pair[1]);
    if (wakeup->read_fd >= 0 && wakeup->write_fd >= 0) {
        return 0;
    }
    err = wakeup->read_fd < 0 ? wakeup->read_fd : wakeup->write_fd;
    if (wakeup->read_fd >= 0) {
        close(wakeup->read_fd);
    }
    if (wakeup->write_fd >= 0) {
        close(wakeup->write_fd);
    }
    return err;
}

static void
close_fds(Wakeup *wakeup)
{
    close(wakeup->read_fd);
    close(wakeup->write_fd);
}

#endif

#if HAVE_EPOLL && HAVE_EVENTFD

/* Reports each write once from now on, and not what has been written until something is read. */
static bool
become_quiet(Wakeup *wakeup)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data = {.fd = wakeup->read_fd}};
    return epoll_ctl(uv_backend_fd(wakeup->uv), EPOLL_CTL_MOD, wakeup->read_fd, &event) == 0;
}

#else

static bool
become_quiet(Wakeup *Py_UNUSED(wakeup))
{
    return false;
}

#endif

/* On the loop's thread, which may have given its thread state away: nothing here needs it, and who has written may still
   hold the GIL. The first wake-up arranges that later ones cost no read(): libuv cannot be told so before it has begun to
   watch the descriptor. A counter that is never read takes 2^64 wake-ups. */
static void
on_wakeup(uv_poll_t *poll, int Py_UNUSED(status), int Py_UNUSED(events))
{
    Wakeup *wakeup = poll->data;
    if (wakeup == NULL || wakeup->is_quiet) {
        return;
    }
    char data[512];
    ssize_t size;
    do {
        size = read(wakeup->read_fd, data, sizeof(data));
    } while (size == (ssize_t)sizeof(data) || (size < 0 && errno == EINTR));
    wakeup->is_quiet = become_quiet(wakeup);
}

int
wakeup_open(Wakeup *wakeup, uv_loop_t *uv)
{
    if (wakeup->poll != NULL) {
        uv_ref((uv_handle_t *)wakeup->poll);
        return 0;
    }
    int err = open_fds(wakeup);
    if (err < 0) {
        return err;
    }
    err = uvpoll_open(uv, wakeup->read_fd, on_wakeup, wakeup, &wakeup->poll);
    if (err < 0) {
        close_fds(wakeup);
        return err;
    }
    wakeup->uv = uv;
    wakeup->is_quiet = false;
    return 0;
}

void
wakeup_close(Wakeup *wakeup)
{
    if (wakeup->poll != NULL) {
        uvpoll_close(&wakeup->poll);
        close_fds(wakeup);
    }
}

bool
wakeup_rest(Wakeup *wakeup)
{
    if (wakeup->poll == NULL) {
        return false;
    }
    uv_unref((uv_handle_t *)wakeup->poll);
    return true;
}

int
wakeup_fork(Wakeup *wakeup)
{
    Wakeup fresh = {.poll = NULL};
    int err = wakeup_open(&fresh, wakeup->uv);
    if (err < 0) {
        return err;
    }
    wakeup_close(wakeup);
    *wakeup = fresh;
    wakeup->poll->data = wakeup;
    return 0;
}

void
wakeup_send(Wakeup *wakeup)
{
    static const uint64_t one = 1;
    /* It cannot block; when there is no room, there is enough for the loop to see. */
    ssize_t size;
    do {
        size = write(wakeup->write_fd, &one, sizeof(one));
    } while (size < 0 && errno == EINTR);
}
