/* SocketTransport for Python: its methods, attributes and slots. */

#include "io/transport.h"

#include "base/args.h"

/* ---- methods ---- */

static PyObject *
none_or_null(int err)
{
    return err < 0 ? NULL : Py_NewRef(Py_None);
}

/* For a method that is left to the loop's thread. */
static PyObject *
deferred(void)
{
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

static PyObject *
SocketTransport_close(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call(SocketTransport_CAST(op)->gate, SocketTransport_close, op, NULL);
    }
    SocketTransport *self = SocketTransport_CAST(op);
    self->unclosed = false;
    if (!self->closing && transport_defer_to_loop(self, "close", true)) {
        return deferred();
    }
    return none_or_null(transport_close(self));
}

static PyObject *
SocketTransport_abort(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call(SocketTransport_CAST(op)->gate, SocketTransport_abort, op, NULL);
    }
    SocketTransport *self = SocketTransport_CAST(op);
    if (!self->conn_lost && transport_defer_to_loop(self, "abort", true)) {
        return deferred();
    }
    return none_or_null(transport_force_close(self, Py_None));
}

static PyObject *
SocketTransport_force_close(PyObject *op, PyObject *exc)
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call(SocketTransport_CAST(op)->gate, SocketTransport_force_close, op, exc);
    }
    return none_or_null(transport_force_close(SocketTransport_CAST(op), exc));
}

static PyObject *
SocketTransport_fatal_error(PyObject *op, PyObject *args, PyObject *kwargs)
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call_keywords(SocketTransport_CAST(op)->gate, SocketTransport_fatal_error, op, args, kwargs);
    }
    static const char *const names[] = {"exc", "message", NULL};
    PyObject *exc;
    const char *message = "Fatal error on transport";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|s:_fatal_error", (char **)names, &exc, &message)) {
        return NULL;
    }
    if (!PyExceptionInstance_Check(exc)) {
        PyErr_Format(PyExc_TypeError, "exc must be an exception, not %R", exc);
        return NULL;
    }
    return none_or_null(transport_fatal_error(SocketTransport_CAST(op), exc, message));
}

static PyObject *
SocketTransport_call_connection_lost(PyObject *op, PyObject *exc)
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call(SocketTransport_CAST(op)->gate, SocketTransport_call_connection_lost, op, exc);
    }
    return transport_call_lost(SocketTransport_CAST(op), exc);
}

static PyObject *
SocketTransport_is_closing(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(SocketTransport_CAST(op)->closing && !SocketTransport_CAST(op)->unclosed);
}

static PyObject *
SocketTransport_is_reading(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(transport_wants_reading(SocketTransport_CAST(op)));
}

static PyObject *
SocketTransport_pause_reading(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call(SocketTransport_CAST(op)->gate, SocketTransport_pause_reading, op, NULL);
    }
    SocketTransport *self = SocketTransport_CAST(op);
    /* Before the state is looked at, which another call of that thread may be about to change. */
    if (transport_defer_to_loop(self, "pause_reading", false)) {
        return deferred();
    }
    if (!transport_wants_reading(self)) {
        Py_RETURN_NONE;
    }
    self->paused = true;
    transport_stop_reading(self);
    transport_log_debug(self, "%r pauses reading");
    Py_RETURN_NONE;
}

static PyObject *
SocketTransport_resume_reading(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call(SocketTransport_CAST(op)->gate, SocketTransport_resume_reading, op, NULL);
    }
    SocketTransport *self = SocketTransport_CAST(op);
    if (transport_defer_to_loop(self, "resume_reading", false)) {
        return deferred();
    }
    if (self->closing || !self->paused) {
        Py_RETURN_NONE;
    }
    if (self->loop != NULL && loop_check_open(self->loop) < 0) {
        return NULL;
    }
    self->paused = false;
    if (self->fixed_context == NULL) {
        /* The standard loop registers a new reader, which copies the context of this call. */
        PyObject *context = PyContext_CopyCurrent();
        if (context == NULL) {
            return NULL;
        }
        Py_XSETREF(self->context, context);
    }
    if (!self->starting && transport_start_reading(self) < 0) {
        return NULL;
    }
    transport_log_debug(self, "%r resumes reading");
    Py_RETURN_NONE;
}

static PyObject *
SocketTransport_set_protocol(PyObject *op, PyObject *protocol)
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call(SocketTransport_CAST(op)->gate, SocketTransport_set_protocol, op, protocol);
    }
    return none_or_null(transport_set_protocol(SocketTransport_CAST(op), protocol));
}

static PyObject *
SocketTransport_get_protocol(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call(SocketTransport_CAST(op)->gate, SocketTransport_get_protocol, op, NULL);
    }
    PyObject *protocol = SocketTransport_CAST(op)->protocol;
    return Py_NewRef(protocol == NULL ? Py_None : protocol);
}

static PyObject *
SocketTransport_can_write_eof(PyObject *Py_UNUSED(op), PyObject *Py_UNUSED(ignored))
{
    Py_RETURN_TRUE;
}

static PyObject *
SocketTransport_get_write_buffer_size(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call(SocketTransport_CAST(op)->gate, SocketTransport_get_write_buffer_size, op, NULL);
    }
    return PyLong_FromSize_t(transport_buffer_size(SocketTransport_CAST(op)));
}

PyDoc_STRVAR(SocketTransport_lend_doc,
             "_lend_fd($self, lent, /)\n--\n\n"
             "Let add_reader() and add_writer() take the descriptor (lent=True), as sendfile() needs it, or not.");

static PyObject *
SocketTransport_lend_fd(PyObject *op, PyObject *flag)
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call(SocketTransport_CAST(op)->gate, SocketTransport_lend_fd, op, flag);
    }
    SocketTransport *self = SocketTransport_CAST(op);
    int lent = PyObject_IsTrue(flag);
    if (lent < 0) {
        return NULL;
    }
    if (self->stream != NULL) {
        SocketTransport *owner = poller_get_transport(self->loop, self->fd);
        if (owner == NULL || owner == self) {
            return none_or_null(poller_set_transport(self->loop, self->fd, lent ? NULL : self));
        }
    }
    Py_RETURN_NONE;
}

static PyObject *
describe(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    SocketTransport *self = SocketTransport_CAST(op);
    const char *state = self->unclosed                     ? ""
                        : self->over && self->loop == NULL ? " closed"
                        : self->closing                    ? " closing"
                                                           : "";
    if (self->loop == NULL || self->loop->closed) {
        return PyUnicode_FromFormat("<SocketTransport%s fd=%d>", state, self->fd);
    }
    return PyUnicode_FromFormat("<SocketTransport%s fd=%d read=%s write=<%s, bufsize=%zu>>", state, self->fd,
                                self->reading ? "polling" : "idle",
                                self->writing && !self->conn_lost ? "polling" : "idle", transport_buffer_size(self));
}

static PyObject *
SocketTransport_repr(PyObject *op)
{
    GateObject *gate = SocketTransport_CAST(op)->gate;
    return gate_is_shut(gate) ? gate_call(gate, describe, op, NULL) : describe(op, NULL);
}

/* ---- attributes ---- */

#if HAVE_FREE_THREADING
/* Getters and setters have no check of their own. */
static PyObject *
SocketTransport_getattro(PyObject *op, PyObject *name)
{
    return gate_getattro(SocketTransport_CAST(op)->gate, op, name);
}

static int
SocketTransport_setattro(PyObject *op, PyObject *name, PyObject *value)
{
    return gate_setattro(SocketTransport_CAST(op)->gate, op, name, value);
}
#endif

static PyObject *
or_none(PyObject *value)
{
    return Py_NewRef(value == NULL ? Py_None : value);
}

static PyObject *
get_loop(PyObject *op, void *Py_UNUSED(closure))
{
    return or_none((PyObject *)SocketTransport_CAST(op)->loop);
}

static PyObject *
get_protocol(PyObject *op, void *Py_UNUSED(closure))
{
    return or_none(SocketTransport_CAST(op)->protocol);
}

static int
set_protocol_attribute(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    return transport_set_protocol(SocketTransport_CAST(op), value == NULL ? Py_None : value);
}

static PyObject *
get_server(PyObject *op, void *Py_UNUSED(closure))
{
    return or_none(SocketTransport_CAST(op)->server);
}

static PyObject *
get_empty_waiter(PyObject *op, void *Py_UNUSED(closure))
{
    return or_none(SocketTransport_CAST(op)->empty_waiter);
}

static PyObject *
get_extra(PyObject *op, void *Py_UNUSED(closure))
{
    return Py_XNewRef(transport_extra(SocketTransport_CAST(op)));
}

static int
set_extra_attribute(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    return transport_set_extra(SocketTransport_CAST(op), value);
}

static PyObject *
get_sock(PyObject *op, void *Py_UNUSED(closure))
{
    SocketTransport *self = SocketTransport_CAST(op);
    return self->over ? Py_NewRef(Py_None) : Py_XNewRef(transport_sock(self));
}

/* The pieces that wait to be sent, as a list of bytes. */
static PyObject *
get_buffer(PyObject *op, void *Py_UNUSED(closure))
{
    SocketTransport *self = SocketTransport_CAST(op);
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < self->queue.count; i++) {
        Chunk *chunk = &self->queue.items[self->queue.head + i];
        PyObject *bytes = PyBytes_FromStringAndSize(chunk->data, (Py_ssize_t)chunk->size);
        if (bytes == NULL || PyList_Append(list, bytes) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(bytes);
    }
    return list;
}

static PyObject *
get_flag(PyObject *op, void *closure)
{
    return PyBool_FromLong(*(bool *)((char *)op + (size_t)closure));
}

static int
set_flag(PyObject *op, PyObject *value, void *closure)
{
    int truth = value == NULL ? 0 : PyObject_IsTrue(value);
    if (truth >= 0) {
        *(bool *)((char *)op + (size_t)closure) = truth > 0;
    }
    return truth < 0 ? -1 : 0;
}

/* The two marks; `closure` is not NULL for the high one. */
static PyObject *
get_limit(PyObject *op, void *closure)
{
    return limits_get(SocketTransport_CAST(op), closure != NULL);
}

static int
set_limit(PyObject *op, PyObject *value, void *closure)
{
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "cannot delete a water mark");
        return -1;
    }
    return limits_set(SocketTransport_CAST(op), closure != NULL, value);
}

static int
ignore_assignment(PyObject *Py_UNUSED(op), PyObject *Py_UNUSED(value), void *Py_UNUSED(closure))
{
    return 0;
}

static PyObject *
get_true(PyObject *Py_UNUSED(op), void *Py_UNUSED(closure))
{
    Py_RETURN_TRUE;
}

static PyObject *
get_sendfile_mode(PyObject *op, void *Py_UNUSED(closure))
{
    return PyObject_GetAttrString(SocketTransport_CAST(op)->state->stock_SocketTransport, "_sendfile_compatible");
}

/* ---- life of the object ---- */

static PyObject *
close_unclosed(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    SocketTransport *self = SocketTransport_CAST(op);
    if (self->over) {
        Py_RETURN_NONE;
    }
    PyObject *exc = compat_take_exception();
    if (self->opened && PyErr_ResourceWarning(op, 1, "unclosed transport %R", op) < 0) {
        PyErr_WriteUnraisable(op);
    }
    /* As for the standard transport: the finaliser of a StreamWriter that is collected with us has something to tell. */
    self->unclosed = !self->closing;
    self->over = self->closing = true;
    self->conn_lost++;
    if (self->stream != NULL) {
        loop_before_close(self->stream->loop);
    }
    transport_close_socket(self);
    transport_report_if(self, transport_detach_server(self));
    if (exc != NULL) {
        compat_restore_exception(exc);
    }
    Py_RETURN_NONE;
}

static void
SocketTransport_finalize(PyObject *op)
{
    GateObject *gate = SocketTransport_CAST(op)->gate;
    Py_DECREF(gate_is_shut(gate) ? gate_call(gate, close_unclosed, op, NULL) : close_unclosed(op, NULL));
}

static int
SocketTransport_traverse(PyObject *op, visitproc visit, void *arg)
{
    SocketTransport *self = SocketTransport_CAST(op);
    Py_VISIT(Py_TYPE(op));
    for (int i = 0; i < TRANSPORT_BASE_SLOTS; i++) {
        Py_VISIT(self->base_slots[i]);
    }
    Py_VISIT(self->loop);
    Py_VISIT(self->protocol);
    Py_VISIT(self->server);
    Py_VISIT(self->context);
    Py_VISIT(self->write_context);
    Py_VISIT(self->fixed_context);
    Py_VISIT(self->extra);
    if (self->sock_state != SOCK_SHARED) {
        Py_VISIT(self->sock);
    }
    Py_VISIT(self->empty_waiter);
    Py_VISIT(self->limits);
    Py_VISIT(self->dict);
    return 0;
}

static int
SocketTransport_clear(PyObject *op)
{
    SocketTransport *self = SocketTransport_CAST(op);
    /* The finaliser has closed the socket. */
    assert(self->stream == NULL);
    for (int i = 0; i < TRANSPORT_BASE_SLOTS; i++) {
        Py_CLEAR(self->base_slots[i]);
    }
    Py_CLEAR(self->protocol);
    Py_CLEAR(self->server);
    Py_CLEAR(self->context);
    Py_CLEAR(self->write_context);
    Py_CLEAR(self->fixed_context);
    Py_CLEAR(self->extra);
    Py_CLEAR(self->sock);
    Py_CLEAR(self->empty_waiter);
    Py_CLEAR(self->limits);
    Py_CLEAR(self->dict);
    if (self->hold == 0) {
        Py_CLEAR(self->loop);
    }
    return 0;
}

static void
SocketTransport_dealloc(PyObject *op)
{
    if (PyObject_CallFinalizerFromDealloc(op) < 0) {
        return;
    }
    SocketTransport *self = SocketTransport_CAST(op);
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs(op);
    }
    (void)SocketTransport_clear(op);
    chunks_clear(&self->queue);
    PyMem_Free(self->peer);
    PyMem_Free(self->local);
    Py_XDECREF(self->gate);
    type->tp_free(op);
    Py_DECREF(type);
}

/* The methods of one argument, which the standard ones take by keyword too. */
static PyObject *
call_write(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *data = args_only("_SelectorSocketTransport.write", "data", args, nargs, kwnames);
    return data == NULL ? NULL : SocketTransport_write(op, data);
}

static PyObject *
call_writelines(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *lines = args_only("_SelectorSocketTransport.writelines", "list_of_data", args, nargs, kwnames);
    return lines == NULL ? NULL : SocketTransport_writelines(op, lines);
}

static PyObject *
call_set_protocol(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *protocol = args_only("_SelectorSocketTransport.set_protocol", "protocol", args, nargs, kwnames);
    return protocol == NULL ? NULL : SocketTransport_set_protocol(op, protocol);
}

#define FASTCALL_KEYWORDS(function) ((PyCFunction)(void (*)(void))(function)), METH_FASTCALL | METH_KEYWORDS
#define VARARGS_KEYWORDS(function) ((PyCFunction)(void (*)(void))(function)), METH_VARARGS | METH_KEYWORDS

static PyMethodDef SocketTransport_methods[] = {
    {"write", FASTCALL_KEYWORDS(call_write),
     "write($self, data)\n--\n\nSend bytes, a bytearray or a memoryview, at the end of this turn of the loop.\n\n"
     "Raises TypeError for anything else, RuntimeError after write_eof(). See asyncio.WriteTransport.write()."},
    {"writelines", FASTCALL_KEYWORDS(call_writelines),
     "writelines($self, list_of_data)\n--\n\nSend every item of an iterable of bytes-like objects.\n\n"
     "See asyncio.WriteTransport.writelines()."},
    {"write_eof", SocketTransport_write_eof, METH_NOARGS,
     "write_eof($self, /)\n--\n\nClose the sending side when everything is sent. See "
     "asyncio.WriteTransport.write_eof()."},
    {"can_write_eof", SocketTransport_can_write_eof, METH_NOARGS, "can_write_eof($self, /)\n--\n\nReturn True."},
    {"close", SocketTransport_close, METH_NOARGS,
     "close($self, /)\n--\n\nStop reading, send what was written, then call connection_lost(None).\n\n"
     "See asyncio.BaseTransport.close()."},
    {"abort", SocketTransport_abort, METH_NOARGS,
     "abort($self, /)\n--\n\nDrop what was not sent and call connection_lost(None) in the next turn.\n\n"
     "See asyncio.WriteTransport.abort()."},
    {"is_closing", SocketTransport_is_closing, METH_NOARGS,
     "is_closing($self, /)\n--\n\nReturn True from the call of close() or an error on."},
    {"is_reading", SocketTransport_is_reading, METH_NOARGS,
     "is_reading($self, /)\n--\n\nReturn False while paused and when closing."},
    {"pause_reading", SocketTransport_pause_reading, METH_NOARGS,
     "pause_reading($self, /)\n--\n\nCall data_received() no more until resume_reading()."},
    {"resume_reading", SocketTransport_resume_reading, METH_NOARGS,
     "resume_reading($self, /)\n--\n\nRead again. Raises RuntimeError when the loop is closed."},
    {"set_protocol", FASTCALL_KEYWORDS(call_set_protocol),
     "set_protocol($self, protocol)\n--\n\nHave another protocol called from now on, a BufferedProtocol or not."},
    {"get_protocol", SocketTransport_get_protocol, METH_NOARGS,
     "get_protocol($self, /)\n--\n\nReturn the protocol, None when the connection is over."},
    {"get_extra_info", FASTCALL_KEYWORDS(SocketTransport_get_extra_info),
     "get_extra_info($self, name, default=None)\n--\n\nReturn 'socket', 'peername', 'sockname' or what else is "
     "known.\n\n"
     "See asyncio.BaseTransport.get_extra_info()."},
    {"get_write_buffer_size", SocketTransport_get_write_buffer_size, METH_NOARGS,
     "get_write_buffer_size($self, /)\n--\n\nReturn the number of bytes that the system did not take yet."},
    {"get_write_buffer_limits", SocketTransport_get_limits, METH_NOARGS,
     "get_write_buffer_limits($self, /)\n--\n\nReturn (low, high) in bytes."},
    {"set_write_buffer_limits", VARARGS_KEYWORDS(SocketTransport_set_limits),
     "set_write_buffer_limits($self, /, high=None, low=None)\n--\n\nSet the water marks of flow control, in bytes.\n\n"
     "Raises ValueError unless high >= low >= 0. See asyncio.WriteTransport.set_write_buffer_limits()."},
    {"_set_write_buffer_limits", VARARGS_KEYWORDS(SocketTransport_set_limits_quietly), NULL},
    {"_maybe_pause_protocol", SocketTransport_maybe_pause_protocol, METH_NOARGS, NULL},
    {"_maybe_resume_protocol", SocketTransport_maybe_resume_protocol, METH_NOARGS, NULL},
    {"_force_close", SocketTransport_force_close, METH_O, NULL},
    {"_fatal_error", VARARGS_KEYWORDS(SocketTransport_fatal_error), NULL},
    {"_call_connection_lost", SocketTransport_call_connection_lost, METH_O, NULL},
    {"_make_empty_waiter", SocketTransport_make_empty_waiter, METH_NOARGS, NULL},
    {"_reset_empty_waiter", SocketTransport_reset_empty_waiter, METH_NOARGS, NULL},
    {"_lend_fd", SocketTransport_lend_fd, METH_O, SocketTransport_lend_doc},
    {NULL},
};

#define AT(field) (void *)offsetof(SocketTransport, field)

/* Every slot of the base is shadowed: its own descriptors would show fields that nobody sets. */
static PyGetSetDef SocketTransport_getset[] = {
    {"_loop", get_loop, ignore_assignment, NULL, NULL},
    {"_extra", get_extra, set_extra_attribute, NULL, NULL},
    {"_protocol_paused", get_flag, set_flag, NULL, AT(protocol_paused)},
    {"_high_water", get_limit, set_limit, NULL, (void *)1},
    {"_low_water", get_limit, set_limit, NULL, NULL},
    {"_protocol", get_protocol, set_protocol_attribute, NULL, NULL},
    {"_server", get_server, NULL, NULL, NULL},
    {"_sock", get_sock, NULL, NULL, NULL},
    {"_empty_waiter", get_empty_waiter, NULL, NULL, NULL},
    {"_buffer", get_buffer, NULL, NULL, NULL},
    {"_closing", get_flag, NULL, NULL, AT(closing)},
    {"_eof", get_flag, NULL, NULL, AT(eof)},
    {"_paused", get_flag, NULL, NULL, AT(paused)},
    {"_start_tls_compatible", get_true, NULL, NULL, NULL},
    {"_sendfile_compatible", get_sendfile_mode, NULL, NULL, NULL},
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {NULL},
};

static PyMemberDef SocketTransport_members[] = {
    {"_sock_fd", T_INT, offsetof(SocketTransport, fd), READONLY, NULL},
    {"_conn_lost", T_UINT, offsetof(SocketTransport, conn_lost), READONLY, NULL},
    {"__dictoffset__", T_PYSSIZET, offsetof(SocketTransport, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(SocketTransport, weakrefs), READONLY, NULL},
    {NULL},
};

PyDoc_STRVAR(SocketTransport_doc,
             "The transport of a TCP or Unix stream connection, made by the loop. See asyncio.Transport.");

static PyType_Slot SocketTransport_slots[] = {
#if HAVE_FREE_THREADING
    {Py_tp_getattro, SocketTransport_getattro}, {Py_tp_setattro, SocketTransport_setattro},
#endif
    {Py_tp_doc, (void *)SocketTransport_doc},   {Py_tp_repr, SocketTransport_repr},
    {Py_tp_finalize, SocketTransport_finalize}, {Py_tp_traverse, SocketTransport_traverse},
    {Py_tp_clear, SocketTransport_clear},       {Py_tp_dealloc, SocketTransport_dealloc},
    {Py_tp_methods, SocketTransport_methods},   {Py_tp_getset, SocketTransport_getset},
    {Py_tp_members, SocketTransport_members},   {0, NULL},
};

PyType_Spec SocketTransport_spec = {
    .name = "fastloop._core.SocketTransport",
    .basicsize = sizeof(SocketTransport),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = SocketTransport_slots,
};
