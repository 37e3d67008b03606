/* The trees of a model file, read into flat arrays where they are written as LightGBM 3 and 4 write them. */
#ifndef PREDICTOR_TREE_TEXT_H
#define PREDICTOR_TREE_TEXT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* tree_heads(data, start, sizes, at, leaves) -> bool; see _kernel.pyi. */
PyObject *tree_heads(PyObject *module, PyObject *args);

/* read_trees(data, at, first, end, width, ...) -> (text, gains, words) or None; see _kernel.pyi. */
PyObject *read_trees(PyObject *module, PyObject *args);

#endif
