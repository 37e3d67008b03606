/*
 * The kernel itself, compiled once for each level. A level file says what its vectors are and includes this:
 *
 *   BYTES, bytes              bytes a vector, and its type
 *   bytes_all(x)              x in every byte
 *   choose_at_most(c, m, k, a, b)   per byte: (c & m) <= k ? a : b
 *   LEVEL, LEVEL_NAME         the name of its `level`, and what it is called
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "level.h"
#include "plan_parts.h"

#define INLINE static inline __attribute__((always_inline))
#define LANES (BYTES / 8)
#define STACK_COLUMNS 4096 /* more columns than this take memory from the heap */
#define FEW_ROWS 12        /* so many rows are quicker one by one than as a tile */
#define SMALL_TILE 64
#define LARGE_TILE 256
#define GROUP 8            /* trees of one output whose leaves are added together */

/* ---- values to codes, codes to bytes -------------------------------------------------------------------------- */

/* LightGBM casts a category to int: fractions are cut off, and what is negative, NaN or too large is in no set. */
INLINE uint32_t category_code(const feature_codes *f, double value) {
    return value > -1.0 && value < (double)f->n_categories ? f->code_of[(uint32_t)value] : f->n_codes - 1;
}

INLINE uint32_t value_code(const feature_codes *f, double value) {
    if (f->is_category) return category_code(f, value);
    if (isnan(value)) return f->n_cuts + 1;
    return rank_of(f->cuts, f->n_cuts, fabs(value) <= ZERO_THRESHOLD ? 0.0 : value);
}

static void row_bytes(const plan *p, const double *row, uint8_t *bytes_of_row) {
    uint32_t c = 0;
    while (c < p->n_columns) {
        uint32_t feature = p->columns[c].feature;
        uint32_t code = value_code(p->features + feature, row[feature]);
        for (; c < p->n_columns && p->columns[c].feature == feature; c++) bytes_of_row[c] = p->columns[c].byte_of[code];
    }
}

/* The codes of *n* values, *stride* doubles apart: all searches of a tile advance together, so none waits for another. */
INLINE void tile_codes(const feature_codes *f, const double *values, size_t stride, uint32_t n, uint16_t *codes) {
    if (f->is_category) {
        for (uint32_t r = 0; r < n; r++) codes[r] = (uint16_t)category_code(f, values[r * stride]);
        return;
    }
    double value[16];
    uint32_t base[16];
    for (uint32_t first = 0; first < n; first += 16) {
        uint32_t count = n - first < 16 ? n - first : 16, left = f->n_cuts;
        for (uint32_t r = 0; r < 16; r++) {
            double x = values[(first + (r < count ? r : 0)) * stride];
            value[r] = fabs(x) <= ZERO_THRESHOLD ? 0.0 : x;
            base[r] = 0;
        }
        while (left > 1) {
            uint32_t half = left / 2;
            for (uint32_t r = 0; r < 16; r++) /* a product, since a branch here would be guessed wrong half the time */
                base[r] += (uint32_t)(f->cuts[base[r] + half - 1] < value[r]) * half;
            left -= half;
        }
        for (uint32_t r = 0; r < count; r++) {
            uint32_t rank = base[r] + (f->cuts[base[r]] < value[r]);
            codes[first + r] = (uint16_t)(isnan(value[r]) ? f->n_cuts + 1 : rank);
        }
    }
}

INLINE void tile_bytes(const plan *p, const double *rows, uint32_t n, uint32_t tile, uint8_t *out) {
    uint16_t codes[LARGE_TILE];
    uint32_t c = 0;
    while (c < p->n_columns) {
        uint32_t feature = p->columns[c].feature;
        tile_codes(p->features + feature, rows + feature, p->n_features, n, codes);
        for (; c < p->n_columns && p->columns[c].feature == feature; c++) {
            const uint8_t *byte_of = p->columns[c].byte_of;
            uint8_t *column_bytes = out + (size_t)c * tile;
            for (uint32_t r = 0; r < n; r++) column_bytes[r] = byte_of[codes[r]];
        }
    }
}

/* ---- one row --------------------------------------------------------------------------------------------------- */

/* Add the leaves' values, tree by tree in the order of the model: any other order would give other bits. */
INLINE void add_values(const double *values, uint32_t first, uint32_t n, uint32_t n_outputs, double *scores) {
    if (n_outputs == 1) {
        double sum = scores[0];
        for (uint32_t j = 0; j < n; j++) sum += values[j];
        scores[0] = sum;
        return;
    }
    uint32_t output = first % n_outputs;
    for (uint32_t j = 0; j < n; j++) {
        scores[output] += values[j];
        if (++output == n_outputs) output = 0;
    }
}

/* The words of all features, ANDed a block of trees at a time; the one bit left of each tree's word is its leaf. */
INLINE void row_by_words(const plan *p, const double *row, double *scores, int32_t *leaves, uint32_t size) {
    typedef uint64_t words __attribute__((vector_size(BYTES), may_alias));
    enum { PER_BLOCK = WORDS_BLOCK_BYTES / BYTES };
    const char *tables[WORDS_MOST_FEATURES];
    const size_t bytes_a_code = (size_t)p->words_stride * size;
    const uint32_t per_block = WORDS_BLOCK_BYTES / size;
    for (uint32_t u = 0; u < p->n_used; u++) {
        uint32_t feature = p->used[u];
        size_t code = value_code(p->features + feature, row[feature]);
        tables[u] = (const char *)p->words + p->word_table[u] * size + code * bytes_a_code;
        /* The table is larger than the near caches: ask for its lines now, and find the next feature's code meanwhile. */
        for (size_t at = 0; at < bytes_a_code; at += 64) __builtin_prefetch(tables[u] + at);
    }
    for (uint32_t first = 0; first < p->n_trees; first += per_block) {
        words possible[PER_BLOCK];
        union {
            words vectors[PER_BLOCK];
            uint32_t of32[WORDS_BLOCK_BYTES / 4];
            uint64_t of64[WORDS_BLOCK_BYTES / 8];
        } left;
        double values[WORDS_BLOCK_BYTES / 4];
        const size_t offset = (size_t)first * size;
        const uint32_t n = p->n_trees - first < per_block ? p->n_trees - first : per_block;
        for (int v = 0; v < PER_BLOCK; v++) possible[v] = ((const words *)(tables[0] + offset))[v];
        for (uint32_t u = 1; u < p->n_used; u++)
            for (int v = 0; v < PER_BLOCK; v++) possible[v] &= ((const words *)(tables[u] + offset))[v];
        for (int v = 0; v < PER_BLOCK; v++) left.vectors[v] = possible[v];
        for (uint32_t j = 0; j < n; j++) {
            int leaf = size == 4 ? __builtin_ctz(left.of32[j]) : __builtin_ctzll(left.of64[j]);
            if (leaves != NULL) leaves[first + j] = leaf;
            values[j] = p->leaf_value[p->leaf_start[first + j] + (uint32_t)leaf];
        }
        add_values(values, first, n, p->n_outputs, scores);
    }
}

/* Sixteen trees step down at once, so that the machine waits for their splits together. No branch depends on the row. */
INLINE void row_by_walk(const plan *p, const uint8_t *bytes_of_row, double *scores, int32_t *leaves) {
    static const split none = {0, 0, 0, {-1, -1}}; /* for a tree without splits, and places without a tree */
    for (uint32_t first = 0; first < p->n_trees; first += 16) {
        const split *splits[16];
        int32_t at[16], going;
        double values[16];
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
        for (uint32_t j = 0; j < n; j++) {
            if (leaves != NULL) leaves[first + j] = ~at[j];
            values[j] = p->leaf_value[p->leaf_start[first + j] + (uint32_t)~at[j]];
        }
        add_values(values, first, n, p->n_outputs, scores);
    }
}

static int one_row(const plan *p, const double *row, double *scores, int32_t *leaves) {
    for (uint32_t k = 0; k < p->n_outputs; k++) scores[k] = 0.0;
    if (p->row == ROW_WORDS32) {
        row_by_words(p, row, scores, leaves, 4);
    } else if (p->row == ROW_WORDS64) {
        row_by_words(p, row, scores, leaves, 8);
    } else {
        uint8_t on_stack[STACK_COLUMNS], *own = on_stack;
        if (p->n_columns > STACK_COLUMNS && (own = malloc(p->n_columns)) == NULL) return -1;
        row_bytes(p, row, own);
        row_by_walk(p, own, scores, leaves);
        if (own != on_stack) free(own);
    }
    return 0;
}

static int level_row(const plan *p, const double *row, double *scores) { return one_row(p, row, scores, NULL); }

/* ---- batches --------------------------------------------------------------------------------------------------- */

/*
 * Where a step takes its bytes from: a slot has one for each row of the tile, a leaf number the same for all. The mask cuts the
 * place of a row to 0 for the latter, so that both are read by one instruction.
 */
typedef struct {
    const uint8_t *bytes;
    size_t row_mask;
} source;

INLINE void name_sources(source *sources, const uint8_t *slots, const uint8_t *numbers, uint32_t tile) {
    for (uint32_t s = 0; s < BLEND_SLOTS; s++) sources[s] = (source){slots + s * tile, SIZE_MAX};
    for (uint32_t leaf = 0; leaf < BLEND_LEAVES; leaf++) sources[BLEND_SLOTS + leaf] = (source){numbers + leaf * BYTES, 0};
}

/* Run one tree's program over all rows of a tile, those that fill it up included: *leaves* gets each row's leaf number. */
INLINE void blend_tree(const plan *p, const tree *t, const uint8_t *tile_columns, uint8_t *slots, source *sources, uint8_t *leaves,
                       uint32_t tile) {
    const blend_step *steps = p->steps + t->first_split;
    if (t->n_leaves == 1) memset(leaves, 0, tile);
    sources[0].bytes = leaves; /* the last step of a tree writes slot 0 */
    for (uint32_t i = 0; i + 1 < t->n_leaves; i++) {
        const blend_step s = steps[i];
        const uint8_t *column_bytes = tile_columns + (size_t)s.column * tile;
        const source a = sources[s.a], b = sources[s.b];
        uint8_t *out = s.out ? slots + s.out * tile : leaves;
        const bytes mask = bytes_all(s.mask), bound = bytes_all(s.bound);
#pragma GCC unroll 8
        for (size_t r = 0; r < tile; r += BYTES)
            *(bytes *)(out + r) = choose_at_most(*(const bytes *)(column_bytes + r), mask, bound,
                                                 *(const bytes *)(a.bytes + (r & a.row_mask)), *(const bytes *)(b.bytes + (r & b.row_mask)));
    }
}

/* Up to GROUP trees of one output: their leaves of *n* rows, and the sums with their values, in the order of the model. */
INLINE void add_group(const plan *p, uint32_t first, uint32_t count, uint32_t n, const uint8_t *leaves, uint32_t tile, double *sums) {
    const double *values[GROUP];
    for (uint32_t g = 0; g < count; g++) values[g] = p->leaf_value + p->leaf_start[first + g * p->n_outputs];
    if (count == GROUP) {
        for (uint32_t r = 0; r < n; r++) {
            double sum = sums[r];
            for (uint32_t g = 0; g < GROUP; g++) sum += values[g][leaves[g * tile + r]];
            sums[r] = sum;
        }
    } else {
        for (uint32_t g = 0; g < count; g++)
            for (uint32_t r = 0; r < n; r++) sums[r] += values[g][leaves[g * tile + r]];
    }
}

/* At most *tile* rows. `work` holds the columns, the slots and one group's leaves; *numbers* a vector of each leaf number. */
INLINE void tile_rows(const plan *p, const double *rows, uint32_t n, uint32_t tile, uint8_t *work, const uint8_t *numbers, double *scores,
                      int32_t *leaves) {
    uint8_t *slots = work + (size_t)p->n_columns * tile, *group = slots + BLEND_SLOTS * tile;
    double sums[LARGE_TILE];
    source sources[BLEND_SOURCES];
    name_sources(sources, slots, numbers, tile);
    tile_bytes(p, rows, n, tile, work);
    for (uint32_t k = 0; k < p->n_outputs; k++) {
        for (uint32_t r = 0; r < n; r++) sums[r] = 0.0;
        for (uint32_t first = k; first < p->n_trees; first += GROUP * p->n_outputs) {
            uint32_t left = (p->n_trees - first + p->n_outputs - 1) / p->n_outputs, count = left < GROUP ? left : GROUP;
            for (uint32_t g = 0; g < count; g++) {
                uint32_t t = first + g * p->n_outputs;
                blend_tree(p, p->trees + t, work, slots, sources, group + g * tile, tile);
                if (leaves != NULL)
                    for (uint32_t r = 0; r < n; r++) leaves[(size_t)r * p->n_trees + t] = group[g * tile + r];
            }
            if (leaves == NULL) add_group(p, first, count, n, group, tile, sums);
        }
        if (leaves == NULL)
            for (uint32_t r = 0; r < n; r++) scores[(size_t)r * p->n_outputs + k] = sums[r];
    }
}

static void small_tile(const plan *p, const double *rows, uint32_t n, uint8_t *work, const uint8_t *numbers, double *scores, int32_t *leaves) {
    tile_rows(p, rows, n, SMALL_TILE, work, numbers, scores, leaves);
}

static void large_tile(const plan *p, const double *rows, uint32_t n, uint8_t *work, const uint8_t *numbers, double *scores, int32_t *leaves) {
    tile_rows(p, rows, n, LARGE_TILE, work, numbers, scores, leaves);
}

/* *scores* [n][n_outputs], or *leaves* [n][n_trees]; the other is NULL. */
static int many_rows(const plan *p, const double *rows, size_t n, double *scores, int32_t *leaves) {
    size_t done = 0;
    if (p->has_blend && n > FEW_ROWS) {
        uint32_t most = n >= LARGE_TILE ? LARGE_TILE : SMALL_TILE;
        void *work;
        const size_t tile_bytes_needed = ((size_t)p->n_columns + BLEND_SLOTS + GROUP) * most;
        if (posix_memalign(&work, 64, tile_bytes_needed + BLEND_LEAVES * BYTES) != 0) return -1;
        uint8_t *numbers = (uint8_t *)work + tile_bytes_needed;
        for (uint32_t leaf = 0; leaf < BLEND_LEAVES; leaf++) memset(numbers + leaf * BYTES, (int)leaf, BYTES);
        memset(work, 0, (size_t)p->n_columns * most); /* the rows that fill up a tile are zeros at first */
        while (n - done > FEW_ROWS) {
            uint32_t tile = n - done >= LARGE_TILE ? LARGE_TILE : SMALL_TILE, count = n - done < tile ? (uint32_t)(n - done) : tile;
            (tile == LARGE_TILE ? large_tile : small_tile)(p, rows + done * p->n_features, count, work, numbers,
                scores ? scores + done * p->n_outputs : NULL, leaves ? leaves + done * p->n_trees : NULL);
            done += count;
        }
        free(work);
    }
    double *ignored = leaves != NULL ? malloc(p->n_outputs * sizeof *ignored) : NULL;
    int failed = leaves != NULL && ignored == NULL;
    for (; done < n && !failed; done++)
        failed = one_row(p, rows + done * p->n_features, scores ? scores + done * p->n_outputs : ignored,
                         leaves ? leaves + done * p->n_trees : NULL);
    free(ignored);
    return failed ? -1 : 0;
}

static int level_batch(const plan *p, const double *rows, size_t n, double *scores) { return many_rows(p, rows, n, scores, NULL); }
static int level_leaves(const plan *p, const double *rows, size_t n, int32_t *leaves) { return many_rows(p, rows, n, NULL, leaves); }

#include "shap_body.h"

const level LEVEL = {LEVEL_NAME, LANES, level_row, level_batch, level_leaves, level_contributions};
