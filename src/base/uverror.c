/* libuv error codes as Python exceptions.

   On Unix a libuv code is a negated errno, but for the few that libuv made up (UV_EOF, the UV_EAI_ family); their
   number and text are passed on as they are. */

#include "base/uverror.h"

#include <string.h>

/* Codes at or below this one are libuv's own. */
enum { LARGEST_OWN_CODE = -3000 };

PyObject *
uverror_new(int code)
{
    const char *text = code <= LARGEST_OWN_CODE ? uv_strerror(code) : strerror(-code);
    return PyObject_CallFunction(PyExc_OSError, "is", -code, text);
}

PyObject *
uverror_raise(int code)
{
    PyObject *exc = uverror_new(code);
    if (exc != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        Py_DECREF(exc);
    }
    return NULL;
}
