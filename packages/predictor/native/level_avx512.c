/* x86-64 with AVX-512 F, BW, DQ and VL: vectors of 64 bytes, and choices by a mask of one bit a byte. */
#include "level.h"
#ifdef PREDICTOR_HAS_X86_LEVELS
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2,lzcnt,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2,lzcnt,popcnt")
#endif

#define BYTES 64
typedef __m512i bytes;

static inline bytes bytes_all(uint8_t x) { return _mm512_set1_epi8((char)x); }
static inline bytes choose_top(bytes sum, bytes a, bytes b) { return _mm512_mask_blend_epi8(_mm512_movepi8_mask(sum), b, a); }
static inline bytes add_bytes(bytes a, bytes b) { return _mm512_add_epi8(a, b); }

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
