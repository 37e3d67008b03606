/* Numbers of a model file: one grammar, and their exact values. See _numbers.py, which is the same without C. */
#ifndef PREDICTOR_NUMBERS_H
#define PREDICTOR_NUMBERS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* are_floats(text: bytes) -> bool: fractions by RFC 8259, or infinities, parted by single spaces. */
PyObject *numbers_are_floats(PyObject *module, PyObject *text);

/* to_floats(text: bytes, out: float64 buffer) -> how many; *text* passed are_floats. Correctly rounded. */
PyObject *numbers_to_floats(PyObject *module, PyObject *args);

/* to_ints(text: bytes, out: int64 buffer) -> how many, or -1 where *text* is not whole numbers parted by single spaces. */
PyObject *numbers_to_ints(PyObject *module, PyObject *args);

#endif
