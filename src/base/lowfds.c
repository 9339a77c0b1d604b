/* Keeping the numbers 0 to 2 out of libuv's hands. */

#include "base/lowfds.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static bool
all_are_taken(void)
{
    for (int fd = 0; fd < LOWFDS; fd++) {
        if (fcntl(fd, F_GETFD) < 0) {
            return false;
        }
    }
    return true;
}

int
lowfds_hold(HeldLowFds *held)
{
    held->count = 0;
    if (LIKELY(all_are_taken())) {
        return 0;
    }
    while (held->count < LOWFDS) {
        int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
        if (fd < 0) {
            int err = -errno;
            lowfds_release(held);
            return err;
        }
        if (fd >= LOWFDS) {
            close(fd);
            break;
        }
        held->fds[held->count++] = fd;
    }
    return 0;
}

void
lowfds_release(HeldLowFds *held)
{
    while (held->count > 0) {
        close(held->fds[--held->count]);
    }
}

int
lowfds_leave(int fd)
{
    if (LIKELY(fd < 0 || fd >= LOWFDS)) {
        return fd;
    }
    int higher = fcntl(fd, F_DUPFD_CLOEXEC, LOWFDS);
    int err = -errno;
    close(fd);
    return higher < 0 ? err : higher;
}
