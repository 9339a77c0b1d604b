/* The queue of handshakes. It belongs to the loop; a record of the ready queue stands for all that wait in it. */

#include "io/handshakes.h"

#include "io/tls.h"

/* So many may be under way before others wait. */
enum { HANDSHAKES_AT_ONCE = 32 };
/* In seconds, about what a handshake takes to compute. */
static const double PATIENCE = 0.001;

/* Of the loop that the connection is on; NULL when there is none, or TLS is inside of TLS. */
static Handshakes *
handshakes_of(TlsConnection *self)
{
    bool is_ours = self->transport != NULL && Py_IS_TYPE(self->transport, self->state->SocketTransportType);
    LoopObject *loop = is_ours ? SocketTransport_CAST(self->transport)->loop : NULL;
    return loop == NULL || loop->io == NULL ? NULL : &loop->io->handshakes;
}

static void
count(TlsConnection *self, Handshakes *handshakes)
{
    self->has_begun = true;
    self->is_counted = handshakes != NULL;
    if (handshakes != NULL) {
        handshakes->under_way++;
    }
}

/* ---- the queue ---- */

static void
append(Handshakes *handshakes, TlsConnection *self)
{
    self->is_put_off = true;
    self->next_put_off = NULL;
    Py_INCREF(self);
    if (handshakes->first == NULL) {
        handshakes->first = self;
    } else {
        handshakes->last->next_put_off = self;
    }
    handshakes->last = self;
}

/* The first one: a strong reference, or NULL. */
static TlsConnection *
take(Handshakes *handshakes)
{
    TlsConnection *self = handshakes->first;
    if (self != NULL) {
        handshakes->first = self->next_put_off;
        self->next_put_off = NULL;
        self->is_put_off = false;
    }
    return self;
}

/* Begins one that was put off, unless something has ended it. -1 with SystemExit or KeyboardInterrupt. */
static int
begin(TlsConnection *self)
{
    if (self->ssl_state != self->state->openssl->handshaking || handshakes_of(self) == NULL) {
        return 0;
    }
    count(self, handshakes_of(self));
    PyObject *transport = Py_NewRef(self->transport);
    PyObject *result = PyObject_CallMethod((PyObject *)self, "_do_handshake", NULL);
    int err = 0;
    if (result == NULL) {
        err = transport_fail(SocketTransport_CAST(transport), "Fatal error: protocol.buffer_updated() call failed.");
    }
    Py_XDECREF(result);
    Py_DECREF(transport);
    return err;
}

/* Begins as many as may be under way, and `least`. -1 with SystemExit or KeyboardInterrupt. */
static int
begin_some(Handshakes *handshakes, size_t least)
{
    for (size_t i = 0; i < least || handshakes->under_way < HANDSHAKES_AT_ONCE; i++) {
        TlsConnection *self = take(handshakes);
        int err = self == NULL ? 0 : begin(self);
        Py_XDECREF(self);
        if (self == NULL || err < 0) {
            return err;
        }
    }
    return 0;
}

/* ready_run: one is over. */
static int
run_begin(LoopObject *loop, PyObject *Py_UNUSED(owner), PyObject *Py_UNUSED(arg))
{
    loop->io->handshakes.is_queued = false;
    return begin_some(&loop->io->handshakes, 0);
}

void
handshakes_forget(TlsConnection *self)
{
    Handshakes *handshakes = handshakes_of(self);
    if (self->is_counted && handshakes != NULL) {
        handshakes->under_way--;
    }
    self->is_counted = false;
}

void
handshakes_end(TlsConnection *self)
{
    handshakes_forget(self);
    Handshakes *handshakes = handshakes_of(self);
    if (handshakes != NULL && handshakes->first != NULL && !handshakes->is_queued) {
        LoopObject *loop = SocketTransport_CAST(self->transport)->loop;
        handshakes->is_queued = loop_push(loop, run_begin, self->transport, NULL) == 0;
        /* Without memory for it, the timer comes. */
        PyErr_Clear();
    }
}

/* Has _begin_put_off() called before long, with this connection or another; false without memory. */
static bool
arm_timer(TlsConnection *self, LoopObject *loop)
{
    Handshakes *handshakes = &loop->io->handshakes;
    if (!handshakes->is_armed) {
        PyObject *method = PyObject_GetAttrString((PyObject *)self, "_begin_put_off");
        PyObject *timer =
            method == NULL ? NULL : PyObject_CallMethod((PyObject *)loop, "call_later", "dOO", PATIENCE, method, loop);
        handshakes->is_armed = timer != NULL;
        Py_XDECREF(method);
        Py_XDECREF(timer);
        PyErr_Clear();
    }
    return handshakes->is_armed;
}

/* _begin_put_off(loop), by the timer: one that waits begins, though none was over. */
PyObject *
TLSConnection_begin_put_off(PyObject *op, PyObject *loop)
{
    State *state = TlsConnection_CAST(op)->state;
    if (!loop_check(state, loop) || LoopObject_CAST(loop)->io == NULL) {
        Py_RETURN_NONE;
    }
    Handshakes *handshakes = &LoopObject_CAST(loop)->io->handshakes;
    handshakes->is_armed = false;
    size_t least = handshakes->first == NULL || arm_timer(handshakes->first, LoopObject_CAST(loop)) ? 1 : SIZE_MAX;
    return begin_some(handshakes, least) < 0 ? NULL : Py_NewRef(Py_None);
}

/* Puts a handshake off, if it should be; false when it is to begin now. */
static bool
put_off(TlsConnection *self, Handshakes *handshakes)
{
    if (handshakes == NULL || (handshakes->first == NULL && handshakes->under_way < HANDSHAKES_AT_ONCE) ||
        !arm_timer(self, SocketTransport_CAST(self->transport)->loop)) {
        return false;
    }
    append(handshakes, self);
    return true;
}

/* As a server, with nothing of the peer yet or put off: is there nothing to do now? */
static bool
waits_to_begin(TlsConnection *self)
{
    OpenSSL *openssl = self->state->openssl;
    if (self->has_begun || self->ssl == NULL || !openssl->SSL_is_server(self->ssl)) {
        return false;
    }
    Handshakes *handshakes = handshakes_of(self);
    if (self->is_put_off || openssl->BIO_ctrl_pending(self->incoming) == 0 || put_off(self, handshakes)) {
        return true;
    }
    count(self, handshakes);
    return false;
}

PyObject *
TLSConnection_do_handshake(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    TlsConnection *self = TlsConnection_CAST(op);
    return waits_to_begin(self) || tls_call_stock(self, "_do_handshake", NULL) == 0 ? Py_NewRef(Py_None) : NULL;
}

int
handshakes_traverse(Handshakes *handshakes, visitproc visit, void *arg)
{
    for (TlsConnection *self = handshakes->first; self != NULL; self = self->next_put_off) {
        Py_VISIT(self);
    }
    return 0;
}

void
handshakes_clear(Handshakes *handshakes)
{
    TlsConnection *self;
    while ((self = take(handshakes)) != NULL) {
        Py_DECREF(self);
    }
}
