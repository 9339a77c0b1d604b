/* Free lists: growing and shrinking. */

#include "base/freelist.h"

enum { ROOM_MIN = 64, LONG = 2048, TRIM = 64, TRIM_PART = 16 };

bool
freelist_grow(FreeList *list)
{
    int room = list->room == 0 ? ROOM_MIN : list->room * 2;
    if (room > FREELIST_MAX) {
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
freelist_excess(FreeList *list)
{
    int excess = list->fewest - LONG;
    list->fewest = list->count;
    if (LIKELY(excess <= 0)) {
        return 0;
    }
    int part = TRIM + excess / TRIM_PART;
    part = part < excess ? part : excess;
    list->fewest -= part;
    return part;
}

void
freelist_free(FreeList *list)
{
    PyMem_RawFree(list->objects);
    list->objects = NULL;
    list->room = list->fewest = 0;
}
