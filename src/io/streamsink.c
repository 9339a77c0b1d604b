/* Feeding the standard StreamReader, and what the native streams know of asyncio's classes. */

#include "io/streamsink.h"

#include "base/bytearrays.h"
#include "io/streamreader.h"

/* Less than this is copied: whoever does not read holds as much memory as a whole spare. */
enum { SWAPPED_MINIMUM = SINK_BULK };

/* ---- the part of the module state ---- */

/* Imports fastloop._streams. Where asyncio is not as it is known here, the streams stay `usable` = false. */
static int
load(StreamState *streams)
{
    PyObject *module = PyImport_ImportModule("fastloop._streams");
    if (module == NULL) {
        return -1;
    }
    PyObject *found[6] = {NULL};
    static const char *const names[6] = {"StreamReader", "stock_reader",      "stock_protocol",
                                         "is_original",  "LimitOverrunError", "IncompleteReadError"};
    bool complete = true;
    for (int i = 0; i < 6; i++) {
        found[i] = PyObject_GetAttrString(module, names[i]);
        complete = complete && found[i] != NULL;
    }
    PyObject *known = complete ? PyObject_CallMethod(module, "is_known", NULL) : NULL;
    streams->reader.type = (PyTypeObject *)found[0];
    streams->stock.type = (PyTypeObject *)found[1];
    streams->protocol.type = (PyTypeObject *)found[2];
    streams->is_original = found[3];
    streams->LimitOverrunError = found[4];
    streams->IncompleteReadError = found[5];
    streams->usable = known == Py_True;
    Py_XDECREF(known);
    Py_DECREF(module);
    return known == NULL ? -1 : 0;
}

static void
release(StreamState *streams)
{
    Py_XDECREF((PyObject *)streams->reader.type);
    Py_XDECREF((PyObject *)streams->stock.type);
    Py_XDECREF((PyObject *)streams->protocol.type);
    Py_XDECREF(streams->is_original);
    Py_XDECREF(streams->LimitOverrunError);
    Py_XDECREF(streams->IncompleteReadError);
    while (streams->spare_count > 0) {
        Py_DECREF(streams->spares[--streams->spare_count]);
    }
    PyMem_Free(streams);
}

/* The part, made when the first stream is opened; NULL where there are no native streams. */
static StreamState *
find_streams(State *state)
{
    StreamState *streams = state->streams;
    if (UNLIKELY(streams == NULL)) {
        StreamState *made = PyMem_Calloc(1, sizeof(StreamState));
        if (made == NULL) {
            return NULL;
        }
        if (load(made) < 0) {
            PyErr_Clear();
        }
        if (atomic_compare_exchange_strong(&state->streams, &streams, made)) {
            streams = made;
        } else {
            /* Another thread was quicker. */
            release(made);
        }
    }
    return streams->usable ? streams : NULL;
}

int
streams_exec(PyObject *module, State *state)
{
    if (PyModule_AddFunctions(module, streamreader_methods) < 0) {
        return -1;
    }
    /* FASTLOOP_DISABLE=streams sets it to False on the instance. */
    return PyObject_SetAttr((PyObject *)state->LoopType, state->str__use_native_streams, Py_True);
}

int
streams_traverse(State *state, visitproc visit, void *arg)
{
    StreamState *streams = state->streams;
    if (streams != NULL) {
        Py_VISIT((PyObject *)streams->reader.type);
        Py_VISIT((PyObject *)streams->stock.type);
        Py_VISIT((PyObject *)streams->protocol.type);
        Py_VISIT(streams->is_original);
        Py_VISIT(streams->LimitOverrunError);
        Py_VISIT(streams->IncompleteReadError);
    }
    return 0;
}

void
streams_clear(State *state)
{
    StreamState *streams = state->streams;
    state->streams = NULL;
    if (streams != NULL) {
        release(streams);
    }
}

/* ---- memory for large reads ---- */

PyObject *
spare_get(StreamState *streams)
{
    PyObject *spare = NULL;
    compat_mutex_lock(&streams->spare_lock);
    if (streams->spare_count > 0) {
        spare = streams->spares[--streams->spare_count];
    }
    compat_mutex_unlock(&streams->spare_lock);
    if (spare == NULL) {
        spare = PyByteArray_FromStringAndSize(NULL, SPARE_SIZE);
    }
    if (spare == NULL) {
        PyErr_Clear();
    }
    return spare;
}

void
spare_put(StreamState *streams, PyObject *spare)
{
    Py_ssize_t size = bytearray_allocated(spare);
    bool fits = size > SPARE_SIZE && size <= 2 * SPARE_SIZE;
    if (fits) {
        bytearray_reset(spare, SPARE_SIZE);
    }
    compat_mutex_lock(&streams->spare_lock);
    if (fits && streams->spare_count < SPARE_MAX) {
        streams->spares[streams->spare_count++] = spare;
        spare = NULL;
    }
    compat_mutex_unlock(&streams->spare_lock);
    Py_XDECREF(spare);
}

void
spare_take_back(StreamState *streams, PyObject *buffer)
{
    PyObject *spare = PyByteArray_FromStringAndSize(NULL, 0);
    if (spare == NULL) {
        PyErr_Clear();
        bytearray_reset(buffer, 0);
        return;
    }
    bytearray_swap(buffer, spare);
    spare_put(streams, spare);
}

/* ---- looking at the objects ---- */

int
known_check(StreamState *streams, KnownType *known)
{
    uint64_t seen = atomic_load_explicit(&known->seen, memory_order_relaxed);
    unsigned tag = compat_type_version(known->type);
    if (LIKELY(tag != 0 && seen >> 1 == tag)) {
        return (int)(seen & 1);
    }
    PyObject *result = PyObject_CallOneArg(streams->is_original, (PyObject *)known->type);
    if (result == NULL) {
        return -1;
    }
    int original = result == Py_True;
    Py_DECREF(result);
    /* Looking may have given the class its number, and another thread may have changed it meanwhile. */
    if (tag == compat_type_version(known->type)) {
        atomic_store_explicit(&known->seen, (uint64_t)tag << 1 | (unsigned)original, memory_order_relaxed);
    }
    return original;
}

/* The reader (new) of a protocol that is exactly asyncio's, Py_None when it is gone. NULL without an exception when
   the protocol must be called, or with one. */
static PyObject *
find_reader(State *state, StreamState *streams, PyObject *protocol)
{
    if (!Py_IS_TYPE(protocol, streams->protocol.type) || known_check(streams, &streams->protocol) <= 0) {
        return NULL;
    }
    PyObject *dict = PyObject_GenericGetDict(protocol, NULL);
    if (dict == NULL) {
        return NULL;
    }
    PyObject *reader = NULL;
    PyObject *ref = compat_dict_get(dict, state->str__stream_reader_wr);
    if (ref != NULL && PyDict_Contains(dict, state->str_data_received) == 0) {
        if (ref == Py_None) {
            reader = Py_NewRef(Py_None);
        } else if (PyWeakref_CheckRefExact(ref)) {
            reader = compat_weakref_get(ref);
            reader = reader == NULL ? Py_NewRef(Py_None) : reader;
        }
    }
    Py_XDECREF(ref);
    Py_DECREF(dict);
    return reader;
}

/* ---- attaching ---- */

static bool
is_wanted(LoopObject *loop)
{
    if (loop->debug) {
        return false;
    }
    PyObject *value = PyObject_GetAttr((PyObject *)loop, loop->state->str__use_native_streams);
    bool wanted = value == Py_True;
    Py_XDECREF(value);
    return wanted;
}

/* reader.__class__ = type, which is a subclass with no attribute of its own. Without a GIL that stops all threads, for each
   connection. And who forks meanwhile has a child in which nothing can stop threads any more, garbage collection neither. So
   it is done by hand there: as soon as the attributes have been moved into the dict, out of the object where its class
   knows their places, one pointer is different. */
static int
become(State *state, PyObject *reader, PyTypeObject *type)
{
#if HAVE_FREE_THREADING
    PyTypeObject *stock = Py_TYPE(reader);
    assert(type->tp_base == stock && type->tp_basicsize == stock->tp_basicsize);
    PyObject *dict = PyObject_GenericGetDict(reader, NULL);
    int err = dict == NULL ? -1 : PyObject_SetAttr(reader, state->str___dict__, dict);
    Py_XDECREF(dict);
    if (err == 0) {
        Py_SET_TYPE(reader, (PyTypeObject *)Py_NewRef((PyObject *)type));
        Py_DECREF((PyObject *)stock);
    }
    return err;
#else
    return PyObject_SetAttr(reader, state->str___class__, (PyObject *)type);
#endif
}

bool
sink_attach(LoopObject *loop, PyObject *protocol)
{
    State *state = loop->state;
    if (strcmp(Py_TYPE(protocol)->tp_name, "StreamReaderProtocol") != 0 || !is_wanted(loop)) {
        PyErr_Clear();
        return false;
    }
    StreamState *streams = find_streams(state);
    PyObject *reader = streams == NULL ? NULL : find_reader(state, streams, protocol);
    bool accepted = reader != NULL && Py_IS_TYPE(reader, streams->reader.type);
    if (reader != NULL && Py_IS_TYPE(reader, streams->stock.type) && known_check(streams, &streams->stock) > 0) {
        accepted = become(state, reader, streams->reader.type) == 0;
    }
    Py_XDECREF(reader);
    PyErr_Clear();
    return accepted;
}

/* ---- feeding ---- */

/* The last part of feed_data(): pauses a transport (stolen) that has delivered more than twice the limit. */
static int
pause_transport(ReaderView *view, PyObject *transport)
{
    PyObject *result = PyObject_CallMethodNoArgs(transport, view->state->str_pause_reading);
    Py_DECREF(transport);
    if (result != NULL) {
        Py_DECREF(result);
        return reader_set(view, FIELD_PAUSED, Py_True);
    }
    if (!PyErr_ExceptionMatches(PyExc_NotImplementedError)) {
        return -1;
    }
    PyErr_Clear();
    return reader_set(view, FIELD_TRANSPORT, Py_None);
}

/* `self._wakeup_waiter()` */
static int
wake_waiter(ReaderView *view)
{
    State *state = view->state;
    PyObject *waiter = view->held[FIELD_WAITER];
    if (waiter == Py_None) {
        return 0;
    }
    Py_INCREF(waiter);
    int done = reader_set(view, FIELD_WAITER, Py_None) < 0 ? -1 : state->complete_future(state, waiter, Py_None);
    if (done == 0) {
        /* The loop has other futures than ours. */
        PyObject *result = PyObject_CallFunctionObjArgs(state->set_result_unless_cancelled, waiter, Py_None, NULL);
        done = result == NULL ? -1 : 1;
        Py_XDECREF(result);
    }
    Py_DECREF(waiter);
    return done < 0 ? -1 : 0;
}

/* self._buffer.extend(data). When `data` are in a spare, which is then `owner`, and the buffer is empty, then it gets
   the memory. */
static int
extend(ReaderView *view, const char *data, Py_ssize_t size, PyObject *owner)
{
    if (owner == NULL || size < SWAPPED_MINIMUM || PyByteArray_GET_SIZE(view->buffer) > 0) {
        return bytearray_append(view->buffer, data, size);
    }
    bytearray_reset(owner, size);
    bytearray_swap(view->buffer, owner);
    return 0;
}

/* reader.feed_data(data): 1, 0 when the method must be called, -1 with an exception. */
static int
feed_reader(ReaderView *view, const char *data, Py_ssize_t size, PyObject *owner)
{
    if (view->eof) {
        return 0;
    }
    PyObject *transport = view->held[FIELD_TRANSPORT];
    bool full = false;
    int taken = 0;
    FL_BEGIN_CRITICAL_SECTION(view->buffer);
    if (bytearray_may_resize(view->buffer)) {
        full = !view->paused && transport != Py_None && PyByteArray_GET_SIZE(view->buffer) + size > 2 * view->limit;
        Py_XINCREF(full ? transport : NULL);
        taken = extend(view, data, size, owner) < 0 ? -1 : 1;
    }
    FL_END_CRITICAL_SECTION();
    if (taken == 0) {
        return 0;
    }
    if (taken < 0 || wake_waiter(view) < 0) {
        Py_XDECREF(full ? transport : NULL);
        return -1;
    }
    return full && pause_transport(view, transport) < 0 ? -1 : 1;
}

int
sink_feed(State *state, PyObject *protocol, const char *data, Py_ssize_t size, PyObject *owner)
{
    StreamState *streams = state->streams;
    PyObject *reader = streams == NULL || !streams->usable ? NULL : find_reader(state, streams, protocol);
    if (reader == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    int taken = 1;
    if (reader != Py_None) {
        ReaderView view;
        taken = reader_open(state, reader, &view);
        if (taken == 1) {
            taken = feed_reader(&view, data, size, owner);
            reader_close(&view);
        }
    }
    Py_DECREF(reader);
    return taken;
}

PyObject *
sink_buffer(State *state)
{
    StreamState *streams = state->streams;
    return HAVE_BYTEARRAY_MEMORY && streams != NULL && streams->usable ? spare_get(streams) : NULL;
}

void
sink_buffer_done(State *state, PyObject *buffer)
{
    if (state->streams == NULL) {
        Py_DECREF(buffer);
    } else {
        spare_put(state->streams, buffer);
    }
}
