#include "cells.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define EXACT ((long long)1 << 53) /* float64 holds every whole number up to this one exactly */

static int number_is_plain(uint8_t flags, double value) {
    if (isnan(value)) return (flags & CELL_NULLABLE) != 0;
    if (isinf(value)) return (flags & CELL_INFINITE) != 0;
    return !(flags & CELL_WHOLE) || value == floor(value);
}

/* Larger codes have no bit, so a matrix that has one is not plain: Python reads it. */
#define MOST_KNOWN_CODES ((size_t)1 << 20)

int cells_know_codes(cells *own) {
    if ((own->known = calloc((size_t)own->width + 1, sizeof *own->known)) == NULL) return PyErr_NoMemory(), -1;
    for (Py_ssize_t i = 0; i < own->width; i++) {
        PyObject *label, *code;
        Py_ssize_t at = 0;
        code_set *set = own->known + i;
        if (!(own->flags[i] & CELL_CATEGORY)) continue;
        if ((set->bits = calloc(MOST_KNOWN_CODES / 8, 1)) == NULL) return PyErr_NoMemory(), -1;
        while (PyDict_Next(PyTuple_GetItem(own->codes, i), &at, &label, &code)) {
            double value = PyFloat_AsDouble(code);
            if (value == -1.0 && PyErr_Occurred()) return -1;
            if (!(value >= 0.0 && value < (double)MOST_KNOWN_CODES && value == floor(value))) continue;
            set->bits[(size_t)value / 8] |= (uint8_t)(1 << (size_t)value % 8);
            if ((size_t)value >= set->n) set->n = (size_t)value + 1;
        }
        uint8_t *less = realloc(set->bits, set->n / 8 + 1);
        if (less != NULL) set->bits = less;
    }
    return 0;
}

static int each_is_plain(const cells *own, const double *rows, size_t n) {
    for (size_t r = 0; r < n; r++, rows += own->width)
        for (Py_ssize_t i = 0; i < own->width; i++) {
            const double value = rows[i];
            const code_set *set = own->known + i;
            if (value - value == 0.0 && own->flags[i] == 0) continue; /* finite; every finite number is allowed */
            if (!(own->flags[i] & CELL_CATEGORY) || isnan(value)) {
                if (!number_is_plain(own->flags[i], value)) return 0;
                continue;
            }
            if (!(value >= 0.0 && value < (double)set->n) || value != floor(value)) return 0;
            if (!(set->bits[(size_t)value / 8] >> (size_t)value % 8 & 1)) return 0;
        }
    return 1;
}

/* Whether there is no NaN and no infinity: zero times one of them is NaN, and makes the sum NaN. */
static int all_finite(const double *values, size_t n) {
    double sums[8] = {0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) sums[j] += values[i + j] * 0.0;
    for (; i < n; i++) sums[0] += values[i] * 0.0;
    for (int j = 1; j < 8; j++) sums[0] += sums[j];
    return sums[0] == 0.0;
}

int cells_are_plain(const cells *own, const double *rows, size_t n) {
    if (!own->all_numbers || !all_finite(rows, n * (size_t)own->width)) return each_is_plain(own, rows, n);
    return 1;
}

int cells_read_cell(const cells *own, Py_ssize_t feature, PyObject *cell, double *out) {
    const uint8_t flags = own->flags[feature];
    PyTypeObject *type = Py_TYPE(cell);
    if (cell == Py_None) {
        *out = NAN;
        return (flags & CELL_NULLABLE) != 0;
    }
    if (flags & CELL_CATEGORY) {
        if (type != &PyUnicode_Type && type != &PyLong_Type && type != &PyFloat_Type) return 0;
        if (type == &PyFloat_Type && isnan(PyFloat_AsDouble(cell))) {
            *out = NAN;
            return (flags & CELL_NULLABLE) != 0;
        }
        PyObject *code = PyDict_GetItemWithError(PyTuple_GetItem(own->codes, feature), cell);
        if (code == NULL) return PyErr_Occurred() ? -1 : 0;
        *out = PyFloat_AsDouble(code);
        return 1;
    }
    if (type == &PyFloat_Type) {
        *out = PyFloat_AsDouble(cell);
        return number_is_plain(flags, *out);
    }
    if (type == &PyLong_Type) {
        int overflow;
        long long value = PyLong_AsLongLongAndOverflow(cell, &overflow);
        *out = (double)value;
        return !overflow && value <= EXACT && value >= -EXACT;
    }
    return 0;
}

static int read_list(const cells *own, PyObject *row, double *out) {
    if (PyList_Size(row) != own->width) return 0;
    for (Py_ssize_t i = 0; i < own->width; i++) {
        PyObject *cell = PyList_GetItem(row, i);
        int found = cell == NULL ? -1 : cells_read_cell(own, i, cell, out + i);
        if (found != 1) return found;
    }
    return 1;
}

static int read_tuple(const cells *own, PyObject *row, double *out) {
    if (PyTuple_Size(row) != own->width) return 0;
    for (Py_ssize_t i = 0; i < own->width; i++) {
        int found = cells_read_cell(own, i, PyTuple_GetItem(row, i), out + i);
        if (found != 1) return found;
    }
    return 1;
}

/* The dict has as many items as there are features, and each feature is in it: so no name is missing or unknown. */
static int read_dict(const cells *own, PyObject *row, double *out) {
    if (PyDict_Size(row) != own->width) return 0;
    for (Py_ssize_t i = 0; i < own->width; i++) {
        PyObject *cell = PyDict_GetItemWithError(row, PyTuple_GetItem(own->names, i));
        if (cell == NULL) return PyErr_Occurred() ? -1 : 0;
        int found = cells_read_cell(own, i, cell, out + i);
        if (found != 1) return found;
    }
    return 1;
}

/* Copies the bytes of a float64 array and checks each cell like a float. A category label is looked up as an object. */
static int read_float64(const cells *own, PyObject *row, double *out) {
    PyObject *bytes = PyObject_CallFunctionObjArgs(own->to_bytes, row, NULL);
    if (bytes == NULL) return -1;
    int plain = PyBytes_Size(bytes) == own->width * (Py_ssize_t)sizeof *out;
    if (plain) memcpy(out, PyBytes_AsString(bytes), (size_t)own->width * sizeof *out);
    Py_DECREF(bytes);
    for (Py_ssize_t i = 0; i < own->width && plain == 1; i++) {
        if (own->flags[i] & CELL_CATEGORY) {
            PyObject *cell = PyFloat_FromDouble(out[i]);
            plain = cell == NULL ? -1 : cells_read_cell(own, i, cell, out + i);
            Py_XDECREF(cell);
        } else {
            plain = number_is_plain(own->flags[i], out[i]);
        }
    }
    return plain;
}

static int read_array(const cells *own, PyObject *row, double *out) {
    PyObject *ndim = PyObject_GetAttr(row, own->ndim_name);
    if (ndim == NULL) return -1;
    long dimensions = PyLong_AsLong(ndim);
    Py_DECREF(ndim);
    if (dimensions != 1) return 0;
    PyObject *dtype = PyObject_GetAttr(row, own->dtype_name);
    if (dtype == NULL) return -1;
    int found = dtype == own->float64 ? 2 : PySequence_Contains(own->dtypes, dtype);
    Py_DECREF(dtype);
    if (found == 2) return read_float64(own, row, out);
    if (found != 1) return found;
    PyObject *list = PyObject_CallFunctionObjArgs(own->to_list, row, NULL);
    if (list == NULL) return -1;
    found = read_list(own, list, out);
    Py_DECREF(list);
    return found;
}

int cells_read_row(const cells *own, PyObject *row, double *out) {
    PyTypeObject *type = Py_TYPE(row);
    if (type == &PyList_Type) return read_list(own, row, out);
    if (type == &PyDict_Type) return read_dict(own, row, out);
    if (type == &PyTuple_Type) return read_tuple(own, row, out);
    if ((PyObject *)type == own->array_type) return read_array(own, row, out);
    return 0;
}
