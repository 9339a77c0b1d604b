/* Free lists: growing and shrinking. */

#include "base/freelist.h"

/* So many stay for good; the rest is gone after so long. */
enum { ROOM_MIN = 64, LONG = 2048, TRIM = 64, GONE_AFTER_NS = 200000000 };

bool
freelist_grow(FreeList *list)
{
    int room = list->room == 0 ? ROOM_MIN : list->room * 2;
    if (room > list->most) {
        return false;
    }
    PyObject **objects = PyMem_RawRealloc(list->objects, (size_t)room * sizeof(PyObject *));
    if (objects == NULL) {
        return false;
    }
    list->objects = objects;
    list->room = room;
    return true;
}

int
freelist_excess(FreeList *list, uint64_t elapsed_ns)
{
    int excess = list->fewest - LONG;
    list->fewest = list->count;
    if (LIKELY(excess <= 0)) {
        return 0;
    }
    uint64_t elapsed = elapsed_ns < GONE_AFTER_NS ? elapsed_ns : GONE_AFTER_NS;
    int part = TRIM + (int)((uint64_t)excess * elapsed / GONE_AFTER_NS);
    part = part < excess ? part : excess;
    list->fewest -= part;
    return part;
}

void
freelist_delete(FreeList *list, int count)
{
    while (count-- > 0) {
        PyObject_GC_Del(freelist_pop(list));
    }
}

void
freelist_free(FreeList *list)
{
    PyMem_RawFree(list->objects);
    list->objects = NULL;
    list->count = list->room = list->fewest = 0;
}
