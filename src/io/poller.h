/* The poller: add_reader() and add_writer(), the listeners, and whatever else watches a descriptor that is not ours.

   One set of descriptors of our own, watched through a single uv_poll, so that a descriptor closed behind our back
   can never make libuv abort. A table from descriptor to what waits for it. Belongs to the thread of the loop; the
   methods for Python may be called from others, as on the standard loop. */

#ifndef FASTLOOP_IO_POLLER_H
#define FASTLOOP_IO_POLLER_H

#include "io/pollset.h"
#include "sched/ready.h"

typedef struct SocketTransport SocketTransport;

typedef struct {
    ReadyEntry reader; /* `run` is NULL when there is none; the record is queued when the descriptor is ready */
    ReadyEntry writer;
    PyObject *fileobj;  /* what was registered, when it was no int: strong or NULL */
    PyObject *sock_ref; /* weak reference to the socket that poller_wait() registered; strong or NULL */
    uint64_t inode;     /* of that socket */
    unsigned watched;   /* what the set watches; with POLLSET_EDGE it was poller_wait() */
    unsigned tag;       /* of the last socket that poller_wait() registered; never 0 then */
} PollerEntry;

typedef struct {
    uv_poll_t *poll; /* allocated apart; NULL until the set is used */
    int set;         /* -1 until it is used */
    PollerEntry *entries;
    size_t size;
    SocketTransport **owners; /* by descriptor, the transport that owns it: borrowed or NULL. A table of its own, for
                                 there are many, and few other descriptors */
    size_t owners_size;
    size_t watched_count; /* of descriptors that the set watches, and the sum of their numbers: that of the only one */
    size_t watched_sum;
    size_t callback_count; /* of readers and writers that are callbacks of the program */
    int streak;            /* turns in a row in which the set was ready; below 0, so many to wait before that counts */
    bool polled;           /* in this turn already: libuv may call more than once in one poll */
    bool is_steady;        /* nothing has changed in the set since the end of the last turn */
    bool is_unsure;        /* the kernel may watch what we do not know of any more, see is_sole_reader() */
} Poller;

void poller_init(Poller *poller);

/* Sets or replaces the reader or the writer (`event`) of a descriptor; new reference to `owner`; the handle that was
   there is cancelled. -1 with an exception. */
int poller_watch(LoopObject *loop, int fd, unsigned event, ready_run run, PyObject *owner, PyObject *fileobj);
/* Takes the reader or the writer away and cancels it: 1 if there was one, else 0; -1 with an exception. */
int poller_unwatch(LoopObject *loop, int fd, unsigned event);
/* Sets the reader or the writer of the descriptor of a Python socket for a sock_*() call that the kernel refused just
   now (EAGAIN). The descriptor stays registered when the wait is over, edge-triggered: a further wait of the same socket
   object costs no system call. -1 with an exception. */
int poller_wait(LoopObject *loop, int fd, unsigned event, ready_run run, PyObject *owner, PyObject *sock);
/* Takes the reader or the writer away if it is `owner`'s. */
void poller_end_wait(LoopObject *loop, int fd, unsigned event, PyObject *owner);

/* The end of a turn: the next poll is that of another. */
void poller_end_turn(LoopObject *loop);
/* LoopHooks.glance(): asks the set itself. */
bool poller_glance(LoopObject *loop);
/* What waits for a descriptor, or NULL; good until anything is changed. */
const PollerEntry *poller_get_entry(LoopObject *loop, int fd);
/* The descriptor under which a file object was registered that has been closed since; -1 when it was not. */
int poller_find_fileobj(LoopObject *loop, PyObject *fileobj);
/* Is `owner` the reader of a descriptor? */
bool poller_has_reader(LoopObject *loop, int fd, PyObject *owner);
bool poller_has_writer(LoopObject *loop, int fd, PyObject *owner);

/* The transport that owns a descriptor: borrowed, or NULL. */
SocketTransport *poller_get_transport(LoopObject *loop, int fd);
/* Notes the owner of a descriptor. -1 with MemoryError. */
int poller_set_transport(LoopObject *loop, int fd, SocketTransport *transport);

/* A descriptor from an int or an object with fileno(), with the errors of the selectors module; -1 with one. */
int poller_fd_of(PyObject *fileobj);
/* The same for one that is looked for: INT_MAX, which no descriptor is, where the number is too large for one. */
int poller_fd_to_find(PyObject *fileobj);

/* Raises what loop._ensure_fd_no_transport(fileobj) raises; -1 if so, else 0 and the descriptor, which may be
   negative. */
int poller_check_no_transport(LoopObject *loop, PyObject *fileobj, int *fd);

/* Drops every record; may run Python code. */
void poller_clear(LoopObject *loop);
/* Closes the set; runs no Python code. */
void poller_close(LoopObject *loop);
/* In a forked child: a set of its own, which watches the same. A negative libuv code on failure. */
int poller_fork(LoopObject *loop);
int poller_traverse(Poller *poller, visitproc visit, void *arg);

/* Methods of the loop, in readers.c; io.c has the table. */
PyObject *Loop_add_reader(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *Loop_add_writer(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *Loop_remove_reader(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *Loop_remove_writer(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *Loop_private_add_reader(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *Loop_private_add_writer(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *Loop_private_remove_reader(PyObject *op, PyObject *fd);
PyObject *Loop_private_remove_writer(PyObject *op, PyObject *fd);
PyObject *Loop_ensure_fd_no_transport(PyObject *op, PyObject *fileobj);
PyObject *Loop_poll_state(PyObject *op, PyObject *fileobj);

#endif
