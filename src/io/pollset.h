/* A set of descriptors that can be polled as one descriptor: epoll on Linux, kqueue on macOS and the BSDs.

   Plain C: knows neither Python nor libuv. Level-triggered, unless POLLSET_EDGE is among what is watched. */

#ifndef FASTLOOP_IO_POLLSET_H
#define FASTLOOP_IO_POLLSET_H

#include "compat.h"

enum { POLLSET_READ = 1, POLLSET_WRITE = 2, POLLSET_EDGE = 4, POLLSET_BATCH = 256 };

typedef struct {
    int fd;
    unsigned tag;    /* of pollset_change_tagged(), else 0 */
    unsigned events; /* POLLSET_READ | POLLSET_WRITE; a hang-up or an error is both, as in selectors.EpollSelector */
} PollsetEvent;

/* New set (close-on-exec), or a negated errno. */
int pollset_open(void);

/* Changes what is watched on `fd` from `before` to `after`. 0 or a negated errno: -EPERM for a regular file, -EBADF
   for no descriptor. A descriptor that the kernel has forgotten (closed, its number reused) is added again, and one that
   it has not forgotten changed: then 1, for it may go on watching another file of that number. */
int pollset_change(int set, int fd, unsigned before, unsigned after);
/* The same, and events will come with a tag: it tells those of an earlier file of this number, which the kernel goes on
   reporting when that was closed while a duplicate of it stays open. */
int pollset_change_tagged(int set, int fd, unsigned before, unsigned after, unsigned tag);

/* Fills `events` with at most POLLSET_BATCH entries without waiting; how many, or a negated errno. */
int pollset_poll(int set, PollsetEvent *events);

#endif
