/* The numbers of standard input, output and error, which libuv must never own: it refuses to close them and ends the
   process. A process may have been started without them, and then the next descriptors get these numbers. */

#ifndef FASTLOOP_BASE_LOWFDS_H
#define FASTLOOP_BASE_LOWFDS_H

#include "compat.h"

enum { LOWFDS = 3 };

typedef struct {
    int fds[LOWFDS];
    int count;
} HeldLowFds;

/* Takes those of the numbers that are free, so that what is opened now gets others. 0 or a negative libuv code. */
int lowfds_hold(HeldLowFds *held);
/* Frees them again. */
void lowfds_release(HeldLowFds *held);

/* The descriptor itself or, in place of one of the three, a duplicate with a higher number; a negative code in place of
   a descriptor is passed on. The descriptor is gone when a negative libuv code comes back. */
int lowfds_leave(int fd);

#endif
