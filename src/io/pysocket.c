/* Python's socket objects, seen from C. */

#include "io/pysocket.h"

#include "io/io.h"

/* Calls a method of a socket and drops the result; -1 with an exception. */
static int
call(PyObject *sock, const char *method, const char *format, double argument)
{
    PyObject *result = PyObject_CallMethod(sock, method, format, argument);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* Compares the struct with what a socket says about itself: 1 or 0, or -1 with an exception. */
static int
compare_struct(PyObject *sock)
{
    SocketObject *raw = SocketObject_CAST(sock);
    PyObject *number = PyObject_CallMethod(sock, "fileno", NULL);
    long fd = number == NULL ? -1 : PyLong_AsLong(number);
    Py_XDECREF(number);
    if (fd < 0) {
        return -1;
    }
    if (raw->fd != fd || raw->family != AF_UNIX || raw->type != SOCK_DGRAM || raw->proto != 0) {
        return 0;
    }
    if (call(sock, "settimeout", "d", 1.5) < 0) {
        return -1;
    }
    bool fits = raw->timeout_ns == 1500000000;
    if (call(sock, "settimeout", "d", 0.0) < 0) {
        return -1;
    }
    fits = fits && raw->timeout_ns == 0;
    if (call(sock, "close", NULL, 0.0) < 0) {
        return -1;
    }
    return fits && raw->fd == -1;
}

static bool
struct_fits(State *state)
{
    PyTypeObject *type = (PyTypeObject *)state->socket_socket;
    if (!PyType_Check(state->socket_socket) || type->tp_basicsize < (Py_ssize_t)sizeof(SocketObject)) {
        return false;
    }
    PyObject *sock = PyObject_CallFunction(state->socket_socket, "iii", AF_UNIX, SOCK_DGRAM, 0);
    int fits = sock == NULL ? -1 : compare_struct(sock);
    if (fits < 0) {
        PyErr_Clear();
    }
    Py_XDECREF(sock);
    return fits > 0;
}

/* Has socket.socket still the methods of the class that it extends? */
static bool
has_own_methods(PyTypeObject *type)
{
    static const char *const names[] = {"recv",   "recv_into", "recvfrom",   "recvfrom_into", "send",
                                        "sendto", "fileno",    "gettimeout", "getsockopt",    NULL};
    bool own = true;
    for (int i = 0; own && names[i] != NULL; i++) {
        PyObject *found = PyObject_GetAttrString((PyObject *)type, names[i]);
        PyObject *original = found == NULL ? NULL : PyObject_GetAttrString((PyObject *)type->tp_base, names[i]);
        own = original != NULL && found == original;
        Py_XDECREF(found);
        Py_XDECREF(original);
    }
    PyErr_Clear();
    return own;
}

/* The slow half of pysocket_is_plain(): the class is new to this loop, or was changed. */
static bool
examine(LoopObject *loop, PyTypeObject *type)
{
    PySockets *known = &loop->io->sockets;
    PyObject *exc = compat_take_exception();
    if (!known->examined) {
        known->fits = struct_fits(loop->state);
        known->examined = true;
    }
    known->version_tag = 0;
    bool own = known->fits && has_own_methods(type);
    if (own) {
        known->version_tag = type->tp_version_tag;
    }
    if (exc != NULL) {
        compat_restore_exception(exc);
    }
    return own;
}

bool
pysocket_is_plain(LoopObject *loop, PyObject *sock)
{
    PyTypeObject *type = Py_TYPE(sock);
    if (loop->io == NULL || (PyObject *)type != loop->state->socket_socket) {
        return false;
    }
    unsigned tag = loop->io->sockets.version_tag;
    if (UNLIKELY(tag == 0 || tag != type->tp_version_tag) && !examine(loop, type)) {
        return false;
    }
    SocketObject *raw = SocketObject_CAST(sock);
    return raw->fd >= 0 && raw->timeout_ns == 0;
}
