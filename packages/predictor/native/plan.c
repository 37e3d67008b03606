/* Makes a plan from the trees of a model file: checks the trees, then runs the steps of plan_parts.h in order. */
#include "plan.h"

#include <math.h>

#include "plan_parts.h"

#define LARGE_PAGE_LEAVES 4096 /* the tables of so many leaves fill a large page about */
#define MOST_LEAVES ((size_t)1 << 27)

const char *plan_refusal_name(plan_refusal refusal) {
    static const char *const names[] = {
        [PLAN_OK] = "none",
        [PLAN_NO_MEMORY] = "no_memory",
        [PLAN_BAD_SHAPE] = "bad_shape",
        [PLAN_BAD_THRESHOLD] = "bad_threshold",
        [PLAN_MIXED_FEATURE] = "mixed_feature",
        [PLAN_MANY_CODES] = "many_codes",
        [PLAN_MANY_COLUMNS] = "many_columns",
        [PLAN_LARGE_TABLES] = "large_tables",
        [PLAN_MANY_NODES] = "many_nodes",
    };
    return names[refusal];
}

/* Whether a child of split *at* is in range, later than its parent (so that there is no cycle), and not another split's. */
static int child_is_sound(int32_t child, int32_t at, int32_t n_splits, uint8_t *seen) {
    if (child >= 0 ? (child <= at || child >= n_splits) : ~child > n_splits) return 0;
    int32_t place = child >= 0 ? child : n_splits + ~child; /* splits first, then leaves */
    if (seen[place]) return 0;
    seen[place] = 1;
    return 1;
}

plan_refusal plan_check_trees(making *m) {
    const forest *f = m->from;
    size_t n_splits = 0, n_leaves = 0;
    if (f->n_features < 1 || f->n_outputs < 1 || f->n_trees < 1 || f->n_trees % f->n_outputs != 0) return PLAN_BAD_SHAPE;
    if (f->n_leaves > MOST_LEAVES || f->n_features > (1 << 24)) return PLAN_MANY_NODES;
    if ((m->trees = KEEP(m, (size_t)f->n_trees, tree)) == NULL) return no_room(m);
    m->to->trees = m->trees;
    for (int32_t t = 0; t < f->n_trees; t++) {
        if (f->leaves[t] < 1 || (size_t)f->leaves[t] > f->n_leaves - n_leaves) return PLAN_BAD_SHAPE;
        m->trees[t] = (tree){.n_leaves = (uint32_t)f->leaves[t], .first_split = n_splits, .first_leaf = n_leaves};
        n_leaves += (size_t)f->leaves[t];
        n_splits += (size_t)f->leaves[t] - 1;
        if (m->trees[t].n_leaves > m->to->max_leaves) m->to->max_leaves = m->trees[t].n_leaves;
    }
    if (n_leaves != f->n_leaves || n_splits != f->n_splits) return PLAN_BAD_SHAPE;

    double *values = KEEP(m, n_leaves, double);
    uint32_t *starts = KEEP(m, (size_t)f->n_trees + WORDS_BLOCK_BYTES / 4, uint32_t);
    uint8_t *seen = BORROW(m, 2 * (size_t)m->to->max_leaves, uint8_t);
    m->splits = KEEP(m, n_splits, split);
    if (values == NULL || starts == NULL || seen == NULL || m->splits == NULL) return no_room(m);
    memcpy(values, f->leaf_value, n_leaves * sizeof *values);
    m->to->leaf_value = values;
    m->to->leaf_start = starts;
    m->to->splits = m->splits;
    for (int32_t t = 0; t < f->n_trees; t++) {
        int32_t count = f->leaves[t] - 1;
        starts[t] = (uint32_t)m->trees[t].first_leaf;
        memset(seen, 0, 2 * (size_t)f->leaves[t]);
        for (int32_t i = 0; i < count; i++) {
            size_t at = m->trees[t].first_split + (size_t)i;
            uint8_t decision = f->decision[at];
            if (!child_is_sound(f->left[at], i, count, seen) || !child_is_sound(f->right[at], i, count, seen))
                return PLAN_BAD_SHAPE;
            /* Each split has two children, none occurs twice or is the root: so every other node is reached once. */
            m->splits[at].child[0] = f->left[at];
            m->splits[at].child[1] = f->right[at];
            if (f->feature[at] < 0 || f->feature[at] >= f->n_features || decision > 11) return PLAN_BAD_SHAPE;
            if (decision & DECISION_CATEGORY) {
                if (f->set_start[at] < 0 || f->set_size[at] < 0 || (size_t)f->set_start[at] > f->n_set_words
                    || (size_t)f->set_size[at] > f->n_set_words - (size_t)f->set_start[at])
                    return PLAN_BAD_SHAPE;
            } else if (isnan(f->threshold[at])) {
                return PLAN_BAD_THRESHOLD;
            }
        }
    }
    return PLAN_OK;
}

/*
 * Estimate what a row and a tile cost, so that few rows are predicted the quicker way. Measured on an AMD EPYC (Zen 4), rows by words
 * on an Intel Xeon (Emerald Rapids), on models of 50 to 2,000 trees: the estimates are within a factor of two of what was measured.
 */
static void estimate_costs(plan *p, size_t n_splits) {
    const double trees = p->n_trees, walked_bytes = (double)(n_splits * sizeof(split));
    double codes_ns = 0.0;
    for (uint32_t u = 0; u < p->n_used; u++) codes_ns += p->features[p->used[u]].n_cuts > 32 ? 130.0 : 50.0;
    p->tile_ns = 1000.0 + 1.0 * (double)n_splits + codes_ns + 8.0 * p->n_columns;
    if (p->row == ROW_WALK) {
        p->row_ns = 40.0 + 15.0 * p->n_used + trees * 2.5 * (log2(p->max_leaves) + 2.5) * (walked_bytes > 512 << 10 ? 2.0 : 1.0);
    } else {
        const double bytes_a_code = (double)p->words_stride * (p->row == ROW_WORDS64 ? 8 : 4);
        const double ns_a_byte = bytes_a_code * p->words_codes > WORDS_FAR_BYTES ? 0.035 : 0.01;
        p->row_ns = 20.0 + 8.0 * p->n_used + 0.7 * trees + ns_a_byte * bytes_a_code * p->n_groups;
    }
}

plan_refusal plan_build(const forest *trees, uint32_t lanes, int walk_only, plan **made) {
    arena kept = {.least = trees->n_leaves >= LARGE_PAGE_LEAVES ? LARGE_PAGE : 0};
    plan *to = arena_get(&kept, 1, sizeof *to);
    arena *owner = arena_get(&kept, 1, sizeof *owner);
    making m = {.from = trees, .to = to, .kept = &kept};
    plan_refusal refusal = to == NULL || owner == NULL ? PLAN_NO_MEMORY : PLAN_OK;
    *made = NULL;
    if (refusal == PLAN_OK) {
        to->n_features = (uint32_t)trees->n_features;
        to->n_outputs = (uint32_t)trees->n_outputs;
        to->n_trees = (uint32_t)trees->n_trees;
        to->row = ROW_WALK;
        refusal = plan_check_trees(&m);
    }
    if (refusal == PLAN_OK) refusal = plan_number_codes(&m);
    if (refusal == PLAN_OK) refusal = plan_make_columns(&m);
    if (refusal == PLAN_OK && !walk_only) refusal = plan_make_words(&m);
    if (refusal == PLAN_OK && !walk_only) refusal = plan_make_chains(&m);
    if (refusal == PLAN_OK) {
        refusal = plan_make_shap(&m, lanes);
        if (refusal == PLAN_LARGE_TABLES) refusal = PLAN_OK; /* then only contributions are computed by LightGBM */
    }
    if (refusal == PLAN_OK) estimate_costs(to, trees->n_splits);
    arena_free(&m.scratch);
    if (refusal != PLAN_OK) {
        arena_free(&kept);
        return refusal;
    }
    to->bytes = kept.bytes;
    to->memory = owner;
    *owner = kept;
    *made = to;
    return PLAN_OK;
}

void plan_free(plan *made) {
    if (made != NULL) {
        arena all = *(arena *)made->memory; /* a copy, because the arena is in memory that it frees */
        arena_free(&all);
    }
}
