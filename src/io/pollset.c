/* A set of descriptors that can be polled as one descriptor. */

#include "io/pollset.h"

#include <errno.h>

#include "base/lowfds.h"

#if HAVE_EPOLL

#include <sys/epoll.h>

int
pollset_open(void)
{
    int set = epoll_create1(EPOLL_CLOEXEC);
    return set < 0 ? -errno : lowfds_leave(set);
}

static int
control(int set, int operation, int fd, unsigned events, unsigned tag)
{
    struct epoll_event event = {
        .events = (events & POLLSET_READ ? EPOLLIN : 0) | (events & POLLSET_WRITE ? EPOLLOUT : 0) |
                  (events & POLLSET_EDGE ? (uint32_t)EPOLLET : 0),
        .data = {.u64 = (uint64_t)tag << 32 | (uint32_t)fd},
    };
    return epoll_ctl(set, operation, fd, &event) < 0 ? -errno : 0;
}

int
pollset_change_tagged(int set, int fd, unsigned before, unsigned after, unsigned tag)
{
    if (after == 0) {
        return control(set, EPOLL_CTL_DEL, fd, 0, 0);
    }
    if (before == 0) {
        int err = control(set, EPOLL_CTL_ADD, fd, after, tag);
        /* We forgot it, the kernel did not: it was closed while a duplicate of it stays open. */
        if (err == -EEXIST) {
            err = control(set, EPOLL_CTL_MOD, fd, after, tag);
            return err < 0 ? err : 1;
        }
        return err;
    }
    int err = control(set, EPOLL_CTL_MOD, fd, after, tag);
    if (err == -ENOENT) {
        err = control(set, EPOLL_CTL_ADD, fd, after, tag);
        return err < 0 ? err : 1;
    }
    return err;
}

int
pollset_poll(int set, PollsetEvent *events)
{
    struct epoll_event ready[POLLSET_BATCH];
    int count = epoll_wait(set, ready, POLLSET_BATCH, 0);
    if (count < 0) {
        return -errno;
    }
    for (int i = 0; i < count; i++) {
        events[i].fd = (int)(uint32_t)ready[i].data.u64;
        events[i].tag = (unsigned)(ready[i].data.u64 >> 32);
        events[i].events = (ready[i].events & ~(uint32_t)EPOLLOUT ? POLLSET_READ : 0) |
                           (ready[i].events & ~(uint32_t)EPOLLIN ? POLLSET_WRITE : 0);
    }
    return count;
}

#elif HAVE_KQUEUE

#include <fcntl.h>
#include <sys/event.h>
#include <sys/time.h>

int
pollset_open(void)
{
    int set = kqueue();
    if (set < 0) {
        return -errno;
    }
    return fcntl(set, F_SETFD, FD_CLOEXEC) < 0 ? -errno : set;
}

static int
control(int set, int fd, int filter, bool before, bool after, bool edge, unsigned tag)
{
    if (!before && !after) {
        return 0;
    }
    struct kevent change;
    EV_SET(&change, fd, filter, after ? EV_ADD | (edge ? EV_CLEAR : 0) : EV_DELETE, 0, 0, (void *)(uintptr_t)tag);
    return kevent(set, &change, 1, NULL, 0, NULL) < 0 ? -errno : 0;
}

int
pollset_change_tagged(int set, int fd, unsigned before, unsigned after, unsigned tag)
{
    bool edge = after & POLLSET_EDGE;
    if ((before ^ after) & POLLSET_EDGE) {
        /* Adding a filter again does not change how it triggers. */
        (void)control(set, fd, EVFILT_READ, before & POLLSET_READ, false, false, 0);
        (void)control(set, fd, EVFILT_WRITE, before & POLLSET_WRITE, false, false, 0);
        before = 0;
    }
    int err = control(set, fd, EVFILT_READ, before & POLLSET_READ, after & POLLSET_READ, edge, tag);
    int second = control(set, fd, EVFILT_WRITE, before & POLLSET_WRITE, after & POLLSET_WRITE, edge, tag);
    return err < 0 ? err : second;
}

int
pollset_poll(int set, PollsetEvent *events)
{
    struct kevent ready[POLLSET_BATCH];
    struct timespec at_once = {0, 0};
    int count = kevent(set, NULL, 0, ready, POLLSET_BATCH, &at_once);
    if (count < 0) {
        return -errno;
    }
    for (int i = 0; i < count; i++) {
        events[i].fd = (int)ready[i].ident;
        events[i].tag = (unsigned)(uintptr_t)ready[i].udata;
        events[i].events = ready[i].filter == EVFILT_READ ? POLLSET_READ : POLLSET_WRITE;
    }
    return count;
}

#else
#error "fastloop needs epoll or kqueue"
#endif

int
pollset_change(int set, int fd, unsigned before, unsigned after)
{
    return pollset_change_tagged(set, fd, before, after, 0);
}
