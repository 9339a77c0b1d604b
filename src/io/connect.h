/* Connector: a TCP connection to a numeric address that is being made, for create_connection(). */

#ifndef FASTLOOP_IO_CONNECT_H
#define FASTLOOP_IO_CONNECT_H

#include "sched/loop.h"

extern PyType_Spec Connector_spec;

/* LoopHooks.collect: queues what is decided. */
void connect_collect(LoopObject *loop);
/* Drops it. */
void connect_forget(LoopObject *loop);

PyObject *Loop_start_connecting(PyObject *op, PyObject *const *args, Py_ssize_t nargs);

#endif
