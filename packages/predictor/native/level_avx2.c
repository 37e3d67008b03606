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

#define LEVEL level_avx2
#define LEVEL_NAME "avx2"
#define BYTES 32
typedef __m256i bytes;

static inline bytes bytes_all(uint8_t x) { return _mm256_set1_epi8((char)x); }
static inline bytes choose_at_most(bytes value, bytes mask, bytes bound, bytes a, bytes b) {
    bytes masked = _mm256_and_si256(value, mask);
    return _mm256_blendv_epi8(b, a, _mm256_cmpeq_epi8(_mm256_min_epu8(masked, bound), masked));
}

#include "body.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
