/* getaddrinfo() of numeric addresses.

   What comes of the family, type, protocol and flags that somebody asks for is the system's business, and the same for
   all numeric addresses of one family. So the system is asked once; its answer is kept, and given again with another
   address in it. Whatever else the answer could depend on is not kept: see answer_fits(). */

#include "io/numeric.h"

#include <netdb.h>

#include "base/address.h"
#include "io/io.h"

enum {
    QUESTION_SIZE = 6, /* host, port, family, type, proto, flags */
    ENTRY_SIZE = 5,    /* family, type, proto, canonname, sockaddr */
    KNOWN_FLAGS = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV,
};

typedef struct {
    int asked[4];
    struct sockaddr_storage address;
    socklen_t size;
} Question;

/* False when it is not about a numeric address, or an unusual question. Never leaves an exception set. */
static bool
parse_question(Question *question, PyObject *const *args)
{
    for (int i = 0; i < 4; i++) {
        PyObject *value = args[2 + i];
        int overflow;
        /* The enumerations are ints, and socket.getaddrinfo() takes them by their value. */
        long number = PyLong_Check(value) ? PyLong_AsLongAndOverflow(value, &overflow) : -1;
        if (number < 0 || number > INT_MAX) {
            return false;
        }
        question->asked[i] = (int)number;
    }
    question->size = address_of_host(args[0], args[1], &question->address);
    return question->size > 0 && (question->asked[3] & ~KNOWN_FLAGS) == 0;
}

static NumericAnswer *
find_answer(NumericAnswers *answers, const Question *question)
{
    for (int i = 0; i < answers->count; i++) {
        NumericAnswer *answer = &answers->kept[i];
        if (answer->family == question->address.ss_family &&
            memcmp(answer->asked, question->asked, sizeof(answer->asked)) == 0) {
            return answer;
        }
    }
    return NULL;
}

/* A new entry with another address in it; NULL with an exception. */
static PyObject *
make_entry(PyObject *entry, PyObject *address)
{
    return PyTuple_Pack(ENTRY_SIZE, PyTuple_GET_ITEM(entry, 0), PyTuple_GET_ITEM(entry, 1), PyTuple_GET_ITEM(entry, 2),
                        PyTuple_GET_ITEM(entry, 3), address);
}

static PyObject *
make_answer(PyObject *entries, PyObject *address)
{
    PyObject *list = PyList_New(PyTuple_GET_SIZE(entries));
    for (Py_ssize_t i = 0; list != NULL && i < PyTuple_GET_SIZE(entries); i++) {
        PyObject *entry = make_entry(PyTuple_GET_ITEM(entries, i), address);
        if (entry == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, i, entry);
        }
    }
    return list;
}

/* _answer_numeric(host, port, family, type, proto, flags): what socket.getaddrinfo() answers, or None when it must be
   asked. */
PyObject *
Loop_answer_numeric(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    LoopObject *loop = LoopObject_CAST(op);
    if (nargs != QUESTION_SIZE) {
        PyErr_SetString(PyExc_TypeError, "_answer_numeric() takes what socket.getaddrinfo() takes");
        return NULL;
    }
    Question question;
    if (loop->io == NULL || !io_may_touch(loop) || !parse_question(&question, args)) {
        Py_RETURN_NONE;
    }
    NumericAnswer *answer = find_answer(&loop->io->numeric, &question);
    if (answer == NULL) {
        Py_RETURN_NONE;
    }
    PyObject *entries = Py_NewRef(answer->entries);
    PyObject *address = NULL, *list = NULL;
    if (PySys_Audit("socket.getaddrinfo", "OOiii", args[0], args[1], question.asked[0], question.asked[1],
                    question.asked[2]) == 0) {
        address = address_to_python(&question.address, question.size);
    }
    if (address != NULL) {
        list = make_answer(entries, address);
    }
    Py_XDECREF(address);
    Py_DECREF(entries);
    return list;
}

/* Does nothing in an entry but the address depend on the address? -1 with an exception. */
static int
entry_fits(PyObject *entry, PyObject *address)
{
    if (!PyTuple_CheckExact(entry) || PyTuple_GET_SIZE(entry) != ENTRY_SIZE) {
        return 0;
    }
    PyObject *name = PyTuple_GET_ITEM(entry, 3);
    if (!PyUnicode_CheckExact(name) || PyUnicode_GET_LENGTH(name) != 0) {
        return 0;
    }
    return PyObject_RichCompareBool(PyTuple_GET_ITEM(entry, 4), address, Py_EQ);
}

static int
answer_fits(PyObject *entries, PyObject *address)
{
    int fits = PyTuple_GET_SIZE(entries) > 0;
    for (Py_ssize_t i = 0; fits > 0 && i < PyTuple_GET_SIZE(entries); i++) {
        fits = entry_fits(PyTuple_GET_ITEM(entries, i), address);
    }
    return fits;
}

/* _keep_answer(answer, host, port, family, type, proto, flags): what socket.getaddrinfo() has answered. */
PyObject *
Loop_keep_answer(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    LoopObject *loop = LoopObject_CAST(op);
    if (nargs != 1 + QUESTION_SIZE || !PyList_CheckExact(args[0])) {
        PyErr_SetString(PyExc_TypeError, "_keep_answer() takes the answer, and what socket.getaddrinfo() takes");
        return NULL;
    }
    Question question;
    if (!parse_question(&question, args + 1)) {
        Py_RETURN_NONE;
    }
    PyObject *entries = PyList_AsTuple(args[0]);
    PyObject *address = entries == NULL ? NULL : address_to_python(&question.address, question.size);
    int fits = address == NULL ? -1 : answer_fits(entries, address);
    NumericAnswers *answers = loop->io == NULL || !io_may_touch(loop) ? NULL : &loop->io->numeric;
    if (fits > 0 && answers != NULL && answers->count < NUMERIC_ANSWERS && find_answer(answers, &question) == NULL) {
        NumericAnswer *answer = &answers->kept[answers->count++];
        memcpy(answer->asked, question.asked, sizeof(answer->asked));
        answer->family = question.address.ss_family;
        answer->entries = Py_NewRef(entries);
    }
    Py_XDECREF(address);
    Py_XDECREF(entries);
    return fits < 0 ? NULL : Py_NewRef(Py_None);
}

int
numeric_traverse(NumericAnswers *answers, visitproc visit, void *arg)
{
    for (int i = 0; i < answers->count; i++) {
        Py_VISIT(answers->kept[i].entries);
    }
    return 0;
}

void
numeric_clear(NumericAnswers *answers)
{
    while (answers->count > 0) {
        PyObject *entries = answers->kept[--answers->count].entries;
        Py_DECREF(entries);
    }
}
