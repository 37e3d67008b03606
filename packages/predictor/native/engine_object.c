/*
 * The Python class `Engine`, which holds one model's plan, and the function `build`, which makes it.
 *
 * The size and alignment of every buffer are checked here, and the trees' indices in plan.c; the level's functions do not
 * check their arguments. `build` always releases the GIL. Prediction releases it only if the caller says so (for `row` and
 * `numbers`, in `bind`), because for a short call to release the GIL costs more than the call.
 */
#include "objects.h"

#include <stdlib.h>
#include <string.h>

#include "finish.h"
#include "level.h"

#define ON_STACK 256 /* doubles; a longer row, or more scores, take memory from the heap */

typedef struct {
    PyObject_HEAD
    const level *level;
    plan *plan;
    finish_kind finish;
    double scale;
    PyObject *cells;    /* a Cells, or NULL before bind */
    PyObject *copy;     /* the `copy` method of the template array; each answer is such a copy */
    PyObject *empty;    /* numpy.empty, for the answers of `matrix` */
    Py_ssize_t hold_rows, most_rows; /* for more rows `row` and `matrix` release the GIL; for yet more `matrix` returns None */
    Py_buffer answer;   /* the memory of the template array */
} engine_object;

static void engine_dealloc(PyObject *self) {
    engine_object *engine = (engine_object *)self;
    PyTypeObject *type = Py_TYPE(self);
    plan_free(engine->plan);
    Py_XDECREF(engine->cells);
    Py_XDECREF(engine->copy);
    Py_XDECREF(engine->empty);
    if (engine->answer.obj != NULL) PyBuffer_Release(&engine->answer);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/*
 * bind(cells, template, empty, hold_rows, most_rows): how `row` and `matrix` read cells; the float64 array [n_outputs] of which
 * each answer of `row` is a copy; what makes those of `matrix`; and two limits.
 */
static PyObject *engine_bind(PyObject *self, PyObject *args) {
    engine_object *engine = (engine_object *)self;
    module_state *state = PyType_GetModuleState(Py_TYPE(self));
    PyObject *own_cells, *template, *empty;
    Py_ssize_t hold_rows, most_rows;
    if (!PyArg_ParseTuple(args, "O!OOnn", state->cells_type, &own_cells, &template, &empty, &hold_rows, &most_rows)) return NULL;
    if (engine->cells != NULL || ((cells_object *)own_cells)->own.width != (Py_ssize_t)engine->plan->n_features) {
        PyErr_SetString(PyExc_ValueError, "bind once, with cells of the model's width");
        return NULL;
    }
    if (PyObject_GetBuffer(template, &engine->answer, PyBUF_WRITABLE) < 0) return NULL;
    if (engine->answer.len != (Py_ssize_t)(engine->plan->n_outputs * sizeof(double)) || count_rows(&engine->answer, 1) < 0) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "the template must be float64 [n_outputs]");
        PyBuffer_Release(&engine->answer);
        return NULL;
    }
    if ((engine->copy = PyObject_GetAttrString(template, "copy")) == NULL) {
        PyBuffer_Release(&engine->answer);
        return NULL;
    }
    engine->cells = Py_NewRef(own_cells);
    engine->empty = Py_NewRef(empty);
    engine->hold_rows = hold_rows;
    engine->most_rows = most_rows;
    Py_RETURN_NONE;
}

/* A copy of the template array that holds *scores*. */
static PyObject *answer_of(engine_object *engine, const double *scores) {
    const size_t n = engine->plan->n_outputs;
    if (n <= ON_STACK) { /* NumPy keeps the GIL while it copies so few, so no other thread can write into the template */
        memcpy(engine->answer.buf, scores, n * sizeof *scores);
        return PyObject_CallNoArgs(engine->copy);
    }
    Py_buffer own;
    PyObject *answer = PyObject_CallNoArgs(engine->copy);
    if (answer == NULL || PyObject_GetBuffer(answer, &own, PyBUF_WRITABLE) < 0) {
        Py_XDECREF(answer);
        return NULL;
    }
    memcpy(own.buf, scores, n * sizeof *scores);
    PyBuffer_Release(&own);
    return answer;
}

/* Predict one row: compute in own memory, then make the answer, with the GIL. */
static PyObject *answer_row(engine_object *engine, const double *row) {
    const plan *p = engine->plan;
    double on_stack[ON_STACK], *scores = on_stack;
    int failed;
    if (p->n_outputs > ON_STACK && (scores = malloc(p->n_outputs * sizeof *scores)) == NULL) return PyErr_NoMemory();
    if (engine->hold_rows < 1) {
        Py_BEGIN_ALLOW_THREADS
        failed = engine->level->row(p, row, scores);
        Py_END_ALLOW_THREADS
    } else {
        failed = engine->level->row(p, row, scores);
    }
    if (!failed) finish_scores(engine->finish, engine->scale, scores, 1, p->n_outputs);
    PyObject *answer = failed ? PyErr_NoMemory() : answer_of(engine, scores);
    if (scores != on_stack) free(scores);
    return answer;
}

/* Read a row, of plain cells or (*encoded*) of numbers that Python has encoded, and predict it. None if it is not plain. */
static PyObject *read_and_answer(engine_object *engine, PyObject *row, int encoded) {
    const Py_ssize_t width = (Py_ssize_t)engine->plan->n_features;
    double on_stack[ON_STACK], *numbers = on_stack;
    PyObject *answer = NULL;
    int found = 1;
    if (engine->cells == NULL) {
        PyErr_SetString(PyExc_ValueError, "bind the engine first");
        return NULL;
    }
    if (width > ON_STACK && (numbers = malloc((size_t)width * sizeof *numbers)) == NULL) return PyErr_NoMemory();
    if (!encoded) {
        found = cells_read_row(&((cells_object *)engine->cells)->own, row, numbers);
    } else if (PySequence_Size(row) != width) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "the row must have one number for each feature");
        found = -1;
    } else {
        for (Py_ssize_t i = 0; i < width && found == 1; i++) {
            PyObject *cell = PySequence_GetItem(row, i);
            numbers[i] = cell == NULL ? -1.0 : PyFloat_AsDouble(cell);
            if (numbers[i] == -1.0 && PyErr_Occurred()) found = -1;
            Py_XDECREF(cell);
        }
    }
    if (found == 1) answer = answer_row(engine, numbers);
    if (numbers != on_stack) free(numbers);
    return found == 0 ? Py_NewRef(Py_None) : answer;
}

static PyObject *engine_row(PyObject *self, PyObject *row) { return read_and_answer((engine_object *)self, row, 0); }
static PyObject *engine_numbers(PyObject *self, PyObject *row) { return read_and_answer((engine_object *)self, row, 1); }

/* Predict *n* plain rows into a new array. */
static PyObject *answer_matrix(engine_object *engine, const double *rows, Py_ssize_t n) {
    const plan *p = engine->plan;
    Py_buffer out;
    PyObject *answer = p->n_outputs == 1 ? PyObject_CallFunction(engine->empty, "n", n)
                                         : PyObject_CallFunction(engine->empty, "((nn))", n, (Py_ssize_t)p->n_outputs);
    if (answer == NULL || PyObject_GetBuffer(answer, &out, PyBUF_WRITABLE) < 0) {
        Py_XDECREF(answer);
        return NULL;
    }
    PyThreadState *thread = n > engine->hold_rows ? PyEval_SaveThread() : NULL;
    int failed = engine->level->batch(p, rows, (size_t)n, out.buf);
    if (!failed) finish_scores(engine->finish, engine->scale, out.buf, (size_t)n, p->n_outputs);
    if (thread != NULL) PyEval_RestoreThread(thread);
    PyBuffer_Release(&out);
    if (failed) {
        Py_DECREF(answer);
        return PyErr_NoMemory();
    }
    return answer;
}

/* matrix(rows) -> the answers of a float64 array [n, width] of plain cells, of not too many rows; None for everything else. */
static PyObject *engine_matrix(PyObject *self, PyObject *rows) {
    engine_object *engine = (engine_object *)self;
    PyObject *answer = Py_None;
    Py_buffer buffer;
    if (engine->cells == NULL || (PyObject *)Py_TYPE(rows) != ((cells_object *)engine->cells)->own.array_type) Py_RETURN_NONE;
    if (PyObject_GetBuffer(rows, &buffer, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) { /* not contiguous, or of objects that have none */
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    const int is_ours = buffer.ndim == 2 && strcmp(buffer.format, "d") == 0 && (uintptr_t)buffer.buf % sizeof(double) == 0
                         && buffer.shape[1] == (Py_ssize_t)engine->plan->n_features && buffer.shape[0] <= engine->most_rows;
    if (is_ours) {
        PyThreadState *thread = buffer.shape[0] > engine->hold_rows ? PyEval_SaveThread() : NULL;
        const int plain = cells_are_plain(&((cells_object *)engine->cells)->own, buffer.buf, (size_t)buffer.shape[0]);
        if (thread != NULL) PyEval_RestoreThread(thread);
        if (plain) answer = answer_matrix(engine, buffer.buf, buffer.shape[0]);
    }
    PyBuffer_Release(&buffer);
    return answer == Py_None ? Py_NewRef(answer) : answer;
}

/* predict, raw, leaves and explain: take rows, and write *per_row* items of *size* bytes for each row. */
typedef enum { CALL_RAW, CALL_FINISHED, CALL_LEAVES, CALL_SHARES } call_kind;

static PyObject *run_batch(PyObject *self, PyObject *args, call_kind kind, size_t per_row, size_t size) {
    engine_object *engine = (engine_object *)self;
    const plan *p = engine->plan;
    const level *l = engine->level;
    Py_buffer rows, out;
    int release, failed = 0;
    if (!PyArg_ParseTuple(args, "y*w*p", &rows, &out, &release)) return NULL;
    Py_ssize_t n = count_rows(&rows, (Py_ssize_t)p->n_features);
    size_t items, wanted;
    if (n >= 0 && (__builtin_mul_overflow((size_t)n, per_row, &items) || __builtin_mul_overflow(items, size, &wanted)
                   || (size_t)out.len != wanted || (uintptr_t)out.buf % size != 0)) {
        PyErr_SetString(PyExc_ValueError, "out must be aligned and have one line for each row");
        n = -1;
    }
    if (n >= 0) {
        PyThreadState *thread = release ? PyEval_SaveThread() : NULL;
        if (kind == CALL_LEAVES) failed = l->leaves(p, rows.buf, (size_t)n, out.buf);
        else if (kind == CALL_SHARES) failed = l->contributions(p, rows.buf, (size_t)n, out.buf);
        else failed = l->batch(p, rows.buf, (size_t)n, out.buf);
        if (kind == CALL_FINISHED && !failed) finish_scores(engine->finish, engine->scale, out.buf, (size_t)n, p->n_outputs);
        if (thread != NULL) PyEval_RestoreThread(thread);
    }
    PyBuffer_Release(&rows);
    PyBuffer_Release(&out);
    if (n < 0) return NULL;
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

#define PLAN(self) (((engine_object *)(self))->plan)
static PyObject *engine_predict(PyObject *self, PyObject *args) { return run_batch(self, args, CALL_FINISHED, PLAN(self)->n_outputs, sizeof(double)); }
static PyObject *engine_raw(PyObject *self, PyObject *args) { return run_batch(self, args, CALL_RAW, PLAN(self)->n_outputs, sizeof(double)); }
static PyObject *engine_leaves(PyObject *self, PyObject *args) { return run_batch(self, args, CALL_LEAVES, PLAN(self)->n_trees, sizeof(int32_t)); }
static PyObject *engine_explain(PyObject *self, PyObject *args) {
    if (!PLAN(self)->has_contributions) {
        PyErr_SetString(PyExc_ValueError, "this plan has no contributions: use LightGBM");
        return NULL;
    }
    return run_batch(self, args, CALL_SHARES, (size_t)PLAN(self)->n_outputs * (PLAN(self)->n_features + 1), sizeof(double));
}

/* describe() -> {"level", "row", "batch", "nodes", "bytes", "columns", "groups", "row_ns", "tile_ns"}; see _kernel.pyi. */
static PyObject *engine_describe(PyObject *self, PyObject *ignored) {
    static const char *const rows[] = {[ROW_WORDS32] = "words32", [ROW_WORDS64] = "words64", [ROW_WALK] = "walk"};
    const plan *p = PLAN(self);
    (void)ignored;
    return Py_BuildValue("{s:s,s:s,s:s,s:i,s:n,s:I,s:I,s:d,s:d}", "level", ((engine_object *)self)->level->name, "row", rows[p->row], "batch",
                         p->has_blend ? "blend" : rows[p->row], "nodes", p->has_contributions ? (int)p->n_nodes : 0, "bytes",
                         (Py_ssize_t)p->bytes, "columns", (unsigned)p->n_columns, "groups", (unsigned)p->n_groups, "row_ns", p->row_ns, "tile_ns", p->tile_ns);
}

static PyMethodDef engine_methods[] = {
    {"bind", engine_bind, METH_VARARGS, NULL},
    {"row", engine_row, METH_O, NULL},
    {"numbers", engine_numbers, METH_O, NULL},
    {"matrix", engine_matrix, METH_O, NULL},
    {"predict", engine_predict, METH_VARARGS, NULL},
    {"raw", engine_raw, METH_VARARGS, NULL},
    {"leaves", engine_leaves, METH_VARARGS, NULL},
    {"explain", engine_explain, METH_VARARGS, NULL},
    {"describe", engine_describe, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot engine_slots[] = {
    {Py_tp_dealloc, engine_dealloc}, {Py_tp_methods, engine_methods},
    {Py_tp_doc, "One model's plan; any number of threads may call it."}, {0, NULL},
};
PyType_Spec engine_spec = {"predictor._kernel.Engine", sizeof(engine_object), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, engine_slots};

/* build(...) -> Engine, or the name of a refusal. */
PyObject *build_engine(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *keywords[] = {"level", "n_features", "n_outputs", "leaves", "feature", "threshold", "decision", "left", "right",
                               "set_start", "set_size", "set_words", "leaf_value", "split_count", "leaf_count", "finish", "scale",
                               "walk_only", NULL};
    enum { LEAVES, FEATURE, THRESHOLD, DECISION, LEFT, RIGHT, SET_START, SET_SIZE, SET_WORDS, LEAF_VALUE, SPLIT_COUNT, LEAF_COUNT, ALL };
    static const uint8_t sizes[ALL] = {4, 4, 8, 1, 4, 4, 8, 4, 4, 8, 8, 8};
    module_state *state = PyModule_GetState(module);
    Py_buffer b[ALL] = {0};
    const char *wanted;
    int n_features, n_outputs, finish, walk_only;
    double scale;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "siiy*y*y*y*y*y*y*y*y*y*z*z*idp", keywords, &wanted, &n_features, &n_outputs, &b[LEAVES],
                                     &b[FEATURE], &b[THRESHOLD], &b[DECISION], &b[LEFT], &b[RIGHT], &b[SET_START], &b[SET_SIZE],
                                     &b[SET_WORDS], &b[LEAF_VALUE], &b[SPLIT_COUNT], &b[LEAF_COUNT], &finish, &scale, &walk_only))
        return NULL;
    const level *found[3], *chosen = NULL;
    for (int i = levels_here(found); i-- > 0;)
        if (strcmp(found[i]->name, wanted) == 0) chosen = found[i];
    size_t n_splits = (size_t)b[FEATURE].len / 4, n_leaves = (size_t)b[LEAF_VALUE].len / 8;
    int sound = chosen != NULL && finish >= 0 && finish < FINISH_KINDS && b[LEAVES].len / 4 <= INT32_MAX;
    for (int i = 0; i < ALL; i++) sound &= b[i].len % sizes[i] == 0 && (uintptr_t)b[i].buf % sizes[i] == 0;
    for (int i = FEATURE; i <= SET_SIZE; i++) sound &= (size_t)b[i].len == n_splits * sizes[i];
    sound &= b[SPLIT_COUNT].buf == NULL || (size_t)b[SPLIT_COUNT].len == n_splits * 8;
    sound &= b[LEAF_COUNT].buf == NULL || (size_t)b[LEAF_COUNT].len == n_leaves * 8;
    PyObject *result = NULL;
    plan *made = NULL;
    if (!sound) {
        PyErr_SetString(PyExc_ValueError, "level or finish is unknown, or arrays differ in length or are not aligned");
    } else {
        forest trees = {
            .n_features = n_features, .n_outputs = n_outputs, .n_trees = (int32_t)(b[LEAVES].len / 4), .leaves = b[LEAVES].buf,
            .feature = b[FEATURE].buf, .threshold = b[THRESHOLD].buf, .decision = b[DECISION].buf, .left = b[LEFT].buf,
            .right = b[RIGHT].buf, .set_start = b[SET_START].buf, .set_size = b[SET_SIZE].buf, .set_words = b[SET_WORDS].buf,
            .leaf_value = b[LEAF_VALUE].buf, .split_count = b[SPLIT_COUNT].buf, .leaf_count = b[LEAF_COUNT].buf,
            .n_splits = n_splits, .n_leaves = n_leaves, .n_set_words = (size_t)b[SET_WORDS].len / 4,
        };
        plan_refusal refusal;
        Py_BEGIN_ALLOW_THREADS /* takes 0.1 s for a large model, and does not call Python */
        refusal = plan_build(&trees, chosen->lanes, walk_only, &made);
        Py_END_ALLOW_THREADS
        if (refusal != PLAN_OK) result = PyUnicode_FromString(plan_refusal_name(refusal));
    }
    for (int i = 0; i < ALL; i++) PyBuffer_Release(&b[i]);
    if (made == NULL) return result;
    engine_object *engine = PyObject_New(engine_object, state->engine_type);
    if (engine == NULL) {
        plan_free(made);
        return NULL;
    }
    memset((char *)engine + sizeof(PyObject), 0, sizeof *engine - sizeof(PyObject));
    engine->level = chosen;
    engine->plan = made;
    engine->finish = (finish_kind)finish;
    engine->scale = scale;
    return (PyObject *)engine;
}
