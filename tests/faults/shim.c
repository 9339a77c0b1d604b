/* Stands in front of the C library's calls (LD_PRELOAD) and makes some of them fail, as the test says by fault_set(). */

#define _GNU_SOURCE
/* As Python has it, and so what is built for it. */
#define _FILE_OFFSET_BITS 64
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ACCEPT, SEND, RECEIVE, EPOLL_CTL, EPOLL_CTL_ANY, EVENTFD, CALLS };
static const char *const names[CALLS] = {"accept", "send", "receive", "epoll_ctl", "epoll_ctl_any", "eventfd"};
static struct {
    int error, every;
    unsigned long count, failed;
} faults[CALLS];

/* Every nth call fails with this errno, or is short where the error is 0; none with every == 0, and with -1 the next one
   alone. */
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
    if (faults[call].every == -1) {
        faults[call].every = 0;
        faults[call].failed++;
        return 1;
    }
    if (faults[call].every == 0 || ++faults[call].count % (unsigned long)faults[call].every != 0) {
        return 0;
    }
    faults[call].failed++;
    return 1;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* ---- each call in turn ---- */

static struct {
    unsigned long nth, seen;
    const char *struck;
} turn;

/* The nth call from now on that fastloop makes fails, with an error that the system may well give; none with 0. */
void
fault_nth(unsigned long nth)
{
    turn.nth = nth;
    turn.seen = 0;
    turn.struck = "";
}

/* Which call has failed since, "" for none. */
const char *
fault_struck(void)
{
    return turn.struck;
}

static const struct {
    const char *name;
    int error;
} usual[] = {
    {"accept4", EMFILE},       {"connect", ENETUNREACH}, {"dup2", EMFILE},        {"epoll_create1", EMFILE},
    {"epoll_ctl", ENOSPC},     {"epoll_wait", EINTR},    {"eventfd", ENFILE},     {"fcntl", EMFILE},
    {"getpeername", ENOTCONN}, {"getsockname", ENOBUFS}, {"getsockopt", ENOBUFS}, {"open", ENFILE},
    {"poll", EINTR},           {"read", EINTR},          {"recv", ETIMEDOUT},     {"recvfrom", ECONNREFUSED},
    {"send", EPIPE},           {"sendmsg", EPIPE},       {"sendto", EPERM},       {"setsockopt", EINVAL},
    {"shutdown", ENOTCONN},    {"socket", EMFILE},       {"socketpair", EMFILE},  {"timerfd_create", ENFILE},
};

/* Is this the call that fails? Those of libuv are left out: it ends the process where some of them do. */
static int
strikes(const char *name, const void *caller)
{
    Dl_info info;
    if (turn.nth == 0 || turn.seen >= turn.nth || dladdr(caller, &info) == 0 ||
        strstr(info.dli_fname, "fastloop/_core") == NULL || ++turn.seen < turn.nth) {
        return 0;
    }
    turn.struck = name;
    for (size_t i = 0; i < sizeof(usual) / sizeof(usual[0]); i++) {
        if (strcmp(usual[i].name, name) == 0) {
            errno = usual[i].error;
        }
    }
    return 1;
}

#define STRIKES(name) strikes(name, __builtin_return_address(0))

#define STRUCK(result, name, parameters, arguments) \
    result name parameters                          \
    {                                               \
        return STRIKES(#name) ? -1 : NEXT(name) arguments; \
    }

STRUCK(int, connect, (int fd, const struct sockaddr *address, socklen_t size), (fd, address, size))
STRUCK(int, dup2, (int from, int to), (from, to))
STRUCK(int, epoll_create1, (int flags), (flags))
STRUCK(int, epoll_wait, (int set, struct epoll_event *events, int most, int timeout), (set, events, most, timeout))
STRUCK(int, getpeername, (int fd, struct sockaddr *address, socklen_t *size), (fd, address, size))
STRUCK(int, getsockname, (int fd, struct sockaddr *address, socklen_t *size), (fd, address, size))
STRUCK(int, getsockopt, (int fd, int level, int name, void *value, socklen_t *size), (fd, level, name, value, size))
STRUCK(int, poll, (struct pollfd *asked, nfds_t count, int timeout), (asked, count, timeout))
STRUCK(int, setsockopt, (int fd, int level, int name, const void *value, socklen_t size),
       (fd, level, name, value, size))
STRUCK(int, shutdown, (int fd, int how), (fd, how))
STRUCK(int, socket, (int family, int type, int protocol), (family, type, protocol))
STRUCK(int, socketpair, (int family, int type, int protocol, int pair[2]), (family, type, protocol, pair))
STRUCK(int, timerfd_create, (int clock, int flags), (clock, flags))
STRUCK(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags))

int
fcntl(int fd, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return command == F_DUPFD_CLOEXEC && STRIKES("fcntl") ? -1 : NEXT(fcntl)(fd, command, argument);
}

int
open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = (mode_t)va_arg(rest, int);
    va_end(rest);
    return STRIKES("open") ? -1 : NEXT(open)(path, flags, mode);
}

/* ---- every nth of one kind ---- */

static int
is_socket(int fd)
{
    int type;
    socklen_t size = sizeof(type);
    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0;
}

/* Lets the call through, fails it, or has one byte of it sent. */
#define GUARDED(call, fd, real, shorter)                    \
    if (STRIKES(__func__)) {                                \
        return -1;                                          \
    }                                                       \
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

ssize_t
recvfrom(int fd, void *data, size_t size, int flags, struct sockaddr *from, socklen_t *room)
{
    GUARDED(RECEIVE, fd, NEXT(recvfrom)(fd, data, size, flags, from, room),
            NEXT(recvfrom)(fd, data, size, flags, from, room));
}

ssize_t
sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t room)
{
    GUARDED(SEND, fd, NEXT(sendto)(fd, data, size, flags, to, room), NEXT(sendto)(fd, data, size, flags, to, room));
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
    if (operation == EPOLL_CTL_ADD && STRIKES("epoll_ctl")) {
        return -1;
    }
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
    if (STRIKES("eventfd")) {
        return -1;
    }
    if (fails(EVENTFD)) {
        errno = faults[EVENTFD].error;
        return -1;
    }
    return NEXT(eventfd)(value, flags);
}
