/* The libuv side of a stream transport: the memory of a uv_tcp_t or uv_pipe_t and of its writes.

   A UvStream is an allocation of its own that lives until libuv's close callback. It knows its transport by a borrowed
   back-pointer, which is taken away when either side goes. The loop lists all that are open. */

#ifndef FASTLOOP_IO_STREAM_H
#define FASTLOOP_IO_STREAM_H

#include "base/chunks.h"
#include "sched/ready.h"

typedef struct SocketTransport SocketTransport;
typedef struct UvStream UvStream;

struct UvStream {
    LoopObject *loop;       /* borrowed: a loop waits for the close callback before it goes */
    SocketTransport *owner; /* borrowed; NULL once nobody is interested any more */
    UvStream *previous;     /* in loop->io->streams */
    UvStream *next;
    UvStream *next_changed; /* in loop->io->changed, while `changed` */
    UvStream *previous_changed;
    uint64_t inode; /* of the socket: tells whether its number is still its own */
    int fd;
    bool changed;
    bool checked; /* ... and the poll under way has looked since, for all others that follow in the list too */
    /* Last, since no more is allocated than the handle needs. */
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } uv;
};

/* What tells the socket behind a descriptor from every other file; false where there is none. */
bool stream_find_inode(int fd, uint64_t *inode);

/* Is the number still that of our socket? Anybody may close() or dup2() any number. */
bool stream_owns_descriptor(UvStream *stream);

/* What libuv has the system watch changes: to be called wherever reading or a write starts, stops or ends, for
   streams_check_changed(). */
void stream_mark_changed(UvStream *stream);
/* LoopHooks.check_watchers. */
void streams_check_changed(LoopObject *loop);

/* Opens a stream on a connected socket: `is_tcp` for AF_INET and AF_INET6, else whatever read() and write() serve. The
   descriptor belongs to libuv from now on. NULL with OSError, and then the descriptor is still the caller's. */
UvStream *stream_open(LoopObject *loop, int fd, bool is_tcp, SocketTransport *owner);

/* Closes the descriptor at once and frees the memory later; takes the back-pointer away. Runs no Python code. */
void stream_close(UvStream *stream);

/* The same for a stream that lost its descriptor: what has the number now stays open. */
void stream_abandon(UvStream *stream);

/* stream_close() from whichever thread; another one than the loop's only orphans the stream and asks the loop. */
void stream_close_threadsafe(UvStream *stream);

/* Offers buffers to the kernel: how many bytes it took, or a negative libuv code. Only a socket is written to: the
   number may have become another file's. */
ssize_t stream_send(int fd, uv_buf_t *buffers, unsigned count);

/* Hands about `size` bytes of a queue to libuv, which tells transport_written() when they are gone. 0 or a negative
   libuv code. */
int stream_write(UvStream *stream, Chunks *queue, size_t size);

static inline UvStream *
stream_of(uv_stream_t *uv)
{
    return (UvStream *)((char *)uv - offsetof(UvStream, uv));
}

#endif
