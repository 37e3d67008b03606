/* x86-64 with AVX-512 F, BW, CD, DQ and VL: vectors of 64 bytes, and choices by a mask of one bit a byte. */
#include "level.h"
#ifdef PREDICTOR_HAS_X86_LEVELS
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,bmi,bmi2,lzcnt,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,bmi,bmi2,lzcnt,popcnt")
#endif

#define BYTES 64
#define TILE_COST 1.0
typedef __m512i bytes;
typedef double doubles __attribute__((vector_size(BYTES), may_alias));
typedef int64_t longs __attribute__((vector_size(BYTES), may_alias));

static inline bytes bytes_all(uint8_t x) { return _mm512_set1_epi32((int)byte_four_times[x]); }
static inline bytes limit_of(uint8_t bound) { return bytes_all(bound); }
static inline bytes choose_above(bytes x, bytes limit, bytes a, bytes b) {
    return _mm512_mask_blend_epi8(_mm512_cmplt_epu8_mask(limit, x), b, a);
}
static inline bytes subtract_bytes(bytes a, bytes b) { return _mm512_sub_epi8(a, b); }

/* An approximation to 14 bits, and two steps of Newton's method, each of which doubles them: faster than a division. */
static inline doubles reciprocal(doubles x) {
    const __m512d one = _mm512_set1_pd(1.0);
    __m512d r = _mm512_rcp14_pd(x);
    for (int step = 0; step < 2; step++) r = _mm512_fmadd_pd(r, _mm512_fnmadd_pd(x, r, one), r);
    return r;
}

static inline longs count_if_above(longs count, doubles x, doubles y) {
    return (longs)_mm512_mask_sub_epi64((__m512i)count, _mm512_cmp_pd_mask(x, y, _CMP_GT_OQ), (__m512i)count, _mm512_set1_epi64(-1));
}

/* One bit for each cut below, which are then counted. */
static inline uint32_t count_in_block(const double *block, double value) {
    const __m512d all = _mm512_set1_pd(value);
    const __mmask8 low = _mm512_cmp_pd_mask(_mm512_load_pd(block), all, _CMP_LT_OQ);
    const __mmask8 high = _mm512_cmp_pd_mask(_mm512_load_pd(block + 8), all, _CMP_LT_OQ);
    return (uint32_t)__builtin_popcount(_mm512_kunpackb(high, low));
}

/*
 * As places_one_by_one, for a whole block, of which only *n* places are read: `leaf_start` has room for that. There is no count
 * of trailing zeros, so the leading ones of 16 or 8 words are counted at once.
 */
ALWAYS_INLINE void places_of_words(const void *words, uint32_t size, const uint32_t *starts, uint32_t n, uint32_t *places) {
    (void)n;
    for (const bytes *w = words; w < (const bytes *)words + WORDS_BLOCK_BYTES / BYTES; w++) {
        if (size == 4) {
            const __m512i leaf = _mm512_sub_epi32(_mm512_set1_epi32(31), _mm512_lzcnt_epi32(*w));
            _mm512_storeu_si512(places, _mm512_add_epi32(leaf, _mm512_loadu_si512(starts)));
        } else {
            const __m512i leaf = _mm512_sub_epi64(_mm512_set1_epi64(63), _mm512_lzcnt_epi64(*w));
            const __m256i start = _mm256_loadu_si256((const __m256i *)starts);
            _mm256_storeu_si256((__m256i *)places, _mm256_add_epi32(_mm512_cvtepi64_epi32(leaf), start));
        }
        places += BYTES / size;
        starts += BYTES / size;
    }
}

/*
 * The values of 32 leaves, cut into halves of 32 bits, fill four registers, and one instruction looks 16 of 32 halves up. The
 * leaves of 64 rows are bytes of one vector: shifted right by 8 j, every fourth row's, from row j on, is the low byte of 32 bits.
 */
#define LOOKS_UP 1
typedef struct { bytes a, b, c, d; } table; /* 64 halves; c and d only with room */

static inline table table_at(const uint32_t *halves, uint32_t room) {
    const bytes *from = (const bytes *)halves;
    return (table){from[0], from[1], from[room == 64 ? 2 : 0], from[room == 64 ? 3 : 1]};
}

static inline bytes look_up(table t, bytes leaf, uint32_t room) {
    const bytes low = _mm512_permutex2var_epi32(t.a, leaf, t.b);
    if (room == 32) return low;
    const __mmask16 is_high = _mm512_test_epi32_mask(leaf, _mm512_set1_epi32(32));
    return _mm512_mask_blend_epi32(is_high, low, _mm512_permutex2var_epi32(t.c, leaf, t.d));
}

static inline __attribute__((always_inline)) void add_looked_up(const uint32_t *halves, uint32_t room, uint32_t n_trees,
                                                                const uint8_t *leaves, uint32_t tile, double *sums) {
    __m512d sum[8];
    for (int v = 0; v < 8; v++) sum[v] = ((const __m512d *)sums)[v];
    for (uint32_t g = 0; g < n_trees; g++, halves += 2 * room, leaves += tile) {
        const bytes leaf = *(const bytes *)leaves;
        const table lows = table_at(halves, room), highs = table_at(halves + room, room);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const bytes own = _mm512_srli_epi32(leaf, 8 * j), low = look_up(lows, own, room), high = look_up(highs, own, room);
            sum[2 * j] += (__m512d)_mm512_unpacklo_epi32(low, high);
            sum[2 * j + 1] += (__m512d)_mm512_unpackhi_epi32(low, high);
        }
    }
    for (int v = 0; v < 8; v++) ((__m512d *)sums)[v] = sum[v];
}

/* Bits 0 and 1 of a row are its byte of the 32 bits; unpacking sends bit 3 to the other vector, and bits 5, 4 and 2 are its lane. */
static inline uint32_t sum_of_row(uint32_t row) {
    return (row & ~63u) | (row & 3) << 4 | (row & 8) | (row >> 4 & 3) << 1 | (row >> 2 & 1);
}

#include "body.h"

/* Half-empty vectors of 64 bytes take longer than AVX2's full ones, so AVX2 computes what does not fill these. */
static int contributions(const plan *p, const double *rows, size_t n, double *shares) {
    return p->n_nodes % LANES == 0 ? level_contributions(p, rows, n, shares) : level_avx2.contributions(p, rows, n, shares);
}

const level level_avx512 = {"avx512", LANES / 2, level_row, level_batch, level_leaves, contributions};

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
