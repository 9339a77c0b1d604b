/* Where a transport puts the bytes of an asyncio stream: straight into the standard StreamReader.

   When a transport serves exactly the standard StreamReaderProtocol with the standard StreamReader, the methods of both
   as asyncio has them, then `protocol.data_received(data)` does nothing but to append to the reader's buffer, to wake up
   its waiter and to pause the transport. The sink does the same on the same attributes, without the bytes object and
   without the calls. It keeps no state: whatever Python code does to the objects in between, the next bytes see it. */

#ifndef FASTLOOP_IO_STREAMSINK_H
#define FASTLOOP_IO_STREAMSINK_H

#include "io/io.h"

/* What a transport asks when it is given a protocol: may the sink take its bytes? The reader then gets native methods,
   too (see streamreader.c). Cannot fail: where it does not work, the protocol is called as any other. */
bool sink_attach(LoopObject *loop, PyObject *protocol);

/* protocol.data_received(data), for a protocol that sink_attach() has accepted; `size` is above 0. The
   `owner` of the data is NULL or what came from sink_buffer(), with the data at its start. Returns 1 when the
   bytes were taken, 0 when the protocol must be called after all, -1 with the exception that data_received() raises. */
int sink_feed(State *state, PyObject *protocol, const char *data, Py_ssize_t size, PyObject *owner);

/* A peer that sends as much at once will do so again: reading into memory that the reader can take over saves a copy,
   and the pages that malloc would map and unmap for each message. */
enum { SINK_BULK = 32 * 1024 };

/* Such memory: a bytearray to read into, and then the `owner` of the data for sink_feed(). NULL without an exception
   where there is none. */
PyObject *sink_buffer(State *state);
/* ... which must be given back afterwards in any case. */
void sink_buffer_done(State *state, PyObject *buffer);

/* For module.c: the part of the module state, and the functions that fastloop._streams calls. */
int streams_exec(PyObject *module, State *state);
int streams_traverse(State *state, visitproc visit, void *arg);
void streams_clear(State *state);

#endif
