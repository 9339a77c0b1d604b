/* The poller. What is ready inside one poll is appended to the ready queue, as the standard selector loop does.

   Invariant: `entries[fd].watched` is what the set watches for fd, and it is the union of what the reader and the writer
   want; or, while only sock_*() calls have waited for it, all that they ever waited for. Pointers into `entries` are not
   kept across a call that may run Python code or grow the table. Where a handle is cancelled, it has left the table
   first. */

#include "io/poller.h"

#include <errno.h>
#include <unistd.h>

#include "base/uverror.h"
#include "base/uvpoll.h"
#include "io/io.h"
#include "io/transport.h"
#include "sched/loop.h"

enum {
    FIRST_SIZE = 64,
    /* After so many turns in a row with something to do the set is asked itself; not again for so many once that was vain. */
    GLANCE_AFTER = 16,
    GLANCE_REST = 1000,
};

void
poller_init(Poller *poller)
{
    *poller = (Poller){.set = -1};
}

/* ---- the table ---- */

static PollerEntry *
get_entry(LoopObject *loop, int fd)
{
    struct IoPart *io = loop->io;
    return io == NULL || fd < 0 || (size_t)fd >= io->poller.size ? NULL : &io->poller.entries[fd];
}

/* The entry of a descriptor, made if need be; NULL with MemoryError. The kernel bounds `fd`, so it bounds the table. */
static PollerEntry *
make_entry(LoopObject *loop, int fd)
{
    Poller *poller = &loop->io->poller;
    if ((size_t)fd >= poller->size) {
        size_t size = poller->size == 0 ? FIRST_SIZE : poller->size;
        while (size <= (size_t)fd) {
            size *= 2;
        }
        PollerEntry *entries = PyMem_Realloc(poller->entries, size * sizeof(PollerEntry));
        if (entries == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        memset(entries + poller->size, 0, (size - poller->size) * sizeof(PollerEntry));
        poller->entries = entries;
        poller->size = size;
    }
    return &poller->entries[fd];
}

static unsigned
wanted(PollerEntry *entry)
{
    return (entry->reader.run != NULL ? POLLSET_READ : 0) | (entry->writer.run != NULL ? POLLSET_WRITE : 0);
}

static ReadyEntry *
record_of(PollerEntry *entry, unsigned event)
{
    return event == POLLSET_READ ? &entry->reader : &entry->writer;
}

/* Cancels a record that has left the table, and drops it. Keeps the exception that is set, if one is. */
static void
drop_record(LoopObject *loop, ReadyEntry record)
{
    if (record.run == handle_run) {
        PyObject *exc = compat_take_exception();
        PyObject *result = PyObject_CallMethodNoArgs(record.owner, loop->state->str_cancel);
        if (result == NULL) {
            PyErr_WriteUnraisable(record.owner);
        }
        Py_XDECREF(result);
        if (exc != NULL) {
            compat_restore_exception(exc);
        }
    }
    Py_XDECREF(record.owner);
}

static bool
is_edge(const PollerEntry *entry)
{
    return entry->watched & POLLSET_EDGE;
}

/* ---- what the set watches ---- */

/* poller_end_turn() has to look at what is noted here. */
static void
note_changed(LoopObject *loop)
{
    loop->io->poller.is_steady = false;
    loop->needs_flush = true;
}

static void
note_polled(LoopObject *loop)
{
    loop->io->poller.polled = true;
    loop->needs_flush = true;
}

static void
note_watched(LoopObject *loop, int fd, PollerEntry *entry, unsigned after)
{
    Poller *poller = &loop->io->poller;
    if (entry->watched == 0 && after != 0) {
        poller->watched_count++;
        poller->watched_sum += (size_t)fd;
    } else if (entry->watched != 0 && after == 0) {
        poller->watched_count--;
        poller->watched_sum -= (size_t)fd;
    }
    entry->watched = after;
    note_changed(loop);
}

/* Has the set watch `after`; 0 or a negated errno, and then the books are as they were. */
static int
change_watched(LoopObject *loop, int fd, PollerEntry *entry, unsigned after, unsigned tag)
{
    Poller *poller = &loop->io->poller;
    int err = pollset_change_tagged(poller->set, fd, entry->watched, after, tag);
    if (err > 0 || (err < 0 && entry->watched != 0)) {
        poller->is_unsure = true;
    }
    if (err >= 0) {
        note_watched(loop, fd, entry, after);
    }
    return Py_MIN(err, 0);
}

/* The only descriptor that the set watches, for reading, or -1. When the set is ready that one is: no need to ask. Not
   where the set was changed since the wait began, and never again once the kernel may watch more than we know of: a
   file that was closed under us while a duplicate of it stays open. */
static int
sole_reader(LoopObject *loop)
{
    Poller *poller = &loop->io->poller;
    if (!poller->is_steady || poller->is_unsure || poller->watched_count != 1) {
        return -1;
    }
    int fd = (int)poller->watched_sum;
    PollerEntry *entry = get_entry(loop, fd);
    return entry != NULL && entry->watched == POLLSET_READ ? fd : -1;
}

/* ---- the set and its uv_poll ---- */

static bool
is_cancelled(ReadyEntry *record)
{
    return record->run == handle_run && ((HandleObject *)record->owner)->cancelled;
}

static void
dispatch_record(LoopObject *loop, int fd, unsigned event)
{
    PollerEntry *entry = get_entry(loop, fd);
    ReadyEntry *record = record_of(entry, event);
    if (record->run == NULL) {
        return;
    }
    if (is_cancelled(record)) {
        (void)poller_unwatch(loop, fd, event);
    } else if (LIKELY(ready_has_room(&loop->ready))) {
        (void)ready_append(&loop->ready, record->run, record->owner, NULL);
    } else if (is_edge(entry)) {
        /* The next poll tells it again; what is watched by its edges must be asked for that. */
        (void)change_watched(loop, fd, entry, entry->watched, entry->tag);
    }
}

static void
dispatch(LoopObject *loop, PollsetEvent *event)
{
    PollerEntry *entry = get_entry(loop, event->fd);
    if (UNLIKELY(event->tag != (entry != NULL && is_edge(entry) ? entry->tag : 0))) {
        /* Of a socket that had the number before, was closed, and stays open in a duplicate: say in a forked child. */
        return;
    }
    if (entry == NULL || entry->watched == 0) {
        /* Closed while a duplicate of it stays open: the kernel goes on reporting it. */
        (void)pollset_change(loop->io->poller.set, event->fd, POLLSET_READ, 0);
        return;
    }
    if (event->events & POLLSET_READ) {
        dispatch_record(loop, event->fd, POLLSET_READ);
    }
    if (event->events & POLLSET_WRITE) {
        dispatch_record(loop, event->fd, POLLSET_WRITE);
    }
}

/* Queues what the set has ready; how much it was. */
static int
dispatch_ready(LoopObject *loop)
{
    PollsetEvent events_ready[POLLSET_BATCH];
    int count = pollset_poll(loop->io->poller.set, events_ready);
    for (int i = 0; i < count; i++) {
        dispatch(loop, &events_ready[i]);
    }
    return count;
}

static void
on_poll(uv_poll_t *poll, int Py_UNUSED(status), int Py_UNUSED(events))
{
    LoopObject *loop = poll->data;
    if (loop == NULL) {
        return;
    }
    loop_enter(loop);
    Poller *poller = &loop->io->poller;
    if (poller->polled) {
        return;
    }
    note_polled(loop);
    int sole = sole_reader(loop);
    if (sole >= 0) {
        dispatch_record(loop, sole, POLLSET_READ);
        return;
    }
    (void)dispatch_ready(loop);
}

/* Has libuv watch the set. A negative libuv code on failure. */
static int
start_poll(LoopObject *loop)
{
    Poller *poller = &loop->io->poller;
    return uvpoll_open(loop->uv, poller->set, on_poll, loop, &poller->poll);
}

/* ready_run: the start of the uv_poll, when another thread was the first to use the poller. */
static int
run_start_poll(LoopObject *loop, PyObject *Py_UNUSED(owner), PyObject *Py_UNUSED(arg))
{
    if (loop->io != NULL && loop->io->poller.poll == NULL) {
        int err = start_poll(loop);
        if (err < 0) {
            uverror_raise(err);
            loop_report(loop, "Polling failed", NULL);
        }
    }
    return 0;
}

/* Opens the set and starts the uv_poll at the first use; -1 with an exception. */
static int
ensure_open(LoopObject *loop)
{
    Poller *poller = &loop->io->poller;
    if (poller->set < 0) {
        int set = pollset_open();
        if (set < 0) {
            uverror_raise(set);
            return -1;
        }
        transport_check_number(loop, set);
        poller->set = set;
    }
    if (LIKELY(poller->poll != NULL)) {
        return 0;
    }
    if (!io_may_touch(loop)) {
        return loop_push(loop, run_start_poll, Py_None, NULL);
    }
    int err = start_poll(loop);
    if (err < 0) {
        uverror_raise(err);
        return -1;
    }
    return 0;
}

/* Makes the set watch what the entry wants; -1 with OSError, and the entry is as it was. */
static int
update(LoopObject *loop, int fd, unsigned after)
{
    PollerEntry *entry = get_entry(loop, fd);
    assert(entry != NULL);
    if (entry->watched == after) {
        return 0;
    }
    int err = change_watched(loop, fd, entry, after, 0);
    /* Taking away cannot fail in a way that matters: a descriptor that was closed has left the set by itself. */
    if (err < 0 && after != 0) {
        uverror_raise(err);
        return -1;
    }
    note_watched(loop, fd, entry, after);
    return 0;
}

/* ---- watching ---- */

/* Puts a record, or none, in the place of the one that is there; that one is the caller's then. */
static ReadyEntry
exchange_record(Poller *poller, PollerEntry *entry, unsigned event, ReadyEntry record)
{
    ReadyEntry *place = record_of(entry, event);
    ReadyEntry old = *place;
    *place = record;
    poller->callback_count += record.run == handle_run;
    poller->callback_count -= old.run == handle_run;
    return old;
}

static void
set_record(LoopObject *loop, PollerEntry *entry, unsigned event, ready_run run, PyObject *owner)
{
    ReadyEntry record = {.run = run, .owner = Py_NewRef(owner)};
    drop_record(loop, exchange_record(&loop->io->poller, entry, event, record));
}

int
poller_watch(LoopObject *loop, int fd, unsigned event, ready_run run, PyObject *owner, PyObject *fileobj)
{
    if (ensure_open(loop) < 0) {
        return -1;
    }
    /* A number that is no descriptor must not make the table grow. */
    PollerEntry *entry = get_entry(loop, fd);
    bool is_new = entry == NULL || wanted(entry) == 0;
    if (entry == NULL) {
        int err = pollset_change(loop->io->poller.set, fd, 0, event);
        if (err < 0) {
            uverror_raise(err);
            return -1;
        }
        loop->io->poller.is_unsure |= err > 0;
        note_changed(loop);
        entry = make_entry(loop, fd);
        if (entry == NULL) {
            (void)pollset_change(loop->io->poller.set, fd, event, 0);
            return -1;
        }
        note_watched(loop, fd, entry, event);
    } else if (update(loop, fd, wanted(entry) | event) < 0) {
        return -1;
    }
    if (is_new) {
        entry->fileobj = Py_XNewRef(fileobj);
    }
    set_record(loop, entry, event, run, owner);
    return 0;
}

int
poller_unwatch(LoopObject *loop, int fd, unsigned event)
{
    PollerEntry *entry = get_entry(loop, fd);
    if (entry == NULL || record_of(entry, event)->run == NULL) {
        return 0;
    }
    ReadyEntry old = exchange_record(&loop->io->poller, entry, event, (ReadyEntry){NULL});
    PyObject *fileobj = NULL;
    if (!is_edge(entry) && update(loop, fd, wanted(entry)) < 0) {
        /* The number belongs to a file that cannot be polled now: nothing is left to watch. */
        PyErr_Clear();
        note_watched(loop, fd, entry, 0);
    }
    if (wanted(entry) == 0) {
        fileobj = entry->fileobj;
        entry->fileobj = NULL;
    }
    drop_record(loop, old);
    Py_XDECREF(fileobj);
    return 1;
}

/* Registers the descriptor of `sock` for good, if it is not. Only for what has been waited for: a datagram or Unix
   socket that is watched for writing would wake the loop whenever something that was sent has been taken. */
static int
register_edge(LoopObject *loop, int fd, unsigned event, PyObject *sock)
{
    /* The weak reference of a live object is always the same one, and another object never has it. */
    PyObject *ref = PyWeakref_NewRef(sock, NULL);
    if (ref == NULL) {
        return -1;
    }
    /* Only now: a new reference may be what starts a collection, and that may have the table grow. */
    PollerEntry *entry = get_entry(loop, fd);
    assert(entry != NULL);
    uint64_t inode = 0;
    /* The number may have been another socket's, which has left the set by being closed; dup2() puts another one under the
       very object. */
    bool known = stream_find_inode(fd, &inode) && is_edge(entry) && entry->sock_ref == ref && entry->inode == inode;
    if (LIKELY(known && (entry->watched & event))) {
        Py_DECREF(ref);
        return 0;
    }
    unsigned after = (known ? entry->watched : wanted(entry)) | event | POLLSET_EDGE;
    unsigned tag = known || entry->tag + 1 == 0 ? entry->tag : entry->tag + 1;
    int err = change_watched(loop, fd, entry, after, tag);
    if (err < 0) {
        Py_DECREF(ref);
        uverror_raise(err);
        return -1;
    }
    entry->tag = tag;
    entry->inode = inode;
    Py_XSETREF(entry->sock_ref, ref);
    return 0;
}

int
poller_wait(LoopObject *loop, int fd, unsigned event, ready_run run, PyObject *owner, PyObject *sock)
{
    if (ensure_open(loop) < 0) {
        return -1;
    }
    PollerEntry *entry = make_entry(loop, fd);
    if (entry == NULL) {
        return -1;
    }
    bool shared = !is_edge(entry) && wanted(entry) != 0;
    if (shared ? update(loop, fd, wanted(entry) | event) < 0 : register_edge(loop, fd, event, sock) < 0) {
        return -1;
    }
    set_record(loop, get_entry(loop, fd), event, run, owner);
    return 0;
}

void
poller_end_wait(LoopObject *loop, int fd, unsigned event, PyObject *owner)
{
    PollerEntry *entry = get_entry(loop, fd);
    if (entry != NULL && record_of(entry, event)->owner == owner) {
        (void)poller_unwatch(loop, fd, event);
    }
}

/* A transport takes over: its traffic must not wake the poller as well. */
static void
end_edge(LoopObject *loop, int fd, PollerEntry *entry)
{
    if (is_edge(entry)) {
        (void)change_watched(loop, fd, entry, wanted(entry), 0);
        note_watched(loop, fd, entry, wanted(entry));
    }
}

SocketTransport *
poller_get_transport(LoopObject *loop, int fd)
{
    struct IoPart *io = loop->io;
    return io == NULL || fd < 0 || (size_t)fd >= io->poller.owners_size ? NULL : io->poller.owners[fd];
}

int
poller_set_transport(LoopObject *loop, int fd, SocketTransport *transport)
{
    Poller *poller = &loop->io->poller;
    if ((size_t)fd >= poller->owners_size) {
        if (transport == NULL) {
            return 0;
        }
        size_t size = poller->owners_size == 0 ? FIRST_SIZE : poller->owners_size;
        while (size <= (size_t)fd) {
            size *= 2;
        }
        SocketTransport **owners = PyMem_Realloc(poller->owners, size * sizeof(SocketTransport *));
        if (owners == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        memset(owners + poller->owners_size, 0, (size - poller->owners_size) * sizeof(SocketTransport *));
        poller->owners = owners;
        poller->owners_size = size;
    }
    PollerEntry *entry = get_entry(loop, fd);
    if (transport != NULL && entry != NULL) {
        end_edge(loop, fd, entry);
    }
    poller->owners[fd] = transport;
    return 0;
}

/* ---- descriptors ---- */

/* int(fileobj.fileno()) or the int itself (new); NULL with ValueError, or what fileno() raised. */
static PyObject *
number_of(PyObject *fileobj)
{
    if (PyLong_Check(fileobj)) {
        return Py_NewRef(fileobj);
    }
    PyObject *result = PyObject_CallMethod(fileobj, "fileno", NULL);
    PyObject *number = result == NULL ? NULL : PyNumber_Long(result);
    Py_XDECREF(result);
    if (number == NULL && (PyErr_ExceptionMatches(PyExc_AttributeError) || PyErr_ExceptionMatches(PyExc_TypeError) ||
                           PyErr_ExceptionMatches(PyExc_ValueError))) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "Invalid file object: %R", fileobj);
    }
    return number;
}

/* The number as a descriptor; -1 with OverflowError, but for a negative one without. */
static int
descriptor_of(PyObject *number)
{
    int overflow;
    long value = PyLong_AsLongAndOverflow(number, &overflow);
    if (overflow > 0 || value > INT_MAX) {
        PyErr_SetString(PyExc_OverflowError, "Python int too large to convert to C int");
        return -1;
    }
    return overflow < 0 || value < 0 ? -1 : (int)value;
}

int
poller_fd_of(PyObject *fileobj)
{
    PyObject *number = number_of(fileobj);
    if (number == NULL) {
        return -1;
    }
    int fd = descriptor_of(number);
    if (fd < 0 && !PyErr_Occurred()) {
        PyErr_Format(PyExc_ValueError, "Invalid file descriptor: %S", number);
    }
    Py_DECREF(number);
    return fd;
}

int
poller_fd_to_find(PyObject *fileobj)
{
    PyObject *number = number_of(fileobj);
    int fd = number == NULL ? -1 : poller_fd_of(number);
    if (number != NULL && fd < 0 && PyErr_ExceptionMatches(PyExc_OverflowError)) {
        PyErr_Clear();
        fd = INT_MAX;
    }
    Py_XDECREF(number);
    return fd;
}

/* Raises that a transport owns the descriptor, unless it is being closed. */
static int
refuse_owned(PyObject *fileobj, PyObject *transport, bool closing)
{
    if (closing) {
        return 0;
    }
    PyErr_Format(PyExc_RuntimeError, "File descriptor %R is used by transport %R", fileobj, transport);
    return -1;
}

static int
check_foreign_transports(LoopObject *loop, PyObject *fileobj, int fd)
{
    PyObject *transport = PyObject_CallMethod(loop->io->foreign_transports, "get", "i", fd);
    if (transport == NULL || transport == Py_None) {
        Py_XDECREF(transport);
        return transport == NULL ? -1 : 0;
    }
    PyObject *closing = PyObject_CallMethod(transport, "is_closing", NULL);
    int truth = closing == NULL ? -1 : PyObject_IsTrue(closing);
    Py_XDECREF(closing);
    int err = truth < 0 ? -1 : refuse_owned(fileobj, transport, truth);
    Py_DECREF(transport);
    return err;
}

int
poller_check_no_transport(LoopObject *loop, PyObject *fileobj, int *fd)
{
    PyObject *number = number_of(fileobj);
    *fd = -1;
    if (number == NULL) {
        return -1;
    }
    *fd = descriptor_of(number);
    Py_DECREF(number);
    if (*fd < 0) {
        /* No transport has such a number; whoever uses it is told so. */
        PyErr_Clear();
        return 0;
    }
    transport_check_number(loop, *fd);
    SocketTransport *transport = poller_get_transport(loop, *fd);
    if (transport != NULL) {
        return refuse_owned(fileobj, (PyObject *)transport, transport_is_closing(transport));
    }
    if (loop->io != NULL && loop->io->foreign_transports != NULL) {
        return check_foreign_transports(loop, fileobj, *fd);
    }
    return 0;
}

int
poller_find_fileobj(LoopObject *loop, PyObject *fileobj)
{
    Poller *poller = &loop->io->poller;
    for (size_t fd = 0; fd < poller->size; fd++) {
        if (poller->entries[fd].fileobj == fileobj) {
            return (int)fd;
        }
    }
    return -1;
}

const PollerEntry *
poller_get_entry(LoopObject *loop, int fd)
{
    return get_entry(loop, fd);
}

bool
poller_has_reader(LoopObject *loop, int fd, PyObject *owner)
{
    PollerEntry *entry = get_entry(loop, fd);
    return entry != NULL && entry->reader.owner == owner;
}

bool
poller_has_writer(LoopObject *loop, int fd, PyObject *owner)
{
    PollerEntry *entry = get_entry(loop, fd);
    return entry != NULL && entry->writer.owner == owner;
}

void
poller_end_turn(LoopObject *loop)
{
    Poller *poller = &loop->io->poller;
    poller->is_steady = true;
    if (!poller->polled) {
        poller->streak = Py_MIN(poller->streak, 0);
    } else if (poller->streak < GLANCE_AFTER) {
        poller->streak++;
    }
    poller->polled = false;
    loop->needs_flush = poller->streak > 0;
    /* What transports have to read comes in the order in which it came. */
    loop->may_glance = poller->streak == GLANCE_AFTER && loop->io->streams == NULL;
}

bool
poller_glance(LoopObject *loop)
{
    Poller *poller = &loop->io->poller;
    if (poller->polled) {
        /* The turn that a nested run is in. */
        return false;
    }
    loop_leave_task(loop);
    if (dispatch_ready(loop) <= 0) {
        poller->streak = -GLANCE_REST;
        return false;
    }
    note_polled(loop);
    return true;
}

/* ---- life ---- */

void
poller_clear(LoopObject *loop)
{
    Poller *poller = &loop->io->poller;
    poller->callback_count = 0;
    for (size_t fd = 0; fd < poller->size; fd++) {
        PollerEntry old = poller->entries[fd];
        PollerEntry *entry = &poller->entries[fd];
        entry->reader = entry->writer = (ReadyEntry){NULL};
        entry->fileobj = entry->sock_ref = NULL;
        Py_XDECREF(old.sock_ref);
        Py_XDECREF(old.reader.owner);
        Py_XDECREF(old.writer.owner);
        Py_XDECREF(old.fileobj);
    }
}

void
poller_close(LoopObject *loop)
{
    Poller *poller = &loop->io->poller;
    uvpoll_close(&poller->poll);
    if (poller->set >= 0) {
        /* In a child of a fork the set is the parent's as well: closing our number takes nothing out of it. */
        close(poller->set);
        poller->set = -1;
    }
    PyMem_Free(poller->entries);
    poller->entries = NULL;
    poller->size = poller->watched_count = poller->watched_sum = 0;
    PyMem_Free(poller->owners);
    poller->owners = NULL;
    poller->owners_size = 0;
}

int
poller_fork(LoopObject *loop)
{
    Poller *poller = &loop->io->poller;
    if (poller->set < 0 && poller->watched_count == 0) {
        return 0;
    }
    uvpoll_close(&poller->poll);
    if (poller->set >= 0) {
        close(poller->set);
    }
    poller->set = pollset_open();
    if (poller->set < 0) {
        return poller->set;
    }
    for (size_t fd = 0; fd < poller->size; fd++) {
        PollerEntry *entry = &poller->entries[fd];
        unsigned tag = is_edge(entry) ? entry->tag : 0;
        int err = entry->watched == 0 ? 0 : pollset_change_tagged(poller->set, (int)fd, 0, entry->watched, tag);
        if (err == -EBADF || err == -EPERM) {
            /* Closed meanwhile, and its number perhaps given to what cannot be polled. */
            note_watched(loop, (int)fd, entry, 0);
        } else if (err < 0) {
            return err;
        }
    }
    poller->is_unsure = false;
    note_changed(loop);
    return start_poll(loop);
}

int
poller_traverse(Poller *poller, visitproc visit, void *arg)
{
    for (size_t fd = 0; fd < poller->size; fd++) {
        PollerEntry *entry = &poller->entries[fd];
        Py_VISIT(entry->reader.owner);
        Py_VISIT(entry->writer.owner);
        Py_VISIT(entry->fileobj);
        Py_VISIT(entry->sock_ref);
    }
    return 0;
}
