/* What C reads of a Python socket object without calling it: the descriptor, the kind, whether it blocks.

   The struct of the socket module is private. It is compared with a real socket when a loop first needs it; where
   anything differs, no socket is plain and the standard library's code runs. */

#ifndef FASTLOOP_IO_PYSOCKET_H
#define FASTLOOP_IO_PYSOCKET_H

#include "sched/loop.h"

typedef struct {
    PyObject_HEAD
    int fd; /* -1 when closed */
    int family;
    int type;
    int proto;
    PyObject *(*error_handler)(void);
    int64_t timeout_ns; /* 0: does not block; negative: blocks for ever */
} SocketObject;

#define SocketObject_CAST(op) ((SocketObject *)(op))

/* What a loop knows of the socket module. */
typedef struct {
    bool examined;
    bool fits;            /* the struct is as above */
    unsigned version_tag; /* of the class while its methods are the socket module's own; 0 is none */
} PySockets;

/* Is `sock` open, non-blocking and exactly a socket.socket whose methods nobody has replaced? Then SocketObject_CAST()
   may be used, and a system call does what its method does. Never leaves an exception set. */
bool pysocket_is_plain(LoopObject *loop, PyObject *sock);

#endif
