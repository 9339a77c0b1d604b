/* Socket addresses as the kernel gives them and as Python shows them. */

#ifndef FASTLOOP_BASE_ADDRESS_H
#define FASTLOOP_BASE_ADDRESS_H

#include "compat.h"

#include <sys/socket.h>

typedef struct {
    socklen_t size;
    char bytes[]; /* a struct sockaddr, not aligned */
} Address;

/* New copy of an address, for PyMem_Free(); NULL without memory or without an address. */
Address *address_new(const struct sockaddr *address, socklen_t size);

/* Reads an address as the socket module takes it, where it says no more than numbers: (host, port) for AF_INET, and
   (host, port, flow, scope) for AF_INET6, of exact types. 0 where Python has to do it; never an exception. */
socklen_t address_from_python(int family, PyObject *value, struct sockaddr_storage *address);

/* The address of a numeric host and a port, of exact types; 0 when the host is none (a name, a scope id, bytes) or the
   port no number for one. Never an exception. */
socklen_t address_of_host(PyObject *host, PyObject *port, struct sockaddr_storage *address);

/* An address as the socket module gives it; None for a family that only the socket module knows. */
PyObject *address_to_python(const void *address, socklen_t size);

#endif
