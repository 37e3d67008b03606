/* Any processor: vectors of 16 bytes, which compilers turn into SSE2 on x86-64 and NEON on ARM64. */
#include "level.h"

#define BYTES 16
#define TILE_COST 2.0
typedef uint8_t bytes __attribute__((vector_size(BYTES), may_alias));
typedef int8_t signed_bytes __attribute__((vector_size(BYTES), may_alias));
typedef double doubles __attribute__((vector_size(BYTES), may_alias));
typedef int64_t longs __attribute__((vector_size(BYTES), may_alias));

static inline bytes bytes_all(uint8_t x) {
    typedef uint32_t quads __attribute__((vector_size(BYTES)));
    return (bytes)((quads){0} + byte_four_times[x]);
}

/* x + (127 - bound) has its top bit if x > bound; as a signed byte it is then below 0. */
static inline bytes limit_of(uint8_t bound) { return bytes_all((uint8_t)(127 - bound)); }
static inline bytes choose_above(bytes x, bytes limit, bytes a, bytes b) { return b ^ ((a ^ b) & (bytes)((signed_bytes)(x + limit) < 0)); }
static inline bytes subtract_bytes(bytes a, bytes b) { return a - b; }
static inline doubles reciprocal(doubles x) { return 1.0 / x; }

static inline longs count_if_above(longs count, doubles x, doubles y) { return count - (longs)(x > y); }

static inline uint32_t count_in_block(const double *block, double value) {
    const doubles all = value - (doubles){0};
    longs count = {0};
#pragma GCC unroll 8
    for (int v = 0; v < CUT_BLOCK / 2; v++) count = count_if_above(count, all, ((const doubles *)block)[v]);
    return (uint32_t)(count[0] + count[1]);
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

const level level_generic = {"generic", LANES, level_row, level_batch, level_leaves, level_contributions};
