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

/* An address as the socket module gives it; None for a family that only the socket module knows. */
PyObject *address_to_python(const void *address, socklen_t size);

#endif
