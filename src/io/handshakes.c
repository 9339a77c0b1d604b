/* The queue of handshakes. It belongs to the loop; while it is not empty, a record of the ready queue stands for all that
   wait in it. */

#include "io/handshakes.h"

#include "io/io.h"
#include "io/tls.h"

enum {
    HANDSHAKES_IN_A_TURN = 16,
    /* In bytes: a client's first word is not longer. Of one that says more nothing is kept. */
    FIRST_WORD = 16 * 1024,
    /* So many handshakes at the same time leave some megabytes behind, */
    CROWD_MIN = 128,
    /* and each about so many bytes. The allocator looks at all it has: this must be a part of that. */
    LEFT_BEHIND = 24 * 1024,
    WORTH_A_LOOK = 16,
};

/* The loop that the connection is on; NULL when there is none, or TLS is inside of TLS. */
static LoopObject *
loop_of(TlsConnection *self)
{
    bool is_ours = self->transport != NULL && Py_IS_TYPE(self->transport, self->state->SocketTransportType);
    LoopObject *loop = is_ours ? SocketTransport_CAST(self->transport)->loop : NULL;
    return loop == NULL || loop->io == NULL ? NULL : loop;
}

/* May one more begin in this turn? */
static bool
has_room(Handshakes *handshakes, uint64_t turn)
{
    if (handshakes->turn != turn) {
        handshakes->turn = turn;
        handshakes->begun = 0;
    }
    return handshakes->begun < HANDSHAKES_IN_A_TURN;
}

/* Gives back what so many handshakes have left behind, unless the process is so large that it would take longer than it
   is worth. */
static void
trim(unsigned crowd)
{
    size_t resident;
    if (uv_resident_set_memory(&resident) == 0 && (size_t)crowd * LEFT_BEHIND >= resident / WORTH_A_LOOK) {
        compat_trim_memory();
    }
}

/* With the loop that it is on, or NULL. */
static void
note_begin(TlsConnection *self, LoopObject *loop)
{
    self->has_begun = true;
    if (loop != NULL) {
        Handshakes *handshakes = &loop->io->handshakes;
        (void)has_room(handshakes, loop_turn(loop)); /* it counts in this turn */
        handshakes->begun++;
        handshakes->under_way++;
        handshakes->crowd = Py_MAX(handshakes->crowd, handshakes->under_way);
        self->is_under_way = true;
    }
}

void
handshakes_note_end(TlsConnection *self)
{
    LoopObject *loop = self->is_under_way ? loop_of(self) : NULL;
    self->is_under_way = false;
    if (loop == NULL) {
        return;
    }
    Handshakes *handshakes = &loop->io->handshakes;
    handshakes->under_way--;
    /* Some may never come to an end: not when the last one does. */
    if (handshakes->crowd >= CROWD_MIN && handshakes->under_way <= handshakes->crowd / 8) {
        trim(handshakes->crowd);
        handshakes->crowd = handshakes->under_way;
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

/* Begins one that was put off, unless something has ended or begun it. -1 with SystemExit or KeyboardInterrupt. */
static int
begin(TlsConnection *self)
{
    LoopObject *loop = loop_of(self);
    if (self->has_begun || loop == NULL || self->ssl_state != self->state->openssl->handshaking) {
        return 0;
    }
    note_begin(self, loop);
    PyObject *transport = Py_NewRef(self->transport);
    PyObject *entered = transport_enter_context(SocketTransport_CAST(transport)->context);
    PyObject *result = PyObject_CallMethod((PyObject *)self, "_do_handshake", NULL);
    int err = 0;
    if (result == NULL) {
        err = transport_fail(SocketTransport_CAST(transport), "Fatal error: protocol.buffer_updated() call failed.");
    }
    transport_leave_context(entered);
    Py_XDECREF(result);
    Py_DECREF(transport);
    return err;
}

static int run_put_off(LoopObject *loop, PyObject *owner, PyObject *arg);

/* Has a record in the ready queue, of the next turn unless this one is still polling; false without memory. */
static bool
ensure_record(LoopObject *loop, PyObject *owner)
{
    Handshakes *handshakes = &loop->io->handshakes;
    if (!handshakes->is_queued) {
        handshakes->is_queued = loop_push(loop, run_put_off, owner, NULL) == 0;
        if (!handshakes->is_queued) {
            PyErr_Clear();
        }
    }
    return handshakes->is_queued;
}

/* ready_run: begins as many as the turn has room for. */
static int
run_put_off(LoopObject *loop, PyObject *owner, PyObject *Py_UNUSED(arg))
{
    Handshakes *handshakes = &loop->io->handshakes;
    handshakes->is_queued = false;
    /* Now, for what begins may run the loop. Without memory for it, all begin. */
    bool all = handshakes->first != NULL && !ensure_record(loop, owner);
    int err = 0;
    while (err == 0 && handshakes->first != NULL && (all || has_room(handshakes, loop_turn(loop)))) {
        TlsConnection *self = take(handshakes);
        err = begin(self);
        Py_DECREF(self);
    }
    return err;
}

/* Puts a handshake off, if it should be; false when it is to begin now. */
static bool
put_off(TlsConnection *self)
{
    LoopObject *loop = loop_of(self);
    if (loop == NULL) {
        return false;
    }
    Handshakes *handshakes = &loop->io->handshakes;
    if ((handshakes->first == NULL && has_room(handshakes, loop_turn(loop))) || !ensure_record(loop, self->transport)) {
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
    size_t said = openssl->BIO_ctrl_pending(self->incoming);
    if (said == 0 || (said <= FIRST_WORD && (self->is_put_off || put_off(self)))) {
        return true;
    }
    note_begin(self, loop_of(self));
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
