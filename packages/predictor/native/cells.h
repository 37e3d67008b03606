/*
 * Python cells that are plainly numbers, read without Python code.
 *
 * What a row may be is decided in Python (schema.py), once. Here only cells are taken that its policy lets through
 * unchanged whatever it says: exact float and int, finite, whole numbers that float64 holds, None and NaN where the feature is
 * nullable, labels that training knew. Infinities where the policy says so. Anything else is "not plain", which is no verdict: Python then looks itself.
 */
#ifndef PREDICTOR_CELLS_H
#define PREDICTOR_CELLS_H

#include <Python.h>
#include <stdint.h>

enum { CELL_NULLABLE = 1, CELL_WHOLE = 2, CELL_CATEGORY = 4, CELL_INFINITE = 8 };

/* The codes that a category feature may have: bit c % 8 of byte c / 8. */
typedef struct {
    uint8_t *bits;
    size_t n;
} code_set;

typedef struct {
    Py_ssize_t width;
    uint8_t *flags;       /* per feature */
    int all_numbers;      /* no feature has labels or must be whole: every finite number is plain */
    PyObject *names;      /* tuple of str, interned: what a mapping is asked for */
    PyObject *codes;      /* tuple: per category feature a dict from label to float, else None */
    code_set *known;      /* per feature: the values of that dict */
    PyObject *array_type; /* numpy.ndarray */
    PyObject *to_bytes, *to_list; /* its methods */
    PyObject *float64;    /* the dtype whose bytes are taken as they are */
    PyObject *dtypes;     /* frozenset: those whose tolist() gives exact floats or ints */
    PyObject *ndim_name, *dtype_name;
} cells;

/* 1: *out* holds the row's numbers. 0: not plain; no exception. -1: an exception. */
int cells_read_row(const cells *own, PyObject *row, double *out);
int cells_read_cell(const cells *own, Py_ssize_t feature, PyObject *cell, double *out);

/* Whether all *rows* of numbers, categories by their codes, are plain. Needs no GIL. */
int cells_are_plain(const cells *own, const double *rows, size_t n);

/* Fill in `known` by `codes`; -1 with an exception. */
int cells_know_codes(cells *own);

#endif
