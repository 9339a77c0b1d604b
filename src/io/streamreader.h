/* The attributes of a standard StreamReader, for the C code that stands in for its methods.

   They are where asyncio keeps them, in the reader's __dict__, and are looked up each time. Between two look-ups Python
   code may have run wherever something was called. */

#ifndef FASTLOOP_IO_STREAMREADER_H
#define FASTLOOP_IO_STREAMREADER_H

#include "io/io.h"

/* A class whose methods must be those of asyncio. Looking is quick as long as nobody changes the class. */
typedef struct {
    PyTypeObject *type;
    unsigned tag;  /* the version of the type that was looked at, 0 for none */
    bool original; /* ... and it was as it should be */
} KnownType;

typedef struct StreamState {
    bool usable; /* asyncio's classes are as they are known here; everything below is set */
    KnownType reader;   /* fastloop._streams.StreamReader, which readers become */
    KnownType stock;    /* asyncio.StreamReader */
    KnownType protocol; /* asyncio.StreamReaderProtocol */
    PyObject *is_original;
    PyObject *LimitOverrunError;
    PyObject *IncompleteReadError;
} StreamState;

/* Is the class as asyncio made it? 1 or 0, -1 with an exception. */
int known_check(StreamState *streams, KnownType *known);

/* The __dict__ (new) of a reader whose methods are native, if nothing was replaced on its class or on itself. NULL
   without an exception if the standard methods must be called, or with one. */
PyObject *reader_open(State *state, PyObject *reader);
/* Its buffer, if that is a plain bytearray; NULL without an exception. Borrowed. */
PyObject *reader_buffer(State *state, PyObject *dict);
/* An attribute that is True or False: 1 or 0, -1 without an exception when it is something else. */
int reader_flag(PyObject *dict, PyObject *name);
/* The limit, -1 without an exception when it is no int that fits. */
Py_ssize_t reader_limit(State *state, PyObject *dict);

/* One of the attributes, borrowed; NULL without an exception. */
static inline PyObject *
reader_get(PyObject *dict, PyObject *name)
{
    PyObject *value = PyDict_GetItemWithError(dict, name);
    if (UNLIKELY(value == NULL) && PyErr_Occurred()) {
        PyErr_Clear();
    }
    return value;
}

extern PyMethodDef streamreader_methods[];

#endif
