/* A level: the kernel, compiled for one set of machine instructions. */
#ifndef PREDICTOR_LEVEL_H
#define PREDICTOR_LEVEL_H

#include "plan.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/*
 * Each byte four times. Processors copy 32 bits of memory to all of a vector by the load alone; a single byte takes another
 * instruction, on the unit that the comparisons of bytes need.
 */
#define FOUR_TIMES(x) (x) * 0x01010101u
#define FROM(x) FOUR_TIMES(x), FOUR_TIMES(x + 1), FOUR_TIMES(x + 2), FOUR_TIMES(x + 3)
#define FROM16(x) FROM(x), FROM(x + 4), FROM(x + 8), FROM(x + 12)
#define FROM64(x) FROM16(x), FROM16(x + 16), FROM16(x + 32), FROM16(x + 48)
static const uint32_t byte_four_times[256] = {FROM64(0), FROM64(64), FROM64(128), FROM64(192)};

/*
 * Where in `leaf_value` the leaf of the j-th tree is. The place of the one bit in the tree's word, of *size* bytes, is the leaf's
 * number within the tree, and starts[j] is the place of the tree's first leaf.
 */
ALWAYS_INLINE uint32_t place_of_word(const void *words, uint32_t size, const uint32_t *starts, uint32_t j) {
    typedef uint32_t word32 __attribute__((may_alias));
    typedef uint64_t word64 __attribute__((may_alias));
    const int leaf = size == 4 ? __builtin_ctz(((const word32 *)words)[j]) : __builtin_ctzll(((const word64 *)words)[j]);
    return starts[j] + (uint32_t)leaf;
}

/* The same of *n* trees. */
ALWAYS_INLINE void places_one_by_one(const void *words, uint32_t size, const uint32_t *starts, uint32_t n, uint32_t *places) {
    for (uint32_t j = 0; j < n; j++) places[j] = place_of_word(words, size, starts, j);
}

/* Rows are float64 [n][n_features], finite or not; outputs are overwritten. Returns 0, or -1 if there is no memory. */
typedef struct {
    const char *name;
    uint32_t lanes; /* doubles in the smallest vector that `contributions` uses; plan_build needs it */
    int (*row)(const plan *p, const double *row, double *scores);                      /* [n_outputs], raw */
    int (*batch)(const plan *p, const double *rows, size_t n, double *scores);         /* [n][n_outputs], raw */
    int (*leaves)(const plan *p, const double *rows, size_t n, int32_t *leaves);       /* [n][n_trees] */
    int (*contributions)(const plan *p, const double *rows, size_t n, double *shares); /* [n][n_outputs][n_features + 1] */
} level;

extern const level level_generic;
#if defined(__x86_64__) && !defined(PREDICTOR_GENERIC_ONLY)
#define PREDICTOR_HAS_X86_LEVELS 1
extern const level level_avx2, level_avx512;
#endif

/* Write the levels that this processor and operating system can run into *found*, best first; returns how many (1 to 3). */
int levels_here(const level **found);

#endif
