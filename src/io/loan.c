/* See loan.h. A memory BIO can be given a BUF_MEM that belongs to somebody else (BIO_set_mem_buf(), BIO_s_mem(3)): one
   over the memory that was received, or an empty one that grows as it is written. */

#include "io/loan.h"

#include <string.h>

#include "io/io.h"

enum { BIO_C_SET_BUF_MEM = 114, BIO_NOCLOSE = 0 };

/* OpenSSL's BUF_MEM, as its buffer.h declares it for everybody. */
typedef struct {
    size_t length;
    char *data;
    size_t max;
    unsigned long flags;
} BufMem;

struct TlsBios {
    BIO *incoming;
    BIO *outgoing;
    BufMem received;
    BufMem written; /* OpenSSL's allocator has its memory */
    /* The loop may outlive its module. */
    int (*BIO_free)(BIO *bio);
    void (*CRYPTO_free)(void *memory, const char *file, int line);
};

static bool
set_memory(OpenSSL *openssl, BIO *bio, BufMem *memory)
{
    return openssl->BIO_ctrl(bio, BIO_C_SET_BUF_MEM, BIO_NOCLOSE, memory) > 0;
}

void
tlsbios_free(TlsBios *bios)
{
    if (bios == NULL) {
        return;
    }
    bios->BIO_free(bios->incoming);
    bios->BIO_free(bios->outgoing);
    bios->CRYPTO_free(bios->written.data, __FILE__, __LINE__);
    PyMem_RawFree(bios);
}

/* NULL without memory. */
static TlsBios *
new_bios(OpenSSL *openssl)
{
    TlsBios *bios = PyMem_RawCalloc(1, sizeof(TlsBios));
    if (bios == NULL) {
        return NULL;
    }
    bios->BIO_free = openssl->BIO_free;
    bios->CRYPTO_free = openssl->CRYPTO_free;
    bios->incoming = openssl->BIO_new(openssl->BIO_s_mem());
    bios->outgoing = openssl->BIO_new(openssl->BIO_s_mem());
    if (bios->incoming == NULL || bios->outgoing == NULL) {
        tlsbios_free(bios);
        openssl->ERR_clear_error();
        return NULL;
    }
    return bios;
}

/* Takes the BIOs of the loop, or new ones. */
static bool
begin(Loan *loan, LoopObject *loop, PyObject *socket, SSL *ssl, BIO *own)
{
    OpenSSL *openssl = loop == NULL ? NULL : loop->state->openssl;
    if (openssl == NULL || !openssl->lends || loop->io == NULL || !io_may_touch(loop)) {
        return false;
    }
    TlsBios *bios = loop->io->tls_bios == NULL ? new_bios(openssl) : loop->io->tls_bios;
    if (bios == NULL) {
        return false;
    }
    loop->io->tls_bios = NULL;
    *loan = (Loan){.loop = loop, .openssl = openssl, .bios = bios, .socket = socket, .ssl = ssl, .own = own};
    return true;
}

static void
end(Loan *loan)
{
    struct IoPart *io = loan->loop->io;
    if (LIKELY(io != NULL && io->tls_bios == NULL)) {
        io->tls_bios = loan->bios;
    } else {
        tlsbios_free(loan->bios);
    }
}

/* The SSL gives up its reference to what it has, so that has one of ours until it is put back. */
static bool
hold(Loan *loan, BIO *lent)
{
    OpenSSL *openssl = loan->openssl;
    if (!openssl->BIO_up_ref(loan->own)) {
        return false;
    }
    if (!openssl->BIO_up_ref(lent)) {
        openssl->BIO_free(loan->own);
        return false;
    }
    Py_INCREF(loan->loop);
    Py_INCREF(loan->socket);
    return true;
}

/* Makes `lent` ready to be put in the place of `current`, which is not ours to replace when somebody else has. */
static bool
prepare(Loan *loan, BIO *current, BIO *lent, BufMem *memory)
{
    if (current != loan->own || !set_memory(loan->openssl, lent, memory) || !hold(loan, lent)) {
        end(loan);
        return false;
    }
    return true;
}

static void
release(Loan *loan)
{
    LoopObject *loop = loan->loop;
    PyObject *socket = loan->socket;
    end(loan);
    Py_DECREF(socket);
    Py_DECREF(loop);
}

bool
loan_begin_incoming(Loan *loan, LoopObject *loop, PyObject *socket, SSL *ssl, BIO *own, const char *data, size_t size)
{
    if (!begin(loan, loop, socket, ssl, own)) {
        return false;
    }
    TlsBios *bios = loan->bios;
    bios->received = (BufMem){.length = size, .data = (char *)data, .max = size};
    if (!prepare(loan, loan->openssl->SSL_get_rbio(ssl), bios->incoming, &bios->received)) {
        return false;
    }
    loan->openssl->SSL_set0_rbio(ssl, bios->incoming);
    return true;
}

BIO *
loan_incoming(Loan *loan)
{
    return loan->bios->incoming;
}

size_t
loan_end_incoming(Loan *loan)
{
    size_t rest = loan->openssl->BIO_ctrl_pending(loan->bios->incoming);
    loan->openssl->SSL_set0_rbio(loan->ssl, loan->own);
    release(loan);
    return rest;
}

bool
loan_begin_outgoing(Loan *loan, LoopObject *loop, PyObject *socket, SSL *ssl, BIO *own)
{
    if (!begin(loan, loop, socket, ssl, own)) {
        return false;
    }
    TlsBios *bios = loan->bios;
    bios->written.length = 0;
    if (!prepare(loan, loan->openssl->SSL_get_wbio(ssl), bios->outgoing, &bios->written)) {
        return false;
    }
    loan->openssl->SSL_set0_wbio(ssl, bios->outgoing);
    return true;
}

size_t
loan_outgoing_size(Loan *loan)
{
    return loan->bios->written.length;
}

const char *
loan_stop_outgoing(Loan *loan)
{
    loan->openssl->SSL_set0_wbio(loan->ssl, loan->own);
    return loan->bios->written.data;
}

void
loan_end_outgoing(Loan *loan)
{
    release(loan);
}

/* ---- the probe ---- */

static bool
reads_memory(OpenSSL *openssl, TlsBios *bios)
{
    char data[] = "ciphertext", read[sizeof(data)] = "";
    bios->received = (BufMem){.length = sizeof(data), .data = data, .max = sizeof(data)};
    return set_memory(openssl, bios->incoming, &bios->received) && openssl->BIO_read(bios->incoming, read, 6) == 6 &&
           openssl->BIO_ctrl_pending(bios->incoming) == sizeof(data) - 6 &&
           openssl->BIO_read(bios->incoming, read + 6, sizeof(data)) == sizeof(data) - 6 &&
           memcmp(read, data, sizeof(data)) == 0 && openssl->BIO_read(bios->incoming, read, 1) == -1;
}

static bool
writes_memory(OpenSSL *openssl, TlsBios *bios)
{
    const char data[] = "ciphertext";
    bios->written.length = 0;
    return set_memory(openssl, bios->outgoing, &bios->written) && openssl->BIO_write(bios->outgoing, data, 6) == 6 &&
           openssl->BIO_write(bios->outgoing, data + 6, sizeof(data) - 6) == sizeof(data) - 6 &&
           bios->written.length == sizeof(data) && bios->written.max >= sizeof(data) &&
           memcmp(bios->written.data, data, sizeof(data)) == 0;
}

bool
loan_probe(OpenSSL *openssl)
{
    TlsBios *bios = new_bios(openssl);
    /* Twice each: the second time what the first has left is taken over. */
    bool fits = bios != NULL && reads_memory(openssl, bios) && reads_memory(openssl, bios) &&
                writes_memory(openssl, bios) && writes_memory(openssl, bios);
    tlsbios_free(bios);
    return fits;
}
