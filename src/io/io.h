/* The I/O part of a loop: what hangs on `loop->io`, and how io/ takes part in the life of a loop.

   Every libuv handle of io/ is a separate allocation with a back-pointer; the loop knows them all, so it can close
   them whatever becomes of the Python objects. A Python object is kept alive by the loop only while libuv may call
   it, and the loop's traverse visits those. */

#ifndef FASTLOOP_IO_IO_H
#define FASTLOOP_IO_IO_H

#include "base/bytespool.h"
#include "io/handshakes.h"
#include "io/numeric.h"
#include "io/poller.h"
#include "io/pysocket.h"
#include "io/senders.h"
#include "io/signals.h"
#include "io/stream.h"
#include "sched/loop.h"

typedef struct SocketTransport SocketTransport;

/* How the running Python's asyncio does things, asked of its classes when a loop is made. */
typedef struct {
    bool server_takes_transport; /* Server._attach(transport), else Server._attach() */
    bool joins_lines;            /* writelines() is write(b"".join(lines)) */
} IoTraits;

/* What clients.c found out about asyncio.Server and WeakSet, good while they have these versions. */
typedef struct {
    unsigned server_tag;
    unsigned set_tag;
    bool fit;
} ServerClasses;

enum { IO_PLAIN_SIZE = 64 * 1024 };

struct IoPart {
    Poller poller;
    Signals signals;

    UvStream *streams; /* every stream whose uv handle is not being closed yet */
    UvStream *changed; /* streams that libuv will watch otherwise; checked before each poll, in this order */
    UvStream *changed_last;
    SocketTransport *active;     /* transports that libuv may call, or that have bytes to flush: strong references */
    SocketTransport *flush_head; /* in the order of their first write of this turn; they are in `active` as well */
    SocketTransport *flush_tail;

    uint64_t crowded_turn; /* loop_turn() in which a datagram was delivered beside other work */

    /* From the allocation callback of libuv to the read callback that follows it at once. */
    char *read_buffer;    /* shared by all small reads; allocated by the first */
    PyObject *read_bytes; /* a bulk read goes straight into this bytes object or bytearray, or NULL */
    Py_buffer read_view;  /* the buffer of a BufferedProtocol; obj is NULL when there is none */
    bool read_put_off;    /* the allocation callback has given no buffer on purpose */

    BytesPool bytes; /* messages that came and went */

    Handshakes handshakes;

    char *plain_buffer; /* IO_PLAIN_SIZE bytes for plaintext on its way to a protocol; allocated when first needed */
    struct TlsBios *tls_bios; /* see loan.h; NULL until the first loan, and while they are lent */
    PySockets sockets;
    Sender *senders;        /* see senders.h; NULL until the first datagram */
    char *receive_buffer;   /* see io_receive_buffer() */
    bool no_native_sockets; /* FASTLOOP_DISABLE=sockets */
    bool no_native_servers; /* FASTLOOP_DISABLE=servers */
    ServerClasses server_classes;
    NumericAnswers numeric;

    PyObject *decided;            /* list of Connectors whose outcome the next poll tells, see connect.c; or NULL */
    PyObject *foreign_transports; /* WeakValueDictionary fd -> the standard library's own transports, or NULL */
    IoTraits traits;
};

/* May the calling thread touch libuv? The one that runs the loop may, and anybody while none does: one loop belongs to
   one thread. */
static inline bool
io_may_touch(LoopObject *loop)
{
    return loop->thread_id == 0 || loop->thread_id == compat_thread_ident();
}

/* Must what this poll finds of a transport stand in line? Behind what was ready before it, and beside add_reader() and
   add_writer(), whose callbacks are queued, in the order in which the poll found them all. */
static inline bool
io_poll_queues(LoopObject *loop)
{
    return loop->poll_defers || loop->io->poller.callback_count > 0;
}

/* Where all that is received from plain sockets is put first; what is in it must be copied before anything else is
   done. NULL with MemoryError. */
enum { IO_RECEIVE_SIZE = 256 * 1024 };
char *io_receive_buffer(LoopObject *loop);

/* Taken by module.c: methods for the Loop type, and the hooks for state->io_hooks. */
extern PyMethodDef io_loop_methods[];
extern const LoopHooks io_hooks;

#endif
