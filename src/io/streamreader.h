/* The attributes of a standard StreamReader, for the C code that stands in for its methods.

   They are where asyncio keeps them, in the reader's __dict__, and are read each time. */

#ifndef FASTLOOP_IO_STREAMREADER_H
#define FASTLOOP_IO_STREAMREADER_H

#include "io/io.h"

/* A class whose methods must be those of asyncio. Looking is quick as long as nobody changes the class. */
typedef struct {
    PyTypeObject *type;
    /* Twice the version of the type that was looked at, 0 for none; odd if it was as it should be. */
    _Atomic uint64_t seen;
} KnownType;

enum {
    SPARE_SIZE = 128 * 1024,
    /* As many connections may have data in one poll. */
    SPARE_MAX = 64,
};

typedef struct StreamState {
    bool usable;        /* asyncio's classes are as they are known here; everything below is set */
    KnownType reader;   /* fastloop._streams.StreamReader, which readers become */
    KnownType stock;    /* asyncio.StreamReader */
    KnownType protocol; /* asyncio.StreamReaderProtocol */
    PyObject *is_original;
    PyObject *LimitOverrunError;
    PyObject *IncompleteReadError;
    /* Empty bytearrays with memory for a large read, which goes to the reader and comes back when that is empty. */
    PyObject *spares[SPARE_MAX];
    int spare_count;
    CompatMutex spare_lock;
} StreamState;

/* A bytearray of SPARE_SIZE bytes to read into; NULL without an exception where there is none. */
PyObject *spare_get(StreamState *streams);
/* Keeps one (stolen) for the next time, if it has the memory yet. */
void spare_put(StreamState *streams, PyObject *spare);
/* Empties a bytearray that has got the memory of a spare. */
void spare_take_back(StreamState *streams, PyObject *buffer);

/* Is the class as asyncio made it? 1 or 0, -1 with an exception. */
int known_check(StreamState *streams, KnownType *known);

/* What StreamReader.__init__() sets, in its order. */
typedef enum {
    FIELD_LIMIT,
    FIELD_LOOP,
    FIELD_BUFFER,
    FIELD_EOF,
    FIELD_WAITER,
    FIELD_EXCEPTION,
    FIELD_TRANSPORT,
    FIELD_PAUSED,
    FIELD_COUNT,
} ReaderField;

/* The attributes of a reader at one moment. Without a GIL another thread may set them to something else at any time: then
   they are held, and `buffer` is used with its lock, as bytearray's own methods (are going to) do. */
typedef struct {
    State *state;
    PyObject *dict;              /* strong */
    PyObject *held[FIELD_COUNT]; /* never NULL; with a GIL borrowed from `dict`, until anything is called */
    PyObject *buffer;            /* a bytearray, one of them */
    Py_ssize_t limit;            /* fits twice */
    bool eof;
    bool paused;
} ReaderView;

/* Opens a reader whose methods are native, if nothing was replaced on its class or on itself and its attributes are of
   the usual types. 1, 0 if the standard methods must be called, or -1 with an exception. */
int reader_open(State *state, PyObject *reader, ReaderView *view);

static inline void
reader_close(ReaderView *view)
{
    for (int i = 0; HAVE_FREE_THREADING && i < FIELD_COUNT; i++) {
        Py_DECREF(view->held[i]);
    }
    Py_DECREF(view->dict);
}

/* Sets an attribute; -1 with an exception. `held` is not touched. */
int reader_set(ReaderView *view, ReaderField field, PyObject *value);

extern PyMethodDef streamreader_methods[];

#endif
