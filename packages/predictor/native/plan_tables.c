/* Makes the table of words, with which a single row finds its leaves; see plan.h. */
#include "plan_parts.h"

static int goes_left(const plan *p, const split *s, uint32_t code) {
    return (p->columns[s->column].byte_of[code] & s->mask) <= s->bound;
}

/* For each child of each split of *t* the leaves below it, as bits: [2 * split + side], side 0 left, 1 right. */
static void leaves_below(const plan *p, const tree *t, uint64_t *below) {
    for (uint32_t i = t->n_leaves - 1; i-- > 0;)
        for (int side = 0; side < 2; side++) {
            int32_t child = p->splits[t->first_split + i].child[side];
            below[2 * i + side] = child < 0 ? (uint64_t)1 << ~child : below[2 * child] | below[2 * child + 1];
        }
}

/*
 * words[feature][code][tree]: the leaves of the tree that are possible for a row whose feature has this code. A split where
 * the row goes left excludes the leaves below its right child, and the other way round. Over all features one leaf remains.
 */
plan_refusal plan_make_words(making *m) {
    plan *p = m->to;
    if (p->max_leaves > 64 || p->n_used == 0 || p->n_used > WORDS_MOST_FEATURES) return PLAN_OK;
    size_t size = p->max_leaves <= 32 ? 4 : 8, block = WORDS_BLOCK_BYTES / size, stride = (p->n_trees + block - 1) / block * block;
    size_t codes = 0;
    size_t *starts = KEEP(m, p->n_used, size_t);
    if (starts == NULL) return no_room(m);
    for (uint32_t u = 0; u < p->n_used; u++) {
        starts[u] = codes * stride;
        codes += p->features[p->used[u]].n_codes;
    }
    if (codes * stride > WORDS_MOST_BYTES / size) return PLAN_OK; /* single rows use the walk */
    void *words = arena_get(m->kept, codes * stride, size);
    uint64_t *below = BORROW(m, 128, uint64_t);
    uint32_t most_codes = 0;
    for (uint32_t u = 0; u < p->n_used; u++)
        if (p->features[p->used[u]].n_codes > most_codes) most_codes = p->features[p->used[u]].n_codes;
    uint64_t *possible = BORROW(m, (size_t)p->n_used * most_codes, uint64_t);
    uint32_t *place = BORROW(m, p->n_features, uint32_t);
    if (words == NULL || below == NULL || possible == NULL || place == NULL) return no_room(m);
    for (uint32_t u = 0; u < p->n_used; u++) place[p->used[u]] = u;
    for (uint32_t t = 0; t < stride; t++) {
        memset(possible, 0xFF, (size_t)p->n_used * most_codes * sizeof *possible);
        if (t < p->n_trees) {
            const tree *own = p->trees + t;
            leaves_below(p, own, below);
            for (uint32_t i = 0; i + 1 < own->n_leaves; i++) {
                const split *s = p->splits + own->first_split + i;
                uint32_t feature = p->columns[s->column].feature;
                uint64_t *row = possible + (size_t)place[feature] * most_codes;
                for (uint32_t code = 0; code < p->features[feature].n_codes; code++)
                    row[code] &= ~below[2 * i + goes_left(p, s, code)];
            }
        }
        for (uint32_t u = 0; u < p->n_used; u++)
            for (uint32_t code = 0; code < p->features[p->used[u]].n_codes; code++) {
                uint64_t word = t < p->n_trees && p->trees[t].n_leaves == 1 ? 1 : possible[(size_t)u * most_codes + code];
                if (size == 4) ((uint32_t *)words)[starts[u] + code * stride + t] = (uint32_t)word;
                else ((uint64_t *)words)[starts[u] + code * stride + t] = word;
            }
    }
    p->word_table = starts;
    p->words = words;
    p->words_stride = (uint32_t)stride;
    p->words_are_far = codes * stride * size > WORDS_FAR_BYTES;
    p->row = size == 4 ? ROW_WORDS32 : ROW_WORDS64;
    return PLAN_OK;
}

