/* The data path of TLS: ciphertext from the transport to the application's protocol, and back.

   The SSL is used in the loop's thread and with the GIL held, so nobody else is in it. OpenSSL's queue of errors is emptied before
   each call. After a failure it is left as it is and Python's method tries the same again: OpenSSL answers as before,
   and _ssl makes the exception of it that it always makes. */

#include "io/tls.h"

#include "base/args.h"
#include "io/loan.h"
#include "io/streamsink.h"

enum {
    /* Plaintext of one record. Feeding OpenSSL in such pieces also keeps its buffers small, which never shrink. */
    RECORD_SIZE = 16 * 1024,
    /* Plaintext that OpenSSL may hold besides what stands in the incoming BIO: one record that waits for its rest, and
       some room so that the last read is not a full one. */
    HELD_SIZE = RECORD_SIZE + 1024,
    /* Do not gather more than this before it is encrypted. */
    ENCRYPT_AT = RECORD_SIZE,
    /* Less than this is copied sooner than BIOs are changed. */
    LEND_MINIMUM = 2048,
    /* Do not gather more ciphertext than this, and a record, in the buffer of the loop. */
    LENT_MAXIMUM = 128 * 1024,
};

/* What reading natively comes to, besides 0 and -1. */
enum { READ_UNUSUAL = 1, READ_CLOSED = 2 };

/* ---- asking Python ---- */

int
tls_call_stock(TlsConnection *self, const char *name, PyObject *argument)
{
    PyObject *method = PyObject_GetAttrString(self->state->asyncio_SSLProtocol, name);
    PyObject *result = method == NULL ? NULL : PyObject_CallFunctionObjArgs(method, self, argument, NULL);
    Py_XDECREF(method);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* What SSLProtocol's `except Exception` does with the exception that is set; -1 with any other. */
static int
report(TlsConnection *self)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception)) {
        return -1;
    }
    PyObject *exc = compat_take_exception();
    PyObject *before = loop_begin_handling(exc);
    PyObject *result = PyObject_CallMethod((PyObject *)self, "_fatal_error", "Os", exc, "Fatal error on SSL protocol");
    loop_end_handling(before);
    Py_DECREF(exc);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static bool
has_backlog(TlsConnection *self)
{
    /* A deque; whatever else stands there is left to Python. */
    Py_ssize_t size = self->write_backlog == NULL ? -1 : PyObject_Size(self->write_backlog);
    if (size < 0) {
        PyErr_Clear();
    }
    return size != 0;
}

/* ---- flow control ---- */

/* Buffered output against the marks; Python's method tells the protocol. -1 with an exception. */
static int
control_writing(TlsConnection *self)
{
    double size = (double)self->state->openssl->BIO_ctrl_pending(self->outgoing) + (double)self->write_buffer_size;
    bool crossed =
        self->app_writing_paused ? size <= self->levels[TLS_OUTGOING_LOW] : size >= self->levels[TLS_OUTGOING_HIGH];
    return UNLIKELY(crossed) ? tls_call_stock(self, "_control_app_writing", NULL) : 0;
}

static int
control_reading(TlsConnection *self)
{
    double size = (double)self->state->openssl->BIO_ctrl_pending(self->incoming);
    bool crossed =
        self->ssl_reading_paused ? size <= self->levels[TLS_INCOMING_LOW] : size >= self->levels[TLS_INCOMING_HIGH];
    return UNLIKELY(crossed) ? tls_call_stock(self, "_control_ssl_reading", NULL) : 0;
}

/* ---- writing ---- */

void
tls_drop_plain(TlsConnection *self)
{
    chunks_clear(&self->plain);
}

/* Ciphertext from OpenSSL to the queue of the transport, unless that is full. -1 with an exception. */
static int
move_ciphertext(TlsConnection *self)
{
    OpenSSL *openssl = self->state->openssl;
    size_t size = self->ssl_writing_paused ? 0 : openssl->BIO_ctrl_pending(self->outgoing);
    if (size == 0) {
        return 0;
    }
    size = Py_MIN(size, INT_MAX);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (bytes == NULL) {
        return -1;
    }
    int err = -1;
    if (openssl->BIO_read(self->outgoing, PyBytes_AS_STRING(bytes), (int)size) != (int)size) {
        PyErr_SetString(PyExc_RuntimeError, "the outgoing BIO is short of what it holds");
    } else {
        err = transport_push(SocketTransport_CAST(self->transport), bytes);
    }
    Py_DECREF(bytes);
    return err;
}

/* The plaintext for the next record: the front of the queue, small pieces joined. */
static const char *
next_record(TlsConnection *self, char *joined, size_t *size)
{
    Chunks *plain = &self->plain;
    Chunk *first = &plain->items[plain->head];
    if (plain->count == 1 || first->size >= RECORD_SIZE) {
        *size = Py_MIN(first->size, RECORD_SIZE);
        return first->data;
    }
    *size = 0;
    for (size_t i = 0; i < plain->count && *size < RECORD_SIZE; i++) {
        size_t part = Py_MIN(first[i].size, RECORD_SIZE - *size);
        memcpy(joined + *size, first[i].data, part);
        *size += part;
    }
    return joined;
}

/* OpenSSL would not take a record (renegotiation, or an error): Python goes on with everything that is left. -1 with an
   exception. */
static int
leave_to_backlog(TlsConnection *self, char *joined)
{
    /* The same again: OpenSSL insists on it. */
    size_t size;
    const char *record = next_record(self, joined, &size);
    PyObject *first = PyBytes_FromStringAndSize(record, (Py_ssize_t)size);
    if (first == NULL) {
        return -1;
    }
    chunks_consume(&self->plain, size);
    Chunks rest = self->plain;
    self->plain = (Chunks){NULL};
    PyObject *list = PyList_New(0);
    int err = list == NULL ? -1 : PyList_Append(list, first);
    for (size_t i = 0; err == 0 && i < rest.count; i++) {
        Chunk *chunk = &rest.items[rest.head + i];
        PyObject *bytes = PyBytes_FromStringAndSize(chunk->data, (Py_ssize_t)chunk->size);
        err = bytes == NULL ? -1 : PyList_Append(list, bytes);
        Py_XDECREF(bytes);
    }
    if (err == 0) {
        err = tls_call_stock(self, "_write_appdata", list);
    }
    chunks_clear(&rest);
    Py_DECREF(first);
    Py_XDECREF(list);
    return err;
}

/* Has OpenSSL encrypt the next record, of which it takes all or nothing. */
static bool
seal(TlsConnection *self, SocketTransport *transport, char *joined)
{
    OpenSSL *openssl = self->state->openssl;
    size_t size, written = 0;
    const char *record = next_record(self, joined, &size);
    openssl_clear_errors(openssl);
    if (!openssl->SSL_write_ex(self->ssl, record, size, &written)) {
        return false;
    }
    chunks_consume_into(&self->plain, written, transport_bytes_pool(transport));
    return true;
}

/* The same into the buffer of the loop, until there is nothing more or enough; false when a record was not taken. */
static bool
seal_many(TlsConnection *self, SocketTransport *transport, Loan *loan, char *joined)
{
    bool sealed;
    do {
        sealed = seal(self, transport, joined);
    } while (sealed && self->plain.count > 0 && loan_outgoing_size(loan) < LENT_MAXIMUM && tls_is_native(self));
    return sealed;
}

static int
push_copy(SocketTransport *transport, const char *data, size_t size)
{
    PyObject *bytes = PyBytes_FromStringAndSize(data, (Py_ssize_t)size);
    int err = bytes == NULL ? -1 : transport_push(transport, bytes);
    Py_XDECREF(bytes);
    return err;
}

/* Ends a loan, and has the transport send what OpenSSL has made meanwhile. -1 with an exception. */
static int
send_lent(TlsConnection *self, SocketTransport *transport, Loan *loan)
{
    const char *data = loan_stop_outgoing(loan);
    size_t size = loan_outgoing_size(loan);
    ssize_t sent = size == 0 ? 0 : transport_try_send(transport, data, size);
    int err = 0;
    if (UNLIKELY(sent < 0)) {
        err = transport_sending_failed(transport, (int)sent);
    } else if (UNLIKELY((size_t)sent < size)) {
        err = push_copy(transport, data + sent, size - (size_t)sent);
        if (err < 0) {
            /* Before anybody is told: nothing must follow a gap. */
            tls_drop_plain(self);
        }
    }
    loan_end_outgoing(loan);
    return err;
}

/* Encrypts the next record, or, where they are to be sent at once, the next ones. -1 with an exception. */
static int
encrypt_some(TlsConnection *self, SocketTransport *transport, bool at_once)
{
    OpenSSL *openssl = self->state->openssl;
    char joined[RECORD_SIZE];
    Loan loan;
    bool sealed;
    int err;
    if (at_once && !self->ssl_writing_paused && openssl->BIO_ctrl_pending(self->outgoing) == 0 &&
        loan_begin_outgoing(&loan, transport->loop, self->socket, self->ssl, self->outgoing)) {
        sealed = seal_many(self, transport, &loan, joined);
        err = send_lent(self, transport, &loan);
    } else {
        sealed = seal(self, transport, joined);
        err = sealed ? move_ciphertext(self) : 0;
    }
    /* Whoever was told of a failure has emptied the queue, if anything. */
    return sealed || err < 0 || self->plain.count == 0 ? err : leave_to_backlog(self, joined);
}

/* `at_once`: the caller would have the transport flush what comes of it. */
static int
encrypt(TlsConnection *self, bool at_once)
{
    /* What is there already goes first. */
    if (tls_is_native(self) && move_ciphertext(self) < 0) {
        return -1;
    }
    while (self->plain.count > 0) {
        if (!tls_is_native(self)) {
            tls_drop_plain(self);
            return 0;
        }
        PyObject *transport = Py_NewRef(self->transport);
        int err = encrypt_some(self, SocketTransport_CAST(transport), at_once);
        Py_DECREF(transport);
        if (err < 0) {
            return -1;
        }
    }
    return tls_is_native(self) ? control_writing(self) : 0;
}

void
tls_seal_rest(TlsConnection *self)
{
    OpenSSL *openssl = self->state->openssl;
    char joined[RECORD_SIZE];
    while (self->plain.count > 0 && tls_is_native(self) && !self->ssl_writing_paused &&
           transport_takes_output(SocketTransport_CAST(self->transport))) {
        size_t size, written = 0;
        const char *record = next_record(self, joined, &size);
        openssl_clear_errors(openssl);
        if (!openssl->SSL_write_ex(self->ssl, record, size, &written)) {
            openssl_clear_errors(openssl);
            break;
        }
        chunks_consume(&self->plain, written);
        if (move_ciphertext(self) < 0) {
            PyErr_Clear();
            break;
        }
    }
    tls_drop_plain(self);
}

int
tls_encrypt(TlsConnection *self, bool at_once)
{
    return self->plain.count == 0 || encrypt(self, at_once) == 0 ? 0 : report(self);
}

int
tls_send(TlsConnection *self)
{
    PyObject *transport = Py_NewRef(self->transport);
    LoopObject *loop = SocketTransport_CAST(transport)->loop;
    int err = tls_encrypt(self, self->plain.size_bytes >= ENCRYPT_AT || loop == NULL || !loop->in_turn);
    /* What has left the protocol's pause_writing() must not keep the bytes back. */
    PyObject *leaving = err < 0 ? compat_take_exception() : NULL;
    int sent = transport_send(SocketTransport_CAST(transport));
    if (leaving != NULL) {
        PyErr_Clear();
        compat_restore_exception(leaving);
    }
    Py_DECREF(transport);
    return err < 0 ? err : sent;
}

/* Encrypts and sends: when the turn ends, unless there is a reason to do it now. */
static int
send_soon(TlsConnection *self)
{
    bool may_wait = !self->is_exposed && self->plain.size_bytes < ENCRYPT_AT && !self->ssl_writing_paused &&
                    self->levels[TLS_OUTGOING_HIGH] > ENCRYPT_AT;
    return transport_flushes_later(SocketTransport_CAST(self->transport), may_wait) ? 0 : tls_send(self);
}

/* Python's way, after what is still to be encrypted. */
static PyObject *
write_by_python(TlsConnection *self, PyObject *list)
{
    if (tls_encrypt(self, false) < 0) {
        return NULL;
    }
    return tls_call_stock(self, "_write_appdata", list) < 0 ? NULL : Py_NewRef(Py_None);
}

static bool
is_bytes_like(PyObject *data)
{
    return PyBytes_Check(data) || PyByteArray_Check(data) || PyMemoryView_Check(data);
}

/* Takes exact bytes; -1 with an exception. */
static int
push_plain(TlsConnection *self, PyObject *bytes)
{
    return PyBytes_GET_SIZE(bytes) == 0 ? 0 : chunks_push(&self->plain, bytes);
}

static PyObject *
refuse(PyObject *data)
{
    PyObject *name = PyType_GetName(Py_TYPE(data));
    if (name != NULL) {
        PyErr_Format(PyExc_TypeError, "data: expecting a bytes-like instance, got %U", name);
        Py_DECREF(name);
    }
    return NULL;
}

PyObject *
TLSConnection_write(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    TlsConnection *self = TlsConnection_CAST(op);
    PyObject *data = args_only("_SSLProtocolTransport.write", "data", args, nargs, kwnames);
    if (data == NULL || !is_bytes_like(data)) {
        return data == NULL ? NULL : refuse(data);
    }
    int truth = PyObject_IsTrue(data);
    if (truth <= 0) {
        return truth < 0 ? NULL : Py_NewRef(Py_None);
    }
    /* First of all, since making them may run Python code. A memoryview with gaps has none. */
    PyObject *bytes = transport_exact_bytes(data);
    PyObject *result = NULL;
    if (LIKELY(bytes != NULL && !has_backlog(self) && tls_is_native(self))) {
        result = push_plain(self, bytes) < 0 || send_soon(self) < 0 ? NULL : Py_NewRef(Py_None);
    } else {
        PyErr_Clear();
        PyObject *list = PyTuple_Pack(1, data);
        result = list == NULL ? NULL : write_by_python(self, list);
        Py_XDECREF(list);
    }
    Py_XDECREF(bytes);
    return result;
}

/* Puts exact bytes in the place of each line; false when one is nothing to write. */
static bool
make_lines_exact(PyObject *list)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
        PyObject *line = Py_NewRef(PyList_GET_ITEM(list, i));
        PyObject *bytes = is_bytes_like(line) ? transport_exact_bytes(line) : NULL;
        Py_DECREF(line);
        if (bytes == NULL || PyList_SetItem(list, i, bytes) < 0) {
            PyErr_Clear();
            return false;
        }
    }
    return true;
}

static PyObject *
write_lines(TlsConnection *self, PyObject *list)
{
    /* Python has an error for the one that is nothing to write, and knows what becomes of those around it. */
    if (!make_lines_exact(list) || has_backlog(self) || !tls_is_native(self)) {
        return write_by_python(self, list);
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
        if (push_plain(self, PyList_GET_ITEM(list, i)) < 0) {
            return NULL;
        }
    }
    return send_soon(self) < 0 ? NULL : Py_NewRef(Py_None);
}

PyObject *
TLSConnection_write_appdata(PyObject *op, PyObject *iterable)
{
    TlsConnection *self = TlsConnection_CAST(op);
    if (has_backlog(self) || !tls_is_native(self)) {
        return write_by_python(self, iterable);
    }
    PyObject *list = PyList_New(0);
    PyObject *result = list == NULL ? NULL : PyObject_CallMethod(list, "extend", "(O)", iterable);
    if (result != NULL) {
        Py_SETREF(result, write_lines(self, list));
    } else if (list != NULL && PyList_GET_SIZE(list) > 0) {
        /* The lines in front of the failure stay written. */
        PyObject *failure = compat_take_exception();
        result = write_lines(self, list);
        if (result != NULL) {
            Py_CLEAR(result);
            compat_restore_exception(failure);
        } else {
            Py_DECREF(failure);
        }
    }
    Py_XDECREF(list);
    return result;
}

/* ---- reading ---- */

/* Puts ciphertext where Python finds it; -1 with an exception. */
static int
store(TlsConnection *self, const char *data, size_t size)
{
    /* A read is never larger than an int. */
    if (size > 0 && self->state->openssl->BIO_write(self->incoming, data, (int)size) != (int)size) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

/* Reads from OpenSSL until it and `source` have no more, or `memory` is full. The code of SSL_get_error(), 0 when full. */
static int
decrypt_from(TlsConnection *self, BIO *source, char *memory, size_t capacity, size_t *filled)
{
    OpenSSL *openssl = self->state->openssl;
    while (openssl->BIO_ctrl_pending(source) > 0 || openssl->SSL_has_pending(self->ssl)) {
        if (*filled == capacity) {
            return 0;
        }
        size_t count = 0;
        openssl_clear_errors(openssl);
        int result = openssl->SSL_read_ex(self->ssl, memory + *filled, capacity - *filled, &count);
        if (result <= 0) {
            return openssl->SSL_get_error(self->ssl, result);
        }
        *filled += count;
    }
    return TLS_ERROR_WANT_READ;
}

/* The same for what is stored. */
static int
decrypt_stored(TlsConnection *self, char *memory, size_t capacity, size_t *filled)
{
    return decrypt_from(self, self->incoming, memory, capacity, filled);
}

/* Has OpenSSL read from where `data` stand: 1 with *code set when that is done, 0 when it cannot be, -1 with an exception. */
static int
decrypt_in_place(TlsConnection *self, const char *data, size_t size, char *memory, size_t capacity, size_t *filled,
                 int *code)
{
    Loan loan;
    LoopObject *loop = SocketTransport_CAST(self->transport)->loop;
    if (size < LEND_MINIMUM || self->state->openssl->BIO_ctrl_pending(self->incoming) > 0 ||
        !loan_begin_incoming(&loan, loop, self->socket, self->ssl, self->incoming, data, size)) {
        return 0;
    }
    *code = decrypt_from(self, loan_incoming(&loan), memory, capacity, filled);
    size_t rest = loan_end_incoming(&loan);
    return store(self, data + size - rest, rest) < 0 ? -1 : 1;
}

/* The same for what is stored and then `data`, of which nothing is lost: what was not decrypted is stored. */
static int
decrypt(TlsConnection *self, const char *data, size_t size, char *memory, size_t capacity, size_t *filled)
{
    int code = TLS_ERROR_WANT_READ;
    int done = decrypt_in_place(self, data, size, memory, capacity, filled, &code);
    if (done != 0) {
        return done < 0 ? -1 : code;
    }
    do {
        size_t piece = code == TLS_ERROR_WANT_READ ? Py_MIN(size, RECORD_SIZE) : size;
        if (store(self, data, piece) < 0) {
            return -1;
        }
        data += piece;
        size -= piece;
        if (code == TLS_ERROR_WANT_READ) {
            code = decrypt_stored(self, memory, capacity, filled);
        }
    } while (size > 0);
    return code;
}

/* Has the reader of a standard stream take plaintext: 1 when that is done, 0 when the protocol must be called, -1 with an
   exception. */
static int
deliver_to_reader(TlsConnection *self, SocketTransport *transport, const char *data, size_t size)
{
    PyObject *protocol = self->app_protocol;
    LoopObject *loop = transport->loop;
    if (protocol == NULL || loop == NULL) {
        return 0;
    }
    if (UNLIKELY(protocol != self->sink_protocol)) {
        self->sink_protocol = protocol;
        self->sinks = sink_attach(loop, protocol);
    }
    if (!self->sinks) {
        return 0;
    }
    /* `data` may stand in the loop's buffer: whoever reads while the sink calls Python code gets another one. */
    char *lent = loop->io == NULL ? NULL : loop->io->plain_buffer;
    if (lent != NULL) {
        loop->io->plain_buffer = NULL;
    }
    Py_INCREF(loop);
    Py_INCREF(protocol);
    int taken = sink_feed(self->state, protocol, data, (Py_ssize_t)size, NULL);
    if (lent != NULL && loop->io != NULL) {
        /* Ours again, not the other one: the protocol may still have to be called with `data`. */
        PyMem_RawFree(loop->io->plain_buffer);
        loop->io->plain_buffer = lent;
    }
    Py_DECREF(protocol);
    Py_DECREF(loop);
    return taken;
}

/* The same for the protocol; `bytes` as for deliver(). */
static int
deliver_bytes(TlsConnection *self, SocketTransport *transport, const char *data, size_t size, PyObject *bytes)
{
    if (bytes != NULL) {
        /* On failure the object is gone and NULL comes back. */
        (void)_PyBytes_Resize(&bytes, (Py_ssize_t)size);
    } else {
        bytes = bytespool_new(transport_bytes_pool(transport), data, (Py_ssize_t)size);
    }
    if (bytes == NULL) {
        return -1;
    }
    PyObject *stack[2] = {Py_NewRef(self->app_protocol == NULL ? Py_None : self->app_protocol), bytes};
    PyObject *result = PyObject_VectorcallMethod(self->state->str_data_received, stack, 2, NULL);
    Py_DECREF(stack[0]);
    Py_XDECREF(result);
    bytespool_drop(transport_bytes_pool(transport), bytes);
    return result == NULL ? -1 : 0;
}

/* Hands plaintext to the application's protocol: every byte that is read natively for a plain Protocol comes through
   here. `bytes` (stolen) is an object whose front is `data`, or NULL. -1 with an exception. */
static int
deliver(TlsConnection *self, SocketTransport *transport, const char *data, size_t size, PyObject *bytes)
{
    int taken = deliver_to_reader(self, transport, data, size);
    if (taken != 0) {
        Py_XDECREF(bytes);
        return taken < 0 ? -1 : 0;
    }
    return deliver_bytes(self, transport, data, size, bytes);
}

static int
read_outcome(int code)
{
    return code == TLS_ERROR_WANT_READ ? 0 : code == TLS_ERROR_ZERO_RETURN ? READ_CLOSED : READ_UNUSUAL;
}

/* Decrypts and delivers all there is: what SSLProtocol._do_read__copied() does. 0, or READ_CLOSED after the peer's
   close_notify, READ_UNUSUAL when Python must look what OpenSSL has to say, or -1 with an exception. */
static int
read_copied(TlsConnection *self, SocketTransport *transport, const char *data, size_t size)
{
    OpenSSL *openssl = self->state->openssl;
    size_t capacity = openssl->BIO_ctrl_pending(self->incoming) + size + HELD_SIZE;
    capacity += (size_t)Py_MAX(openssl->SSL_pending(self->ssl), 0);
    PyObject *bytes = NULL;
    char *memory = capacity <= IO_PLAIN_SIZE ? transport_plain_buffer(transport) : NULL;
    if (memory == NULL) {
        bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)capacity);
        if (bytes == NULL) {
            return -1;
        }
        memory = PyBytes_AS_STRING(bytes);
    }
    size_t filled = 0;
    int code = decrypt(self, data, size, memory, capacity, &filled);
    bool unusual = code != TLS_ERROR_WANT_READ;
    if (filled == 0 || (unusual && code != 0 && code != TLS_ERROR_ZERO_RETURN)) {
        /* After an error the standard's method drops what it has read before it in the same go. */
        Py_XDECREF(bytes);
        return code < 0 ? -1 : read_outcome(code);
    }
    return deliver(self, transport, memory, filled, bytes) < 0 ? -1 : read_outcome(code);
}

/* The buffer of a BufferedProtocol, in `view`; how much of it to fill, or -1 with an exception. */
static Py_ssize_t
take_buffer(TlsConnection *self, size_t available, Py_buffer *view)
{
    PyObject *hint = PyLong_FromSize_t(available);
    PyObject *method = Py_XNewRef(self->app_protocol_get_buffer);
    PyObject *buffer = hint == NULL || method == NULL ? NULL : PyObject_CallOneArg(method, hint);
    Py_XDECREF(hint);
    Py_XDECREF(method);
    if (buffer == NULL) {
        return -1;
    }
    Py_ssize_t size = PyObject_Size(buffer);
    if (size >= 0 && PyObject_GetBuffer(buffer, view, PyBUF_WRITABLE) < 0) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "read() argument 2 must be read-write bytes-like object, not %.50s",
                     Py_TYPE(buffer)->tp_name);
        size = -1;
    }
    Py_DECREF(buffer);
    return size < 0 ? -1 : Py_MIN(size, view->len);
}

/* Tells a BufferedProtocol how much of its buffer was filled. -1 with an exception. */
static int
deliver_filled(TlsConnection *self, size_t filled)
{
    PyObject *count = PyLong_FromSize_t(filled);
    PyObject *method = Py_XNewRef(self->app_protocol_buffer_updated);
    PyObject *result = count == NULL || method == NULL ? NULL : PyObject_CallOneArg(method, count);
    Py_XDECREF(count);
    Py_XDECREF(method);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* Has _do_read() called in the next turn; -1 with an exception. */
static int
read_soon(TlsConnection *self, LoopObject *loop)
{
    PyObject *method = loop == NULL ? NULL : PyObject_GetAttrString((PyObject *)self, "_do_read");
    int err = method == NULL ? -1 : loop_call_soon(loop, method, NULL, 0, NULL);
    Py_XDECREF(method);
    return err < 0 && PyErr_Occurred() ? -1 : 0;
}

/* Fills the buffer of a BufferedProtocol once: what SSLProtocol._do_read__buffered() does. Answers as read_copied(). */
static int
read_buffered(TlsConnection *self, SocketTransport *transport, const char *data, size_t size)
{
    /* Before get_buffer(), which may close the connection: the rest of the data is then read on the way. */
    if (store(self, data, size) < 0) {
        return -1;
    }
    Py_buffer view = {NULL};
    Py_ssize_t wanted = take_buffer(self, self->state->openssl->BIO_ctrl_pending(self->incoming), &view);
    if (wanted <= 0 || !tls_is_native(self)) {
        PyBuffer_Release(&view);
        return wanted < 0 ? -1 : READ_UNUSUAL;
    }
    size_t filled = 0;
    int code = decrypt_stored(self, view.buf, (size_t)wanted, &filled);
    PyBuffer_Release(&view);
    if (code != 0 && code != TLS_ERROR_WANT_READ && code != TLS_ERROR_ZERO_RETURN) {
        return code < 0 ? -1 : READ_UNUSUAL;
    }
    if (filled == (size_t)wanted && read_soon(self, transport->loop) < 0) {
        return -1;
    }
    if (filled > 0 && deliver_filled(self, filled) < 0) {
        return -1;
    }
    return code == TLS_ERROR_ZERO_RETURN ? READ_CLOSED : 0;
}

/* What OpenSSL wants to send of its own accord, and flow control. -1 with an exception. */
static int
after_reading(TlsConnection *self)
{
    if (!tls_is_native(self)) {
        return 0;
    }
    if (has_backlog(self)) {
        if (tls_call_stock(self, "_do_write", NULL) < 0) {
            return -1;
        }
    } else if (self->state->openssl->BIO_ctrl_pending(self->outgoing) > 0 && !self->ssl_writing_paused) {
        PyObject *transport = Py_NewRef(self->transport);
        int err = move_ciphertext(self);
        if (err == 0) {
            err = transport_send(SocketTransport_CAST(transport));
        }
        Py_DECREF(transport);
        if (err < 0) {
            return -1;
        }
    }
    if (tls_is_native(self) && control_writing(self) < 0) {
        return -1;
    }
    return tls_is_native(self) ? control_reading(self) : 0;
}

/* The peer has said good-bye, which OpenSSL tells only once it is asked: passed on at once, whether or not the data
   before it made the application pause. -1 with an exception. */
static int
end_reading(TlsConnection *self)
{
    PyObject *result = PyObject_CallMethod((PyObject *)self, "_call_eof_received", NULL);
    if (result != NULL) {
        Py_SETREF(result, PyObject_CallMethod((PyObject *)self, "_start_shutdown", NULL));
    }
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* SSLProtocol._do_read() for what is stored and then `data`. -1 with what that does not catch. */
static int
do_read(TlsConnection *self, const char *data, size_t size)
{
    /* Whatever Python does while OpenSSL calls it. */
    PyObject *socket = Py_NewRef(self->socket);
    SocketTransport *transport = SocketTransport_CAST(Py_NewRef(self->transport));
    int outcome = 0;
    if (self->app_reading_paused) {
        outcome = store(self, data, size) < 0 ? -1 : control_reading(self);
    } else {
        outcome = self->app_protocol_is_buffer ? read_buffered(self, transport, data, size)
                                               : read_copied(self, transport, data, size);
        if (outcome == 0) {
            outcome = after_reading(self);
        } else if (outcome == READ_CLOSED) {
            outcome = end_reading(self);
        }
    }
    Py_DECREF(transport);
    Py_DECREF(socket);
    if (outcome > 0) {
        return tls_call_stock(self, "_do_read", NULL);
    }
    return outcome < 0 ? report(self) : 0;
}

int
tls_feed(TlsConnection *self, const char *data, size_t size)
{
    if (LIKELY(tls_is_native(self))) {
        return do_read(self, data, size);
    }
    if (store(self, data, size) < 0) {
        return -1;
    }
    /* Looks at the state and does what is due. */
    PyObject *result = PyObject_CallMethod((PyObject *)self, "buffer_updated", "i", 0);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

PyObject *
TLSConnection_do_read(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    TlsConnection *self = TlsConnection_CAST(op);
    int err = tls_is_native(self) ? do_read(self, NULL, 0) : tls_call_stock(self, "_do_read", NULL);
    return err < 0 ? NULL : Py_NewRef(Py_None);
}
