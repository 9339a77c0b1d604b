/* asyncio.Server's count of its connections, kept without calling Python. */

#ifndef FASTLOOP_IO_CLIENTS_H
#define FASTLOOP_IO_CLIENTS_H

#include "io/transport.h"

/* server._attach(transport) and server._detach(transport), or without the argument, as the running Python has them.
   -1 with an exception. */
int clients_attach(SocketTransport *transport, PyObject *server);
int clients_detach(SocketTransport *transport, PyObject *server);

/* The method of the loop: are the two done here, where nobody has replaced anything? */
PyObject *Loop_set_native_servers(PyObject *op, PyObject *flag);

#endif
