/* libuv error codes as Python exceptions. */

#ifndef FASTLOOP_BASE_UVERROR_H
#define FASTLOOP_BASE_UVERROR_H

#include "compat.h"

/* New OSError (of the subclass that errno selects) for a negative libuv code; NULL with an exception. */
PyObject *uverror_new(int code);

/* Raises the OSError for a negative libuv code; always returns NULL. */
PyObject *uverror_raise(int code);

#endif
