/* The OpenSSL that the running Python's `_ssl` uses: its functions, and where `_ssl` keeps its pointers.

   Nothing of OpenSSL is needed at build time. The functions are looked up in the very library that `_ssl` has loaded,
   and the places are found by asking OpenSSL which SSL it makes while Python makes an SSLObject (openssl_find()). Where
   any of this does not come out as expected, TLS stays with Python. */

#ifndef FASTLOOP_IO_OPENSSL_H
#define FASTLOOP_IO_OPENSSL_H

#include "state.h"

typedef struct ssl_st SSL;
typedef struct bio_st BIO;
typedef struct bio_method_st BioMethod;
typedef void (*ExNew)(void *parent, void *ptr, void *ad, int index, long argl, void *argp);

/* What SSL_get_error() answers. */
enum { TLS_ERROR_WANT_READ = 2, TLS_ERROR_ZERO_RETURN = 6 };

/* X(result, name, arguments) */
#define OPENSSL_FUNCTIONS(X)                                                               \
    X(int, SSL_read_ex, (SSL * ssl, void *data, size_t size, size_t *count))               \
    X(int, SSL_write_ex, (SSL * ssl, const void *data, size_t size, size_t *count))        \
    X(int, SSL_get_error, (const SSL *ssl, int result))                                    \
    X(int, SSL_has_pending, (const SSL *ssl))                                              \
    X(int, SSL_pending, (const SSL *ssl))                                                  \
    X(int, SSL_is_server, (const SSL *ssl))                                                \
    X(BIO *, SSL_get_rbio, (const SSL *ssl))                                               \
    X(BIO *, SSL_get_wbio, (const SSL *ssl))                                               \
    X(void, SSL_set0_rbio, (SSL * ssl, BIO * bio))                                         \
    X(void, SSL_set0_wbio, (SSL * ssl, BIO * bio))                                         \
    X(const BioMethod *, BIO_s_mem, (void))                                                \
    X(BIO *, BIO_new, (const BioMethod *method))                                           \
    X(int, BIO_free, (BIO * bio))                                                          \
    X(int, BIO_up_ref, (BIO * bio))                                                        \
    X(long, BIO_ctrl, (BIO * bio, int command, long number, void *pointer))                \
    X(void, CRYPTO_free, (void *memory, const char *file, int line))                       \
    X(int, BIO_read, (BIO * bio, void *data, int size))                                    \
    X(int, BIO_write, (BIO * bio, const void *data, int size))                             \
    X(size_t, BIO_ctrl_pending, (BIO * bio))                                               \
    X(unsigned long, ERR_peek_error, (void))                                               \
    X(void, ERR_clear_error, (void))                                                       \
    X(int, CRYPTO_get_ex_new_index,                                                        \
      (int class_index, long argl, void *argp, ExNew on_new, void *on_dup, void *on_free)) \
    X(int, CRYPTO_free_ex_index, (int class_index, int index))

typedef struct OpenSSL {
#define X(result, name, arguments) result(*name) arguments;
    OPENSSL_FUNCTIONS(X)
#undef X
    PyTypeObject *socket_type; /* _ssl._SSLSocket */
    PyTypeObject *bio_type;    /* _ssl.MemoryBIO */
    Py_ssize_t ssl_at;         /* of the SSL in an _SSLSocket */
    Py_ssize_t bio_at;         /* of the BIO in a MemoryBIO */
    bool lends;                /* loans are to be had, see loan.h */
    PyObject *wrapped;         /* asyncio's SSLProtocolState.WRAPPED, .UNWRAPPED and .DO_HANDSHAKE */
    PyObject *unwrapped;
    PyObject *handshaking;
} OpenSSL;

/* Finds it for the module, once: 0 with state->openssl set, or -1 with an exception that says why not. `library` is the
   path of the library `_ssl`, `make()` returns (incoming, outgoing, sslsocket) of a new ssl.SSLObject. */
int openssl_find(State *state, const char *library, PyObject *make);

/* The pointers in Python's objects; NULL for another type than the one that was looked at. */
SSL *openssl_ssl_of(OpenSSL *openssl, PyObject *socket);
BIO *openssl_bio_of(OpenSSL *openssl, PyObject *memory_bio);

/* Before each call whose outcome SSL_get_error() is asked for: that looks into OpenSSL's queue of errors, where somebody
   may have left one. (Emptying it costs much more than looking.) */
static inline void
openssl_clear_errors(OpenSSL *openssl)
{
    if (UNLIKELY(openssl->ERR_peek_error() != 0)) {
        openssl->ERR_clear_error();
    }
}

int openssl_traverse(State *state, visitproc visit, void *arg);
void openssl_free(State *state);

#endif
