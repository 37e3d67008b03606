/* The Python objects of the module, and the declarations that their files share. */
#ifndef PREDICTOR_OBJECTS_H
#define PREDICTOR_OBJECTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "cells.h"

typedef struct {
    PyTypeObject *engine_type, *cells_type;
} module_state;

typedef struct {
    PyObject_HEAD
    cells own;
} cells_object;

extern PyType_Spec cells_spec;  /* cells_object.c */
extern PyType_Spec engine_spec; /* engine_object.c */
PyObject *build_engine(PyObject *module, PyObject *args, PyObject *kwargs);

/* How many rows of *width* float64 *buffer* holds; -1 with an exception if it does not hold whole, aligned rows. */
Py_ssize_t count_rows(const Py_buffer *buffer, Py_ssize_t width);

#endif
