/* asyncio.Server counts its connections: in `_active_count` up to Python 3.12, in `_clients`, a WeakSet, from 3.13 on.
   Two or three Python functions a call; most of them are gone around here.

   Only where the server is exactly an asyncio.Server that is open, and its methods and those of the WeakSet are the
   standard library's and use no other names than those known here; the versions of the classes tell when somebody has
   replaced one. Everything else is left to the methods themselves:
   a closed server, which has to wake who waits for its end, a WeakSet that is being iterated over, a wrong count. */

#include "io/clients.h"

#include "base/functions.h"

/* ---- what is known of the standard library ---- */

/* Does a Python function use no other names than these? */
static bool
uses_only(PyObject *function, const char *const *known)
{
    PyObject *names = PyObject_GetAttrString(PyFunction_GET_CODE(function), "co_names");
    bool fits = names != NULL && PyTuple_Check(names);
    for (Py_ssize_t i = 0; fits && i < PyTuple_GET_SIZE(names); i++) {
        fits = false;
        for (const char *const *name = known; !fits && *name != NULL; name++) {
            fits = PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, i), *name) == 0;
        }
    }
    Py_XDECREF(names);
    return fits;
}

static bool
class_fits(PyObject *type, PyObject *name, PyObject *globals, const char *const *known)
{
    PyObject *function = PyObject_GetAttr(type, name);
    bool fits = function_is_original(function, globals) && uses_only(function, known);
    Py_XDECREF(function);
    return fits;
}

static bool
classes_fit(State *state)
{
    static const char *const of_server[] = {"_sockets", "_active_count", "_clients", "add",
                                            "discard",  "_wakeup",       "len",      NULL};
    static const char *const of_set[] = {
        "_pending_removals", "_commit_removals", "data", "add", "discard", "ref", "_remove", NULL};
    PyObject *globals = state->base_events_globals;
    return class_fits(state->asyncio_Server, state->str__attach, globals, of_server) &&
           class_fits(state->asyncio_Server, state->str__detach, globals, of_server) &&
           class_fits(state->weakref_WeakSet, state->str_add, state->weakrefset_globals, of_set) &&
           class_fits(state->weakref_WeakSet, state->str_discard, state->weakrefset_globals, of_set);
}

/* Are the classes as they are known here? Asked again when one was changed. */
static bool
classes_are_known(LoopObject *loop)
{
    ServerClasses *classes = &loop->io->server_classes;
    PyTypeObject *server = (PyTypeObject *)loop->state->asyncio_Server;
    PyTypeObject *set = (PyTypeObject *)loop->state->weakref_WeakSet;
    if (LIKELY(classes->server_tag != 0 && classes->server_tag == server->tp_version_tag && classes->set_tag != 0 &&
               classes->set_tag == set->tp_version_tag)) {
        return classes->fit;
    }
    PyObject *exc = compat_take_exception();
    classes->fit = classes_fit(loop->state);
    PyErr_Clear();
    classes->server_tag = server->tp_version_tag;
    classes->set_tag = set->tp_version_tag;
    if (exc != NULL) {
        compat_restore_exception(exc);
    }
    return classes->fit;
}

/* The instance dict of a server whose method `name` may be gone around (new); NULL with an exception, or without one. */
static PyObject *
plain_server(SocketTransport *transport, PyObject *server, PyObject *name)
{
    State *state = transport->state;
    LoopObject *loop = transport->loop;
    if (loop == NULL || loop->io == NULL || loop->io->no_native_servers ||
        !Py_IS_TYPE(server, (PyTypeObject *)state->asyncio_Server) || !classes_are_known(loop)) {
        return NULL;
    }
    PyObject *dict = PyObject_GenericGetDict(server, NULL);
    if (dict == NULL) {
        return NULL;
    }
    PyObject *sockets = PyDict_GetItemWithError(dict, state->str__sockets);
    if (sockets == NULL || sockets == Py_None || PyDict_GetItemWithError(dict, name) != NULL) {
        Py_CLEAR(dict);
    }
    return dict;
}

/* ---- the count ---- */

/* server._active_count += step: 1, or 0 when it is no number that could be counted on, or -1 with an exception. */
static int /* GCOV_EXCL_START: up to Python 3.12 */
change_count(State *state, PyObject *server, PyObject *dict, long step)
{
    PyObject *count = PyDict_GetItemWithError(dict, state->str__active_count);
    int overflow = 1;
    long number = count != NULL && PyLong_CheckExact(count) ? PyLong_AsLongAndOverflow(count, &overflow) : 0;
    if (overflow != 0 || number + step < 0 || number == LONG_MAX) {
        return 0;
    }
    PyObject *changed = PyLong_FromLong(number + step);
    int err = changed == NULL ? -1 : PyObject_SetAttr(server, state->str__active_count, changed);
    Py_XDECREF(changed);
    return err < 0 ? -1 : 1;
} /* GCOV_EXCL_STOP */

/* ---- the set ---- */

/* The instance dict of server._clients (new); NULL with an exception, or without one when that is not as known here, or
   removals wait for the end of an iteration. */
static PyObject *
plain_clients(State *state, PyObject *dict, PyObject *name)
{
    PyObject *clients = PyDict_GetItemWithError(dict, state->str__clients);
    if (clients == NULL || !Py_IS_TYPE(clients, (PyTypeObject *)state->weakref_WeakSet)) {
        return NULL;
    }
    PyObject *fields = PyObject_GenericGetDict(clients, NULL);
    if (fields == NULL) {
        return NULL;
    }
    PyObject *pending = PyDict_GetItemWithError(fields, state->str__pending_removals);
    bool waits = pending != NULL && (!PyList_CheckExact(pending) || PyList_GET_SIZE(pending) > 0);
    if (waits || PyDict_GetItemWithError(fields, name) != NULL) {
        Py_CLEAR(fields);
    }
    return fields;
}

static int
add_ref(PyObject *data, PyObject *transport, PyObject *remove)
{
    PyObject *ref = PyWeakref_NewRef(transport, remove);
    int err = ref == NULL ? -1 : PySet_Add(data, ref);
    Py_XDECREF(ref);
    return err;
}

static int
discard_ref(PyObject *data, PyObject *transport)
{
    PyObject *ref = PyWeakref_NewRef(transport, NULL);
    int found = ref == NULL ? -1 : PySet_Discard(data, ref);
    Py_XDECREF(ref);
    return found < 0 ? -1 : 0;
}

/* server._clients.add(transport) or discard(): 1, or 0 when it must be left to the methods, or -1 with an exception. */
static int
change_set(State *state, PyObject *dict, PyObject *transport, bool add)
{
    PyObject *fields = plain_clients(state, dict, add ? state->str_add : state->str_discard);
    if (fields == NULL) {
        return PyErr_Occurred() == NULL ? 0 : -1;
    }
    PyObject *data = Py_XNewRef(PyDict_GetItemWithError(fields, state->str_data));
    PyObject *remove = Py_XNewRef(PyDict_GetItemWithError(fields, state->str__remove));
    int done = 0;
    if (data != NULL && remove != NULL && PySet_CheckExact(data)) {
        int err = add ? add_ref(data, transport, remove) : discard_ref(data, transport);
        done = err < 0 ? -1 : 1;
    }
    Py_DECREF(fields);
    Py_XDECREF(data);
    Py_XDECREF(remove);
    return done;
}

/* ---- both ---- */

/* The method's work, by the method itself unless it is known what that does. */
static int
change(SocketTransport *self, PyObject *server, bool add)
{
    State *state = self->state;
    PyObject *transport = (PyObject *)self;
    PyObject *name = add ? state->str__attach : state->str__detach;
    bool takes_transport = self->traits.server_takes_transport;
    PyObject *dict = plain_server(self, server, name);
    int done = dict == NULL      ? -(PyErr_Occurred() != NULL)
               : takes_transport ? change_set(state, dict, transport, add)
                                 : change_count(state, server, dict, add ? 1 : -1);
    Py_XDECREF(dict);
    if (LIKELY(done != 0)) {
        return done < 0 ? -1 : 0;
    }
    PyObject *result =
        takes_transport ? PyObject_CallMethodOneArg(server, name, transport) : PyObject_CallMethodNoArgs(server, name);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int
clients_attach(SocketTransport *transport, PyObject *server)
{
    return change(transport, server, true);
}

int
clients_detach(SocketTransport *transport, PyObject *server)
{
    return change(transport, server, false);
}

PyObject *
Loop_set_native_servers(PyObject *op, PyObject *flag)
{
    LoopObject *loop = LoopObject_CAST(op);
    int native = PyObject_IsTrue(flag);
    if (native < 0) {
        return NULL;
    }
    if (loop->io != NULL) {
        loop->io->no_native_servers = !native;
    }
    Py_RETURN_NONE;
}
