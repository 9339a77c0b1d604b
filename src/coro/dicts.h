/* Where a dict keeps what: the keys of a dict are private to CPython. dicts_verify() compares our description at import; with
   a difference, and without a GIL, nothing is found, and the caller asks the dict. */

#ifndef FASTLOOP_CORO_DICTS_H
#define FASTLOOP_CORO_DICTS_H

#include "compat.h"

/* Dicts are read without a lock. */
#define HAVE_DICT_ENTRIES (!HAVE_FREE_THREADING)

/* The keys of a dict as CPython 3.11 and later have them; the entries follow the indices. */
typedef struct {
    Py_ssize_t refcount;
    uint8_t log2_size;
    uint8_t log2_index_bytes;
    uint8_t kind; /* 0: keys of any type, with their hashes; 1: only strings, without */
    uint8_t unused;
    uint32_t version;
    Py_ssize_t usable;
    Py_ssize_t count; /* of entries, those that were deleted with them */
} DictKeys;

/* Where a dict keeps its entries. An update() that fails may have moved them, and the version is as before. */
static inline DictKeys *
dict_keys(PyObject *dict)
{
    return (DictKeys *)((PyDictObject *)dict)->ma_keys;
}

/* An item that a dict of names has had, to see quickly that it still has it. Zero: not known. */
typedef struct {
#if HAVE_DICT_VERSION
    uint64_t version;
#else
    DictKeys *keys;
    uint16_t sizes;    /* the first two bytes behind their reference count */
    Py_ssize_t number; /* of the entry */
    PyObject **entry;  /* the name and the value */
#endif
} KnownItem;

#if HAVE_DICT_ENTRIES

/* Is our description that of the running interpreter? 1 or 0, or -1 with an exception. */
int dicts_verify(void);

/* Remembers that `dict` has `value` for `name`, if that can be done. */
void dict_remember(PyObject *dict, PyObject *name, PyObject *value, KnownItem *item);

/* Has nothing happened to the item? Not knowing is no. */
static inline bool
dict_keeps(PyObject *dict, PyObject *name, PyObject *value, const KnownItem *item)
{
#if HAVE_DICT_VERSION
    (void)name;
    (void)value;
    return compat_dict_version(dict) == item->version;
#else
    /* New keys may lie where old ones did; ones of these sizes have room for the entry. */
    const DictKeys *keys = dict_keys(dict);
    return keys == item->keys && (keys->log2_size | keys->log2_index_bytes << 8) == item->sizes &&
           keys->count > item->number && item->entry[0] == name && item->entry[1] == value;
#endif
}

#endif

#if HAVE_DICT_VERSION
/* Where a small dict keeps `value`, which it has for `key` (no str); NULL where it is no such dict, or watched. Right as
   long as the dict's version and dict_keys() stay. */
PyObject **dict_value_slot(PyObject *dict, PyObject *key, PyObject *value);
#endif

#endif
