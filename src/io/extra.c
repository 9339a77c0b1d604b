/* get_extra_info(): the addresses and the Python socket of a transport, made when somebody asks.

   A transport of an accepted connection has no Python object for its socket until then. The one that is made shows
   libuv's descriptor: it counts as in use (`_io_refs`), so that its close() only marks it, and it is detached before
   the descriptor is closed. */

#include "io/transport.h"

static PyObject *
address_or_none(Address *address)
{
    return address == NULL ? Py_NewRef(Py_None) : address_to_python(address->bytes, address->size);
}

void
transport_note_local(SocketTransport *self)
{
    struct sockaddr_storage storage;
    socklen_t size = sizeof(storage);
    if (self->local == NULL && self->stream != NULL && getsockname(self->fd, (struct sockaddr *)&storage, &size) == 0) {
        self->local = address_new((struct sockaddr *)&storage, size);
    }
}

/* ---- the socket object ---- */

/* Changes sock._io_refs: above 0 close() leaves the descriptor alone. */
static int
count_use(State *state, PyObject *sock)
{
    PyObject *count = PyObject_GetAttr(sock, state->str__io_refs);
    PyObject *one = count == NULL ? NULL : PyLong_FromLong(1);
    PyObject *more = one == NULL ? NULL : PyNumber_Add(count, one);
    int err = more == NULL ? -1 : PyObject_SetAttr(sock, state->str__io_refs, more);
    Py_XDECREF(count);
    Py_XDECREF(one);
    Py_XDECREF(more);
    return err;
}

int
transport_share_sock(SocketTransport *self, PyObject *sock)
{
    Py_XSETREF(self->sock, Py_NewRef(sock));
    self->sock_state = SOCK_SHARED;
    return count_use(self->state, sock);
}

/* Has a new socket object (stolen) let go of the descriptor, which is not its own. */
static void
drop_sock(PyObject *sock)
{
    PyObject *detached = PyObject_CallMethod(sock, "detach", NULL);
    if (detached == NULL) {
        PyErr_WriteUnraisable(sock);
    }
    Py_XDECREF(detached);
    Py_DECREF(sock);
}

/* socket.socket(family, type, proto, fileno=fd), not blocking. */
static PyObject *
sock_from_fd(State *state, int family, int type, int proto, int fd)
{
    PyObject *sock = PyObject_CallFunction(state->socket_socket, "iiii", family, type, proto, fd);
    PyObject *result = sock == NULL ? NULL : PyObject_CallMethod(sock, "settimeout", "i", 0);
    if (sock != NULL && result == NULL) {
        PyObject *exc = compat_take_exception();
        drop_sock(sock);
        sock = NULL;
        compat_restore_exception(exc);
    }
    Py_XDECREF(result);
    return sock;
}

/* What is left to show when the connection has gone: a closed socket of the same kind. */
static PyObject *
closed_sock(SocketTransport *self)
{
    PyObject *sock = PyObject_CallFunction(self->state->socket_socket, "iii", self->family, self->type, self->proto);
    PyObject *result = sock == NULL ? NULL : PyObject_CallMethod(sock, "close", NULL);
    if (result == NULL) {
        Py_CLEAR(sock);
    }
    Py_XDECREF(result);
    return sock;
}

PyObject *
transport_sock(SocketTransport *self)
{
    if (self->sock != NULL) {
        return self->sock;
    }
    if (self->stream == NULL) {
        return Py_None;
    }
    PyObject *sock = sock_from_fd(self->state, self->family, self->type, self->proto, self->fd);
    if (sock == NULL && !PyErr_ExceptionMatches(PyExc_OSError)) {
        return NULL;
    }
    if (UNLIKELY(self->sock != NULL || self->stream == NULL)) {
        /* While it was made, another thread was quicker, or the connection has gone, and the descriptor with it. */
        if (sock == NULL) {
            PyErr_Clear();
        } else {
            drop_sock(sock);
        }
        return self->sock != NULL ? self->sock : Py_None;
    }
    if (sock == NULL) {
        return NULL;
    }
    int err = transport_share_sock(self, sock);
    Py_DECREF(sock);
    return err < 0 ? NULL : self->sock;
}

/* A TransportSocket for get_extra_info(); new. */
static PyObject *
make_transport_socket(SocketTransport *self)
{
    PyObject *sock = transport_sock(self);
    if (sock == NULL) {
        return NULL;
    }
    PyObject *real = sock == Py_None ? closed_sock(self) : Py_NewRef(sock);
    PyObject *wrapped = real == NULL ? NULL : PyObject_CallOneArg(self->state->asyncio_TransportSocket, real);
    Py_XDECREF(real);
    return wrapped;
}

/* ---- the dict ---- */

/* The value of one of the three names that every transport has (new); NULL with an exception. */
static PyObject *
compute(SocketTransport *self, PyObject *name)
{
    State *state = self->state;
    if (name == state->str_socket) {
        return make_transport_socket(self);
    }
    if (name == state->str_peername) {
        return address_or_none(self->peer);
    }
    transport_note_local(self);
    return address_or_none(self->local);
}

/* The canonical string for a name that compute() knows: borrowed, or NULL. */
static PyObject *
known_name(State *state, PyObject *name)
{
    PyObject *known[] = {state->str_peername, state->str_sockname, state->str_socket};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (name == known[i]) {
            return known[i];
        }
    }
    for (size_t i = 0; PyUnicode_Check(name) && i < sizeof(known) / sizeof(known[0]); i++) {
        if (PyUnicode_Compare(name, known[i]) == 0) {
            return known[i];
        }
    }
    return NULL;
}

/* What `extra` has for a name, computed if need be: borrowed; NULL without an exception when there is nothing. */
static PyObject *
look_up(SocketTransport *self, PyObject *name)
{
    if (self->extra == NULL) {
        self->extra = PyDict_New();
        if (self->extra == NULL) {
            return NULL;
        }
    }
    PyObject *value = PyDict_GetItemWithError(self->extra, name);
    if (value != NULL || PyErr_Occurred()) {
        return value;
    }
    PyObject *known = known_name(self->state, name);
    if (known == NULL) {
        return NULL;
    }
    value = compute(self, known);
    if (value == NULL) {
        return NULL;
    }
    int err = PyDict_SetItem(self->extra, known, value);
    Py_DECREF(value);
    return err < 0 ? NULL : value;
}

PyObject *
transport_extra(SocketTransport *self)
{
    State *state = self->state;
    if (look_up(self, state->str_socket) == NULL || look_up(self, state->str_sockname) == NULL ||
        look_up(self, state->str_peername) == NULL) {
        return NULL;
    }
    return self->extra;
}

PyObject *
SocketTransport_get_extra_info(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call_fast(SocketTransport_CAST(op)->gate, SocketTransport_get_extra_info, op, args, nargs, kwnames);
    }
    PyObject *name = nargs > 0 ? args[0] : NULL;
    PyObject *fallback = nargs > 1 ? args[1] : NULL;
    Py_ssize_t count = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *keyword = PyTuple_GET_ITEM(kwnames, i);
        PyObject **place = PyUnicode_CompareWithASCIIString(keyword, "default") == 0 ? &fallback
                           : PyUnicode_CompareWithASCIIString(keyword, "name") == 0  ? &name
                                                                                     : NULL;
        if (place == NULL || *place != NULL) {
            PyErr_Format(PyExc_TypeError, "get_extra_info() got an unexpected keyword argument %R", keyword);
            return NULL;
        }
        *place = args[nargs + i];
    }
    if (name == NULL || nargs > 2) {
        PyErr_Format(PyExc_TypeError, "get_extra_info() takes from 1 to 2 arguments (%zd given)", nargs);
        return NULL;
    }
    PyObject *value = look_up(SocketTransport_CAST(op), name);
    if (value == NULL && PyErr_Occurred()) {
        return NULL;
    }
    return Py_NewRef(value != NULL ? value : fallback != NULL ? fallback : Py_None);
}
