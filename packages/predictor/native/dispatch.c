/* Which levels this machine can run. The processor is asked by hand: a compiler's own helper once said no under clang. */
#include "level.h"

#ifdef PREDICTOR_HAS_X86_LEVELS
#include <cpuid.h>

/* The registers that the operating system saves when it switches threads (Intel SDM 1, 13.3: XCR0). */
static uint64_t saved_registers(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static void find_features(int *avx2, int *avx512) {
    unsigned a, b, c, d;
    *avx2 = *avx512 = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & 1u << 27)) return; /* OSXSAVE: xgetbv exists */
    uint64_t saved = saved_registers();
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    *avx2 = (saved & 0x6) == 0x6 && (b & 1u << 5);
    /* AVX512F, DQ, BW, VL, and that the mask and 512-bit registers are saved too. */
    *avx512 = *avx2 && (saved & 0xE6) == 0xE6 && (b & 1u << 16) && (b & 1u << 17) && (b & 1u << 30) && (b & 1u << 31);
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
