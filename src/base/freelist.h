/* Objects of one kind that are kept for the next of their kind. As many as there may be at the same time; but more than a busy
   server needs leave little by little if they have not been in use since the last time. What is recycled does not count as new
   for the collector either, which looks through all young objects for every two thousand new ones: a burst of ten thousand
   tasks is a quarter dearer with its collections. */

#ifndef FASTLOOP_BASE_FREELIST_H
#define FASTLOOP_BASE_FREELIST_H

#include "compat.h"

/* How often it is worth looking whether there is something to give back. */
enum { FREELIST_TRIM_NS = 10000000 };

typedef struct {
    PyObject **objects;
    int count;
    int room;
    int fewest; /* the least `count` since freelist_excess() */
    int most;   /* `count` never exceeds */
} FreeList;

/* Makes room for one more, and others; false where there is none. Sets no exception. */
bool freelist_grow(FreeList *list);

/* Keeps an object; false when it must be freed. */
static inline bool
freelist_push(FreeList *list, PyObject *op)
{
    if (UNLIKELY(list->count == list->room) && !freelist_grow(list)) {
        return false;
    }
    list->objects[list->count++] = op;
    return true;
}

/* The object that was kept last, or NULL. */
static inline PyObject *
freelist_pop(FreeList *list)
{
    if (UNLIKELY(list->count == 0)) {
        return NULL;
    }
    int left = --list->count;
    if (UNLIKELY(left < list->fewest)) {
        list->fewest = left;
    }
    return list->objects[left];
}

/* How many are to be freed now, of many that nobody has needed since this was last asked, so many nanoseconds ago. */
int freelist_excess(FreeList *list, uint64_t elapsed_ns);

/* Frees so many objects, which lie there without a reference and unknown to the collector. */
void freelist_delete(FreeList *list, int count);

/* The end of an empty one. */
void freelist_free(FreeList *list);

#endif
