/* The parked uv_loop. `data` of it is the id of the process that parked it. */

#include "sched/park.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/lowfds.h"
#include "base/uvwatch.h"

#if HAVE_EPOLL
#include <sys/epoll.h>
#endif

/* ---- one uv_loop ---- */

typedef struct {
    uv_loop_t uv; /* first: this is what others hold */
    Wakeup wakeup;
} UvLoop;

Wakeup *
park_wakeup(uv_loop_t *uv)
{
    return &((UvLoop *)uv)->wakeup;
}

static void
on_closed(uv_handle_t *handle)
{
    PyMem_RawFree(handle);
}

/* libuv opens a spare descriptor with the first stream of a loop: let that be now, when it gets no low number. The
   stream goes in the next poll. */
static int
open_spare(uv_loop_t *uv)
{
    uv_tcp_t *first = PyMem_RawMalloc(sizeof(uv_tcp_t));
    int err = first == NULL ? UV_ENOMEM : uv_tcp_init(uv, first);
    if (err < 0) {
        PyMem_RawFree(first);
        return err;
    }
    uv_close((uv_handle_t *)first, on_closed);
    return 0;
}

/* uv_loop_init() with everything that libuv opens for a loop. */
static int
init(uv_loop_t *uv)
{
    HeldLowFds held;
    int err = lowfds_hold(&held);
    if (err < 0) {
        return err;
    }
    err = uv_loop_init(uv);
    if (err == 0) {
        err = uvwatch_register_own(uv);
        if (err == 0) {
            err = open_spare(uv);
        }
        if (err < 0) {
            uv_loop_close(uv);
        }
    } else if (uv->backend_fd >= LOWFDS) {
        /* Up to 1.44 at least, libuv forgets to. Where it had no memory it is 0, which is none. */
        close(uv->backend_fd);
    }
    lowfds_release(&held);
    return err;
}

static uv_loop_t *
make(int *err)
{
    uv_loop_t *uv = PyMem_RawMalloc(sizeof(UvLoop));
    if (uv == NULL) {
        *err = UV_ENOMEM;
        return NULL;
    }
    park_wakeup(uv)->poll = NULL;
    *err = init(uv);
    if (*err < 0) {
        PyMem_RawFree(uv);
        return NULL;
    }
    return uv;
}

static void
close_for_good(uv_loop_t *uv)
{
    wakeup_close(park_wakeup(uv));
    while (uv_loop_close(uv) == UV_EBUSY) {
        uv_run(uv, UV_RUN_NOWAIT);
    }
    PyMem_RawFree(uv);
}

#if HAVE_EPOLL

/* Does the set of the uv_loop still watch what it did under this number? */
static bool
watches(uv_loop_t *uv, int fd)
{
    struct epoll_event event = {.events = 0, .data = {.fd = fd}};
    if (fd < 0) {
        return false;
    }
    /* Not EPOLL_CTL_MOD, which would change how it is watched: libuv 1.49.0 does so edge-triggered. */
    if (epoll_ctl(uv_backend_fd(uv), EPOLL_CTL_ADD, fd, &event) == 0) {
        (void)epoll_ctl(uv_backend_fd(uv), EPOLL_CTL_DEL, fd, &event);
        return false;
    }
    return errno == EEXIST;
}

/* Are the descriptors what they were? libuv ends the process when they are not. Yes, if this set still watches this very
   eventfd under this number, and the wake-up. */
static bool
is_intact(uv_loop_t *uv)
{
    Wakeup *wakeup = park_wakeup(uv);
    return watches(uv, uv->async_io_watcher.fd) && (wakeup->poll == NULL || watches(uv, wakeup->read_fd));
}

int
park_leave_parents_set(uv_loop_t *uv)
{
    /* First, so that the new one finds a number where there are no more. */
    if (uv->backend_fd >= 0) {
        close(uv->backend_fd);
    }
    int fd = epoll_create1(EPOLL_CLOEXEC);
    fd = fd < 0 ? -errno : lowfds_leave(fd);
    /* With -1 nothing that libuv does reaches a set; it must not poll. */
    uv->backend_fd = fd < 0 ? -1 : fd;
    return Py_MIN(fd, 0);
}

#else

static bool
is_intact(uv_loop_t *Py_UNUSED(uv))
{
    return false;
}

/* A kqueue is not inherited. */
int
park_leave_parents_set(uv_loop_t *Py_UNUSED(uv))
{
    return 0;
}

#endif

/* Ends a uv_loop that was parked. When its numbers are no longer its own they must not be closed: then what libuv
   allocated for it is lost. */
static void
discard(uv_loop_t *uv)
{
    bool ours = (pid_t)(intptr_t)uv->data == getpid();
    if (is_intact(uv) && (ours || park_leave_parents_set(uv) == 0)) {
        close_for_good(uv);
    } else {
        PyMem_RawFree(park_wakeup(uv)->poll);
        PyMem_RawFree(uv);
    }
}

static void
count_handle(uv_handle_t *Py_UNUSED(handle), void *count)
{
    ++*(int *)count;
}

/* ---- the place ---- */

uv_loop_t *
park_take(State *state, int *err)
{
    uv_loop_t *uv = atomic_exchange(&state->parked_loop, NULL);
    if (uv == NULL) {
        return make(err);
    }
    if ((pid_t)(intptr_t)uv->data != getpid() || !is_intact(uv)) {
        discard(uv);
        return make(err);
    }
    *err = 0;
    return uv;
}

void
park_give(State *state, uv_loop_t *uv)
{
    /* In a forked child the system may not have been told yet, and may refuse. */
    bool registered = uvwatch_register_own(uv) == 0;
    int handles = 0, resting = wakeup_rest(park_wakeup(uv)) ? 1 : 0;
    do {
        uv_run(uv, UV_RUN_NOWAIT);
    } while (uv_loop_alive(uv));
    uv_walk(uv, count_handle, &handles);
    uv_loop_t *expected = NULL;
    /* Elsewhere there is no telling whether it is intact. */
    if (HAVE_EPOLL && registered && handles == resting) {
        uv->data = (void *)(intptr_t)getpid();
        if (atomic_compare_exchange_strong(&state->parked_loop, &expected, uv)) {
            return;
        }
    }
    close_for_good(uv);
}

void
park_abandon(State *Py_UNUSED(state), uv_loop_t *uv)
{
    if (HAVE_EPOLL && park_leave_parents_set(uv) == 0) {
        close_for_good(uv);
    } else {
        wakeup_close(park_wakeup(uv));
    }
}

void
park_clear(State *state)
{
    uv_loop_t *uv = atomic_exchange(&state->parked_loop, NULL);
    if (uv != NULL) {
        discard(uv);
    }
}
