/* The wake-up descriptor of Python's signal handling.

   Used in the main thread of the main interpreter only, where Python delivers signals. Ours is installed around each
   run, and stays between runs while handlers are registered, so that no signal is lost in between; what was there
   before comes back, unless the program has put its own in place meanwhile. While the loop handles no signals, what was
   there before is told of each: its owner (a reactor that waits for SIGCHLD) may run on this very loop, and the standard
   one leaves it installed then. */

#include "io/signals.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/uverror.h"
#include "base/uvpoll.h"
#include "io/io.h"
#include "io/transport.h"
#include "sched/loop.h"

enum { BATCH = 1024 };

void
signals_init(Signals *signals)
{
    *signals = (Signals){.read_end = -1, .write_end = -1, .previous = -1};
}

/* ---- the pair ---- */

static int
make_pair(int pair[2])
{
#if HAVE_SOCKET_FLAGS
    return socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0 ? -errno : 0;
#else
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0) {
        return -errno;
    }
    for (int i = 0; i < 2; i++) {
        if (fcntl(pair[i], F_SETFD, FD_CLOEXEC) < 0 || fcntl(pair[i], F_SETFL, O_NONBLOCK) < 0) {
            int err = -errno;
            close(pair[0]);
            close(pair[1]);
            return err;
        }
    }
    return 0;
#endif
}

static void
handle_signal(LoopObject *loop, unsigned char number)
{
    PyObject *signum = PyLong_FromLong(number);
    PyObject *result =
        signum == NULL ? NULL : PyObject_CallMethodOneArg((PyObject *)loop, loop->state->str__handle_signal, signum);
    Py_XDECREF(signum);
    Py_XDECREF(result);
    if (result == NULL) {
        loop_report(loop, "Handling a signal failed", NULL);
    }
}

/* Remembers what was there before, and which file that is. */
static void
set_previous(Signals *signals, int fd)
{
    struct stat status;
    bool is_open = fd >= 0 && fstat(fd, &status) == 0;
    signals->previous = fd;
    signals->previous_dev = is_open ? status.st_dev : 0;
    signals->previous_ino = is_open ? status.st_ino : 0;
}

/* Is the number of what was there before still that of the same file? */
static bool
is_previous_open(Signals *signals)
{
    struct stat status;
    return signals->previous >= 0 && fstat(signals->previous, &status) == 0 && status.st_dev == signals->previous_dev &&
           status.st_ino == signals->previous_ino;
}

/* Tells what was there before, as Python would have. Not under a number that names another file by now. */
static void
forward(Signals *signals, const unsigned char *numbers, ssize_t count)
{
    if (!signals->keep && is_previous_open(signals)) {
        /* It is non-blocking, as Python demands, and a full one has enough to wake up for. */
        ssize_t written = write(signals->previous, numbers, (size_t)count);
        (void)written;
    }
}

/* ready_run: handles what has come. */
static int
run_signals(LoopObject *loop, PyObject *Py_UNUSED(owner), PyObject *Py_UNUSED(arg))
{
    unsigned char numbers[BATCH];
    ssize_t count;
    do {
        count = loop->io == NULL ? 0 : read(loop->io->signals.read_end, numbers, sizeof(numbers));
        if (count > 0) {
            forward(&loop->io->signals, numbers, count);
        }
        for (ssize_t i = 0; i < count; i++) {
            if (numbers[i] != 0) {
                handle_signal(loop, numbers[i]);
            }
        }
    } while (count == BATCH || (count < 0 && errno == EINTR));
    return 0;
}

/* Signals have come. Python's own handlers run right now; those of the loop are queued by a record, as the standard loop
   has a reader do it. */
static void
on_signals(uv_poll_t *poll, int Py_UNUSED(status), int Py_UNUSED(events))
{
    LoopObject *loop = poll->data;
    if (loop == NULL) {
        return;
    }
    loop_enter(loop);
    if (PyErr_CheckSignals() < 0) {
        loop_raise_later(loop);
    }
    if (loop_push(loop, run_signals, Py_None, NULL) < 0) {
        PyErr_Clear();
        (void)run_signals(loop, NULL, NULL);
    }
}

/* Has libuv watch the pair. A negative libuv code on failure. */
static int
start_poll(LoopObject *loop)
{
    Signals *signals = &loop->io->signals;
    return uvpoll_open(loop->uv, signals->read_end, on_signals, loop, &signals->poll);
}

/* ready_run: the start of the uv_poll, when the main thread handles signals for a loop that runs in another. */
static int
run_start_poll(LoopObject *loop, PyObject *Py_UNUSED(owner), PyObject *Py_UNUSED(arg))
{
    if (loop->io != NULL && loop->io->signals.read_end >= 0 && loop->io->signals.poll == NULL) {
        int err = start_poll(loop);
        if (err < 0) {
            uverror_raise(err);
            loop_report(loop, "Polling failed", NULL);
        }
    }
    return 0;
}

/* -1 with an exception. */
static int
watch_pair(LoopObject *loop)
{
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

static void
close_pair(Signals *signals)
{
    uvpoll_close(&signals->poll);
    if (signals->read_end >= 0) {
        close(signals->read_end);
        close(signals->write_end);
        signals->read_end = signals->write_end = -1;
    }
}

/* Makes the pair at the first use; -1 with an exception. */
static int
ensure_pair(LoopObject *loop)
{
    Signals *signals = &loop->io->signals;
    if (signals->read_end >= 0) {
        return 0;
    }
    int pair[2];
    int err = make_pair(pair);
    if (err < 0) {
        uverror_raise(err);
        return -1;
    }
    transport_check_number(loop, pair[0]);
    transport_check_number(loop, pair[1]);
    signals->read_end = pair[0];
    signals->write_end = pair[1];
    if (watch_pair(loop) < 0) {
        close_pair(signals);
        return -1;
    }
    return 0;
}

/* ---- installing ---- */

/* signal.set_wakeup_fd(fd): what was there before, -1 for none. -2 with ValueError in the wrong thread. */
static int
set_wakeup_fd(LoopObject *loop, int fd)
{
    PyObject *previous = PyObject_CallFunction(loop->state->signal_set_wakeup_fd, "i", fd);
    if (previous == NULL) {
        return -2;
    }
    long number = PyLong_AsLong(previous);
    Py_DECREF(previous);
    return (int)number;
}

/* -1 with ValueError outside the main thread of the main interpreter. */
static int
install(LoopObject *loop)
{
    Signals *signals = &loop->io->signals;
    int previous = set_wakeup_fd(loop, signals->write_end);
    if (previous == -2) {
        return -1;
    }
    if (previous != signals->write_end) {
        set_previous(signals, previous);
    }
    signals->installed = true;
    return 0;
}

/* Hands on what has come too late for this run; with handlers of the loop it waits for the next. */
static void
forward_rest(Signals *signals)
{
    unsigned char numbers[BATCH];
    while (signals->previous >= 0 && !signals->keep) {
        ssize_t count = read(signals->read_end, numbers, sizeof(numbers));
        if (count <= 0) {
            break;
        }
        forward(signals, numbers, count);
    }
}

static void
uninstall(LoopObject *loop)
{
    Signals *signals = &loop->io->signals;
    if (!signals->installed) {
        return;
    }
    signals->installed = false;
    PyObject *exc = compat_take_exception();
    int current = set_wakeup_fd(loop, is_previous_open(signals) ? signals->previous : -1);
    if (current == -2) {
        /* What was there blocks by now. */
        PyErr_Clear();
        current = set_wakeup_fd(loop, -1);
    }
    if (current != -2 && current != signals->write_end) {
        /* The program has set its own meanwhile, or taken ours away, and with it what was there. */
        current = set_wakeup_fd(loop, current);
    }
    if (current == -2) {
        /* Another thread than the main one closes the loop: nothing can be done about it. */
        PyErr_Clear();
    }
    forward_rest(signals);
    signals->previous = -1;
    if (exc != NULL) {
        compat_restore_exception(exc);
    }
}

void
signals_close(LoopObject *loop)
{
    /* Another loop may have found ours there, and put it back after we had taken it away. */
    loop->io->signals.installed |= loop->io->signals.write_end >= 0;
    uninstall(loop);
    close_pair(&loop->io->signals);
}

int
signals_fork(LoopObject *loop)
{
    Signals *signals = &loop->io->signals;
    if (signals->read_end < 0) {
        return 0;
    }
    int pair[2];
    int err = make_pair(pair);
    if (err < 0) {
        return err;
    }
    /* Under the number that it had: whatever thread this is, Python goes on writing to that. */
    if (dup2(pair[1], signals->write_end) < 0 || fcntl(signals->write_end, F_SETFD, FD_CLOEXEC) < 0) {
        err = -errno;
        close(pair[0]);
        close(pair[1]);
        return err;
    }
    close(pair[1]);
    uvpoll_close(&signals->poll);
    close(signals->read_end);
    signals->read_end = pair[0];
    return start_poll(loop);
}

/* ---- methods of the loop ---- */

PyObject *
Loop_install_wakeup_fd(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    if (UNLIKELY(gate_is_shut(LoopObject_CAST(op)->gate))) {
        return gate_call(LoopObject_CAST(op)->gate, Loop_install_wakeup_fd, op, NULL);
    }
    LoopObject *loop = LoopObject_CAST(op);
    if (loop_check_open(loop) < 0 || ensure_pair(loop) < 0 || install(loop) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyObject *
Loop_uninstall_wakeup_fd(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    if (UNLIKELY(gate_is_shut(LoopObject_CAST(op)->gate))) {
        return gate_call(LoopObject_CAST(op)->gate, Loop_uninstall_wakeup_fd, op, NULL);
    }
    LoopObject *loop = LoopObject_CAST(op);
    if (loop->io != NULL && !loop->io->signals.keep) {
        uninstall(loop);
    }
    Py_RETURN_NONE;
}

PyObject *
Loop_keep_wakeup_fd(PyObject *op, PyObject *flag)
{
    if (UNLIKELY(gate_is_shut(LoopObject_CAST(op)->gate))) {
        return gate_call(LoopObject_CAST(op)->gate, Loop_keep_wakeup_fd, op, flag);
    }
    LoopObject *loop = LoopObject_CAST(op);
    int keep = PyObject_IsTrue(flag);
    if (keep < 0) {
        return NULL;
    }
    if (loop->io != NULL) {
        loop->io->signals.keep = keep;
        /* A run in this thread needs it to its end; one in another thread is told of no signals without handlers. */
        if (!keep && loop->thread_id != compat_thread_ident()) {
            uninstall(loop);
        }
    }
    Py_RETURN_NONE;
}
