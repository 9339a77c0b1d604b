/* Finding the OpenSSL of `_ssl`, and the pointers in its objects.

   OpenSSL tells whoever asks of every SSL that is made, as the owner of an index for extra data. While Python makes an
   SSLObject, this gives the address that must stand somewhere in it; a MemoryBIO in turn must hold what SSL_get_rbio()
   and SSL_get_wbio() answer. No pointer is followed that OpenSSL has not given itself. */

#include "io/openssl.h"

#include <dlfcn.h>

#include "io/loan.h"

enum {
    EX_INDEX_SSL = 0, /* CRYPTO_EX_INDEX_SSL */
    PROBES = 3,
};

/* What OpenSSL made for one thread. The record is never freed once it is registered: another thread may be making an
   SSL just when the index is given back. */
typedef struct {
    unsigned long thread;
    int count;
    void *made;
} Witness;

static void
on_new_ssl(void *parent, void *Py_UNUSED(ptr), void *Py_UNUSED(ad), int Py_UNUSED(index), long Py_UNUSED(argl),
           void *argp)
{
    Witness *witness = argp;
    if (witness->thread == compat_thread_ident()) {
        witness->count++;
        witness->made = parent;
    }
}

static int
refuse(const char *reason)
{
    PyErr_SetString(PyExc_RuntimeError, reason);
    return -1;
}

static int
find_functions(OpenSSL *openssl, const char *library)
{
    /* Of a library that is loaded; its functions come from it or from what it was linked with. */
    void *handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
    if (handle == NULL) {
        return refuse("_ssl is not a shared library of its own");
    }
    bool complete = true;
#define X(result, name, arguments)                   \
    *(void **)&openssl->name = dlsym(handle, #name); \
    complete = complete && openssl->name != NULL;
    OPENSSL_FUNCTIONS(X)
#undef X
    /* Python never unloads an extension module, so neither goes this. */
    dlclose(handle);
    return complete ? 0 : refuse("the functions of OpenSSL were not found");
}

static void *
word_at(PyObject *object, Py_ssize_t offset)
{
    return *(void **)((char *)object + offset);
}

/* The offset of the only word behind the header that is `value`; -1 with an exception. */
static Py_ssize_t
find_word(PyObject *object, void *value)
{
    Py_ssize_t found = -1;
    for (Py_ssize_t at = sizeof(PyObject); at + (Py_ssize_t)sizeof(void *) <= Py_TYPE(object)->tp_basicsize;
         at += sizeof(void *)) {
        if (word_at(object, at) == value) {
            if (found >= 0) {
                return refuse("an object of _ssl holds its pointer twice");
            }
            found = at;
        }
    }
    return found >= 0 ? found : refuse("an object of _ssl holds its pointer nowhere");
}

/* Notes what one probe showed, or compares it with those before. */
static int
note_place(Py_ssize_t *place, Py_ssize_t found)
{
    if (found < 0) {
        return -1;
    }
    if (*place != 0 && *place != found) {
        return refuse("objects of _ssl differ");
    }
    *place = found;
    return 0;
}

static int
note_type(PyTypeObject **type, PyObject *object)
{
    if (*type != NULL && *type != Py_TYPE(object)) {
        return refuse("objects of _ssl differ");
    }
    if (Py_TYPE(object)->tp_itemsize != 0) {
        return refuse("an object of _ssl has no fixed size");
    }
    Py_XSETREF(*type, (PyTypeObject *)Py_NewRef(Py_TYPE(object)));
    return 0;
}

/* `objects` is (incoming, outgoing, sslsocket), and `ssl` what OpenSSL made for them. */
static int
inspect(OpenSSL *openssl, PyObject *objects, SSL *ssl)
{
    PyObject *incoming, *outgoing, *socket;
    if (!PyArg_ParseTuple(objects, "OOO", &incoming, &outgoing, &socket) ||
        note_type(&openssl->socket_type, socket) < 0 || note_type(&openssl->bio_type, incoming) < 0 ||
        note_type(&openssl->bio_type, outgoing) < 0 || note_place(&openssl->ssl_at, find_word(socket, ssl)) < 0 ||
        note_place(&openssl->bio_at, find_word(incoming, openssl->SSL_get_rbio(ssl))) < 0) {
        return -1;
    }
    return note_place(&openssl->bio_at, find_word(outgoing, openssl->SSL_get_wbio(ssl)));
}

static int
probe(OpenSSL *openssl, PyObject *make, Witness *witness)
{
    witness->count = 0;
    PyObject *objects = PyObject_CallNoArgs(make);
    if (objects == NULL) {
        return -1;
    }
    int err = witness->count == 1 ? inspect(openssl, objects, witness->made)
                                  : refuse("the library that was found is not the one that _ssl uses");
    Py_DECREF(objects);
    return err;
}

static int
find_places(OpenSSL *openssl, PyObject *make)
{
    Witness *witness = PyMem_RawCalloc(1, sizeof(Witness));
    if (witness == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    witness->thread = compat_thread_ident();
    int index = openssl->CRYPTO_get_ex_new_index(EX_INDEX_SSL, 0, witness, on_new_ssl, NULL, NULL);
    if (index < 0) {
        PyMem_RawFree(witness);
        return refuse("OpenSSL has no index to give");
    }
    int err = 0;
    for (int i = 0; i < PROBES && err == 0; i++) {
        err = probe(openssl, make, witness);
    }
    witness->thread = 0;
    openssl->CRYPTO_free_ex_index(EX_INDEX_SSL, index);
    return err;
}

static int
find_states(OpenSSL *openssl, State *state)
{
    openssl->wrapped = PyObject_GetAttrString(state->asyncio_SSLProtocolState, "WRAPPED");
    openssl->unwrapped = PyObject_GetAttrString(state->asyncio_SSLProtocolState, "UNWRAPPED");
    openssl->handshaking = PyObject_GetAttrString(state->asyncio_SSLProtocolState, "DO_HANDSHAKE");
    return openssl->wrapped == NULL || openssl->unwrapped == NULL || openssl->handshaking == NULL ? -1 : 0;
}

int
openssl_find(State *state, const char *library, PyObject *make)
{
    if (HAVE_FREE_THREADING) {
        /* Two threads may be in one SSL, which Python's own lock guards and ours would not. */
        return refuse("this Python is free-threaded");
    }
    if (state->openssl != NULL) {
        return 0;
    }
    OpenSSL *openssl = PyMem_Calloc(1, sizeof(OpenSSL));
    if (openssl == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    int err = find_functions(openssl, library);
    if (err == 0) {
        err = find_states(openssl, state);
    }
    if (err == 0) {
        err = find_places(openssl, make);
    }
    openssl->lends = err == 0 && loan_probe(openssl);
    OpenSSL *before = state->openssl;
    state->openssl = openssl;
    if (err < 0 || before != NULL) {
        PyObject *exc = compat_take_exception();
        openssl_free(state);
        state->openssl = before;
        if (exc != NULL) {
            compat_restore_exception(exc);
        }
    }
    return before != NULL ? 0 : err;
}

SSL *
openssl_ssl_of(OpenSSL *openssl, PyObject *socket)
{
    return Py_TYPE(socket) == openssl->socket_type ? word_at(socket, openssl->ssl_at) : NULL;
}

BIO *
openssl_bio_of(OpenSSL *openssl, PyObject *memory_bio)
{
    return Py_TYPE(memory_bio) == openssl->bio_type ? word_at(memory_bio, openssl->bio_at) : NULL;
}

int
openssl_traverse(State *state, visitproc visit, void *arg)
{
    OpenSSL *openssl = state->openssl;
    if (openssl != NULL) {
        Py_VISIT(openssl->socket_type);
        Py_VISIT(openssl->bio_type);
        Py_VISIT(openssl->wrapped);
        Py_VISIT(openssl->unwrapped);
        Py_VISIT(openssl->handshaking);
    }
    return 0;
}

void
openssl_free(State *state)
{
    OpenSSL *openssl = state->openssl;
    if (openssl == NULL) {
        return;
    }
    state->openssl = NULL;
    Py_XDECREF(openssl->socket_type);
    Py_XDECREF(openssl->bio_type);
    Py_XDECREF(openssl->wrapped);
    Py_XDECREF(openssl->unwrapped);
    Py_XDECREF(openssl->handshaking);
    PyMem_Free(openssl);
}
