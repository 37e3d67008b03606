/*
 * What the kernel knows about a model, and how it is made from the trees.
 *
 * A split compares one feature with one of finitely many thresholds, or asks whether a category is in a set. So a value
 * is turned once into a small whole number, its *code*: how many of the feature's thresholds lie below it, or the number
 * of its category. Equal codes go the same way at every split of the model. No tree compares a double again.
 *
 * From the codes two kernels find the leaf of every tree:
 *
 *   words  (one row)   A table holds, for each feature, code and tree, the set of leaves that this code leaves possible, as
 *                      bits of one word. The AND of a row's words over the features has one bit left: the leaf.
 *                      (QuickScorer, Lucchese et al., SIGIR 2015, with every decision of a feature folded into one word.)
 *   blend  (batches)   A tile of rows holds one byte a row for each *column*, a group of tests on one feature. A split is one
 *                      addition of bytes (of category sets after a mask), whose top bit is the test, and one choice between
 *                      two bytes, the leaf numbers of its children, bottom up.
 *
 * A model is walked instead, sixteen trees at a time, where one of its trees has more leaves than that kernel takes (64 for
 * words, 256 for blend), and for one row also where the table would not fit a cache.
 */
#ifndef PREDICTOR_PLAN_H
#define PREDICTOR_PLAN_H

#include <stddef.h>
#include <stdint.h>

/* Why there is no plan; `plan_refusal_name` gives the name that Python shows. Every limit of the kernel is one of these. */
typedef enum {
    PLAN_OK,
    PLAN_NO_MEMORY,
    PLAN_BAD_SHAPE,       /* the arrays do not describe trees: an index out of range, a node reached twice or never */
    PLAN_BAD_THRESHOLD,   /* a threshold that is not a number */
    PLAN_MIXED_FEATURE,   /* one feature split both as a number and as a category */
    PLAN_MANY_CODES,      /* a feature with more than 65,000 thresholds or categories */
    PLAN_MANY_COLUMNS,    /* more than 65,000 columns of bytes */
    PLAN_LARGE_TABLES,    /* tables beyond 256 MiB */
    PLAN_MANY_NODES,      /* more than 2^27 leaves in all */
} plan_refusal;

const char *plan_refusal_name(plan_refusal refusal);

/* The trees as they are in the model file, one after the other. Borrowed: a plan keeps no pointer into it. */
typedef struct {
    int32_t n_features, n_outputs, n_trees;
    const int32_t *leaves;        /* per tree, at least 1; a tree has one split fewer */
    const int32_t *feature;       /* per split */
    const double *threshold;      /* per split; not read where the split is categorical */
    const uint8_t *decision;      /* per split: LightGBM's bits, see below */
    const int32_t *left, *right;  /* per split: a later split of the tree, or ~leaf */
    const int64_t *set_start;     /* per split: first word of its category set */
    const int32_t *set_size;      /* per split: words of its category set, 0 where it is numeric */
    const uint32_t *set_words;    /* bit c % 32 of word c / 32: category c goes left */
    const double *leaf_value;     /* per leaf */
    const double *split_count;    /* per split: training rows; NULL if the file has none */
    const double *leaf_count;     /* per leaf */
    size_t n_splits, n_leaves, n_set_words; /* what the arrays really hold */
} forest;

/* LightGBM's decision_type (include/LightGBM/tree.h). */
#define DECISION_CATEGORY 1
#define DECISION_DEFAULT_LEFT 2
#define DECISION_MISSING(decision) (((decision) >> 2) & 3)
enum { MISSING_NONE, MISSING_ZERO, MISSING_NAN };

/* LightGBM reads a number of at most this size as zero (kZeroThreshold, a float). */
#define ZERO_THRESHOLD ((double)1e-35f)

/* Cuts are counted in blocks: whoever reads a block whole finds infinities behind the last cut, and no value is above those. */
#define CUT_BLOCK 16

/* How a value of one feature becomes its code. */
typedef struct {
    uint32_t n_codes;         /* 0: no tree reads this feature */
    uint32_t n_cuts;          /* numbers: thresholds below, ascending; code n_cuts + 1 is NaN */
    const double *cuts;       /* and CUT_BLOCK infinities */
    uint32_t n_categories;    /* categories: one more than the largest that a set could name */
    const uint16_t *code_of;  /* their codes, where n_codes - 1 stands for every other value */
    uint8_t is_category;
} feature_codes;

/*
 * One byte a row, made from the code of one feature: a count of at most 127, or the bits of up to eight category sets. A test on
 * it is `(byte & mask) <= bound`: then the row goes left.
 */
typedef struct {
    uint32_t feature;
    const uint8_t *byte_of; /* per code */
} column;

#define WHOLE_BYTE 0xFF

/* One split as the walk and the contributions see it. */
typedef struct {
    uint16_t column;
    uint8_t mask, bound; /* WHOLE_BYTE and below 127, or the bit of a category set and 0 */
    int32_t child[2]; /* right where child[1]; a split of the same tree, or ~leaf */
} split;

/*
 * The blend programs. A tree is cut into *chains*, see plan_chains.c. A chain holds one leaf number a row, at first that of
 * one leaf; each step, from the bottom of the tree up, puts its operand in the place of those where the byte `(byte & mask) + add`
 * has its top bit: where the row goes to the split's other child. The operand is a leaf, or what an earlier chain left in a slot.
 */
typedef struct {
    uint16_t column, other; /* other: a leaf of the unit, or from UNIT_LEAVES on a slot */
    uint8_t mask, add;
} chain_step;
typedef struct {
    uint16_t n_steps, out; /* out: the slot of its result */
    uint8_t start;         /* the leaf that it begins with */
} chain;

/* Trees of one output whose chains run together. Their leaves are numbered one tree after the other, to fit a byte. */
#define UNIT_TREES 8
#define UNIT_LEAVES 256
typedef struct {
    uint32_t first_tree, n_trees; /* n_outputs apart; tree g's leaves go to slot g */
    uint32_t n_chains, n_flat;    /* the first n_flat have leaves alone as operands */
    uint32_t n_flat_steps;        /* of those */
    uint32_t has_sets;            /* whether any step tests a category, and needs its mask */
    size_t first_chain, first_step, first_value;
    uint8_t first_leaf[UNIT_TREES];
} blend_unit;

/* One edge of a tree for the contributions, named after the split or leaf that it leads to; see shap_body.h. */
typedef struct {
    uint32_t parent;     /* split of the tree that it leaves */
    uint32_t prior;      /* the edge above with the same feature, or 0 */
    uint32_t feature;
    uint32_t is_left;
    double share;        /* of the training rows that pass here, multiplied over the edges with the same feature */
} edge;

typedef struct {
    uint32_t n_leaves;
    size_t first_split, first_leaf; /* in `splits`, in `leaf_value` */
    size_t first_edge;              /* in `edges`: splits first, then leaves */
} tree;

typedef enum { ROW_WORDS32, ROW_WORDS64, ROW_WALK } row_path;

typedef struct {
    uint32_t n_features, n_outputs, n_trees, n_columns, max_leaves;
    const feature_codes *features;
    const column *columns;    /* those of one feature stand together */
    const tree *trees;
    const split *splits;
    const double *leaf_value;
    const uint32_t *leaf_start; /* per tree: its first in leaf_value */

    row_path row;
    int has_blend;
    uint32_t n_units, n_slots;
    const blend_unit *units;
    const chain *chains;
    const chain_step *steps;
    const double *unit_values; /* of leaves, unit by unit */

    uint32_t n_used;          /* features that trees read */
    const uint32_t *used;
    const size_t *word_table; /* per used feature: where its rows begin in `words` */
    uint32_t words_stride;    /* words a code: the trees, rounded up to a block */
    const void *words;

    int has_contributions;    /* the counts were there, and all above zero */
    uint32_t n_nodes;         /* of the quadrature, rounded up to whole vectors */
    const double *node, *node_weight;
    const edge *edges;
    const double *expected;   /* per output: the mean raw score over the training rows */

    size_t bytes;             /* of all tables */
    void *memory;             /* what plan_free gives back */
} plan;

/*
 * Make the plan of *trees* for vectors of *lanes* doubles. Every index is checked, so arrays that describe no trees are
 * refused, never read out of bounds. `walk_only` leaves the faster tables out, so that tests can reach the walk.
 */
plan_refusal plan_build(const forest *trees, uint32_t lanes, int walk_only, plan **made);
void plan_free(plan *made);

#define WORDS_BLOCK_BYTES 128          /* of one code's words are kept in registers at a time */
#define WORDS_MOST_BYTES (16u << 20)   /* beyond this a table falls out of the caches, and a walk is faster */
#define WORDS_MOST_FEATURES 512

#endif
