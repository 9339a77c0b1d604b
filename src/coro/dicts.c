/* Where a dict keeps what. */

#include "coro/dicts.h"

#if HAVE_DICT_ENTRIES

typedef struct {
    Py_hash_t hash;
    PyObject *key;
    PyObject *value;
} DictEntry;

/* The kinds of keys. */
enum { ANY, NAMES };

/* Where the entries of keys of these sizes begin. */
static void *
first_entry(DictKeys *keys)
{
    return (char *)(keys + 1) + ((size_t)1 << keys->log2_index_bytes);
}

#if HAVE_DICT_VERSION

PyObject **
dict_value_slot(PyObject *dict, PyObject *key, PyObject *value)
{
    /* The smallest size that is not empty: enough for four loops that run at once. */
    enum { LOG2_SIZE = 3, ENTRIES = 5 };
    if (!PyDict_CheckExact(dict) || ((PyDictObject *)dict)->ma_values != NULL || compat_dict_is_watched(dict)) {
        return NULL;
    }
    DictKeys *keys = dict_keys(dict);
    /* GCOV_EXCL_BR_START: another layout of a dict */
    if (keys->log2_size != LOG2_SIZE || keys->log2_index_bytes != LOG2_SIZE || keys->kind != ANY ||
        keys->count > ENTRIES) {
        return NULL;
    }
    /* GCOV_EXCL_BR_STOP */
    DictEntry *entries = first_entry(keys);
    for (Py_ssize_t i = 0; i < keys->count; i++) {
        if (entries[i].key == key && entries[i].value == value) {
            return &entries[i].value;
        }
    }
    return NULL;
}

void
dict_remember(PyObject *dict, PyObject *Py_UNUSED(name), PyObject *Py_UNUSED(value), KnownItem *item)
{
    item->version = compat_dict_version(dict);
}

/* What is stored by one side is what the other sees, also after something was deleted. */
static int /* GCOV_EXCL_BR_START: another layout of a dict */
verify_dict(PyObject *dict, PyObject *first, PyObject *second)
{
    if (PyDict_SetItem(dict, Py_None, first) < 0 || PyDict_SetItem(dict, Py_True, first) < 0 ||
        PyDict_DelItem(dict, Py_None) < 0) {
        return -1;
    }
    uint64_t version = compat_dict_version(dict);
    PyObject **slot = dict_value_slot(dict, Py_True, first);
    if (slot == NULL || dict_value_slot(dict, Py_None, first) != NULL) {
        return 0;
    }
    if (PyDict_SetItem(dict, Py_True, second) < 0) {
        return -1;
    }
    if (*slot != second || compat_dict_version(dict) == version) {
        return 0;
    }
    Py_SETREF(*slot, Py_NewRef(first));
    return PyDict_GetItemWithError(dict, Py_True) == first;
} /* GCOV_EXCL_BR_STOP */

#else

void
dict_remember(PyObject *dict, PyObject *name, PyObject *value, KnownItem *item)
{
    enum { LOG2_SIZE_MIN = 3, LOG2_SIZE_MAX = 15 };
    *item = (KnownItem){0};
    DictKeys *keys = dict_keys(dict);
    if (!PyDict_CheckExact(dict) || ((PyDictObject *)dict)->ma_values != NULL || keys->kind != NAMES ||
        keys->log2_size < LOG2_SIZE_MIN || keys->log2_size > LOG2_SIZE_MAX ||
        keys->log2_index_bytes < keys->log2_size || keys->log2_index_bytes > LOG2_SIZE_MAX + 1 ||
        keys->count > (Py_ssize_t)1 << keys->log2_size) {
        return;
    }
    PyObject **entries = first_entry(keys);
    for (Py_ssize_t i = 0; i < keys->count; i++) {
        if (entries[2 * i] == name && entries[2 * i + 1] == value) {
            item->keys = keys;
            item->sizes = (uint16_t)(keys->log2_size | keys->log2_index_bytes << 8);
            item->number = i;
            item->entry = &entries[2 * i];
            return;
        }
    }
}

/* An item is found where it is, and gone as soon as it is changed, deleted, or elsewhere. */
static int /* GCOV_EXCL_BR_START: another layout of a dict */
verify_dict(PyObject *dict, PyObject *first, PyObject *second)
{
    static const char *const names[] = {"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"};
    enum { NAMES_COUNT = sizeof(names) / sizeof(names[0]), AT = 1 };
    PyObject *name = PyUnicode_InternFromString(names[AT]);
    KnownItem item, later;
    int right = name == NULL ? -1 : 1;
    for (int i = 0; i < 3 && right > 0; i++) {
        right = PyDict_SetItemString(dict, names[i], i == AT ? first : second) < 0 ? -1 : 1;
    }
    if (right > 0) {
        dict_remember(dict, name, first, &item);
        dict_remember(dict, name, second, &later);
        bool found =
            later.keys == NULL && item.keys != NULL && item.number == AT && dict_keeps(dict, name, first, &item);
        right = found && PyDict_SetItem(dict, name, second) == 0 && !dict_keeps(dict, name, first, &item) &&
                PyDict_SetItem(dict, name, first) == 0 && dict_keeps(dict, name, first, &item);
    }
    for (int i = 3; i < NAMES_COUNT && right > 0; i++) {
        right = PyDict_SetItemString(dict, names[i], second) < 0 ? -1 : 1;
    }
    if (right > 0) {
        right = !dict_keeps(dict, name, first, &item);
        dict_remember(dict, name, first, &item);
        right = right && dict_keeps(dict, name, first, &item) && PyDict_DelItem(dict, name) == 0 &&
                !dict_keeps(dict, name, first, &item);
    }
    Py_XDECREF(name);
    return PyErr_Occurred() ? -1 : right;
} /* GCOV_EXCL_BR_STOP */

#endif

int
dicts_verify(void)
{
    PyObject *dict = PyDict_New();
    PyObject *first = PyFloat_FromDouble(1.5);
    PyObject *second = PyFloat_FromDouble(2.5);
    int known = dict == NULL || first == NULL || second == NULL ? -1 : verify_dict(dict, first, second);
    Py_XDECREF(dict);
    Py_XDECREF(first);
    Py_XDECREF(second);
    return known;
}

#endif
