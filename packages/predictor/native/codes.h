/*
 * Values to codes, codes to the bytes of the columns.
 *
 * A value's code is the number of cuts below it. One row searches; the rows of a tile are counted together, a vector of them at
 * a time, because counting few cuts needs neither branches nor loads that wait for each other.
 */

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

#define COUNT_CUTS 32        /* so many cuts are counted one by one */
#define COUNT_BLOCKS 32      /* more are counted in blocks of CUT_BLOCK, up to so many blocks; yet more are searched */
#define AT_ONCE (4 * LANES)  /* values that are counted together */

/* counts[r]: how many of the *n* cuts, *apart* from each other, lie below values[r]; NaN has none below. */
INLINE void count_below(const double *cuts, uint32_t n, uint32_t apart, const double *values, int64_t *counts) {
    const doubles *value = (const doubles *)values;
    longs count[4] = {{0}, {0}, {0}, {0}};
    for (uint32_t c = 0; c < n; c++) {
        const doubles cut = doubles_all(cuts[(size_t)c * apart]);
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) count[v] -= (longs)(value[v] > cut);
    }
    for (int v = 0; v < 4; v++) ((longs *)counts)[v] = count[v];
}

/* How many cuts of one block lie below *value*. */
INLINE uint32_t count_in_block(const double *block, double value) {
    const doubles all = doubles_all(value);
    longs count = {0};
    int64_t sum = 0;
#pragma GCC unroll 8
    for (int v = 0; v < CUT_BLOCK / LANES; v++) count -= (longs)(all > ((const doubles *)block)[v]);
#pragma GCC unroll 8
    for (int lane = 0; lane < LANES; lane++) sum += count[lane];
    return (uint32_t)sum;
}

/* The same by halving: all searches advance together, so none waits for another. */
INLINE void search_below(const double *cuts, uint32_t n, const double *values, int64_t *counts) {
    uint32_t base[AT_ONCE] = {0}, left = n;
    while (left > 1) {
        const uint32_t half = left / 2;
        for (uint32_t r = 0; r < AT_ONCE; r++) /* a product, since a branch here would be guessed wrong half the time */
            base[r] += (uint32_t)(cuts[base[r] + half - 1] < values[r]) * half;
        left -= half;
    }
    for (uint32_t r = 0; r < AT_ONCE; r++) counts[r] = base[r] + (cuts[base[r]] < values[r]);
}

/* The codes of the first *n* of *values*; the rest, up to the next whole AT_ONCE, may be anything. */
INLINE void tile_codes(const feature_codes *f, double *values, uint32_t n, uint16_t *codes) {
    if (f->is_category) {
        for (uint32_t r = 0; r < n; r++) codes[r] = (uint16_t)category_code(f, values[r]);
        return;
    }
    for (uint32_t r = 0; r < n; r++) values[r] = fabs(values[r]) <= ZERO_THRESHOLD ? 0.0 : values[r];
    const uint32_t blocks = f->n_cuts / CUT_BLOCK;
    for (uint32_t first = 0; first < n; first += AT_ONCE) {
        int64_t counts[AT_ONCE] __attribute__((aligned(BYTES)));
        const uint32_t count = n - first < AT_ONCE ? n - first : AT_ONCE;
        const double *own = values + first;
        if (f->n_cuts <= COUNT_CUTS) {
            count_below(f->cuts, f->n_cuts, 1, own, counts);
        } else if (blocks <= COUNT_BLOCKS) {
            count_below(f->cuts + CUT_BLOCK - 1, blocks, CUT_BLOCK, own, counts);
            for (uint32_t r = 0; r < count; r++)
                counts[r] = counts[r] * CUT_BLOCK + count_in_block(f->cuts + counts[r] * CUT_BLOCK, own[r]);
        } else {
            search_below(f->cuts, f->n_cuts, own, counts);
        }
        for (uint32_t r = 0; r < count; r++) codes[first + r] = (uint16_t)(isnan(own[r]) ? f->n_cuts + 1 : counts[r]);
    }
}

INLINE void tile_bytes(const plan *p, const double *rows, uint32_t n, uint32_t tile, uint8_t *out) {
    double values[LARGE_TILE] __attribute__((aligned(BYTES)));
    uint16_t codes[LARGE_TILE];
    for (uint32_t r = n; r < tile; r++) values[r] = 0.0;
    for (uint32_t c = 0; c < p->n_columns;) {
        const uint32_t feature = p->columns[c].feature;
        for (uint32_t r = 0; r < n; r++) values[r] = rows[(size_t)r * p->n_features + feature];
        tile_codes(p->features + feature, values, n, codes);
        for (; c < p->n_columns && p->columns[c].feature == feature; c++) {
            const uint8_t *byte_of = p->columns[c].byte_of;
            uint8_t *column_bytes = out + (size_t)c * tile;
            for (uint32_t r = 0; r < n; r++) column_bytes[r] = byte_of[codes[r]];
        }
    }
}
