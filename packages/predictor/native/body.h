/*
 * The kernel itself, compiled once for each level. A level file says what its vectors are, includes this, and makes its `level`
 * of the functions here:
 *
 *   BYTES, bytes              bytes a vector, and its type
 *   doubles, longs            the same as float64 and int64
 *   bytes_all(x)              x in every byte
 *   subtract_bytes(a, b)      per byte, without borrow
 *   reciprocal(x)             per float64: 1 / x, to the last bit or two
 *   TILE_COST                 what a tile costs, compared with AVX-512
 *   limit_of(bound)           a bound of at most 127, for choose_above, in every byte
 *   choose_above(x, l, a, b)  per byte: x > bound ? a : b, where x is at most 127, or is 0 or bound + 1
 *   count_if_above(n, x, y)   per float64: x > y ? n + 1 : n
 *   count_in_block(block, x)  how many of the CUT_BLOCK cuts lie below x
 *   LOOKS_UP                  whether it has these two; else they are never called
 *   add_looked_up(...)        BYTES rows' sums grow by the values of their leaves, tree by tree
 *   places_of_words(...)      where the values of the leaves are that a block of words says; see level.h
 *   sum_of_row(r)             where row r of these has its sum
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "level.h"
#include "plan_parts.h"

#define INLINE static inline __attribute__((always_inline))
#define LANES (BYTES / 8)
#define STACK_COLUMNS 4096 /* more columns than this take memory from the heap */
#define SMALL_TILE 64
#define LARGE_TILE 256

/* x - 0.0 is x for every x, so compilers copy; 0.0 + x is 0.0 where x is -0.0, so they would have to add. */
INLINE doubles doubles_all(double x) { return x - (doubles){0}; }

#include "codes.h"

/* ---- one row --------------------------------------------------------------------------------------------------- */

/*
 * The values of leaves are added tree by tree in the order of the model: any other order would give other bits. The sums stay in
 * registers, and the processor works on those of several outputs at once. The first tree is one of *output*.
 *
 * For up to MOST_IN_TURN outputs, whose number the compiler knows, one loop adds to all sums in turn.
 */
#define MOST_IN_TURN 8
INLINE void add_in_turn(const double *leaf_value, const uint32_t *places, uint32_t output, uint32_t n, uint32_t n_outputs, double *scores) {
    double sum[MOST_IN_TURN];
    uint32_t j = 0;
#pragma GCC unroll 8
    for (uint32_t k = 0; k < n_outputs; k++) sum[k] = scores[(output + k) % n_outputs];
    for (; j + n_outputs <= n; j += n_outputs)
#pragma GCC unroll 8
        for (uint32_t k = 0; k < n_outputs; k++) sum[k] += leaf_value[places[j + k]];
#pragma GCC unroll 8
    for (uint32_t k = 0; k + 1 < n_outputs; k++)
        if (j + k < n) sum[k] += leaf_value[places[j + k]];
#pragma GCC unroll 8
    for (uint32_t k = 0; k < n_outputs; k++) scores[(output + k) % n_outputs] = sum[k];
}

/* Add the values of the leaves at *places*, of *n* trees from *first* on. */
INLINE void add_values(const plan *p, const uint32_t *places, uint32_t first, uint32_t n, double *scores) {
    uint32_t output = first % p->n_outputs;
    switch (p->n_outputs) {
    case 1: add_in_turn(p->leaf_value, places, output, n, 1, scores); return;
    case 2: add_in_turn(p->leaf_value, places, output, n, 2, scores); return;
    case 3: add_in_turn(p->leaf_value, places, output, n, 3, scores); return;
    case 4: add_in_turn(p->leaf_value, places, output, n, 4, scores); return;
    case 5: add_in_turn(p->leaf_value, places, output, n, 5, scores); return;
    case 6: add_in_turn(p->leaf_value, places, output, n, 6, scores); return;
    case 7: add_in_turn(p->leaf_value, places, output, n, 7, scores); return;
    case 8: add_in_turn(p->leaf_value, places, output, n, 8, scores); return;
    default: break;
    }
    for (uint32_t begin = 0; begin < p->n_outputs && begin < n; begin++) {
        double sum = scores[output];
        for (uint32_t j = begin; j < n; j += p->n_outputs) sum += p->leaf_value[places[j]];
        scores[output] = sum;
        if (++output == p->n_outputs) output = 0;
    }
}

/* The leaves themselves: their numbers within their trees. */
INLINE void number_leaves(const plan *p, const uint32_t *places, uint32_t first, uint32_t n, int32_t *leaves) {
    for (uint32_t j = 0; j < n; j++) leaves[first + j] = (int32_t)(places[j] - p->leaf_start[first + j]);
}

/* Where the words of the row's codes begin, of each group of features. */
INLINE void find_words(const plan *p, const double *row, const char **words_of, uint32_t size) {
    const size_t bytes_a_code = (size_t)p->words_stride * size;
    for (uint32_t g = 0; g < p->n_groups; g++) {
        const word_group *group = p->groups + g;
        const word_feature *member = p->members + group->first_member, *end = member + group->n_members;
        size_t code = 0;
        for (; member < end; member++) code += (size_t)value_code(p->features + member->feature, row[member->feature]) * member->factor;
        words_of[g] = (const char *)p->words + group->table * size + code * bytes_a_code;
        /* Ask for its first lines now, and find the next group's code meanwhile. The processor itself fetches the lines that
           follow: to ask for all of them took longer. */
        for (size_t at = 0; at < WORDS_BLOCK_BYTES; at += 64) __builtin_prefetch(words_of[g] + at);
    }
}

/* The words of all groups, ANDed a block of trees at a time; the one bit left of each tree's word is its leaf. */
INLINE void and_words(const plan *p, const char *const *words_of, double *scores, int32_t *leaves, uint32_t size) {
    typedef uint64_t words __attribute__((vector_size(BYTES), may_alias));
    enum { PER_BLOCK = WORDS_BLOCK_BYTES / BYTES };
    const uint32_t per_block = WORDS_BLOCK_BYTES / size;
    for (uint32_t first = 0; first < p->n_trees; first += per_block) {
        words left[PER_BLOCK];
        uint32_t places[WORDS_BLOCK_BYTES / 4];
        const size_t offset = (size_t)first * size;
        const uint32_t n = p->n_trees - first < per_block ? p->n_trees - first : per_block;
        for (int v = 0; v < PER_BLOCK; v++) left[v] = ((const words *)(words_of[0] + offset))[v];
        for (uint32_t g = 1; g < p->n_groups; g++)
            for (int v = 0; v < PER_BLOCK; v++) left[v] &= ((const words *)(words_of[g] + offset))[v];
        if (leaves == NULL && p->n_outputs == 1) { /* one sum is all that is waited for: its leaves are found meanwhile */
            double sum = scores[0];
            for (uint32_t j = 0; j < n; j++) sum += p->leaf_value[place_of_word(left, size, p->leaf_start + first, j)];
            scores[0] = sum;
            continue;
        }
        places_of_words(left, size, p->leaf_start + first, n, places);
        if (leaves != NULL) number_leaves(p, places, first, n, leaves);
        else add_values(p, places, first, n, scores);
    }
}

/* While one row's words are ANDed, those of the next one are on their way. */
INLINE void rows_by_words(const plan *p, const double *rows, size_t n, double *scores, int32_t *leaves, uint32_t size) {
    const char *words_of[2][WORDS_MOST_FEATURES];
    find_words(p, rows, words_of[0], size);
    for (size_t r = 0; r < n; r++) {
        if (r + 1 < n) find_words(p, rows + (r + 1) * p->n_features, words_of[(r + 1) % 2], size);
        and_words(p, words_of[r % 2], scores ? scores + r * p->n_outputs : NULL, leaves ? leaves + r * p->n_trees : NULL, size);
    }
}

/* Sixteen trees step down at once, so that the machine waits for their splits together. No branch depends on the row. */
INLINE void row_by_walk(const plan *p, const uint8_t *bytes_of_row, double *scores, int32_t *leaves) {
    static const split none = {0, 0, 0, {-1, -1}}; /* for a tree without splits, and places without a tree */
    for (uint32_t first = 0; first < p->n_trees; first += 16) {
        const split *splits[16];
        int32_t at[16], going;
        uint32_t places[16];
        uint32_t n = p->n_trees - first < 16 ? p->n_trees - first : 16;
        for (uint32_t j = 0; j < 16; j++) {
            int has_splits = j < n && p->trees[first + j].n_leaves > 1;
            splits[j] = has_splits ? p->splits + p->trees[first + j].first_split : &none;
            at[j] = has_splits ? 0 : -1;
        }
        do {
            going = -1;
            for (uint32_t j = 0; j < 16; j++) {
                const split *s = splits[j] + (at[j] < 0 ? 0 : at[j]);
                int32_t next = s->child[(bytes_of_row[s->column] & s->mask) > s->bound];
                at[j] = at[j] < 0 ? at[j] : next;
                going &= at[j];
            }
        } while (going >= 0); /* until every one is negative: a leaf */
        for (uint32_t j = 0; j < n; j++) places[j] = p->leaf_start[first + j] + (uint32_t)~at[j];
        if (leaves != NULL) number_leaves(p, places, first, n, leaves);
        else add_values(p, places, first, n, scores);
    }
}

/* *scores* [n][n_outputs], or *leaves* [n][n_trees]; the other is NULL. */
static int few_rows(const plan *p, const double *rows, size_t n, double *scores, int32_t *leaves) {
    if (scores != NULL) memset(scores, 0, n * p->n_outputs * sizeof *scores);
    if (p->row == ROW_WORDS32) {
        rows_by_words(p, rows, n, scores, leaves, 4);
    } else if (p->row == ROW_WORDS64) {
        rows_by_words(p, rows, n, scores, leaves, 8);
    } else {
        uint8_t on_stack[STACK_COLUMNS], *own = on_stack;
        if (p->n_columns > STACK_COLUMNS && (own = malloc(p->n_columns)) == NULL) return -1;
        for (size_t r = 0; r < n; r++) {
            row_bytes(p, rows + r * p->n_features, own);
            row_by_walk(p, own, scores ? scores + r * p->n_outputs : NULL, leaves ? leaves + r * p->n_trees : NULL);
        }
        if (own != on_stack) free(own);
    }
    return 0;
}

/* ---- batches --------------------------------------------------------------------------------------------------- */

#include "blend.h"

static void small_tile(const plan *p, const double *rows, uint32_t n, uint8_t *work, double *scores, int32_t *leaves) {
    tile_rows(p, rows, n, SMALL_TILE, work, scores, leaves);
}

static void large_tile(const plan *p, const double *rows, uint32_t n, uint8_t *work, double *scores, int32_t *leaves) {
    tile_rows(p, rows, n, LARGE_TILE, work, scores, leaves);
}

/* So many rows are quicker one by one than as a tile. */
static size_t rows_before_tile(const plan *p) {
    const double rows = TILE_COST * p->tile_ns / p->row_ns;
    return !p->has_blend ? SIZE_MAX : rows > 1.0 ? (size_t)rows : 1;
}

/* *scores* [n][n_outputs], or *leaves* [n][n_trees]; the other is NULL. */
static int many_rows(const plan *p, const double *rows, size_t n, double *scores, int32_t *leaves) {
    const size_t few = rows_before_tile(p);
    size_t done = 0;
    if (n > few) {
        uint32_t most = n >= LARGE_TILE ? LARGE_TILE : SMALL_TILE;
        const size_t size = UNIT_LEAVES * BYTES + ((size_t)p->n_columns + p->n_complements + p->n_slots) * most;
        void *memory;
        if (posix_memalign(&memory, 64, size) != 0) return -1;
        uint8_t *work = memory;
        memset(work, 0, size); /* the rows that fill up a tile are zeros at first */
        for (uint32_t leaf = 0; leaf < UNIT_LEAVES; leaf++) memset(work + leaf * BYTES, (int)leaf, BYTES);
        while (n - done > few) {
            uint32_t tile = n - done >= LARGE_TILE ? LARGE_TILE : SMALL_TILE, count = n - done < tile ? (uint32_t)(n - done) : tile;
            (tile == LARGE_TILE ? large_tile : small_tile)(p, rows + done * p->n_features, count, work,
                scores ? scores + done * p->n_outputs : NULL, leaves ? leaves + done * p->n_trees : NULL);
            done += count;
        }
        free(memory);
    }
    if (done == n) return 0;
    return few_rows(p, rows + done * p->n_features, n - done, scores ? scores + done * p->n_outputs : NULL,
                    leaves ? leaves + done * p->n_trees : NULL);
}

static int level_row(const plan *p, const double *row, double *scores) { return few_rows(p, row, 1, scores, NULL); }
static int level_batch(const plan *p, const double *rows, size_t n, double *scores) { return many_rows(p, rows, n, scores, NULL); }
static int level_leaves(const plan *p, const double *rows, size_t n, int32_t *leaves) { return many_rows(p, rows, n, NULL, leaves); }

#include "shap_body.h"
