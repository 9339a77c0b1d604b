/* Receiving and sending datagrams.

   Each method does what the standard one of the same name does, for a plain socket that is ready and neither has
   queued output nor is closing. In every other case it calls the standard one, before it has done anything. */

#include "io/datagram.h"

#include <errno.h>

#include "io/pysocket.h"
#include "io/senders.h"

enum {
    READ_MAX = 64, /* datagrams at one readiness; then it is the turn of others */
    QUIET_MAX = 8  /* so many single datagrams in succession, and a second one is no longer looked for */
};

/* ---- the standard transport ---- */

/* The standard class's method `name`, called with the same arguments. */
static PyObject *
call_standard(DatagramObject *self, const char *name, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    enum { MOST = 8 };
    PyObject *stack[MOST] = {(PyObject *)self};
    Py_ssize_t total = nargs + (kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames));
    if (total >= MOST) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most %d arguments", name, 2);
        return NULL;
    }
    for (Py_ssize_t i = 0; i < total; i++) {
        stack[i + 1] = args[i];
    }
    PyObject *method = PyObject_GetAttrString(self->state->stock_Datagram, name);
    PyObject *result = method == NULL ? NULL : PyObject_Vectorcall(method, stack, (size_t)nargs + 1, kwnames);
    Py_XDECREF(method);
    return result;
}

/* The loop if it is ours and this is its thread, and the socket is plain: the standard transport is not needed. */
static LoopObject *
loop_if_plain(DatagramObject *self)
{
    if (self->loop == NULL || self->sock == NULL || self->protocol == NULL || !loop_check(self->state, self->loop)) {
        return NULL;
    }
    LoopObject *loop = LoopObject_CAST(self->loop);
    if (loop->io == NULL || !io_may_touch(loop) || !pysocket_is_plain(loop, self->sock)) {
        return NULL;
    }
    int family = SocketObject_CAST(self->sock)->family;
    return family == AF_INET || family == AF_INET6 || family == AF_UNIX ? loop : NULL;
}

/* Is an attribute set to 0, False, None or nothing? Of exact built-in types, which cannot raise. */
static bool
is_false(PyObject *value)
{
    return value == NULL || value == Py_None || value == Py_False ||
           (PyLong_CheckExact(value) && PyObject_IsTrue(value) == 0);
}

/* New reference. */
static PyObject *
protocol_of(DatagramObject *self)
{
    return Py_NewRef(self->protocol == NULL ? Py_None : self->protocol);
}

/* protocol.error_received(exc) for a system call that failed; 0, or -1 with what that raised. */
static int
report_error(DatagramObject *self, int error)
{
    errno = error;
    PyErr_SetFromErrno(PyExc_OSError);
    PyObject *exc = compat_take_exception();
    PyObject *protocol = protocol_of(self);
    PyObject *result = PyObject_CallMethodOneArg(protocol, self->state->str_error_received, exc);
    Py_DECREF(protocol);
    if (result == NULL) {
        PyObject *raised = compat_take_exception();
        PyObject *context = PyException_GetContext(raised);
        if (context == NULL && raised != exc) {
            PyException_SetContext(raised, Py_NewRef(exc));
        }
        Py_XDECREF(context);
        compat_restore_exception(raised);
    }
    Py_XDECREF(result);
    Py_DECREF(exc);
    return result == NULL ? -1 : 0;
}

static bool
would_block(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK || error == EINTR || error == EINPROGRESS || error == EALREADY;
}

/* ---- receiving ---- */

typedef enum { READ_FAILED = -1, READ_NOTHING, READ_ERROR, READ_DELIVERED } ReadOutcome;

static int
remember_sender(DatagramObject *self, LoopObject *loop, const struct sockaddr_storage *address, socklen_t size)
{
    if (self->last_sender != NULL && size == self->last_size && memcmp(address, &self->last_address, size) == 0) {
        return 0;
    }
    PyObject *sender = senders_find(loop, address, size);
    if (sender == NULL) {
        return -1;
    }
    Py_XSETREF(self->last_sender, sender);
    memcpy(&self->last_address, address, size);
    self->last_size = size;
    return 0;
}

/* Gives a datagram to the protocol; steals `data`. */
static ReadOutcome
deliver(DatagramObject *self, LoopObject *loop, PyObject *data, const struct sockaddr_storage *address, socklen_t size)
{
    if (remember_sender(self, loop, address, size) < 0) {
        Py_DECREF(data);
        return READ_FAILED;
    }
    PyObject *args[] = {protocol_of(self), data, Py_NewRef(self->last_sender)};
    PyObject *result = PyObject_VectorcallMethod(self->state->str_datagram_received, args, 3, NULL);
    Py_DECREF(args[0]);
    Py_DECREF(args[2]);
    Py_XDECREF(result);
    /* The loop may have been closed. */
    bytespool_drop(loop->io == NULL ? NULL : &loop->io->bytes, data);
    return result == NULL ? READ_FAILED : READ_DELIVERED;
}

static ReadOutcome
read_one(DatagramObject *self, LoopObject *loop)
{
    char *buffer = io_receive_buffer(loop);
    if (buffer == NULL) {
        return READ_FAILED;
    }
    struct sockaddr_storage address;
    socklen_t address_size = sizeof(address);
    ssize_t size = recvfrom(SocketObject_CAST(self->sock)->fd, buffer, (size_t)self->max_size, 0,
                            (struct sockaddr *)&address, &address_size);
    if (size < 0) {
        if (would_block(errno)) {
            return READ_NOTHING;
        }
        return report_error(self, errno) < 0 ? READ_FAILED : READ_ERROR;
    }
    metrics_received(&loop->metrics, (size_t)size);
    /* First of all: whatever else is made may have Python code run, which may read into the same buffer. */
    PyObject *data = bytespool_new(&loop->io->bytes, buffer, (Py_ssize_t)size);
    if (data == NULL) {
        return READ_FAILED;
    }
    return deliver(self, loop, data, &address, Py_MIN(address_size, (socklen_t)sizeof(address)));
}

static bool
is_readable(DatagramObject *self)
{
    return self->max_size >= 0 && self->max_size <= IO_RECEIVE_SIZE && loop_if_plain(self) != NULL;
}

/* The standard transport reads one datagram in a turn. A second one right away makes no difference that anybody can
   see, as long as the protocol did nothing but send, and nothing waits to run in between. `timers` is how many there
   were before. */
static bool
may_read_again(DatagramObject *self, LoopObject *loop, size_t timers)
{
    if (loop->ready.count > 0 && loop->io != NULL) {
        /* That may be another socket, which must not get more of the turn. */
        loop->io->crowded_turn = loop_turn(loop);
        return false;
    }
    if (loop->timers.count != timers || loop->stopping || loop->pending != NULL || !is_false(self->conn_lost) ||
        !is_readable(self) || self->loop != (PyObject *)loop) {
        return false;
    }
    /* close() and pause_reading() take the reader away. */
    const PollerEntry *entry = poller_get_entry(loop, SocketObject_CAST(self->sock)->fd);
    return entry != NULL && entry->reader.run != NULL;
}

static PyObject *
Datagram_read_ready(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    DatagramObject *self = DatagramObject_CAST(op);
    if (!is_false(self->conn_lost) || !is_readable(self)) {
        return call_standard(self, "_read_ready", NULL, 0, NULL);
    }
    LoopObject *loop = (LoopObject *)Py_NewRef(self->loop);
    size_t timers = loop->timers.count;
    bool may_be_many = self->quiet < QUIET_MAX || loop_turn(loop) % QUIET_MAX == 0;
    int most = may_be_many && loop->io->crowded_turn != loop_turn(loop) ? READ_MAX : 1;
    int count = 0;
    ReadOutcome outcome;
    do {
        outcome = read_one(self, loop);
        count++;
    } while (outcome == READ_DELIVERED && count < most && may_read_again(self, loop, timers));
    if (count > 2 || (count == 2 && outcome == READ_DELIVERED)) {
        self->quiet = 0;
    } else if (count == 2 && outcome == READ_NOTHING) {
        self->quiet += self->quiet < QUIET_MAX;
    }
    Py_DECREF(loop);
    return outcome == READ_FAILED ? NULL : Py_NewRef(Py_None);
}

/* ---- sending ---- */

/* 0 for the address of a socket that is not connected, as it stands in the extra information; -1 for what no socket
   module put there. */
static Py_ssize_t
address_length(PyObject *address)
{
    return address == Py_None              ? 0
           : PyTuple_CheckExact(address)   ? PyTuple_GET_SIZE(address)
           : PyUnicode_CheckExact(address) ? PyUnicode_GET_LENGTH(address)
           : PyBytes_CheckExact(address)   ? PyBytes_GET_SIZE(address)
                                           : -1;
}

/* Where to: the kernel's form of `address`, or nothing for a connected socket. False where Python has to find out. */
static bool
find_target(DatagramObject *self, PyObject *address, struct sockaddr_storage *target, socklen_t *size)
{
    *size = 0;
    if (!is_false(self->address)) {
        if (address != Py_None && address != self->address) {
            return false;
        }
        address = self->address;
    }
    if (self->extra == NULL || !PyDict_CheckExact(self->extra)) {
        return false;
    }
    PyObject *peer = PyDict_GetItemWithError(self->extra, self->state->str_peername);
    if (peer == NULL) {
        PyErr_Clear();
        return false;
    }
    Py_ssize_t length = address_length(peer);
    if (length != 0) {
        return length > 0;
    }
    if (address == self->last_sender && PyTuple_CheckExact(address)) {
        memcpy(target, &self->last_address, self->last_size);
        *size = self->last_size;
        return true;
    }
    *size = address_from_python(SocketObject_CAST(self->sock)->family, address, target);
    return *size > 0;
}

/* Sends one datagram: 1 when that is done, or its error was reported; 0 when nothing was done, and the standard method
   has to; -1 with an exception. */
static int
send_one(DatagramObject *self, PyObject *data, PyObject *address)
{
    struct sockaddr_storage target;
    socklen_t target_size;
    if (!is_false(self->conn_lost) || self->buffer == NULL || PyObject_Size(self->buffer) != 0 ||
        loop_if_plain(self) == NULL || !find_target(self, address, &target, &target_size)) {
        PyErr_Clear();
        return 0;
    }
    if (target_size > 0) {
        if (PySys_Audit("socket.sendto", "OO", self->sock, address) < 0) {
            return -1;
        }
        if (UNLIKELY(loop_if_plain(self) == NULL)) {
            return 0;
        }
    }
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
        PyErr_Clear();
        return 0;
    }
    int fd = SocketObject_CAST(self->sock)->fd;
    /* What an empty one means differs between versions. */
    bool due = view.len > 0;
    ssize_t sent = !due ? 0
                   : target_size == 0
                       ? send(fd, view.buf, (size_t)view.len, 0)
                       : sendto(fd, view.buf, (size_t)view.len, 0, (struct sockaddr *)&target, target_size);
    int error = sent < 0 ? errno : 0;
    if (due && sent >= 0) {
        metrics_sent(&LoopObject_CAST(self->loop)->metrics, (size_t)sent);
    }
    PyBuffer_Release(&view);
    if (!due || (sent < 0 && would_block(error))) {
        return 0;
    }
    return sent < 0 && report_error(self, error) < 0 ? -1 : 1;
}

/* Counts a datagram that the standard method sent, or keeps until the kernel takes it. */
static void
count_queued(DatagramObject *self, PyObject *data)
{
    Py_buffer view;
    if (self->loop == NULL || !loop_check(self->state, self->loop) || !is_false(self->conn_lost)) {
        return;
    }
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
        PyErr_Clear();
        return;
    }
    if (view.len > 0) {
        metrics_sent(&LoopObject_CAST(self->loop)->metrics, (size_t)view.len);
    }
    PyBuffer_Release(&view);
}

/* The gate of its loop (new) if this is a thread that has to go through it, else NULL. */
static GateObject *
shut_gate(DatagramObject *self)
{
    if (!HAVE_FREE_THREADING) {
        return NULL;
    }
    PyObject *loop;
    FL_BEGIN_CRITICAL_SECTION(self);
    loop = Py_XNewRef(self->loop);
    FL_END_CRITICAL_SECTION();
    GateObject *gate = NULL;
    if (loop != NULL && loop_check(self->state, loop) && gate_is_shut(LoopObject_CAST(loop)->gate)) {
        gate = (GateObject *)Py_NewRef(LoopObject_CAST(loop)->gate);
    }
    Py_XDECREF(loop);
    return gate;
}

static PyObject *
Datagram_sendto(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    DatagramObject *self = DatagramObject_CAST(op);
    GateObject *gate = shut_gate(self);
    if (UNLIKELY(gate != NULL)) {
        PyObject *result = gate_call_fast(gate, Datagram_sendto, op, args, nargs, kwnames);
        Py_DECREF(gate);
        return result;
    }
    if (LIKELY((nargs == 1 || nargs == 2) && kwnames == NULL)) {
        PyObject *data = args[0];
        if (PyBytes_CheckExact(data) || PyByteArray_CheckExact(data) || PyMemoryView_Check(data)) {
            int done = send_one(self, data, nargs == 2 ? args[1] : Py_None);
            if (done != 0) {
                return done < 0 ? NULL : Py_NewRef(Py_None);
            }
        }
    }
    PyObject *result = call_standard(self, "sendto", args, nargs, kwnames);
    if (result != NULL && nargs > 0) {
        count_queued(self, args[0]);
    }
    return result;
}

/* ---- life of the object ---- */

static PyObject *
Datagram_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    State *state = state_of_type(type);
    DatagramObject *self = state == NULL ? NULL : (DatagramObject *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->state = state;
        self->max_size = 256 * 1024; /* the standard transport's */
    }
    return (PyObject *)self;
}

static PyObject **
fields_of(DatagramObject *self, size_t i)
{
    PyObject **fields[] = {&self->loop,  &self->sock,      &self->protocol, &self->buffer,      &self->address,
                           &self->extra, &self->conn_lost, &self->closing,  &self->last_sender, NULL};
    return fields[i];
}

static int
Datagram_traverse(PyObject *op, visitproc visit, void *arg)
{
    DatagramObject *self = DatagramObject_CAST(op);
    Py_VISIT(Py_TYPE(op));
    for (int i = 0; i < TRANSPORT_BASE_SLOTS; i++) {
        Py_VISIT(self->base_slots[i]);
    }
    for (size_t i = 0; fields_of(self, i) != NULL; i++) {
        Py_VISIT(*fields_of(self, i));
    }
    return 0;
}

static int
Datagram_clear(PyObject *op)
{
    DatagramObject *self = DatagramObject_CAST(op);
    for (int i = 0; i < TRANSPORT_BASE_SLOTS; i++) {
        Py_CLEAR(self->base_slots[i]);
    }
    for (size_t i = 0; fields_of(self, i) != NULL; i++) {
        Py_CLEAR(*fields_of(self, i));
    }
    return 0;
}

static void
Datagram_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    (void)Datagram_clear(op);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyMethodDef Datagram_methods[] = {
    {"sendto", (PyCFunction)(void (*)(void))Datagram_sendto, METH_FASTCALL | METH_KEYWORDS,
     "sendto($self, data, addr=None)\n--\n\nSend a datagram to `addr`, or to where the socket is connected.\n\n"
     "Raises TypeError for what is not bytes-like, ValueError for another address than that of a connected endpoint;\n"
     "errors of the system go to protocol.error_received(). See asyncio.DatagramTransport.sendto()."},
    {"_read_ready", Datagram_read_ready, METH_NOARGS, NULL},
    {NULL},
};

#define FIELD(attribute, field)                                          \
    {                                                                    \
        attribute, T_OBJECT_EX, offsetof(DatagramObject, field), 0, NULL \
    }

static PyMemberDef Datagram_members[] = {
    FIELD("_loop", loop),
    FIELD("_protocol", protocol),
    FIELD("_buffer", buffer),
    FIELD("_address", address),
    FIELD("_extra", extra),
    FIELD("_conn_lost", conn_lost),
    FIELD("_closing", closing),
    /* The finaliser asks for it, also where __init__() was not called. */
    {"_sock", T_OBJECT, offsetof(DatagramObject, sock), 0, NULL},
    {"max_size", T_PYSSIZET, offsetof(DatagramObject, max_size), 0, NULL},
    {NULL},
};

static PyType_Slot Datagram_slots[] = {
    {Py_tp_doc, "The native part of fastloop.unix.DatagramTransport."},
    {Py_tp_new, Datagram_new},
    {Py_tp_methods, Datagram_methods},
    {Py_tp_members, Datagram_members},
    {Py_tp_traverse, Datagram_traverse},
    {Py_tp_clear, Datagram_clear},
    {Py_tp_dealloc, Datagram_dealloc},
    {0, NULL},
};

PyType_Spec Datagram_spec = {
    .name = "fastloop._core.Datagram",
    .basicsize = sizeof(DatagramObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = Datagram_slots,
};
