/*
 * The plan: the tables with which the kernel predicts a model, made from its trees.
 *
 * A split compares one feature with a threshold, or tests whether a category is in a set. A feature has finitely many
 * thresholds, so each value is first converted to a small whole number, its *code*: how many of the feature's thresholds are
 * below it, or the number of its category. Values of equal code go the same way at every split of the model, so the trees
 * never compare doubles.
 *
 * Two methods find the leaf of every tree from the codes:
 *
 *   words  (one row)   A table holds, for each feature, code and tree, the set of leaves that are possible for this code, as
 *                      the bits of one word. The AND of a row's words over all features has one bit left: the leaf.
 *                      (QuickScorer, Lucchese et al., SIGIR 2015, with all splits of a feature combined in one word.)
 *   blend  (batches)   A tile of rows has one byte per row for each *column*, a group of tests on one feature. A split is one
 *                      comparison of bytes (for category sets after a mask), and one choice between two bytes, the leaf
 *                      numbers of its children, from the bottom of the tree up.
 *
 * The third method, *walk*, steps down sixteen trees at a time. It serves if a tree has more leaves than a method can take
 * (64 for words, 256 for blend); for one row also if the table would not fit into the caches, or has more than 512 features.
 */
#ifndef PREDICTOR_PLAN_H
#define PREDICTOR_PLAN_H

#include <stddef.h>
#include <stdint.h>

/* Why there is no plan; `plan_refusal_name` gives the name that Python uses. */
typedef enum {
    PLAN_OK,
    PLAN_NO_MEMORY,
    PLAN_BAD_SHAPE,       /* the arrays do not describe trees: an index out of range, a node reached twice or never */
    PLAN_BAD_THRESHOLD,   /* a threshold that is not a number */
    PLAN_MIXED_FEATURE,   /* a feature is split both as a number and as a category */
    PLAN_MANY_CODES,      /* a feature with more than 65,000 thresholds or categories */
    PLAN_MANY_COLUMNS,    /* more than 65,000 columns of bytes */
    PLAN_LARGE_TABLES,    /* tables of more than 256 MiB */
    PLAN_MANY_NODES,      /* more than 2^27 leaves in all trees, or more than 2^24 features */
} plan_refusal;

const char *plan_refusal_name(plan_refusal refusal);

/* The trees of the model file, one after the other. The caller owns the arrays; a plan keeps no pointer to them. */
typedef struct {
    int32_t n_features, n_outputs, n_trees;
    const int32_t *leaves;        /* per tree: how many leaves, at least 1; it has one split less */
    const int32_t *feature;       /* per split */
    const double *threshold;      /* per split; not read if the split is categorical */
    const uint8_t *decision;      /* per split: LightGBM's bits, see below */
    const int32_t *left, *right;  /* per split: a later split of the tree, or ~leaf */
    const int64_t *set_start;     /* per split: first word of its category set */
    const int32_t *set_size;      /* per split: words of its category set, 0 if it is numeric */
    const uint32_t *set_words;    /* bit c % 32 of word c / 32: category c goes left */
    const double *leaf_value;     /* per leaf */
    const double *split_count;    /* per split: training rows; NULL if the file has none */
    const double *leaf_count;     /* per leaf */
    size_t n_splits, n_leaves, n_set_words; /* the lengths of the arrays */
} forest;

/* LightGBM's decision_type (include/LightGBM/tree.h). */
#define DECISION_CATEGORY 1
#define DECISION_DEFAULT_LEFT 2
#define DECISION_MISSING(decision) (((decision) >> 2) & 3)
enum { MISSING_NONE, MISSING_ZERO, MISSING_NAN };

/* LightGBM reads a number of at most this absolute value as zero (kZeroThreshold, a float). */
#define ZERO_THRESHOLD ((double)1e-35f)

/* Cuts are read in whole blocks: infinities follow the last cut, because no value is above infinity. */
#define CUT_BLOCK 16

/* How the values of one feature are converted to codes. */
typedef struct {
    uint32_t n_codes;         /* 0: no tree reads this feature */
    uint32_t n_cuts;          /* numbers: how many cuts (different thresholds) */
    uint32_t nan_code;        /* numbers: the code of NaN, n_cuts + 1 or that of the numbers that go the same way */
    const double *cuts;       /* ascending, then CUT_BLOCK infinities */
    const double *last_cuts;  /* the last cut of each whole block of CUT_BLOCK, then CUT_BLOCK infinities */
    uint32_t n_categories;    /* categories: one more than the largest category that a set could have */
    const uint16_t *code_of;  /* [n_categories]: their codes; n_codes - 1 is the code of every other value */
    uint8_t is_category;
    uint8_t is_plain;         /* a number whose splits treat missing values alike, with at most two columns */
    double nan_as;            /* of a plain one: the number that goes the same way as NaN */
} feature_codes;

/*
 * One byte per row, made from the code of one feature: a count of at most 127, or one bit for each of up to eight category
 * sets. A row goes to the first child of a split if `(byte & mask) <= bound`.
 */
typedef struct {
    uint32_t feature;
    const uint8_t *byte_of; /* per code */
} column;

#define WHOLE_BYTE 0xFF
#define MOST_OF_BYTE 127 /* that a byte counts up to */

/* A split, as the walk and the contributions use it. */
typedef struct {
    uint16_t column;
    uint8_t mask, bound; /* WHOLE_BYTE and a bound below 127, or the bit of a category set and that less one */
    int32_t child[2]; /* left, right, or, of some category splits, right, left: a split of the same tree, or ~leaf */
} split;

/*
 * The blend programs. A tree is divided into *chains*, see plan_chains.c. A chain holds one leaf number per row, at first the
 * same leaf for all rows. Each step, from the bottom of the tree up, replaces that number by its operand in the rows where
 * `(byte & mask) > bound`: these rows go to the split's other child. The operand is a leaf, or the result of an earlier chain,
 * which is in a slot.
 *
 * If the other child is the first one, the step reads the *complement* of its split's column, 127 - byte: the same comparison
 * then holds for all steps.
 */
typedef struct {
    uint16_t column, other; /* column: or n_columns + the index of a complement; other: a leaf of the unit, or UNIT_LEAVES + a slot */
    uint8_t mask, bound;
} chain_step;
typedef struct {
    uint16_t n_steps, out; /* out: the slot of its result */
    uint8_t start;         /* the leaf that it begins with, in every row */
} chain;

/*
 * A unit: trees of one output whose chains run together. Their leaves are numbered across the trees, and fit into a byte. If the
 * plan has a `leaf_room`, each tree begins at a multiple of it, so that the low bits of a number are the leaf within the tree.
 */
#define UNIT_TREES 8
#define UNIT_LEAVES 256
#define SHORT_CHAIN 4 /* a chain of fewer steps is short */
typedef struct {
    uint32_t first_tree, n_trees; /* the trees are n_outputs apart; the leaves of tree g go to slot g */
    uint32_t n_chains, n_flat;    /* in the first n_flat chains all operands are leaves */
    uint32_t n_flat_steps;        /* the steps of these */
    uint32_t n_short[SHORT_CHAIN]; /* how many of these have 0, 1, ... steps; they come first */
    uint32_t has_sets;            /* whether a step tests a category, and so needs its mask */
    size_t first_chain, first_step, first_value;
    uint8_t first_leaf[UNIT_TREES];
} blend_unit;

/*
 * A split, for the contributions; see shap_body.h. An edge of a tree has the number of the node to which it leads: split i has
 * number i, leaf l has n_splits + l.
 */
typedef struct {
    uint32_t child[2];       /* the edges to the two children, in the order of `split` */
    uint32_t prior;          /* the nearest edge above whose split tests the same feature, or 0 */
    uint32_t feature;
    double share[2];         /* the share of the split's training rows that go to each, times that of `prior` */
    double inverse_share[2]; /* one divided by it */
} shap_split;

typedef struct {
    uint32_t n_leaves;
    size_t first_split, first_leaf; /* in `splits` and `shap_splits`, in `leaf_value` */
} tree;

/*
 * Features that share a table of words. It has words for each combination of their codes: the AND of the words that each
 * feature alone would have. The sum of the members' codes, each times its factor, is the number of the combination.
 */
typedef struct {
    size_t table;                    /* the index in `words` where its combinations begin */
    uint32_t first_member, n_members;
} word_group;
typedef struct {
    uint32_t feature, factor;
} word_feature;

typedef enum { ROW_WORDS32, ROW_WORDS64, ROW_WALK } row_path;

typedef struct {
    uint32_t n_features, n_outputs, n_trees, n_columns, max_leaves;
    const feature_codes *features;
    const column *columns;    /* grouped by feature */
    const tree *trees;
    const split *splits;
    const double *leaf_value;
    const uint32_t *leaf_start; /* per tree: the index of its first leaf in leaf_value; then zeros, for a block of words */

    row_path row;
    int has_blend;
    uint32_t n_units, n_slots;
    const blend_unit *units;
    const chain *chains;
    const chain_step *steps;
    uint32_t n_complements;
    const uint16_t *complements; /* the columns whose complements the steps read */
    const double *unit_values; /* the leaf values, unit by unit */
    uint32_t leaf_room;        /* 32 or 64: what every tree takes in `unit_values`; 0 if a tree has more leaves */
    const uint32_t *value_halves; /* with leaf_room: the same values; of each tree first the low halves, then the high ones */

    uint32_t n_used;          /* features that trees read */
    const uint32_t *used;
    uint32_t n_groups;        /* of used features, see word_group */
    const word_group *groups;
    const word_feature *members;
    uint32_t words_codes;     /* combinations of codes, in all groups */
    uint32_t words_stride;    /* words per code: one per tree, rounded up to whole blocks */
    const void *words;

    double row_ns, tile_ns;   /* estimates with AVX-512: one of a few rows; a tile of at most 32 rows */

    int has_contributions;    /* the file has the row counts, all above zero, and the nodes suffice */
    uint32_t n_nodes;         /* quadrature nodes, rounded up to whole vectors */
    const double *node, *node_weight;
    const shap_split *shap_splits;
    const double *expected;   /* per output: the mean raw score over the training rows */

    size_t bytes;             /* the size of all tables */
    void *memory;             /* the arena that plan_free frees */
} plan;

/*
 * Make the plan of *trees* for vectors of *lanes* doubles. Checks every index, so that arrays which are not trees are refused
 * and never read out of bounds. With *walk_only* it makes no tables for words and blend, so that tests can reach the walk.
 */
plan_refusal plan_build(const forest *trees, uint32_t lanes, int walk_only, plan **made);
void plan_free(plan *made);

#define WORDS_BLOCK_BYTES 128          /* so many bytes of one code's words are in registers at a time */
#define WORDS_MOST_BYTES (16u << 20)   /* a larger table does not fit into the caches, and the walk is faster */
#define WORDS_NEAR_BYTES (1u << 20)    /* what many processors have as a second-level cache of a core */
#define WORDS_FAR_BYTES (4u << 20)     /* of a larger table, most words come from beyond it */
#define WORDS_MOST_FEATURES 512

#endif
