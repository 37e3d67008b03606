/* x86-64 with AVX2: vectors of 32 bytes. */
#include "level.h"
#ifdef PREDICTOR_HAS_X86_LEVELS
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,lzcnt,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,lzcnt,popcnt")
#endif

#define BYTES 32
#define TILE_COST 1.5
typedef __m256i bytes;
typedef double doubles __attribute__((vector_size(BYTES), may_alias));
typedef int64_t longs __attribute__((vector_size(BYTES), may_alias));

static inline bytes bytes_all(uint8_t x) { return _mm256_set1_epi32((int)byte_four_times[x]); }

/* There is no comparison without sign. But x + (127 - bound) has its top bit, by which the choice is made, if x > bound. */
static inline bytes limit_of(uint8_t bound) { return bytes_all((uint8_t)(127 - bound)); }
static inline bytes choose_above(bytes x, bytes limit, bytes a, bytes b) { return _mm256_blendv_epi8(b, a, _mm256_add_epi8(x, limit)); }
static inline bytes subtract_bytes(bytes a, bytes b) { return _mm256_sub_epi8(a, b); }
static inline doubles reciprocal(doubles x) { return 1.0 / x; }

static inline longs count_if_above(longs count, doubles x, doubles y) { return count - (longs)(x > y); }

/* One bit for each cut below, which are then counted. */
static inline uint32_t count_in_block(const double *block, double value) {
    const __m256d all = _mm256_set1_pd(value);
    int below = 0;
#pragma GCC unroll 4
    for (int v = 0; v < CUT_BLOCK / 4; v++)
        below |= _mm256_movemask_pd(_mm256_cmp_pd(_mm256_load_pd(block + 4 * v), all, _CMP_LT_OQ)) << 4 * v;
    return (uint32_t)__builtin_popcount((unsigned)below);
}

#define places_of_words places_one_by_one

/* A vector holds too few values for look-ups. */
#define LOOKS_UP 0
static inline uint32_t sum_of_row(uint32_t row) { return row; }
static inline void add_looked_up(const uint32_t *halves, uint32_t room, uint32_t n_trees, const uint8_t *leaves, uint32_t tile,
                                 double *sums) {
    (void)halves, (void)room, (void)n_trees, (void)leaves, (void)tile, (void)sums;
}

#include "body.h"

const level level_avx2 = {"avx2", LANES, level_row, level_batch, level_leaves, level_contributions};

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
