/* The Python class `Cells`, which reads the rows of one model. cells.h says which cells are plain. */
#include "objects.h"

#include <stdlib.h>
#include <string.h>

static int cells_init(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *keywords[] = {"names", "flags", "codes", "array_type", "float64", "dtypes", NULL};
    cells *own = &((cells_object *)self)->own;
    PyObject *names, *codes, *array_type, *float64, *dtypes;
    const char *flags;
    Py_ssize_t size;
    if (own->names != NULL) {
        PyErr_SetString(PyExc_TypeError, "Cells cannot be initialized again: make a new one");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!y#O!OOO", keywords, &PyTuple_Type, &names, &flags, &size, &PyTuple_Type, &codes,
                                     &array_type, &float64, &dtypes))
        return -1;
    if (PyTuple_Size(names) != size || PyTuple_Size(codes) != size) {
        PyErr_SetString(PyExc_ValueError, "give one name, one flag and one code table for each feature");
        return -1;
    }
    for (Py_ssize_t i = 0; i < size; i++)
        if ((flags[i] & CELL_CATEGORY) && !PyDict_Check(PyTuple_GetItem(codes, i))) {
            PyErr_SetString(PyExc_TypeError, "a category feature needs a dict of codes");
            return -1;
        }
    if ((own->flags = malloc(size > 0 ? (size_t)size : 1)) == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(own->flags, flags, (size_t)size);
    own->width = size;
    own->all_numbers = 1;
    for (Py_ssize_t i = 0; i < size; i++) own->all_numbers &= !(flags[i] & (CELL_WHOLE | CELL_CATEGORY));
    own->names = Py_NewRef(names);
    own->codes = Py_NewRef(codes);
    own->array_type = Py_NewRef(array_type);
    own->float64 = Py_NewRef(float64);
    own->dtypes = Py_NewRef(dtypes);
    own->to_bytes = PyObject_GetAttrString(array_type, "tobytes");
    own->to_list = PyObject_GetAttrString(array_type, "tolist");
    own->ndim_name = PyUnicode_InternFromString("ndim");
    own->dtype_name = PyUnicode_InternFromString("dtype");
    return own->to_bytes && own->to_list && own->ndim_name && own->dtype_name ? cells_know_codes(own) : -1;
}

static void cells_dealloc(PyObject *self) {
    cells *own = &((cells_object *)self)->own;
    PyTypeObject *type = Py_TYPE(self);
    PyObject *held[] = {own->names, own->codes, own->array_type, own->float64, own->dtypes, own->to_bytes, own->to_list,
                        own->ndim_name, own->dtype_name};
    for (size_t i = 0; i < sizeof held / sizeof *held; i++) Py_XDECREF(held[i]);
    for (Py_ssize_t i = 0; own->known != NULL && i < own->width; i++) free(own->known[i].bits);
    free(own->known);
    free(own->flags);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

Py_ssize_t count_rows(const Py_buffer *buffer, Py_ssize_t width) {
    Py_ssize_t row = width * (Py_ssize_t)sizeof(double);
    if (row == 0 || buffer->len % row != 0 || (uintptr_t)buffer->buf % sizeof(double) != 0) {
        PyErr_SetString(PyExc_ValueError, "the buffer must hold whole rows of aligned float64");
        return -1;
    }
    return buffer->len / row;
}

/* rows(rows: list, out, start) -> the first row from *start* that is not plain, or len(rows). */
static PyObject *cells_rows(PyObject *self, PyObject *args) {
    cells *own = &((cells_object *)self)->own;
    PyObject *rows;
    Py_buffer out;
    Py_ssize_t at, n;
    if (!PyArg_ParseTuple(args, "O!w*n", &PyList_Type, &rows, &out, &at)) return NULL;
    n = count_rows(&out, own->width);
    int found = n < 0 || at < 0 ? -1 : 1;
    if (n >= 0 && at < 0) PyErr_SetString(PyExc_ValueError, "start must not be negative");
    for (; found == 1 && at < n && at < PyList_Size(rows); at += found == 1) {
        PyObject *row = PyList_GetItem(rows, at);
        Py_INCREF(row); /* a key with its own __eq__ may change the list during the look-up */
        found = cells_read_row(own, row, (double *)out.buf + at * own->width);
        Py_DECREF(row);
    }
    PyBuffer_Release(&out);
    return found < 0 ? NULL : PyLong_FromSsize_t(at);
}

/* column(values: list, feature, out) -> the first cell that is not plain, or len(values); fills that column of out [n, width]. */
static PyObject *cells_column(PyObject *self, PyObject *args) {
    cells *own = &((cells_object *)self)->own;
    PyObject *values;
    Py_buffer out;
    Py_ssize_t feature, n, at = 0;
    if (!PyArg_ParseTuple(args, "O!nw*", &PyList_Type, &values, &feature, &out)) return NULL;
    n = count_rows(&out, own->width);
    int found = n < 0 ? -1 : 1;
    if (n >= 0 && (feature < 0 || feature >= own->width)) {
        PyErr_SetString(PyExc_ValueError, "feature must be from 0 to the width less one");
        found = -1;
    }
    for (; found == 1 && at < n && at < PyList_Size(values); at += found == 1)
        found = cells_read_cell(own, feature, PyList_GetItem(values, at), (double *)out.buf + at * own->width + feature);
    PyBuffer_Release(&out);
    return found < 0 ? NULL : PyLong_FromSsize_t(at);
}

#define PLAIN_CELLS 30000 /* to read so many takes less than 50 us */

/* plain(matrix) -> whether each cell of float64 [n, width] is plain; categories are given by their codes. */
static PyObject *cells_plain(PyObject *self, PyObject *matrix) {
    const cells *own = &((cells_object *)self)->own;
    Py_buffer buffer;
    if (PyObject_GetBuffer(matrix, &buffer, PyBUF_C_CONTIGUOUS) < 0) return NULL;
    Py_ssize_t n = count_rows(&buffer, own->width);
    PyThreadState *thread = n * own->width > PLAIN_CELLS ? PyEval_SaveThread() : NULL;
    int plain = n >= 0 && cells_are_plain(own, buffer.buf, (size_t)n);
    if (thread != NULL) PyEval_RestoreThread(thread);
    PyBuffer_Release(&buffer);
    return n < 0 ? NULL : PyBool_FromLong(plain);
}

static PyMethodDef cells_methods[] = {
    {"rows", cells_rows, METH_VARARGS, NULL},
    {"column", cells_column, METH_VARARGS, NULL},
    {"plain", cells_plain, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot cells_slots[] = {
    {Py_tp_new, PyType_GenericNew}, {Py_tp_init, cells_init}, {Py_tp_dealloc, cells_dealloc}, {Py_tp_methods, cells_methods},
    {Py_tp_doc, "Reads rows of plain Python cells, by position or by name."}, {0, NULL},
};
PyType_Spec cells_spec = {"predictor._kernel.Cells", sizeof(cells_object), 0, Py_TPFLAGS_DEFAULT, cells_slots};
