/* x86-64 with AVX-512 F, BW, DQ and VL: vectors of 64 bytes, whose comparisons give one bit a byte. */
#include "level.h"
#ifdef PREDICTOR_HAS_X86_LEVELS
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2,lzcnt,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2,lzcnt,popcnt")
#endif

#define LEVEL level_avx512
#define LEVEL_NAME "avx512"
#define BYTES 64
typedef __m512i bytes;

static inline bytes bytes_all(uint8_t x) { return _mm512_set1_epi8((char)x); }
static inline bytes choose_at_most(bytes value, bytes mask, bytes bound, bytes a, bytes b) {
    return _mm512_mask_blend_epi8(_mm512_cmple_epu8_mask(_mm512_and_si512(value, mask), bound), b, a);
}

#include "body.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
