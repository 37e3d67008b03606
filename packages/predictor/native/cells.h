/*
 * Python cells that are plainly numbers, read without Python code.
 *
 * What a row may be is decided in Python (schema.py), once. Here only cells are taken that its policy lets through
 * unchanged whatever it says: exact float and int, finite, whole numbers that float64 holds, None and NaN where the feature is
 * nullable, labels that training knew. Anything else is "not plain", which is no verdict: Python then looks itself.
 */
#ifndef PREDICTOR_CELLS_H
#define PREDICTOR_CELLS_H

#include <Python.h>
#include <stdint.h>

enum { CELL_NULLABLE = 1, CELL_WHOLE = 2, CELL_CATEGORY = 4 };

typedef struct {
    Py_ssize_t width;
    uint8_t *flags;       /* per feature */
    PyObject *names;      /* tuple of str, interned: what a mapping is asked for */
    PyObject *codes;      /* tuple: per category feature a dict from label to float, else None */
    PyObject *array_type; /* numpy.ndarray */
    PyObject *to_bytes, *to_list; /* its methods */
    PyObject *float64;    /* the dtype whose bytes are taken as they are */
    PyObject *dtypes;     /* frozenset: those whose tolist() gives exact floats or ints */
    PyObject *ndim_name, *dtype_name;
} cells;

/* 1: *out* holds the row's numbers. 0: not plain; no exception. -1: an exception. */
int cells_read_row(const cells *own, PyObject *row, double *out);
int cells_read_cell(const cells *own, Py_ssize_t feature, PyObject *cell, double *out);

#endif
