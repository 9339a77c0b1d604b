/* Where datagrams come from, as Python shows it: the tuples of recent senders are used again. */

#ifndef FASTLOOP_IO_SENDERS_H
#define FASTLOOP_IO_SENDERS_H

#include "sched/loop.h"

#include <sys/socket.h>

/* One place of a table. A hash of the address finds the first of a few that may have it; the latest one wins. */
typedef struct {
    PyObject *value; /* strong: a tuple of str and int; NULL in a free place */
    uint32_t words[7];
    uint8_t count;
} Sender;

enum { SENDER_PLACES = 1024, SENDER_WAYS = 4 };

/* What recvfrom() of the socket module gives as the address: new, or NULL with an exception. For AF_INET, AF_INET6 and
   AF_UNIX. */
PyObject *senders_find(LoopObject *loop, const struct sockaddr_storage *address, socklen_t size);
void senders_clear(LoopObject *loop);

#endif
