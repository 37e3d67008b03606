/*
 * Values to codes, codes to the bytes of the columns.
 *
 * A value's code is the number of cuts below it. One row searches; the rows of a tile are counted together, a vector of them at
 * a time, because counting few cuts needs neither branches nor loads that wait for each other. The byte of a code is looked up;
 * only of a plain feature (see find_plain in plan_codes.c) the counts are the bytes, once NaN has become a number that goes its way.
 */

/* LightGBM casts a category to int: fractions are cut off, and what is negative, NaN or too large is in no set. */
INLINE uint32_t category_code(const feature_codes *f, double value) {
    return value > -1.0 && value < (double)f->n_categories ? f->code_of[(uint32_t)value] : f->n_codes - 1;
}

/*
 * How many cuts lie below *value*: as many blocks as have their last cut below it, and some cuts of the next one. Of up to 256 cuts
 * the two are counted, one after the other. Of more, the block of last cuts is found first, by halving.
 */
INLINE uint32_t rank_by_blocks(const feature_codes *f, double value) {
    uint32_t block = 0, left = f->n_cuts / (CUT_BLOCK * CUT_BLOCK) + 1;
    if (f->n_cuts >= CUT_BLOCK) {
        while (left > 1) {
            const uint32_t half = left / 2;
            block += f->last_cuts[(block + half) * CUT_BLOCK - 1] < value ? half : 0;
            left -= half;
        }
        block = block * CUT_BLOCK + count_in_block(f->last_cuts + block * CUT_BLOCK, value);
    }
    return block * CUT_BLOCK + count_in_block(f->cuts + (size_t)block * CUT_BLOCK, value);
}

INLINE uint32_t value_code(const feature_codes *f, double value) {
    if (f->is_category) return category_code(f, value);
    if (isnan(value)) return f->nan_code;
    return rank_by_blocks(f, fabs(value) <= ZERO_THRESHOLD ? 0.0 : value);
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
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define PLACE_OF_BYTE(b) (8 * (b)) /* where byte b of eight in memory is in a number of 64 bits */
#else
#define PLACE_OF_BYTE(b) (56 - 8 * (b))
#endif
#define AT_ONCE (4 * LANES)  /* values that are counted together */

/* counts[r]: how many of the *n* cuts lie below values[r]; NaN has none below. */
INLINE void count_below(const double *cuts, uint32_t n, const double *values, int64_t *counts) {
    const doubles *value = (const doubles *)values;
    longs count[4] = {{0}, {0}, {0}, {0}};
    for (uint32_t c = 0; c < n; c++) {
        const doubles cut = doubles_all(cuts[c]);
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) count[v] = count_if_above(count[v], value[v], cut);
    }
    for (int v = 0; v < 4; v++) ((longs *)counts)[v] = count[v];
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

/* counts[r]: how many cuts lie below values[r], of AT_ONCE values. */
INLINE void count_cuts(const feature_codes *f, const double *values, int64_t *counts) {
    const uint32_t blocks = f->n_cuts / CUT_BLOCK;
    if (f->n_cuts <= COUNT_CUTS) {
        count_below(f->cuts, f->n_cuts, values, counts);
    } else if (blocks <= COUNT_BLOCKS) {
        count_below(f->last_cuts, blocks, values, counts);
        for (uint32_t r = 0; r < AT_ONCE; r++)
            counts[r] = counts[r] * CUT_BLOCK + count_in_block(f->cuts + counts[r] * CUT_BLOCK, values[r]);
    } else {
        search_below(f->cuts, f->n_cuts, values, counts);
    }
}

/* The codes of the first *n* of *values*; the rest, up to the next whole AT_ONCE, may be anything. */
INLINE void tile_codes(const feature_codes *f, const double *values, uint32_t n, uint16_t *codes) {
    if (f->is_category) {
        for (uint32_t r = 0; r < n; r++) codes[r] = (uint16_t)category_code(f, values[r]);
        return;
    }
    for (uint32_t first = 0; first < n; first += AT_ONCE) {
        int64_t counts[AT_ONCE] __attribute__((aligned(BYTES)));
        const uint32_t count = n - first < AT_ONCE ? n - first : AT_ONCE;
        const double *own = values + first;
        count_cuts(f, own, counts);
        for (uint32_t r = 0; r < count; r++) codes[first + r] = (uint16_t)(isnan(own[r]) ? f->nan_code : counts[r]);
    }
}

/* What LightGBM reads as zero becomes zero, NaN *nan_as*; up to the next whole vector. */
INLINE void replace_values(double *values, uint32_t n, double nan_as) {
    const doubles zero = doubles_all(ZERO_THRESHOLD), replaced = doubles_all(nan_as);
    for (doubles *v = (doubles *)values; v < (doubles *)(values + n); v++) {
        const longs is_zero = (*v <= zero) & (*v >= -zero), is_nan = *v != *v;
        *v = (doubles)(((longs)*v & ~is_zero & ~is_nan) | ((longs)replaced & is_nan));
    }
}

/* The one or two columns of a plain feature: its counts up to 127, and what is beyond. */
INLINE void plain_bytes(const feature_codes *f, const double *values, uint32_t n, uint32_t tile, uint8_t *out) {
    typedef uint8_t small __attribute__((vector_size(BYTES), may_alias));
    const small most = (small){0} + MOST_OF_BYTE;
    for (uint32_t first = 0; first < n; first += AT_ONCE) {
        int64_t counts[AT_ONCE] __attribute__((aligned(BYTES)));
        count_cuts(f, values + first, counts);
        for (uint32_t r = 0; r < AT_ONCE; r++) out[first + r] = (uint8_t)counts[r];
    }
    if (f->n_cuts <= MOST_OF_BYTE) return;
    for (small *low = (small *)out; low < (small *)(out + n); low++) {
        const small all = *low, is_over = (small)(all > most), own = (all & ~is_over) | (most & is_over);
        *low = own;
        low[tile / BYTES] = all - own;
    }
}

INLINE void tile_bytes(const plan *p, const double *rows, uint32_t n, uint32_t tile, uint8_t *out) {
    double values[LARGE_TILE] __attribute__((aligned(BYTES)));
    uint16_t codes[LARGE_TILE];
    for (uint32_t r = n; r < tile; r++) values[r] = 0.0;
    for (uint32_t r = n; r % 8 != 0; r++) codes[r] = 0;
    for (uint32_t c = 0; c < p->n_columns;) {
        const uint32_t feature = p->columns[c].feature;
        const feature_codes *f = p->features + feature;
        for (uint32_t r = 0; r < n; r++) values[r] = rows[(size_t)r * p->n_features + feature];
        if (!f->is_category) replace_values(values, n, f->is_plain ? f->nan_as : NAN);
        if (f->is_plain) {
            plain_bytes(f, values, n, tile, out + (size_t)c * tile);
            c += f->n_cuts > MOST_OF_BYTE ? 2 : 1;
            continue;
        }
        tile_codes(f, values, n, codes);
        for (; c < p->n_columns && p->columns[c].feature == feature; c++) {
            const uint8_t *byte_of = p->columns[c].byte_of;
            uint8_t *column_bytes = out + (size_t)c * tile;
            for (uint32_t r = 0; r < n; r += 8) {
                uint64_t eight = 0; /* one store in place of eight */
#pragma GCC unroll 8
                for (int b = 0; b < 8; b++) eight |= (uint64_t)byte_of[codes[r + b]] << PLACE_OF_BYTE(b);
                memcpy(column_bytes + r, &eight, sizeof eight);
            }
        }
    }
}
