/* One compilation of the kernel for one set of machine instructions. */
#ifndef PREDICTOR_LEVEL_H
#define PREDICTOR_LEVEL_H

#include "plan.h"

/* Rows are float64 [n][n_features], finite or not; every output is overwritten. All return 0, or -1 without memory. */
typedef struct {
    const char *name;
    uint32_t lanes; /* doubles of the smallest vector that `contributions` takes: what plan_build must be told */
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

/* The levels that this processor and its system can run, best first; returns how many (at most 3). */
int levels_here(const level **found);

#endif
