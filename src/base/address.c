/* Socket addresses as the kernel gives them and as Python shows them. */

#include "base/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/un.h>

Address *
address_new(const struct sockaddr *address, socklen_t size)
{
    if (address == NULL) {
        return NULL;
    }
    Address *copy = PyMem_Malloc(sizeof(Address) + (size_t)size);
    if (copy != NULL) {
        copy->size = size;
        memcpy(copy->bytes, address, (size_t)size);
    }
    return copy;
}

static PyObject *
inet_to_python(const struct sockaddr_in *in)
{
    char host[INET_ADDRSTRLEN];
    if (inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host)) == NULL) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return Py_BuildValue("si", host, (int)ntohs(in->sin_port));
}

static PyObject *
inet6_to_python(const struct sockaddr_in6 *in6)
{
    char host[INET6_ADDRSTRLEN];
    if (inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host)) == NULL) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return Py_BuildValue("siII", host, (int)ntohs(in6->sin6_port), (unsigned)ntohl(in6->sin6_flowinfo),
                         (unsigned)in6->sin6_scope_id);
}

/* A path as str, an abstract name as bytes, as socket.getsockname() has it. */
static PyObject *
unix_to_python(const struct sockaddr_un *un, socklen_t size)
{
    size_t start = offsetof(struct sockaddr_un, sun_path);
    size_t length = (size_t)size > start ? (size_t)size - start : 0;
    /* Abstract names are Linux's; elsewhere an unnamed socket may come with zeros. */
    if (HAVE_EPOLL && length > 0 && un->sun_path[0] == 0) {
        return PyBytes_FromStringAndSize(un->sun_path, (Py_ssize_t)length);
    }
    return PyUnicode_DecodeFSDefaultAndSize(un->sun_path, (Py_ssize_t)strnlen(un->sun_path, length));
}

PyObject *
address_to_python(const void *address, socklen_t size)
{
    /* A copy, since the bytes have no particular alignment. */
    struct sockaddr_storage storage = {0};
    memcpy(&storage, address, Py_MIN((size_t)size, sizeof(storage)));
    switch (storage.ss_family) {
    case AF_INET:
        return inet_to_python((struct sockaddr_in *)&storage);
    case AF_INET6:
        return inet6_to_python((struct sockaddr_in6 *)&storage);
    case AF_UNIX:
        return unix_to_python((struct sockaddr_un *)&storage, size);
    default:
        Py_RETURN_NONE;
    }
}

/* An int between 0 and `limit`; -1 for anything else. */
static long
small_int(PyObject *value, long limit)
{
    int overflow;
    if (!PyLong_CheckExact(value)) {
        return -1;
    }
    long number = PyLong_AsLongAndOverflow(value, &overflow);
    return overflow != 0 || number > limit ? -1 : number;
}

/* A numeric address of a host; false for anything else. */
static bool
host_number(int family, PyObject *value, void *number)
{
    if (!PyUnicode_CheckExact(value) || !PyUnicode_IS_COMPACT_ASCII(value)) {
        return false;
    }
    const char *text = (const char *)PyUnicode_1BYTE_DATA(value);
    return strlen(text) == (size_t)PyUnicode_GET_LENGTH(value) && inet_pton(family, text, number) == 1;
}

socklen_t
address_from_python(int family, PyObject *value, struct sockaddr_storage *address)
{
    bool is_inet6 = family == AF_INET6;
    if ((!is_inet6 && family != AF_INET) || !PyTuple_CheckExact(value) ||
        PyTuple_GET_SIZE(value) != (is_inet6 ? 4 : 2)) {
        return 0;
    }
    long port = small_int(PyTuple_GET_ITEM(value, 1), UINT16_MAX);
    if (port < 0) {
        return 0;
    }
    if (!is_inet6) {
        struct sockaddr_in *in = (struct sockaddr_in *)address;
        *in = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
        return host_number(AF_INET, PyTuple_GET_ITEM(value, 0), &in->sin_addr) ? sizeof(*in) : 0;
    }
    long flow = small_int(PyTuple_GET_ITEM(value, 2), 0xfffff);
    long scope = small_int(PyTuple_GET_ITEM(value, 3), UINT32_MAX);
    if (flow < 0 || scope < 0) {
        return 0;
    }
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)address;
    *in6 = (struct sockaddr_in6){
        .sin6_family = AF_INET6,
        .sin6_port = htons((uint16_t)port),
        .sin6_flowinfo = htonl((uint32_t)flow),
        .sin6_scope_id = (uint32_t)scope,
    };
    return host_number(AF_INET6, PyTuple_GET_ITEM(value, 0), &in6->sin6_addr) ? sizeof(*in6) : 0;
}

socklen_t
address_of_host(PyObject *host, PyObject *port, struct sockaddr_storage *address)
{
    long number = small_int(port, UINT16_MAX);
    if (number < 0) {
        return 0;
    }
    struct sockaddr_in *in = (struct sockaddr_in *)address;
    *in = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)number)};
    if (host_number(AF_INET, host, &in->sin_addr)) {
        return sizeof(*in);
    }
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)address;
    *in6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)number)};
    return host_number(AF_INET6, host, &in6->sin6_addr) ? sizeof(*in6) : 0;
}
