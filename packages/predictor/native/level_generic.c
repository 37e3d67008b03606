/* Any processor: vectors of 16 bytes, which compilers turn into SSE2 on x86-64 and NEON on ARM64. */
#include <stdint.h>

#define LEVEL level_generic
#define LEVEL_NAME "generic"
#define BYTES 16
typedef uint8_t bytes __attribute__((vector_size(BYTES), may_alias));

static inline bytes bytes_all(uint8_t x) { return (bytes){0} + x; }
static inline bytes choose(bytes mask, bytes a, bytes b) { return b ^ ((a ^ b) & mask); }
static inline bytes choose_at_most(bytes value, bytes bound, bytes a, bytes b) { return choose((bytes)(value <= bound), a, b); }
static inline bytes choose_clear(bytes value, bytes bit, bytes a, bytes b) { return choose((bytes)((value & bit) == 0), a, b); }

#include "body.h"
