/* Listener: a listening socket that accepts for asyncio.Server. */

#ifndef FASTLOOP_IO_SERVER_H
#define FASTLOOP_IO_SERVER_H

#include "sched/loop.h"

extern PyType_Spec Listener_spec;

PyObject *Loop_start_serving(PyObject *op, PyObject *args, PyObject *kwargs);

#endif
