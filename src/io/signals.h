/* The wake-up descriptor of Python's signal handling, and how a signal reaches loop.add_signal_handler().

   The interpreter's C handler writes the number of each signal to one end of a socketpair; a uv_poll of its own watches
   the other, so a poll that blocks ends at once. */

#ifndef FASTLOOP_IO_SIGNALS_H
#define FASTLOOP_IO_SIGNALS_H

#include "compat.h"

typedef struct LoopObject LoopObject;

typedef struct {
    uv_poll_t *poll; /* allocated apart; NULL until the first use */
    int read_end;    /* -1 until the first use */
    int write_end;
    int previous; /* the wake-up descriptor that was there before ours */
    dev_t previous_dev;
    ino_t previous_ino;
    bool installed;
    bool keep; /* handlers are registered: stay installed between runs */
} Signals;

void signals_init(Signals *signals);
/* Gives the wake-up descriptor back and closes both ends; runs no Python code. */
void signals_close(LoopObject *loop);
/* In a forked child: a socketpair of its own. A negative libuv code on failure. */
int signals_fork(LoopObject *loop);

/* Methods of the loop; io.c has the table. The first raises ValueError outside the main thread of the main interpreter.
   keep(flag): stay installed between runs, because handlers are registered. */
PyObject *Loop_install_wakeup_fd(PyObject *op, PyObject *ignored);
PyObject *Loop_uninstall_wakeup_fd(PyObject *op, PyObject *ignored);
PyObject *Loop_keep_wakeup_fd(PyObject *op, PyObject *flag);

#endif
