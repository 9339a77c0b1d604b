/* loop.sock_recv() and its kin: what they return, and the methods of the loop. */

#ifndef FASTLOOP_IO_SOCKOPS_H
#define FASTLOOP_IO_SOCKOPS_H

#include "io/io.h"

extern PyType_Spec SockOp_spec;

PyObject *Loop_sock_recv(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *Loop_sock_recv_into(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *Loop_sock_recvfrom(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *Loop_sock_recvfrom_into(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *Loop_sock_sendall(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *Loop_sock_sendto(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *Loop_sock_connect(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *Loop_sock_accept(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *Loop_set_native_sockets(PyObject *op, PyObject *flag);

#endif
