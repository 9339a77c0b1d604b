/* Stands in front of the C library's calls (LD_PRELOAD) and makes some of them fail, as the test says by fault_set(). */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ACCEPT, SEND, RECEIVE, EPOLL_CTL, EPOLL_CTL_ANY, EVENTFD, CALLS };
static const char *const names[CALLS] = {"accept", "send", "receive", "epoll_ctl", "epoll_ctl_any", "eventfd"};
static struct {
    int error, every;
    unsigned long count, failed;
} faults[CALLS];

/* Every nth call fails with this errno, or is short where the error is 0; none with every == 0. */
void
fault_set(const char *name, int error, int every)
{
    for (int i = 0; i < CALLS; i++) {
        if (strcmp(name, names[i]) == 0) {
            faults[i].error = error;
            faults[i].every = every;
        }
    }
}

unsigned long
fault_count(const char *name)
{
    for (int i = 0; i < CALLS; i++) {
        if (strcmp(name, names[i]) == 0) {
            return faults[i].failed;
        }
    }
    return 0;
}

static int
fails(int call)
{
    if (faults[call].every == 0 || ++faults[call].count % (unsigned long)faults[call].every != 0) {
        return 0;
    }
    faults[call].failed++;
    return 1;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int
is_socket(int fd)
{
    int type;
    socklen_t size = sizeof(type);
    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0;
}

/* Lets the call through, fails it, or has one byte of it sent. */
#define GUARDED(call, fd, real, shorter)                    \
    int saved = errno;                                      \
    if (is_socket(fd) && fails(call)) {                     \
        if (faults[call].error == 0) {                      \
            errno = saved;                                  \
            return shorter;                                 \
        }                                                   \
        errno = faults[call].error;                         \
        return -1;                                          \
    }                                                       \
    errno = saved;                                          \
    return real

ssize_t
write(int fd, const void *data, size_t size)
{
    GUARDED(SEND, fd, NEXT(write)(fd, data, size), NEXT(write)(fd, data, size > 0));
}

ssize_t
writev(int fd, const struct iovec *parts, int count)
{
    GUARDED(SEND, fd, NEXT(writev)(fd, parts, count), NEXT(write)(fd, parts[0].iov_base, parts[0].iov_len > 0));
}

ssize_t
send(int fd, const void *data, size_t size, int flags)
{
    GUARDED(SEND, fd, NEXT(send)(fd, data, size, flags), NEXT(send)(fd, data, size > 0, flags));
}

ssize_t
read(int fd, void *data, size_t size)
{
    GUARDED(RECEIVE, fd, NEXT(read)(fd, data, size), NEXT(read)(fd, data, size > 0));
}

ssize_t
recv(int fd, void *data, size_t size, int flags)
{
    GUARDED(RECEIVE, fd, NEXT(recv)(fd, data, size, flags), NEXT(recv)(fd, data, size > 0, flags));
}

int
accept4(int fd, struct sockaddr *address, socklen_t *size, int flags)
{
    GUARDED(ACCEPT, fd, NEXT(accept4)(fd, address, size, flags), -1);
}

static int
is_watched(int epoll, int fd)
{
    char path[64], line[256];
    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", epoll);
    FILE *file = fopen(path, "r");
    int found = 0;
    if (file != NULL) {
        int number;
        while (!found && fgets(line, sizeof(line), file) != NULL) {
            found = sscanf(line, "tfd: %d", &number) == 1 && number == fd;
        }
        fclose(file);
    }
    return found;
}

int
epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    int saved = errno;
    int call = operation == EPOLL_CTL_ADD && is_socket(fd) ? EPOLL_CTL : EPOLL_CTL_ANY;
    errno = saved;
    /* A set that knows the descriptor has no need of anything. */
    if (operation == EPOLL_CTL_ADD && faults[call].every != 0 && !is_watched(epoll, fd) && fails(call)) {
        errno = faults[call].error;
        return -1;
    }
    return NEXT(epoll_ctl)(epoll, operation, fd, event);
}

int
eventfd(unsigned int value, int flags)
{
    if (fails(EVENTFD)) {
        errno = faults[EVENTFD].error;
        return -1;
    }
    return NEXT(eventfd)(value, flags);
}
