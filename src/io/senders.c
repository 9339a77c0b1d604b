/* The table of recent senders. It belongs to the loop, and to the loop's thread. */

#include "io/senders.h"

#include <netinet/in.h>

#include "base/address.h"
#include "io/io.h"

/* The first of the places that may have an address; NULL without memory. */
static Sender *
find_places(LoopObject *loop, const uint32_t *words, size_t count)
{
    if (loop->io->senders == NULL) {
        loop->io->senders = PyMem_Calloc(SENDER_PLACES, sizeof(Sender));
        if (loop->io->senders == NULL) {
            return NULL;
        }
    }
    uint32_t hash = 0;
    for (size_t i = 0; i < count; i++) {
        hash = (hash ^ words[i]) * 0x9e3779b1u;
        hash ^= hash >> 15;
    }
    return &loop->io->senders[hash % (SENDER_PLACES / SENDER_WAYS) * SENDER_WAYS];
}

/* Which of the places has the address; NULL for none. */
static Sender *
find_among(Sender *places, const uint32_t *words, size_t count)
{
    for (int i = 0; places != NULL && i < SENDER_WAYS; i++) {
        if (places[i].count == count && memcmp(places[i].words, words, count * sizeof(uint32_t)) == 0) {
            return &places[i];
        }
    }
    return NULL;
}

/* Puts an address in the place of the one that was put there the longest ago. */
static void
remember(Sender *places, const uint32_t *words, size_t count, PyObject *value)
{
    PyObject *oldest = places[SENDER_WAYS - 1].value;
    memmove(&places[1], &places[0], (SENDER_WAYS - 1) * sizeof(Sender));
    places[0] = (Sender){.value = Py_NewRef(value), .count = (uint8_t)count};
    memcpy(places[0].words, words, count * sizeof(uint32_t));
    Py_XDECREF(oldest);
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
    Sender *place = find_among(find_places(loop, words, count), words, count);
    if (LIKELY(place != NULL)) {
        return Py_NewRef(place->value);
    }
    PyObject *value = address_to_python(address, size);
    /* The table may have gone: a tuple can be what starts a collection. */
    Sender *places = value == NULL || loop->io == NULL ? NULL : find_places(loop, words, count);
    if (places != NULL) {
        remember(places, words, count, value);
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
