/* The table of recent senders. It belongs to the loop, and to the loop's thread. */

#include "io/senders.h"

#include <netinet/in.h>

#include "base/address.h"
#include "io/io.h"

static Sender *
find_place(LoopObject *loop, const uint32_t *words, size_t count)
{
    if (loop->io->senders == NULL) {
        loop->io->senders = PyMem_Calloc(SENDER_PLACES, sizeof(Sender));
        if (loop->io->senders == NULL) {
            return NULL;
        }
    }
    uint32_t hash = 0;
    for (size_t i = 0; i < count; i++) {
        hash = hash * 31 + words[i];
    }
    hash *= 0x9e3779b1u;
    return &loop->io->senders[hash >> 24];
}

PyObject *
senders_find(LoopObject *loop, const struct sockaddr_storage *address, socklen_t size)
{
    if (size == 0) {
        /* A Unix socket without a name, or no datagram socket at all. */
        Py_RETURN_NONE;
    }
    size_t count = size / sizeof(uint32_t);
    uint32_t words[7];
    bool is_inet = address->ss_family == AF_INET || address->ss_family == AF_INET6;
    if (!is_inet || loop->io == NULL || size % sizeof(uint32_t) != 0 || size > sizeof(words)) {
        return address_to_python(address, size);
    }
    memcpy(words, address, size);
    Sender *place = find_place(loop, words, count);
    if (place != NULL && place->count == count && memcmp(place->words, words, size) == 0) {
        return Py_NewRef(place->value);
    }
    PyObject *value = address_to_python(address, size);
    /* The table may have gone: a tuple can be what starts a collection. */
    place = value == NULL || loop->io == NULL ? NULL : find_place(loop, words, count);
    if (place != NULL) {
        memcpy(place->words, words, size);
        place->count = (uint8_t)count;
        Py_XSETREF(place->value, Py_NewRef(value));
    }
    return value;
}

void
senders_clear(LoopObject *loop)
{
    Sender *senders = loop->io->senders;
    loop->io->senders = NULL;
    for (int i = 0; senders != NULL && i < SENDER_PLACES; i++) {
        Py_XDECREF(senders[i].value);
    }
    PyMem_Free(senders);
}
