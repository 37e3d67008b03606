/* The module `predictor._kernel`: its types and functions. _kernel.pyi describes them. */
#include "objects.h"

#include <math.h>

#include "level.h"
#include "numbers.h"
#include "tree_text.h"

static PyObject *module_levels(PyObject *module, PyObject *ignored) {
    const level *found[3];
    int n = levels_here(found);
    PyObject *names = PyTuple_New(n);
    (void)module, (void)ignored;
    for (int i = 0; names != NULL && i < n; i++) {
        PyObject *name = PyUnicode_FromString(found[i]->name);
        if (name == NULL || PyTuple_SetItem(names, i, name) < 0) Py_CLEAR(names);
    }
    return names;
}

static PyObject *module_exp(PyObject *module, PyObject *value) {
    double x = PyFloat_AsDouble(value);
    (void)module;
    return x == -1.0 && PyErr_Occurred() ? NULL : PyFloat_FromDouble(exp(x));
}

static int module_exec(PyObject *module) {
    module_state *state = PyModule_GetState(module);
    state->engine_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &engine_spec, NULL);
    state->cells_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &cells_spec, NULL);
    if (state->engine_type == NULL || state->cells_type == NULL) return -1;
    if (PyModule_AddIntConstant(module, "CELL_NULLABLE", CELL_NULLABLE) < 0 || PyModule_AddIntConstant(module, "CELL_WHOLE", CELL_WHOLE) < 0
        || PyModule_AddIntConstant(module, "CELL_CATEGORY", CELL_CATEGORY) < 0
        || PyModule_AddIntConstant(module, "CELL_INFINITE", CELL_INFINITE) < 0)
        return -1;
    PyObject *public = Py_BuildValue("[sssss]", "Cells", "Engine", "build", "exp", "levels");
    int failed = public == NULL || PyModule_AddObjectRef(module, "__all__", public) < 0;
    Py_XDECREF(public);
    if (failed) return -1;
    return PyModule_AddObjectRef(module, "Cells", (PyObject *)state->cells_type)
           | PyModule_AddObjectRef(module, "Engine", (PyObject *)state->engine_type);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    module_state *state = PyModule_GetState(module);
    Py_VISIT(state->engine_type);
    Py_VISIT(state->cells_type);
    return 0;
}

static int module_clear(PyObject *module) {
    module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->engine_type);
    Py_CLEAR(state->cells_type);
    return 0;
}

static PyMethodDef module_methods[] = {
    {"levels", module_levels, METH_NOARGS, NULL},
    {"exp", module_exp, METH_O, NULL},
    {"build", (PyCFunction)(void (*)(void))build_engine, METH_VARARGS | METH_KEYWORDS, NULL},
    {"are_floats", numbers_are_floats, METH_O, NULL},
    {"to_floats", numbers_to_floats, METH_VARARGS, NULL},
    {"to_ints", numbers_to_ints, METH_VARARGS, NULL},
    {"tree_heads", tree_heads, METH_VARARGS, NULL},
    {"read_trees", read_trees, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, (void *)module_exec}, {0, NULL}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_kernel", .m_doc = "Makes plans of models, predicts with them, and reads model files and rows, in C.", .m_size = sizeof(module_state), .m_methods = module_methods, .m_slots = module_slots,
    .m_traverse = module_traverse, .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&definition); }
