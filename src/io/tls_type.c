/* TLSConnection for Python: the fields of asyncio's SSLProtocol that tls.c reads, and the methods in place of its own. */

#include "io/handshakes.h"
#include "io/tls.h"

/* ---- binding ---- */

static void
unbind(TlsConnection *self)
{
    self->ssl = NULL;
    self->incoming = self->outgoing = NULL;
    Py_CLEAR(self->socket);
}

/* Has SSLProtocol set every field that tls.c reads? One of another Python might have other names. */
static bool
is_complete(TlsConnection *self)
{
    bool complete = self->ssl_state != NULL && self->transport != NULL && self->sslobj != NULL &&
                    self->app_protocol != NULL && self->write_backlog != NULL;
    for (int i = 0; i < TLS_MARKS; i++) {
        complete = complete && self->marks[i] != NULL;
    }
    return complete;
}

PyDoc_STRVAR(TLSConnection_bind_doc,
             "_bind($self, sslsocket, incoming, outgoing, /)\n--\n\n"
             "Drive the SSL of an _ssl._SSLSocket, whose BIOs those two are; True if they are what they should be.");

static PyObject *
TLSConnection_bind(PyObject *op, PyObject *args)
{
    TlsConnection *self = TlsConnection_CAST(op);
    OpenSSL *openssl = self->state->openssl;
    PyObject *socket, *incoming, *outgoing;
    if (!PyArg_ParseTuple(args, "OOO:_bind", &socket, &incoming, &outgoing)) {
        return NULL;
    }
    unbind(self);
    SSL *ssl = openssl == NULL || !is_complete(self) ? NULL : openssl_ssl_of(openssl, socket);
    BIO *rbio = ssl == NULL ? NULL : openssl_bio_of(openssl, incoming);
    BIO *wbio = ssl == NULL ? NULL : openssl_bio_of(openssl, outgoing);
    if (rbio == NULL || wbio == NULL || openssl->SSL_get_rbio(ssl) != rbio || openssl->SSL_get_wbio(ssl) != wbio) {
        Py_RETURN_FALSE;
    }
    /* The SSL holds its BIOs. */
    self->socket = Py_NewRef(socket);
    self->ssl = ssl;
    self->incoming = rbio;
    self->outgoing = wbio;
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(TLSConnection_find_openssl_doc,
             "_find_openssl($type, library, make, /)\n--\n\n"
             "Find the OpenSSL that the shared library `library`, which is _ssl, uses.\n\n"
             "`make()` returns (incoming, outgoing, sslsocket) of a new ssl.SSLObject. Raises RuntimeError with the\n"
             "reason when native TLS is impossible.");

static PyObject *
TLSConnection_find_openssl(PyObject *type, PyObject *args)
{
    const char *library;
    PyObject *make;
    if (!PyArg_ParseTuple(args, "sO:_find_openssl", &library, &make)) {
        return NULL;
    }
    State *state = state_of_type((PyTypeObject *)type);
    return state == NULL || openssl_find(state, library, make) < 0 ? NULL : Py_NewRef(Py_None);
}

/* ---- fields ---- */

static PyObject *
get_mark(PyObject *op, void *closure)
{
    PyObject *mark = TlsConnection_CAST(op)->marks[(size_t)closure];
    if (mark == NULL) {
        PyErr_SetString(PyExc_AttributeError, "the water mark is not set");
    }
    return Py_XNewRef(mark);
}

static int
set_mark(PyObject *op, PyObject *value, void *closure)
{
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "cannot delete a water mark");
        return -1;
    }
    double level = PyFloat_AsDouble(value);
    if (level == -1.0 && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError)) {
            return -1;
        }
        PyErr_Clear();
        level = Py_HUGE_VAL;
    }
    TlsConnection_CAST(op)->levels[(size_t)closure] = level;
    Py_XSETREF(TlsConnection_CAST(op)->marks[(size_t)closure], Py_NewRef(value));
    return 0;
}

static PyObject *
get_state(PyObject *op, void *Py_UNUSED(closure))
{
    PyObject *value = TlsConnection_CAST(op)->ssl_state;
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "_state");
    }
    return Py_XNewRef(value);
}

/* Leaving WRAPPED: what was written goes out before whatever comes next, or is dropped with the connection. */
static int
set_state(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    TlsConnection *self = TlsConnection_CAST(op);
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "cannot delete the state");
        return -1;
    }
    if (self->plain.count > 0) {
        if (value == self->state->openssl->unwrapped || !tls_is_native(self)) {
            tls_seal_rest(self);
        } else if (tls_send(self) < 0) {
            return -1;
        }
    }
    if (value != self->ssl_state) {
        handshakes_note_end(self);
    }
    Py_XSETREF(self->ssl_state, Py_NewRef(value));
    return 0;
}

static PyObject *
get_sslobj(PyObject *op, void *Py_UNUSED(closure))
{
    PyObject *value = TlsConnection_CAST(op)->sslobj;
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "_sslobj");
    }
    return Py_XNewRef(value);
}

/* Another SSLObject than the one that was bound is left to Python. */
static int
set_sslobj(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    TlsConnection *self = TlsConnection_CAST(op);
    if (self->plain.count > 0 && tls_is_native(self) && tls_send(self) < 0) {
        return -1;
    }
    tls_drop_plain(self);
    unbind(self);
    Py_XSETREF(self->sslobj, Py_XNewRef(value));
    return 0;
}

/* ---- life of the object ---- */

static PyObject *
TLSConnection_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    State *state = state_of_type(type);
    TlsConnection *self = state == NULL ? NULL : (TlsConnection *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->state = state;
    }
    return (PyObject *)self;
}

static int
TLSConnection_traverse(PyObject *op, visitproc visit, void *arg)
{
    TlsConnection *self = TlsConnection_CAST(op);
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->ssl_state);
    Py_VISIT(self->transport);
    Py_VISIT(self->sslobj);
    Py_VISIT(self->app_protocol);
    Py_VISIT(self->app_protocol_get_buffer);
    Py_VISIT(self->app_protocol_buffer_updated);
    Py_VISIT(self->write_backlog);
    for (int i = 0; i < TLS_MARKS; i++) {
        Py_VISIT(self->marks[i]);
    }
    Py_VISIT(self->socket);
    return 0;
}

static int
TLSConnection_clear(PyObject *op)
{
    TlsConnection *self = TlsConnection_CAST(op);
    unbind(self);
    tls_drop_plain(self);
    handshakes_note_end(self);
    Py_CLEAR(self->ssl_state);
    Py_CLEAR(self->transport);
    Py_CLEAR(self->sslobj);
    Py_CLEAR(self->app_protocol);
    Py_CLEAR(self->app_protocol_get_buffer);
    Py_CLEAR(self->app_protocol_buffer_updated);
    Py_CLEAR(self->write_backlog);
    for (int i = 0; i < TLS_MARKS; i++) {
        Py_CLEAR(self->marks[i]);
    }
    return 0;
}

static void
TLSConnection_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    (void)TLSConnection_clear(op);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *
TLSConnection_is_native(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(tls_is_native(TlsConnection_CAST(op)));
}

static PyObject *
TLSConnection_expose(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    TlsConnection *self = TlsConnection_CAST(op);
    self->is_exposed = true;
    /* In another thread than the loop's nothing but the loop may touch the SSL: what waits leaves with its turn. */
    if (self->plain.count > 0 && tls_is_native(self) && transport_takes_output(SocketTransport_CAST(self->transport)) &&
        tls_send(self) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef TLSConnection_methods[] = {
    {"_bind", TLSConnection_bind, METH_VARARGS, TLSConnection_bind_doc},
    {"_is_native", TLSConnection_is_native, METH_NOARGS,
     "_is_native($self, /)\n--\n\nFor tests: the way of the next bytes."},
    {"_expose", TLSConnection_expose, METH_NOARGS,
     "_expose($self, /)\n--\n\nEncrypt what is written at once from now on: the program may use the SSL too."},
    {"_find_openssl", TLSConnection_find_openssl, METH_VARARGS | METH_CLASS, TLSConnection_find_openssl_doc},
    {"_write", (PyCFunction)(void (*)(void))TLSConnection_write, METH_FASTCALL | METH_KEYWORDS,
     "_write($self, data)\n--\n\nThe write() of the transport. See asyncio.WriteTransport.write()."},
    {"_write_appdata", TLSConnection_write_appdata, METH_O, NULL},
    {"_do_read", TLSConnection_do_read, METH_NOARGS, NULL},
    {"_do_handshake", TLSConnection_do_handshake, METH_NOARGS, NULL},
    {NULL},
};

static PyGetSetDef TLSConnection_getset[] = {
    {"_state", get_state, set_state, NULL, NULL},
    {"_sslobj", get_sslobj, set_sslobj, NULL, NULL},
    {"_outgoing_high_water", get_mark, set_mark, NULL, (void *)TLS_OUTGOING_HIGH},
    {"_outgoing_low_water", get_mark, set_mark, NULL, (void *)TLS_OUTGOING_LOW},
    {"_incoming_high_water", get_mark, set_mark, NULL, (void *)TLS_INCOMING_HIGH},
    {"_incoming_low_water", get_mark, set_mark, NULL, (void *)TLS_INCOMING_LOW},
    {NULL},
};

#define AT(field) offsetof(TlsConnection, field)

static PyMemberDef TLSConnection_members[] = {
    {"_transport", T_OBJECT_EX, AT(transport), 0, NULL},
    {"_app_protocol", T_OBJECT_EX, AT(app_protocol), 0, NULL},
    {"_app_protocol_get_buffer", T_OBJECT_EX, AT(app_protocol_get_buffer), 0, NULL},
    {"_app_protocol_buffer_updated", T_OBJECT_EX, AT(app_protocol_buffer_updated), 0, NULL},
    {"_app_protocol_is_buffer", T_BOOL, AT(app_protocol_is_buffer), 0, NULL},
    {"_write_backlog", T_OBJECT_EX, AT(write_backlog), 0, NULL},
    {"_write_buffer_size", T_PYSSIZET, AT(write_buffer_size), 0, NULL},
    {"_app_reading_paused", T_BOOL, AT(app_reading_paused), 0, NULL},
    {"_app_writing_paused", T_BOOL, AT(app_writing_paused), 0, NULL},
    {"_ssl_reading_paused", T_BOOL, AT(ssl_reading_paused), 0, NULL},
    {"_ssl_writing_paused", T_BOOL, AT(ssl_writing_paused), 0, NULL},
    {NULL},
};

PyDoc_STRVAR(TLSConnection_doc, "The native part of a TLS connection; see fastloop.tls.");

static PyType_Slot TLSConnection_slots[] = {
    {Py_tp_doc, (void *)TLSConnection_doc},
    {Py_tp_new, TLSConnection_new},
    {Py_tp_traverse, TLSConnection_traverse},
    {Py_tp_clear, TLSConnection_clear},
    {Py_tp_dealloc, TLSConnection_dealloc},
    {Py_tp_methods, TLSConnection_methods},
    {Py_tp_getset, TLSConnection_getset},
    {Py_tp_members, TLSConnection_members},
    {0, NULL},
};

PyType_Spec TLSConnection_spec = {
    .name = "fastloop._core.TLSConnection",
    .basicsize = sizeof(TlsConnection),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = TLSConnection_slots,
};
