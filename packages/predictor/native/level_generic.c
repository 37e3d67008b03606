/* Any processor: vectors of 16 bytes, which compilers turn into SSE2 on x86-64 and NEON on ARM64. */
#include <stdint.h>

#define LEVEL level_generic
#define LEVEL_NAME "generic"
#define BYTES 16
typedef uint8_t bytes __attribute__((vector_size(BYTES), may_alias));

static inline bytes bytes_all(uint8_t x) { return (bytes){0} + x; }
static inline bytes choose_at_most(bytes value, bytes mask, bytes bound, bytes a, bytes b) {
    return b ^ ((a ^ b) & (bytes)((value & mask) <= bound));
}

#include "body.h"
