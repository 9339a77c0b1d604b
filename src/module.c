/* The module `fastloop._core`: the only file that knows every type and layer. */

#include "base/contexts.h"
#include "coro/coro.h"
#include "io/connect.h"
#include "io/datagram.h"
#include "io/io.h"
#include "io/server.h"
#include "io/sockops.h"
#include "io/streamsink.h"
#include "io/tls.h"
#include "io/transport.h"
#include "pool/pool.h"
#include "sched/gate.h"
#include "sched/loop.h"
#include "sched/park.h"
#include "state.h"

/* What the linker found when this was built may be another library than what the loader finds now: an older one has all
   the functions that we call. */
static int
check_libuv(void)
{
    if (uv_version() < LIBUV_MINIMUM) {
        PyErr_Format(PyExc_ImportError, "libuv 1.44 or later is needed, this is %s", uv_version_string());
        return -1;
    }
    return 0;
}

/* A subclass's fields start behind the base's slots: is the room that we left for them large enough? */
static int
check_base_fits(PyTypeObject *base, size_t room)
{
    if ((size_t)base->tp_basicsize > room) {
        PyErr_Format(PyExc_ImportError, "fastloop does not know this Python's layout of %R", (PyObject *)base);
        return -1;
    }
    return 0;
}

/* Makes a type and adds it to the module. `base` is borrowed and may be NULL. */
static PyTypeObject *
make_type(PyObject *module, PyType_Spec *spec, PyObject *base)
{
    PyObject *bases = base == NULL ? NULL : PyTuple_Pack(1, base);
    if (base != NULL && bases == NULL) {
        return NULL;
    }
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, bases);
    Py_XDECREF(bases);
    if (type == NULL) {
        return NULL;
    }
    compat_share_type(type);
    if (PyModule_AddType(module, type) < 0) {
        Py_CLEAR(type);
    }
    return type;
}

static int
intern_names(State *state)
{
#define X(name)                                            \
    state->str_##name = PyUnicode_InternFromString(#name); \
    if (state->str_##name == NULL) {                       \
        return -1;                                         \
    }
    STATE_NAMES(X)
#undef X
    return 0;
}

static PyObject *
import_attribute(const char *module_name, const char *attribute)
{
    PyObject *module = PyImport_ImportModule(module_name);
    if (module == NULL) {
        return NULL;
    }
    PyObject *value = PyObject_GetAttrString(module, attribute);
    Py_DECREF(module);
    return value;
}

static int
import_names(State *state)
{
#define X(name, module, attribute)                     \
    state->name = import_attribute(module, attribute); \
    if (state->name == NULL) {                         \
        return -1;                                     \
    }
    STATE_IMPORTS(X)
#undef X
    return 0;
}

/* Every type: its spec, its place in the state, and where it has a base the base's place and the room for its fields. */
typedef struct {
    PyType_Spec *spec;
    size_t type_at;
    size_t base_at; /* NO_BASE for object */
    size_t room;
} TypeEntry;

#define NO_BASE SIZE_MAX
#define AT(field) offsetof(State, field)

static const TypeEntry TYPES[] = {
    {&Gate_spec, AT(GateType), NO_BASE, 0},
    {&Loop_spec, AT(LoopType), NO_BASE, 0},
    {&Handle_spec, AT(HandleType), AT(asyncio_Handle), offsetof(HandleObject, loop)},
    {&TimerHandle_spec, AT(TimerHandleType), AT(asyncio_TimerHandle), offsetof(HandleObject, loop)},
    {&SocketTransport_spec, AT(SocketTransportType), AT(asyncio_FlowControlMixin), offsetof(SocketTransport, state)},
    {&Datagram_spec, AT(DatagramType), AT(asyncio_FlowControlMixin), offsetof(DatagramObject, state)},
    {&SockOp_spec, AT(SockOpType), NO_BASE, 0},
    {&Listener_spec, AT(ListenerType), NO_BASE, 0},
    {&TLSConnection_spec, AT(TLSConnectionType), NO_BASE, 0},
    {&Connector_spec, AT(ConnectorType), NO_BASE, 0},
    {&JobQueue_spec, AT(JobQueueType), NO_BASE, 0},
};

static int
make_types(PyObject *module, State *state)
{
    for (size_t i = 0; i < sizeof(TYPES) / sizeof(TYPES[0]); i++) {
        const TypeEntry *entry = &TYPES[i];
        PyObject *base = entry->base_at == NO_BASE ? NULL : *(PyObject **)((char *)state + entry->base_at);
        if (base != NULL && check_base_fits((PyTypeObject *)base, entry->room) < 0) {
            return -1;
        }
        PyTypeObject *type = make_type(module, entry->spec, base);
        if (type == NULL) {
            return -1;
        }
        *(PyTypeObject **)((char *)state + entry->type_at) = type;
    }
    return 0;
}

#define TEXT(number) #number
#define VERSION(major, minor, patch) TEXT(major) "." TEXT(minor) "." TEXT(patch)
#define LIBUV_COMPILED VERSION(UV_VERSION_MAJOR, UV_VERSION_MINOR, UV_VERSION_PATCH)

static int
add_versions(PyObject *module)
{
    if (PyModule_AddStringConstant(module, "__version__", FASTLOOP_VERSION) < 0 ||
        PyModule_AddStringConstant(module, "libuv_compiled", LIBUV_COMPILED) < 0 ||
        PyModule_AddStringConstant(module, "libuv_version", uv_version_string()) < 0) {
        return -1;
    }
    return 0;
}

static int
core_exec(PyObject *module)
{
    State *state = state_of_module(module);
    if (check_libuv() < 0 || intern_names(state) < 0 || import_names(state) < 0 || make_types(module, state) < 0 ||
        handle_find_slots(state) < 0 || contexts_verify(&state->contexts) < 0 || add_versions(module) < 0) {
        return -1;
    }
    if (coro_exec(module, state) < 0 || loop_add_methods(state->LoopType, coro_loop_methods) < 0 ||
        loop_add_methods(state->LoopType, io_loop_methods) < 0 || pool_exec(state) < 0 ||
        streams_exec(module, state) < 0) {
        return -1;
    }
    state->coro_hooks = &coro_hooks;
    state->io_hooks = &io_hooks;
    state->complete_future = coro_complete_future;
    return 0;
}

static int
core_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = state_of_module(module);
#define X(name) Py_VISIT(state->name##Type);
    STATE_TYPES(X)
#undef X
#define X(name) Py_VISIT(state->str_##name);
    STATE_NAMES(X)
#undef X
#define X(name, module_, attribute) Py_VISIT(state->name);
    STATE_IMPORTS(X)
#undef X
    Py_VISIT(state->contexts.no_variables);
    Py_VISIT(state->contexts.unused);
    int err = openssl_traverse(state, visit, arg);
    err = err != 0 ? err : streams_traverse(state, visit, arg);
    return err != 0 ? err : coro_traverse(state, visit, arg);
}

/* There is no m_clear: loops, handles and tasks that the collector clears after the module still need its types and
   names. Each loop holds the module. The cycle module - type - module is broken by the types, which let go of the
   module when they are cleared. */
static void
core_free(void *op)
{
    State *state = state_of_module((PyObject *)op);
    if (state == NULL) {
        return;
    }
    streams_clear(state);
    coro_clear(state);
    openssl_free(state);
#define X(name) Py_CLEAR(state->name##Type);
    STATE_TYPES(X)
#undef X
#define X(name) Py_CLEAR(state->str_##name);
    STATE_NAMES(X)
#undef X
#define X(name, module_, attribute) Py_CLEAR(state->name);
    STATE_IMPORTS(X)
#undef X
    Py_CLEAR(state->contexts.no_variables);
    Py_CLEAR(state->contexts.unused);
    coro_free(state);
    park_clear(state);
}

static PyModuleDef_Slot core_slots[] = {
    {Py_mod_exec, core_exec},
#if HAVE_MULTIPLE_INTERPRETERS_SLOT
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#if HAVE_GIL_SLOT
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "fastloop._core",
    .m_doc = "The native part of fastloop: an asyncio event loop on libuv.",
    .m_size = sizeof(State),
    .m_slots = core_slots,
    .m_traverse = core_traverse,
    .m_free = core_free,
};

PyMODINIT_FUNC PyInit__core(void);

PyMODINIT_FUNC
PyInit__core(void)
{
    return PyModuleDef_Init(&core_module);
}
