/* The grammar of numbers in a model file, and their exact values. _numbers.py does the same in Python. */
#ifndef PREDICTOR_NUMBERS_H
#define PREDICTOR_NUMBERS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* The end of the number (RFC 8259, 6) or infinity that begins at *at*; NULL if none begins there. */
const char *number_end(const char *at, const char *end);

/* A cache of the last number that needed Python's slow conversion: nearly always LightGBM's zero threshold,
 * 1.0000000180025095e-35. */
typedef struct {
    const char *text;
    Py_ssize_t size;
    double value;
} last_slow;
#define NO_SLOW_NUMBER {NULL, -1, 0.0}

/* The value of the number from *at* to *end* = number_end(at), correctly rounded; needs the GIL. The byte at *end* must not
 * continue the number. */
double number_value(const char *at, const char *end, last_slow *last);

/* are_floats(text: bytes) -> bool: whether text is numbers by RFC 8259, or infinities, separated by single spaces. */
PyObject *numbers_are_floats(PyObject *module, PyObject *text);

/* to_floats(text: bytes, out: float64 buffer) -> count; are_floats must have accepted *text*. Correctly rounded. */
PyObject *numbers_to_floats(PyObject *module, PyObject *args);

/* to_ints(text: bytes, out: int64 buffer) -> count, or -1 if *text* is not whole numbers separated by single spaces. */
PyObject *numbers_to_ints(PyObject *module, PyObject *args);

#endif
