/*
 * Reads the trees of a model file in one pass; Python needs about twelve over each line.
 *
 * Only Python (_trees.py and _tree_lines.py) refuses a tree, with an error that says what is wrong. This code reads the trees
 * that Python certainly accepts: the lines of LightGBM's Tree::ToString in their order, the right count of numbers by the
 * same grammar, each in its range, every node and leaf reached exactly once. Any other tree is "not usual": then Python reads
 * the whole file.
 */
#include "tree_text.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"

#define INT32_LARGEST 2147483647
#define UINT32_LARGEST 4294967295
#define DEEPEST 4096    /* splits on a branch, as in _trees.py */
#define CATEGORICAL 1   /* bit of decision_type (LightGBM's tree.h) */
#define DECISIONS_MOST 11

typedef struct {
    const char *at, *end;
} span;

static size_t size_of(span s) { return (size_t)(s.end - s.at); }

/* Remove the line `name=...` from the front of *rest*; *value* is the text after the equals sign. 0 if it is not there. */
static int take_line(span *rest, const char *name, span *value) {
    size_t size = strlen(name);
    if (size_of(*rest) <= size || memcmp(rest->at, name, size) != 0 || rest->at[size] != '=') return 0;
    const char *end = memchr(rest->at + size + 1, '\n', size_of(*rest) - size - 1);
    if (end == NULL) return 0;
    *value = (span){rest->at + size + 1, end};
    rest->at = end + 1;
    return 1;
}

/* Read *text* as one number of 1 to 9 digits; 0 if it is anything else. */
static int count_of(span text, int32_t *count) {
    int32_t value = 0;
    if (text.at == text.end || size_of(text) > 9) return 0;
    for (const char *at = text.at; at < text.end; at++) {
        if (*at < '0' || *at > '9') return 0;
        value = value * 10 + (*at - '0');
    }
    *count = value;
    return 1;
}

/* Read exactly *count* whole numbers, separated by single spaces, each in *low*..*high*; 0 if *text* is anything else. */
static int read_ints(span text, size_t count, int64_t low, int64_t high, int64_t *out) {
    const char *at = text.at;
    if (count == 0) return at == text.end;
    for (size_t i = 0; i < count; i++) {
        int is_negative = at < text.end && *at == '-';
        const char *first = at += is_negative;
        int64_t value = 0;
        for (; at < text.end && *at >= '0' && *at <= '9'; at++) {
            if (at - first == 18) return 0; /* outside every range */
            value = value * 10 + (*at - '0');
        }
        if (at == first) return 0;
        if (is_negative) value = -value;
        if (value < low || value > high) return 0;
        out[i] = value;
        if (i + 1 < count && (at == text.end || *at++ != ' ')) return 0;
    }
    return at == text.end;
}

static int read_int32s(span text, size_t count, int32_t low, int32_t high, int32_t *out, int64_t *room) {
    if (!read_ints(text, count, low, high, room)) return 0;
    for (size_t i = 0; i < count; i++) out[i] = (int32_t)room[i];
    return 1;
}

static int read_floats(span text, size_t count, double *out, last_slow *slow) {
    const char *at = text.at;
    if (count == 0) return at == text.end;
    for (size_t i = 0; i < count; i++) {
        const char *end = number_end(at, text.end);
        if (end == NULL) return 0;
        out[i] = number_value(at, end, slow);
        at = end;
        if (i + 1 < count && (at == text.end || *at++ != ' ')) return 0;
    }
    return at == text.end;
}

/* Whether *text* is *count* numbers by number_end; does not convert them. */
static int are_floats(span text, size_t count) {
    const char *at = text.at;
    if (count == 0) return at == text.end;
    for (size_t i = 0; i < count; i++) {
        if ((at = number_end(at, text.end)) == NULL) return 0;
        if (i + 1 < count && (at == text.end || *at++ != ' ')) return 0;
    }
    return at == text.end;
}

/* Whether *text* has *count* ASCII entries. For lines whose numbers are not used, as in _trees.py. */
static int has_entries(span text, size_t count) {
    size_t entries = text.at < text.end;
    unsigned char above = 0;
    for (const char *at = text.at; at < text.end; at++) {
        entries += *at == ' ';
        above |= (unsigned char)*at;
    }
    return entries == count && above < 0x80;
}

/* The arrays of one call, [nodes] or [leaves] of the whole model. */
typedef struct {
    int32_t *feature, *left, *right, *internal_count, *leaf_count, *set_size;
    uint8_t *decision;
    int64_t *set_start;
    double *threshold, *leaf_value;
} tree_arrays;

typedef struct {
    char *at;
    size_t size;
} bytes_out;

static void put(bytes_out *out, const char *from, const char *to) {
    memcpy(out->at + out->size, from, (size_t)(to - from));
    out->size += (size_t)(to - from);
}

typedef struct {
    uint32_t *items;
    size_t count, room;
} word_list;

/*
 * Append the category sets of one tree to *words*, and set each categorical split's start and size. A set has one split, so that
 * all splits together have no more words than the text. *seen* has room for a mark for each set. Returns 0, or -1 if no memory.
 */
static int read_sets(const tree_arrays *out, span limits_text, span words_text, size_t node, size_t nodes, size_t n_sets, size_t before,
                     word_list *words, int64_t *room, uint8_t *seen, int *usual) {
    *usual = 0;
    if (!read_ints(limits_text, n_sets + 1, 0, INT32_LARGEST, room) || room[0] != 0) return 0;
    for (size_t i = 0; i < n_sets; i++)
        if (room[i + 1] < room[i]) return 0;
    const size_t length = (size_t)room[n_sets];
    if (length > size_of(words_text)) return 0; /* each number needs a character, so it cannot be */
    memset(seen, 0, n_sets);
    for (size_t i = 0; i < nodes; i++)
        if (out->decision[node + i] & CATEGORICAL) {
            const size_t set = (size_t)out->threshold[node + i]; /* in range: checked by the caller */
            if (seen[set]) return 0;
            seen[set] = 1;
            out->set_start[node + i] = (int64_t)(before + words->count) + room[set];
            out->set_size[node + i] = (int32_t)(room[set + 1] - room[set]);
        }
    if (words->room - words->count < length) {
        size_t wanted = 2 * (words->count + length) + 64;
        uint32_t *items = realloc(words->items, wanted * sizeof *items);
        if (items == NULL) return -1;
        *words = (word_list){items, words->count, wanted};
    }
    const char *at = words_text.at;
    for (size_t i = 0; i < length; i++) {
        const char *end = memchr(at, ' ', (size_t)(words_text.end - at));
        if (end == NULL) end = words_text.end;
        int64_t value;
        if (!read_ints((span){at, end}, 1, 0, UINT32_LARGEST, &value)) return 0;
        words->items[words->count++] = (uint32_t)value;
        if (end == words_text.end && i + 1 < length) return 0;
        at = end < words_text.end ? end + 1 : end;
        if (i + 1 == length && end != words_text.end) return 0;
    }
    *usual = length > 0 || words_text.at == words_text.end;
    return 0;
}

/* Whether each child is a later node or a leaf, each node and leaf is reached once, and no branch exceeds DEEPEST splits. */
static int shape_is_sound(const int32_t *left, const int32_t *right, int32_t nodes, uint8_t *seen, uint16_t *depth) {
    memset(seen, 0, 2 * (size_t)nodes + 1);
    if (nodes > 0) depth[0] = 1;
    for (int32_t i = 0; i < nodes; i++)
        for (int side = 0; side < 2; side++) {
            const int32_t child = side ? right[i] : left[i];
            if (child >= 0 ? child <= i || child >= nodes : ~child > nodes) return 0;
            const int32_t place = child >= 0 ? child : nodes + ~child; /* nodes first, then leaves */
            if (seen[place]) return 0;
            seen[place] = 1;
            if (child >= 0 && (depth[child] = (uint16_t)(depth[i] + 1)) > DEEPEST) return 0;
        }
    /* Each of n nodes has two children, none occurs twice or is the root: so all 2n other nodes and leaves are reached. */
    return 1;
}

/* Scratch memory: the numbers of one line, and marks for the nodes and leaves of one tree. */
typedef struct {
    int64_t *room;
    uint8_t *seen;
    uint16_t *depth;
    last_slow slow;
} workspace;

/* Read one tree; its arrays begin at *node* and *leaf*. Sets *usual*. Returns 0, or -1 if there is no memory. */
static int read_tree(span block, int32_t number, int32_t leaves, int32_t width, size_t node, size_t leaf, size_t before, workspace *work,
                     const tree_arrays *out, bytes_out *text, bytes_out *gains, word_list *words, int *usual) {
    const size_t nodes = (size_t)leaves - 1, n_leaves = (size_t)leaves;
    const char *const k1 = block.at;
    span rest = block, line, sets, gain, limits = {0}, set_words = {0};
    int32_t found, n_sets;
    *usual = 0;
    if (!take_line(&rest, "Tree", &line) || !count_of(line, &found) || found != number) return 0;
    if (!take_line(&rest, "num_leaves", &line) || !count_of(line, &found) || found != leaves) return 0;
    if (!take_line(&rest, "num_cat", &sets) || !count_of(sets, &n_sets)) return 0;
    if (!take_line(&rest, "split_feature", &line) || !read_int32s(line, nodes, 0, width - 1, out->feature + node, work->room)) return 0;
    const char *const k1_end = rest.at;
    if (!take_line(&rest, "split_gain", &gain) || !are_floats(gain, nodes)) return 0;
    const char *const k2 = rest.at;
    if (!take_line(&rest, "threshold", &line) || !read_floats(line, nodes, out->threshold + node, &work->slow)) return 0;
    if (!take_line(&rest, "decision_type", &line) || !read_ints(line, nodes, 0, DECISIONS_MOST, work->room)) return 0;
    for (size_t i = 0; i < nodes; i++) {
        const double set = out->threshold[node + i];
        out->decision[node + i] = (uint8_t)work->room[i];
        if ((work->room[i] & CATEGORICAL) && !(set >= 0 && set < n_sets && set == floor(set))) return 0;
    }
    if (!take_line(&rest, "left_child", &line)
        || !read_int32s(line, nodes, -INT32_LARGEST, INT32_LARGEST, out->left + node, work->room)) return 0;
    if (!take_line(&rest, "right_child", &line)
        || !read_int32s(line, nodes, -INT32_LARGEST, INT32_LARGEST, out->right + node, work->room)) return 0;
    if (!shape_is_sound(out->left + node, out->right + node, (int32_t)nodes, work->seen, work->depth)) return 0;
    if (!take_line(&rest, "leaf_value", &line) || !read_floats(line, n_leaves, out->leaf_value + leaf, &work->slow)) return 0;
    for (size_t i = 0; i < n_leaves; i++)
        if (!isfinite(out->leaf_value[leaf + i])) return 0;
    const char *const k2_end = rest.at;
    /* For a tree without splits, LightGBM writes an empty weight and count of its only leaf. */
    if (!take_line(&rest, "leaf_weight", &line) || !(has_entries(line, n_leaves) || (nodes == 0 && line.at == line.end))) return 0;
    const char *const k3 = rest.at;
    if (!take_line(&rest, "leaf_count", &line)) return 0;
    if (nodes == 0 && line.at == line.end) out->leaf_count[leaf] = 0;
    else if (!read_int32s(line, n_leaves, 0, INT32_LARGEST, out->leaf_count + leaf, work->room)) return 0;
    const char *const k3_end = rest.at;
    if (!take_line(&rest, "internal_value", &line) || !has_entries(line, nodes)) return 0;
    if (!take_line(&rest, "internal_weight", &line) || !has_entries(line, nodes)) return 0;
    const char *const k4 = rest.at;
    if (!take_line(&rest, "internal_count", &line)
        || !read_int32s(line, nodes, 0, INT32_LARGEST, out->internal_count + node, work->room)) return 0;
    if (n_sets > 0 && (!take_line(&rest, "cat_boundaries", &limits) || !take_line(&rest, "cat_threshold", &set_words))) return 0;
    if (take_line(&rest, "is_linear", &line) && !(size_of(line) == 1 && *line.at == '0')) return 0;
    if (!take_line(&rest, "shrinkage", &line) || !are_floats(line, 1)) return 0;
    const char *const k4_end = rest.at;
    if (size_of(rest) != 2 || rest.at[0] != '\n' || rest.at[1] != '\n') return 0;
    if (n_sets > 0) {
        if ((size_t)n_sets >= size_of(block)) return 0; /* each set needs a character; so `room` and `seen` are large enough */
        if (read_sets(out, limits, set_words, node, nodes, (size_t)n_sets, before, words, work->room, work->seen, usual) < 0) return -1;
        if (!*usual) return 0;
    }
    put(text, k1, k1_end);
    put(text, k2, k2_end);
    put(text, k3, k3_end);
    put(text, k4, k4_end);
    put(text, rest.at, rest.end);
    if (nodes > 0) { /* the gains of all trees become one line */
        put(gains, gain.at, gain.end);
        gains->at[gains->size++] = ' ';
    }
    *usual = 1;
    return 0;
}

/* The next number of `tree_sizes`; -1 if it is not a number of 1 to 9 digits. */
static Py_ssize_t next_size(span *sizes) {
    const char *end = memchr(sizes->at, ' ', size_of(*sizes));
    int32_t size;
    if (end == NULL) end = sizes->end;
    if (!count_of((span){sizes->at, end}, &size)) return -1;
    sizes->at = end < sizes->end ? end + 1 : NULL;
    return size;
}

PyObject *tree_heads(PyObject *module, PyObject *args) {
    const char *data, *sizes;
    Py_ssize_t size, start, sizes_size;
    Py_buffer at, leaves;
    int usual;
    (void)module;
    if (!PyArg_ParseTuple(args, "y#ny#w*w*", &data, &size, &start, &sizes, &sizes_size, &at, &leaves)) return NULL;
    const Py_ssize_t n = leaves.len / (Py_ssize_t)sizeof(int32_t);
    span left = {sizes, sizes + sizes_size};
    usual = start >= 0 && start <= size && n > 0 && at.len == (n + 1) * (Py_ssize_t)sizeof(int64_t);
    for (Py_ssize_t tree = 0; usual && tree < n; tree++) {
        const Py_ssize_t own = left.at == NULL ? -1 : next_size(&left);
        if (own < 2 || own > size - start) {
            usual = 0;
            break;
        }
        span block = {data + start, data + start + own}, line;
        int32_t number, count = 0;
        if (block.end[-1] != '\n' || block.end[-2] != '\n') usual = 0;
        else if (!take_line(&block, "Tree", &line) || (*line.at == '0' && size_of(line) > 1)) usual = 0;
        else if (!count_of(line, &number) || number != tree) usual = 0;
        else if (!take_line(&block, "num_leaves", &line) || !count_of(line, &count) || count < 1) usual = 0;
        if (!usual) break;
        ((int64_t *)at.buf)[tree] = start;
        ((int32_t *)leaves.buf)[tree] = count;
        start += own;
    }
    if (usual) ((int64_t *)at.buf)[n] = start;
    usual = usual && left.at == NULL;
    PyBuffer_Release(&at);
    PyBuffer_Release(&leaves);
    return PyBool_FromLong(usual);
}

/* Whether the trees *first* to *end* are within *size* bytes, and their arrays within *nodes* and *n_leaves* items. Sets
 * *largest* to the bytes of the largest tree. */
static int bounds_are_sound(const int64_t *at, const int32_t *leaves, const int64_t *node_start, const int64_t *leaf_start, Py_ssize_t first,
                            Py_ssize_t end, size_t size, size_t nodes, size_t n_leaves, size_t *largest) {
    *largest = 0;
    for (Py_ssize_t t = first; t < end; t++) {
        if (at[t] < 0 || at[t + 1] < at[t] || (size_t)at[t + 1] > size || leaves[t] < 1) return 0;
        if (node_start[t] < 0 || (size_t)node_start[t] > nodes || (size_t)leaves[t] - 1 > nodes - (size_t)node_start[t]) return 0;
        if (leaf_start[t] < 0 || (size_t)leaf_start[t] > n_leaves || (size_t)leaves[t] > n_leaves - (size_t)leaf_start[t]) return 0;
        const size_t own = (size_t)(at[t + 1] - at[t]);
        if ((size_t)leaves[t] > own) return 0; /* each leaf needs some characters; so memory is bounded by the text's size */
        if (own > *largest) *largest = own;
    }
    return 1;
}

PyObject *read_trees(PyObject *module, PyObject *args) {
    enum { AT, LEAVES, NODE_START, LEAF_START, FEATURE, LEFT, RIGHT, INTERNAL_COUNT, LEAF_COUNT, SET_SIZE, DECISION, SET_START, THRESHOLD,
           LEAF_VALUE, TEXT_SIZES, ALL };
    static const uint8_t item[ALL] = {8, 4, 8, 8, 4, 4, 4, 4, 4, 4, 1, 8, 8, 8, 8};
    const char *data;
    Py_ssize_t size, first, end, before;
    int width, failed = 0, usual = 1;
    Py_buffer b[ALL] = {0};
    PyObject *result = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "y#nnniw*w*w*w*w*w*w*w*w*w*w*w*w*w*w*", &data, &size, &first, &end, &before, &width, &b[AT], &b[LEAVES],
                          &b[NODE_START], &b[LEAF_START], &b[FEATURE], &b[LEFT], &b[RIGHT], &b[INTERNAL_COUNT], &b[LEAF_COUNT], &b[SET_SIZE],
                          &b[DECISION], &b[SET_START], &b[THRESHOLD], &b[LEAF_VALUE], &b[TEXT_SIZES]))
        return NULL;
    const size_t n = (size_t)b[LEAVES].len / 4, nodes = (size_t)b[DECISION].len, n_leaves = (size_t)b[LEAF_VALUE].len / 8;
    const int64_t *at = b[AT].buf, *node_start = b[NODE_START].buf, *leaf_start = b[LEAF_START].buf;
    const int32_t *leaves = b[LEAVES].buf;
    size_t largest = 0;
    int sound = first >= 0 && first <= end && (size_t)end <= n && before >= 0 && width > 0;
    for (int i = 0; i < ALL; i++) {
        const size_t wanted = i == AT || i == NODE_START || i == LEAF_START ? n + 1 : i == LEAVES || i == TEXT_SIZES ? n
                              : i == LEAF_COUNT || i == LEAF_VALUE ? n_leaves : nodes;
        sound &= (size_t)b[i].len == wanted * item[i] && (uintptr_t)b[i].buf % item[i] == 0;
    }
    if (!sound || !bounds_are_sound(at, leaves, node_start, leaf_start, first, end, (size_t)size, nodes, n_leaves, &largest)) {
        PyErr_SetString(PyExc_ValueError, "the arrays must have the lengths that tree_heads gave, and be aligned");
        goto release;
    }
    const tree_arrays out = {b[FEATURE].buf, b[LEFT].buf, b[RIGHT].buf, b[INTERNAL_COUNT].buf, b[LEAF_COUNT].buf, b[SET_SIZE].buf,
                             b[DECISION].buf, b[SET_START].buf, b[THRESHOLD].buf, b[LEAF_VALUE].buf};
    const size_t all = first < end ? (size_t)(at[end] - at[first]) : 0;
    workspace work = {malloc((largest + 1) * sizeof *work.room), malloc(2 * largest + 2), malloc((largest + 1) * sizeof *work.depth),
                      NO_SLOW_NUMBER};
    bytes_out text = {malloc(all + 1), 0}, gains = {malloc(all + 1), 0};
    word_list words = {0};
    failed = work.room == NULL || work.seen == NULL || work.depth == NULL || text.at == NULL || gains.at == NULL;
    for (Py_ssize_t t = first; t < end && usual && !failed; t++) {
        const size_t text_before = text.size;
        failed = read_tree((span){data + at[t], data + at[t + 1]}, (int32_t)t, leaves[t], width, (size_t)node_start[t], (size_t)leaf_start[t],
                           (size_t)before, &work, &out, &text, &gains, &words, &usual);
        ((int64_t *)b[TEXT_SIZES].buf)[t] = (int64_t)(text.size - text_before);
    }
    if (failed && !PyErr_Occurred()) PyErr_NoMemory();
    if (!PyErr_Occurred())
        result = usual ? Py_BuildValue("y#y#y#", text.at, (Py_ssize_t)text.size, gains.at, (Py_ssize_t)gains.size,
                                       words.items ? (const char *)words.items : "", (Py_ssize_t)(words.count * sizeof *words.items))
                       : Py_NewRef(Py_None);
    free(work.room);
    free(work.seen);
    free(work.depth);
    free(text.at);
    free(gains.at);
    free(words.items);
release:
    for (int i = 0; i < ALL; i++) PyBuffer_Release(&b[i]);
    return result;
}
