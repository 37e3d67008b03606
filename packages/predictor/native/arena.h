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
    size_t used, size; /* bytes, this header included */
    char padding[64 - 2 * sizeof(size_t) - sizeof(void *)]; /* so that the data after it begins at a cache line */
} arena_block;

typedef struct {
    arena_block *blocks;
    size_t bytes;
    size_t least;  /* bytes of a block, at least; 0: a block is as large as the request for which it is made */
    int too_large; /* a request failed because of ARENA_MOST, not because the machine has no memory */
} arena;

static inline arena_block *arena_block_of(size_t bytes) {
    void *block;
    size_t alignment = bytes >= LARGE_PAGE ? LARGE_PAGE : 64;
    bytes = (bytes + alignment - 1) / alignment * alignment;
    if (posix_memalign(&block, alignment, bytes) != 0) return NULL;
#ifdef MADV_HUGEPAGE
    /* A row reads a few cache lines all over a large table. With small pages, each would cost an address translation. */
    if (alignment == LARGE_PAGE) madvise(block, bytes, MADV_HUGEPAGE);
#endif
    *(arena_block *)block = (arena_block){.used = sizeof(arena_block), .size = bytes};
    return block;
}

/* Zeroed memory for *count* items of *size* bytes, or NULL. */
static inline void *arena_get(arena *from, size_t count, size_t size) {
    if (size != 0 && count > (ARENA_MOST - from->bytes) / size) {
        from->too_large = 1;
        return NULL;
    }
    const size_t bytes = (count * size + 63) / 64 * 64;
    arena_block *block = from->blocks;
    if (block == NULL || bytes > block->size - block->used) {
        const size_t whole = sizeof(arena_block) + bytes;
        if ((block = arena_block_of(whole > from->least ? whole : from->least)) == NULL) return NULL;
        block->next = from->blocks;
        from->blocks = block;
    }
    char *data = (char *)block + block->used;
    block->used += bytes;
    from->bytes += count * size;
    return memset(data, 0, bytes);
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
