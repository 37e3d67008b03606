/* Memory that is freed all at once. A plan has one arena for what it keeps, and one for what only plan_build needs. */
#ifndef PREDICTOR_ARENA_H
#define PREDICTOR_ARENA_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#define ARENA_MOST ((size_t)256 << 20) /* bytes; a larger request fails, so that an unusual model cannot fill the memory */

#define LARGE_PAGE ((size_t)2 << 20) /* bytes; on Linux for x86-64 and ARM64 */

typedef struct arena_block {
    struct arena_block *next;
    char padding[64 - sizeof(void *)]; /* so that the data after it begins at a cache line */
} arena_block;

typedef struct {
    arena_block *blocks;
    size_t bytes;
    int too_large; /* a request failed because of ARENA_MOST, not because the machine has no memory */
} arena;

/* Zeroed memory for *count* items of *size* bytes, or NULL. */
static inline void *arena_get(arena *from, size_t count, size_t size) {
    void *block;
    if (size != 0 && count > (ARENA_MOST - from->bytes) / size) {
        from->too_large = 1;
        return NULL;
    }
    size_t bytes = sizeof(arena_block) + (count * size + 63) / 64 * 64;
    size_t alignment = bytes >= LARGE_PAGE ? LARGE_PAGE : 64;
    bytes = (bytes + alignment - 1) / alignment * alignment;
    if (posix_memalign(&block, alignment, bytes) != 0) return NULL;
#ifdef MADV_HUGEPAGE
    /* A row reads a few cache lines all over a large table. With small pages, each would cost an address translation. */
    if (alignment == LARGE_PAGE) madvise(block, bytes, MADV_HUGEPAGE);
#endif
    memset(block, 0, bytes);
    ((arena_block *)block)->next = from->blocks;
    from->blocks = block;
    from->bytes += count * size;
    return (char *)block + sizeof(arena_block);
}

static inline void arena_free(arena *from) {
    while (from->blocks != NULL) {
        arena_block *next = from->blocks->next;
        free(from->blocks);
        from->blocks = next;
    }
    from->bytes = 0;
}

#endif
