/* The wake-up descriptor of Python's signal handling.

   Used in the main thread of the main interpreter only, where Python delivers signals. Ours is installed around each
   run, and stays between runs while handlers are registered, so that no signal is lost in between; what was there
   before comes back, unless the program has put its own in place meanwhile. Until the loop handles signals the program's
   own goes on being told of each, as the standard loop would not touch it. */

#include "io/signals.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
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

/* read(), which passes on to the program's own descriptor what the loop has no use for. */
static ssize_t
take_numbers(const Signals *signals, unsigned char numbers[BATCH])
{
    ssize_t count = read(signals->read_end, numbers, BATCH);
    if (count > 0 && !signals->keep && signals->previous >= 0) {
        /* Where it is full or closed, Python's own signal handler would fail in the same way. */
        ssize_t sent = write(signals->previous, numbers, (size_t)count);
        (void)sent;
    }
    return count;
}

/* ready_run: handles what has come. */
static int
run_signals(LoopObject *loop, PyObject *Py_UNUSED(owner), PyObject *Py_UNUSED(arg))
{
    unsigned char numbers[BATCH];
    ssize_t count;
    do {
        count = loop->io == NULL ? 0 : take_numbers(&loop->io->signals, numbers);
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
        signals->previous = previous;
    }
    signals->installed = true;
    return 0;
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
    int current = set_wakeup_fd(loop, signals->previous);
    if (current == -2) {
        /* What was there has been closed since. */
        PyErr_Clear();
        current = set_wakeup_fd(loop, -1);
    }
    if (current >= 0 && current != signals->write_end) {
        /* The program has set its own meanwhile. */
        current = set_wakeup_fd(loop, current);
    }
    if (current == -2) {
        /* Another thread than the main one closes the loop: nothing can be done about it. */
        PyErr_Clear();
    }
    if (signals->previous >= 0) {
        unsigned char numbers[BATCH];
        while (take_numbers(signals, numbers) == BATCH) {
        }
    }
    signals->previous = -1;
    if (exc != NULL) {
        compat_restore_exception(exc);
    }
}

void
signals_close(LoopObject *loop)
{
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
        if (!keep && loop->thread_id == 0) {
            uninstall(loop);
        }
    }
    Py_RETURN_NONE;
}
