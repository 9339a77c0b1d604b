/* Flow control: the water marks, pause_writing() and resume_writing(), as asyncio.transports._FlowControlMixin has it. */

#include "io/transport.h"

static const long DEFAULT_HIGH = 64 * 1024;
static const long DEFAULT_LOW = 16 * 1024;

void
limits_init(SocketTransport *self)
{
    self->high_water = (double)DEFAULT_HIGH;
    self->low_water = (double)DEFAULT_LOW;
}

PyObject *
limits_get(SocketTransport *self, bool high)
{
    if (self->limits != NULL) {
        return Py_NewRef(PyTuple_GET_ITEM(self->limits, high ? 1 : 0));
    }
    return PyLong_FromLong(high ? DEFAULT_HIGH : DEFAULT_LOW);
}

/* Takes both marks, which may be any numbers; -1 with an exception. */
static int
set_both(SocketTransport *self, PyObject *low, PyObject *high)
{
    double low_water = PyFloat_AsDouble(low);
    if (low_water == -1.0 && PyErr_Occurred()) {
        return -1;
    }
    double high_water = PyFloat_AsDouble(high);
    if (high_water == -1.0 && PyErr_Occurred()) {
        return -1;
    }
    PyObject *limits = PyTuple_Pack(2, low, high);
    if (limits == NULL) {
        return -1;
    }
    Py_XSETREF(self->limits, limits);
    self->low_water = low_water;
    self->high_water = high_water;
    return 0;
}

int
limits_set(SocketTransport *self, bool high, PyObject *value)
{
    PyObject *other = limits_get(self, !high);
    if (other == NULL) {
        return -1;
    }
    int err = high ? set_both(self, other, value) : set_both(self, value, other);
    Py_DECREF(other);
    return err;
}

/* ---- telling the protocol ---- */

/* Calls protocol.<name>(); 0, or -1 with SystemExit or KeyboardInterrupt. */
static int
tell_protocol(SocketTransport *self, PyObject *name, const char *failure)
{
    PyObject *protocol = Py_NewRef(self->protocol == NULL ? Py_None : self->protocol);
    PyObject *result = PyObject_CallMethodNoArgs(protocol, name);
    int err = 0;
    if (result == NULL) {
        if (loop_must_propagate()) {
            err = -1;
        } else if (self->loop != NULL) {
            loop_report(self->loop, failure, "transport", self, "protocol", protocol, NULL);
        } else {
            PyErr_WriteUnraisable(protocol);
        }
    }
    Py_XDECREF(result);
    Py_DECREF(protocol);
    return err;
}

int
transport_maybe_pause(SocketTransport *self)
{
    if (self->protocol_paused || (double)transport_buffer_size(self) <= self->high_water) {
        return 0;
    }
    self->protocol_paused = true;
    return tell_protocol(self, self->state->str_pause_writing, "protocol.pause_writing() failed");
}

int
transport_maybe_resume(SocketTransport *self)
{
    if (!self->protocol_paused || (double)transport_buffer_size(self) > self->low_water) {
        return 0;
    }
    self->protocol_paused = false;
    return tell_protocol(self, self->state->str_resume_writing, "protocol.resume_writing() failed");
}

PyObject *
SocketTransport_maybe_pause_protocol(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call(SocketTransport_CAST(op)->gate, SocketTransport_maybe_pause_protocol, op, NULL);
    }
    return transport_maybe_pause(SocketTransport_CAST(op)) < 0 ? NULL : Py_NewRef(Py_None);
}

PyObject *
SocketTransport_maybe_resume_protocol(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call(SocketTransport_CAST(op)->gate, SocketTransport_maybe_resume_protocol, op, NULL);
    }
    return transport_maybe_resume(SocketTransport_CAST(op)) < 0 ? NULL : Py_NewRef(Py_None);
}

/* ---- setting the marks ---- */

PyObject *
SocketTransport_get_limits(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call(SocketTransport_CAST(op)->gate, SocketTransport_get_limits, op, NULL);
    }
    PyObject *low = limits_get(SocketTransport_CAST(op), false);
    PyObject *high = limits_get(SocketTransport_CAST(op), true);
    PyObject *limits = low == NULL || high == NULL ? NULL : PyTuple_Pack(2, low, high);
    Py_XDECREF(low);
    Py_XDECREF(high);
    return limits;
}

/* left >= right, as Python answers: 1, 0, or -1 with an exception. */
static int
not_below(PyObject *left, PyObject *right)
{
    return PyObject_RichCompareBool(left, right, Py_GE);
}

/* The standard's rules: high is 64 KiB or four times low, low a quarter of high. Borrowed in, new out. -1 with an
   exception. */
static int
complete_limits(PyObject **high, PyObject **low)
{
    PyObject *four = PyLong_FromLong(4);
    PyObject *zero = PyLong_FromLong(0);
    PyObject *high_mark = *high != Py_None  ? Py_NewRef(*high)
                          : *low == Py_None ? PyLong_FromLong(DEFAULT_HIGH)
                                            : PyNumber_Multiply(four, *low);
    PyObject *low_mark = high_mark == NULL ? NULL
                         : *low != Py_None ? Py_NewRef(*low)
                                           : PyNumber_FloorDivide(high_mark, four);
    int in_order = low_mark == NULL ? -1 : not_below(high_mark, low_mark);
    if (in_order > 0) {
        in_order = not_below(low_mark, zero);
    }
    if (in_order == 0) {
        PyErr_Format(PyExc_ValueError, "high (%R) must be >= low (%R) must be >= 0", high_mark, low_mark);
    }
    Py_XDECREF(four);
    Py_XDECREF(zero);
    if (in_order <= 0) {
        Py_XDECREF(high_mark);
        Py_XDECREF(low_mark);
        return -1;
    }
    *high = high_mark;
    *low = low_mark;
    return 0;
}

PyObject *
SocketTransport_set_limits_quietly(PyObject *op, PyObject *args, PyObject *kwargs)
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call_keywords(SocketTransport_CAST(op)->gate, SocketTransport_set_limits_quietly, op, args, kwargs);
    }
    static const char *const names[] = {"high", "low", NULL};
    PyObject *high = Py_None, *low = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:set_write_buffer_limits", (char **)names, &high, &low) ||
        complete_limits(&high, &low) < 0) {
        return NULL;
    }
    int err = set_both(SocketTransport_CAST(op), low, high);
    Py_DECREF(high);
    Py_DECREF(low);
    return err < 0 ? NULL : Py_NewRef(Py_None);
}

PyObject *
SocketTransport_set_limits(PyObject *op, PyObject *args, PyObject *kwargs)
{
    if (UNLIKELY(gate_is_shut(SocketTransport_CAST(op)->gate))) {
        return gate_call_keywords(SocketTransport_CAST(op)->gate, SocketTransport_set_limits, op, args, kwargs);
    }
    PyObject *result = SocketTransport_set_limits_quietly(op, args, kwargs);
    if (result != NULL && transport_maybe_pause(SocketTransport_CAST(op)) < 0) {
        Py_CLEAR(result);
    }
    return result;
}
