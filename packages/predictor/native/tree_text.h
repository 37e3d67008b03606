/* Reads the trees of a model file into flat arrays, if they are laid out as LightGBM 3 and 4 write them. */
#ifndef PREDICTOR_TREE_TEXT_H
#define PREDICTOR_TREE_TEXT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* tree_heads(data, start, sizes, at, leaves) -> bool; see _kernel.pyi. */
PyObject *tree_heads(PyObject *module, PyObject *args);

/* read_trees(data, first, end, before, width, at, leaves, ...) -> (text, gains, words) or None; see _kernel.pyi. */
PyObject *read_trees(PyObject *module, PyObject *args);

#endif
