/* getaddrinfo() of numeric addresses, answered as the system has answered before. */

#ifndef FASTLOOP_IO_NUMERIC_H
#define FASTLOOP_IO_NUMERIC_H

#include "sched/loop.h"

/* What the system answers to getaddrinfo() about any address of a family: the same but for the address. */
typedef struct {
    int asked[4];      /* family, type, proto, flags */
    int family;        /* of the address */
    PyObject *entries; /* strong: the tuple of 5-tuples of one answer; what matters is all but their last members */
} NumericAnswer;

enum { NUMERIC_ANSWERS = 16 };

typedef struct {
    NumericAnswer kept[NUMERIC_ANSWERS];
    int count;
} NumericAnswers;

/* Methods of the loop. */
PyObject *Loop_answer_numeric(PyObject *op, PyObject *const *args, Py_ssize_t nargs);
PyObject *Loop_keep_answer(PyObject *op, PyObject *const *args, Py_ssize_t nargs);

int numeric_traverse(NumericAnswers *answers, visitproc visit, void *arg);
void numeric_clear(NumericAnswers *answers);

#endif
