/* Numbers of a model file: one grammar, and their exact values. See _numbers.py, which is the same without C. */
#ifndef PREDICTOR_NUMBERS_H
#define PREDICTOR_NUMBERS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* The end of a number by the grammar of RFC 8259, 6, or of an infinity; NULL where there is none at *at*. */
const char *number_end(const char *at, const char *end);

/* The last number that took the slow way: nearly always LightGBM's bound for zero, 1.0000000180025095e-35. */
typedef struct {
    const char *text;
    Py_ssize_t size;
    double value;
} last_slow;
#define NO_SLOW_NUMBER {NULL, -1, 0.0}

/* The value of the number that number_end found, correctly rounded; needs the GIL. What follows it is no part of any number. */
double number_value(const char *at, const char *end, last_slow *last);

/* are_floats(text: bytes) -> bool: fractions by RFC 8259, or infinities, parted by single spaces. */
PyObject *numbers_are_floats(PyObject *module, PyObject *text);

/* to_floats(text: bytes, out: float64 buffer) -> how many; *text* passed are_floats. Correctly rounded. */
PyObject *numbers_to_floats(PyObject *module, PyObject *args);

/* to_ints(text: bytes, out: int64 buffer) -> how many, or -1 where *text* is not whole numbers parted by single spaces. */
PyObject *numbers_to_ints(PyObject *module, PyObject *args);

#endif
