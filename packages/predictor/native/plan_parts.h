/* The steps of plan_build, in order. Each uses the results of the steps before it. */
#ifndef PREDICTOR_PLAN_PARTS_H
#define PREDICTOR_PLAN_PARTS_H

#include "arena.h"
#include "plan.h"

typedef struct {
    const forest *from;
    plan *to;
    arena *kept, scratch;
    tree *trees;
    split *splits;
    feature_codes *features;
    uint32_t *by_feature;       /* the splits, grouped by feature */
    uint8_t *turned;            /* per split: whether `splits` has its right child first */
    size_t *feature_start;      /* [n_features + 1]: the index in by_feature where each feature begins */
} making;

/* KEEP: an array that the plan keeps. BORROW: one that is freed after plan_build. no_room: why a request failed. */
#define KEEP(m, count, type) ((type *)arena_get((m)->kept, (count), sizeof(type)))
#define BORROW(m, count, type) ((type *)arena_get(&(m)->scratch, (count), sizeof(type)))
static inline plan_refusal no_room(const making *m) {
    return m->kept->too_large || m->scratch.too_large ? PLAN_LARGE_TABLES : PLAN_NO_MEMORY;
}

plan_refusal plan_check_trees(making *m);     /* plan.c: shape and indices; fills `trees` and the children */
plan_refusal plan_number_codes(making *m);    /* plan_codes.c: cuts and categories of each feature */
plan_refusal plan_make_columns(making *m);    /* plan_codes.c: columns, and the test of each split */
plan_refusal plan_make_words(making *m);      /* plan_tables.c: for one row */
plan_refusal plan_make_chains(making *m);     /* plan_chains.c: for batches */
plan_refusal plan_make_shap(making *m, uint32_t lanes); /* plan_shap.c: for contributions */

/*
 * The level of a split (its Strahler number): how many results are needed at a time to find its leaf. A leaf has level 0. Chains
 * follow the child of the higher level; plan_codes.c turns category splits by the same rule.
 */
static inline uint8_t level_above(int first, int second) { return (uint8_t)((first > second ? first : second) + (first == second)); }

/* How many of the ascending *cuts* are below *value*; 0 for NaN. `value <= cuts[i]`, the test of a split, is `rank <= i`. */
static inline uint32_t rank_of(const double *cuts, uint32_t n_cuts, double value) {
    if (n_cuts == 0) return 0;
    const double *base = cuts;
    while (n_cuts > 1) {
        uint32_t half = n_cuts / 2;
        base += base[half - 1] < value ? half : 0;
        n_cuts -= half;
    }
    return (uint32_t)(base - cuts) + (*base < value);
}

#endif
