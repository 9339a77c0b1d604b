/* BIOs that stand in for those of a TLS connection while OpenSSL is called.

   OpenSSL reads ciphertext where the transport has received it, and puts what it makes into one buffer of the loop, from
   which it is sent. The connection's own memory BIOs would take a copy of each, and never shrink; so they hold only what is
   left over. Python, which knows no others, finds them in their places after each loan. */

#ifndef FASTLOOP_IO_LOAN_H
#define FASTLOOP_IO_LOAN_H

#include "io/openssl.h"
#include "sched/loop.h"

/* Of one loop: kept for the next loan, which takes them away from the loop until it ends. */
typedef struct TlsBios TlsBios;

typedef struct {
    LoopObject *loop;
    OpenSSL *openssl;
    TlsBios *bios;
    PyObject *socket; /* keeps `ssl` */
    SSL *ssl;
    BIO *own; /* the connection's */
} Loan;

/* Has `ssl`, which `socket` owns, read `data` in the place of what is in `own`. False when that is not to be had: then
   everything is as before. */
bool loan_begin_incoming(Loan *loan, LoopObject *loop, PyObject *socket, SSL *ssl, BIO *own, const char *data,
                         size_t size);
/* The BIO that has `data`. */
BIO *loan_incoming(Loan *loan);
/* How much of `data`, at its end, OpenSSL has not read. */
size_t loan_end_incoming(Loan *loan);

/* The same for what it writes. */
bool loan_begin_outgoing(Loan *loan, LoopObject *loop, PyObject *socket, SSL *ssl, BIO *own);
size_t loan_outgoing_size(Loan *loan);
/* What has been written, good until loan_end_outgoing(), and from now on it goes to `own` again. */
const char *loan_stop_outgoing(Loan *loan);
void loan_end_outgoing(Loan *loan);

/* Does this OpenSSL do with a memory BIO what a loan needs? */
bool loan_probe(OpenSSL *openssl);

/* NULL is nothing. */
void tlsbios_free(TlsBios *bios);

#endif
