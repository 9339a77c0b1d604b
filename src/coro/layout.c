/* The check of the private structs, which runs once per import: our reading of standard objects, in many states, is
   compared with what their public attributes say. The comparing is in fastloop/_coro.py; here is only the reading. As
   long as nothing is verified, words are handed out as numbers and nothing is followed. */

#include "coro/layout.h"

#include <stdlib.h>
#include <string.h>

/* Adds a word of the struct under its name; -1 with an exception. */
static int
add_word(PyObject *dict, const char *name, uintptr_t word)
{
    PyObject *number = PyLong_FromUnsignedLongLong(word);
    int err = number == NULL ? -1 : PyDict_SetItemString(dict, name, number);
    Py_XDECREF(number);
    return err;
}

#define ADD_POINTER(object, field) (add_word(dict, #field, (uintptr_t)(object)->field) < 0)
#define ADD_NUMBER(object, field) (add_word(dict, #field, (uintptr_t)(unsigned)(object)->field) < 0)

static int
add_future_words(PyObject *dict, BaseFuture *fut)
{
    if (ADD_POINTER(fut, loop) || ADD_POINTER(fut, callback0) || ADD_POINTER(fut, context0) ||
        ADD_POINTER(fut, callbacks) || ADD_POINTER(fut, exception) || ADD_POINTER(fut, exception_tb) ||
        ADD_POINTER(fut, result) || ADD_POINTER(fut, source_tb) || ADD_POINTER(fut, cancel_msg) ||
        ADD_POINTER(fut, cancelled_exc) || ADD_NUMBER(fut, state) || ADD_NUMBER(fut, log_tb) ||
        ADD_NUMBER(fut, blocking)) {
        return -1;
    }
#if HAVE_AWAITED_BY
    if (ADD_POINTER(fut, awaited_by) || ADD_NUMBER(fut, awaited_by_is_set) || ADD_NUMBER(fut, is_task)) {
        return -1;
    }
#endif
    return 0;
}

static int
add_task_words(PyObject *dict, BaseTask *task)
{
    if (ADD_POINTER(task, fut_waiter) || ADD_POINTER(task, coro) || ADD_POINTER(task, name) ||
        ADD_POINTER(task, context) || ADD_NUMBER(task, num_cancels_requested) ||
        ADD_NUMBER(TASK_FLAGS(task), must_cancel) || ADD_NUMBER(TASK_FLAGS(task), log_destroy_pending)) {
        return -1;
    }
#if HAVE_AWAITED_BY
    if (ADD_POINTER(task, node.next) || ADD_POINTER(task, node.prev)) {
        return -1;
    }
#if HAVE_FREE_THREADING
    if (add_word(dict, "own_thread", task->thread_id == _Py_ThreadId()) < 0) {
        return -1;
    }
#endif
#endif
    return 0;
}

/* GCOV_EXCL_BR_START: another layout of the standard types */
static PyObject *
words_of(PyObject *Py_UNUSED(self), PyObject *op)
{
    PyObject *dict = PyDict_New();
    if (dict == NULL) {
        return NULL;
    }
    int err = 0;
    if (Py_TYPE(op)->tp_basicsize >= (Py_ssize_t)sizeof(BaseFuture)) {
        err = add_future_words(dict, BaseFuture_CAST(op));
    }
    if (err == 0 && Py_TYPE(op)->tp_basicsize >= (Py_ssize_t)sizeof(BaseTask)) {
        err = add_task_words(dict, BaseTask_CAST(op));
    }
    if (err < 0) {
        Py_CLEAR(dict);
    }
    return dict;
}

static PyMethodDef words_of_methods[] = {
    {"words_of", words_of, METH_O, "words_of(object, /)\n--\n\nReturn what our description of the struct reads."},
    {NULL}};

/* Is `op` a type of exactly this size, with dict and weak references where we expect them? */
static bool
has_shape(PyObject *op, size_t size)
{
    if (!PyType_Check(op)) {
        return false;
    }
    PyTypeObject *type = (PyTypeObject *)op;
    if (type->tp_basicsize != (Py_ssize_t)size || type->tp_itemsize != 0 || !PyType_IS_GC(type)) {
        return false;
    }
#if HAVE_FUTURE_BIT_FIELDS
    return (type->tp_flags & Py_TPFLAGS_MANAGED_DICT) != 0 && type->tp_weaklistoffset < 0;
#else
    return type->tp_dictoffset == (Py_ssize_t)offsetof(BaseFuture, dict) &&
           type->tp_weaklistoffset == (Py_ssize_t)offsetof(BaseFuture, weakrefs);
#endif
}

int
layout_verify(PyObject *base_future, PyObject *base_task)
{
    if (!has_shape(base_future, sizeof(BaseFuture)) || !has_shape(base_task, sizeof(BaseTask))) {
        return 0;
    }
    PyObject *helpers = PyImport_ImportModule("fastloop._coro");
    PyObject *reader = helpers == NULL ? NULL : PyCFunction_New(words_of_methods, NULL);
    PyObject *answer = reader == NULL ? NULL : PyObject_CallMethod(helpers, "layout_is_known", "O", reader);
    int known = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(helpers);
    Py_XDECREF(reader);
    Py_XDECREF(answer);
    return known;
} /* GCOV_EXCL_BR_STOP */

bool
layout_has_weakrefs(PyObject *op)
{
    /* Without a GIL another thread may be freeing a weak reference. */
    PyObject **list = (PyObject **)((char *)op + Py_TYPE(op)->tp_weaklistoffset);
    return __atomic_load_n(list, __ATOMIC_RELAXED) != NULL;
}

uint32_t /* GCOV_EXCL_START: another version of Python */
layout_values_header(PyObject *op)
{
#ifdef Py_TPFLAGS_INLINE_VALUES
    if ((Py_TYPE(op)->tp_flags & Py_TPFLAGS_INLINE_VALUES) != 0) {
        /* The first byte is the room for values, which shrinks from one of the first objects of a type to the next. */
        const unsigned char *header = (const unsigned char *)op + Py_TYPE(op)->tp_basicsize;
        return header[1] | (uint32_t)header[2] << 8 | (uint32_t)header[3] << 16;
    }
#endif
    return 0;
} /* GCOV_EXCL_STOP */

bool
layout_has_dict(PyObject *op, uint32_t fresh_values)
{
#if HAVE_FUTURE_BIT_FIELDS
    /* The word of the dict follows that of the weak references, before the object. */
    PyObject *dict = *(PyObject **)((char *)op + Py_TYPE(op)->tp_weaklistoffset + sizeof(PyObject *));
    return dict != NULL || layout_values_header(op) != fresh_values;
#else
    (void)fresh_values;
    return BaseFuture_CAST(op)->dict != NULL;
#endif
}

#if HAVE_RUNNING_TASK_SLOT

/* Where two words in a row of this thread's state are these; 0 if nowhere. */
static size_t
find_pair(PyObject *first, PyObject *second)
{
    PyThreadState *thread_state = PyThreadState_Get();
    PyObject **words = (PyObject **)(thread_state + 1);
    for (size_t i = 0; i + 1 < COMPAT_THREAD_STATE_WORDS; i++) {
        if (words[i] == first && words[i + 1] == second) {
            return (size_t)((char *)&words[i] - (char *)thread_state);
        }
    }
    return 0;
}

/* While `loop` is the running one: what one side stores is what the other sees. */
static int
verify_running_task(PyObject *swap, PyObject *loop, PyObject *task, size_t *offset)
{
    PyObject *before = PyObject_CallFunctionObjArgs(swap, loop, task, NULL);
    if (before == NULL) {
        return -1;
    }
    *offset = find_pair(loop, task);
    if (*offset != 0) {
        PyObject **slot = (PyObject **)((char *)PyThreadState_Get() + *offset) + 1;
        Py_SETREF(*slot, Py_NewRef(loop));
    }
    PyObject *seen = PyObject_CallFunctionObjArgs(swap, loop, before, NULL);
    if (seen != loop) {
        *offset = 0;
    }
    Py_DECREF(before);
    Py_XDECREF(seen);
    return seen == NULL ? -1 : 0;
}

static int
set_running_loop(PyObject *asyncio_module, PyObject *loop)
{
    PyObject *result = PyObject_CallMethod(asyncio_module, "_set_running_loop", "O", loop);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int
layout_find_running_task(PyObject *asyncio_module, PyObject *swap, size_t *offset)
{
    *offset = 0;
    PyObject *running = PyObject_CallMethod(asyncio_module, "_get_running_loop", NULL);
    PyObject *loop = running == NULL ? NULL : PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type);
    PyObject *task = loop == NULL ? NULL : PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type);
    int err = task == NULL ? -1 : 0;
    if (err == 0 && running != Py_None) {
        /* The import is done by a program that runs. */
        err = verify_running_task(swap, running, task, offset);
    } else if (err == 0) {
        err = set_running_loop(asyncio_module, loop);
        err = err < 0 ? err : verify_running_task(swap, loop, task, offset);
        PyObject *raised = compat_take_exception();
        int restored = set_running_loop(asyncio_module, Py_None);
        if (raised != NULL) {
            compat_restore_exception(raised);
        }
        err = restored < 0 ? -1 : err;
    }
    Py_XDECREF(running);
    Py_XDECREF(loop);
    Py_XDECREF(task);
    return err;
}

size_t
layout_find_task_list(TaskNode *node)
{
    char *start = (char *)PyThreadState_Get();
    char *list = (char *)node->next;
    bool inside = list >= start + sizeof(PyThreadState) &&
                  list <= start + sizeof(PyThreadState) + (COMPAT_THREAD_STATE_WORDS - 2) * sizeof(void *);
    return inside && node->next->prev == node ? (size_t)(list - start) : 0;
}

#endif

/* The number in the automatic name of a new standard task; 0 with an exception. */
static uint64_t
next_standard_number(PyObject *make_task, bool *lazy)
{
    PyObject *task = PyObject_CallNoArgs(make_task);
    if (task == NULL) {
        return 0;
    }
    PyObject *name = BaseTask_CAST(task)->name;
    *lazy = name != NULL && PyLong_CheckExact(name);
    PyObject *text = PyObject_CallMethod(task, "get_name", NULL);
    Py_DECREF(task);
    const char *letters = text == NULL ? NULL : PyUnicode_AsUTF8(text);
    const char *dash = letters == NULL ? NULL : strchr(letters, '-');
    uint64_t number = dash == NULL ? 0 : strtoull(dash + 1, NULL, 10);
    Py_XDECREF(text);
    return number;
}

int /* GCOV_EXCL_BR_START: another layout of the module's state */
layout_find_name_counter(PyObject *asyncio_module, PyObject *make_task, TaskNames *names)
{
    /* Names in a row, of which the counter is the one word of the module's state that follows them. Bits of
       `candidates` stand for words; the state has about thirty. */
    enum { ROUNDS = 3, WORDS_MAX = 64 };
    PyModuleDef *def = PyModule_GetDef(asyncio_module);
    uint64_t *words = (uint64_t *)PyModule_GetState(asyncio_module);
    Py_ssize_t count = def == NULL || words == NULL ? 0 : def->m_size / (Py_ssize_t)sizeof(uint64_t);
    uint64_t candidates = count > 0 && count < WORDS_MAX ? ((uint64_t)1 << count) - 1 : 0;
    uint64_t previous = 0;
    for (int round = 0; round < (candidates == 0 ? 1 : ROUNDS); round++) {
        uint64_t number = next_standard_number(make_task, &names->lazy);
        if (PyErr_Occurred()) {
            return -1;
        }
        /* No number, or another thread took one: leave asyncio's words alone. */
        if (number == 0 || (round > 0 && number != previous + 1)) {
            candidates = 0;
        }
        previous = number;
        for (Py_ssize_t i = 0; i < count && candidates != 0; i++) {
            if (__atomic_load_n(&words[i], __ATOMIC_RELAXED) != number) {
                candidates &= ~((uint64_t)1 << i);
            }
        }
        /* Ours take the number that this task has used up, unless the counter can be set back. */
        names->own_counter = number - 1;
        if (candidates == 0) {
            return 0;
        }
    }
    if ((candidates & (candidates - 1)) == 0) {
        uint64_t *found = words;
        while ((candidates & 1) == 0) {
            candidates >>= 1;
            found++;
        }
        __atomic_sub_fetch(found, ROUNDS, __ATOMIC_RELAXED);
        names->counter = found;
    }
    return 0;
} /* GCOV_EXCL_BR_STOP */
