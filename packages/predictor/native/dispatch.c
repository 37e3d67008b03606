/* Which levels this machine can run. Uses cpuid itself: under clang, the compiler's built-in test has failed once. */
#include "level.h"

#ifdef PREDICTOR_HAS_X86_LEVELS
#include <cpuid.h>

#define SAVES_YMM 0x06u /* the 128- and 256-bit registers */
#define SAVES_ZMM 0xE0u /* the mask registers, and the 512-bit ones: the upper halves of 0 to 15, and 16 to 31 */

/* The first 32 bits of XCR0: the kinds of registers that the operating system saves for each thread (Intel SDM 1, 13.3). */
static uint32_t saved_registers(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* Unsigned, because a compiler's constant for bit 31 may be a negative int. */
static int has(uint32_t bits, uint32_t wanted) { return (bits & wanted) == wanted; }

/* Tests all instruction sets in the levels' target pragmas, and whether the system saves the registers that they use. */
static void find_features(int *avx2, int *avx512) {
    unsigned a, b, c, d;
    *avx2 = *avx512 = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, bit_OSXSAVE | bit_POPCNT)) return; /* OSXSAVE: xgetbv exists */
    const uint32_t saved = saved_registers();
    /* A processor without LZCNT runs another instruction in its place, and gives a wrong result without a fault. */
    if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || !has(c, bit_LZCNT)) return;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    *avx2 = has(saved, SAVES_YMM) && has(b, bit_AVX2 | bit_BMI | bit_BMI2);
    *avx512 = *avx2 && has(saved, SAVES_ZMM) && has(b, bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL);
}
#endif

int levels_here(const level **found) {
    int n = 0;
#ifdef PREDICTOR_HAS_X86_LEVELS
    int avx2, avx512;
    find_features(&avx2, &avx512);
    if (avx512) found[n++] = &level_avx512;
    if (avx2) found[n++] = &level_avx2;
#endif
    found[n++] = &level_generic;
    return n;
}
