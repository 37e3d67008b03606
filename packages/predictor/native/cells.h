/*
 * Reads plain Python cells without running Python code.
 *
 * Only schema.py refuses a row. This code reads the cells that need no decision: objects of type float or int that are finite
 * and that float64 holds exactly; None and NaN if the feature is nullable; labels that training had; infinities if the policy
 * allows them. Any other cell is "not plain": Python reads the row again, and decides.
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
    int all_numbers;      /* no feature is a category or must be whole, so every finite number is plain */
    PyObject *names;      /* tuple of str, interned: the keys to look up in a mapping */
    PyObject *codes;      /* tuple: per category feature a dict from label to float, else None */
    code_set *known;      /* per feature: the values of that dict */
    PyObject *array_type; /* numpy.ndarray */
    PyObject *to_bytes, *to_list; /* its methods */
    PyObject *float64;    /* the dtype of arrays whose bytes are copied */
    PyObject *dtypes;     /* frozenset: the dtypes of arrays whose tolist() gives exact floats or ints */
    PyObject *ndim_name, *dtype_name;
} cells;

/* Returns 1: *out* holds the row's numbers. 0: not plain, no exception. -1: an exception. */
int cells_read_row(const cells *own, PyObject *row, double *out);
int cells_read_cell(const cells *own, Py_ssize_t feature, PyObject *cell, double *out);

/* Whether all cells of *rows* [n, width] are plain; categories are given by their codes. Needs no GIL. */
int cells_are_plain(const cells *own, const double *rows, size_t n);

/* Fill `known` from `codes`; returns 0, or -1 with an exception. */
int cells_know_codes(cells *own);

#endif
