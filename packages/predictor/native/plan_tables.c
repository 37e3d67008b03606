/* Makes the table of words, with which a single row finds its leaves; see plan.h. */
#include "plan_parts.h"

/* A group while it is put together: a list of features. */
typedef struct draft {
    uint32_t feature;
    size_t n_codes; /* of the whole group, in its first feature */
    struct draft *next, *last;
} draft;

static int compare_drafts(const void *a, const void *b) {
    const draft *x = *(draft *const *)a, *y = *(draft *const *)b;
    if (x->n_codes != y->n_codes) return x->n_codes < y->n_codes ? -1 : 1;
    return x->feature < y->feature ? -1 : 1;
}

static int goes_first(const plan *p, const split *s, uint32_t code) {
    return (p->columns[s->column].byte_of[code] & s->mask) <= s->bound;
}

/* For each child of each split of *t* the leaves below it, as bits: [2 * split + side], side 0 the first child, 1 the second. */
static void leaves_below(const plan *p, const tree *t, uint64_t *below) {
    for (uint32_t i = t->n_leaves - 1; i-- > 0;)
        for (int side = 0; side < 2; side++) {
            int32_t child = p->splits[t->first_split + i].child[side];
            below[2 * i + side] = child < 0 ? (uint64_t)1 << ~child : below[2 * child] | below[2 * child + 1];
        }
}

/*
 * Put features with few codes into groups: each group costs one row of words per prediction, so fewer of them are quicker. The
 * two with the fewest codes, which add least to the table, are joined until the table would grow beyond its limit.
 */
static plan_refusal group_features(making *m, size_t bytes_a_code) {
    plan *p = m->to;
    const uint32_t n = p->n_used;
    word_group *groups = KEEP(m, n, word_group);
    word_feature *members = KEEP(m, n, word_feature);
    draft *drafts = BORROW(m, n, draft), **order = BORROW(m, n, draft *);
    if (groups == NULL || members == NULL || drafts == NULL || order == NULL) return no_room(m);
    size_t codes = 0;
    for (uint32_t u = 0; u < n; u++) {
        drafts[u] = (draft){.feature = p->used[u], .n_codes = p->features[p->used[u]].n_codes, .last = drafts + u};
        order[u] = drafts + u;
        codes += drafts[u].n_codes;
    }
    qsort(order, n, sizeof *order, compare_drafts);
    const size_t usual = WORDS_NEAR_BYTES / bytes_a_code, grown = codes + codes / 4, most = grown > usual ? grown : usual;
    uint32_t left = n;
    for (; left > 1; left--, order++) {
        draft *a = order[0], *b = order[1];
        const size_t product = a->n_codes * b->n_codes;
        if (codes - a->n_codes - b->n_codes + product > most) break;
        codes += product - a->n_codes - b->n_codes;
        a->last->next = b;
        a->last = b->last;
        a->n_codes = product;
        uint32_t place = 1;
        for (; place + 1 < left && order[place + 1]->n_codes < product; place++) order[place] = order[place + 1];
        order[place] = a;
    }
    size_t table = 0;
    uint32_t n_members = 0;
    for (uint32_t g = 0; g < left; g++) {
        groups[g] = (word_group){.table = table * p->words_stride, .first_member = n_members};
        uint32_t factor = 1;
        for (const draft *d = order[g]; d != NULL; d = d->next) {
            members[n_members++] = (word_feature){d->feature, factor};
            factor *= p->features[d->feature].n_codes;
        }
        groups[g].n_members = n_members - groups[g].first_member;
        table += factor;
    }
    p->groups = groups;
    p->members = members;
    p->n_groups = left;
    p->words_codes = (uint32_t)table;
    return PLAN_OK;
}

/*
 * possible[start[feature] + code], *codes* in all: the leaves of one tree that are possible for a row whose feature has this
 * code. A split where the row goes to one child excludes the leaves below the other. Over all features
 * one leaf remains.
 */
static void possible_leaves(const plan *p, const tree *own, const uint32_t *start, uint64_t *possible, size_t codes) {
    uint64_t below[128];
    leaves_below(p, own, below);
    for (size_t c = 0; c < codes; c++) possible[c] = UINT64_MAX >> (64 - own->n_leaves);
    for (uint32_t i = 0; i + 1 < own->n_leaves; i++) {
        const split *s = p->splits + own->first_split + i;
        const uint32_t feature = p->columns[s->column].feature;
        for (uint32_t code = 0; code < p->features[feature].n_codes; code++)
            possible[start[feature] + code] &= ~below[2 * i + goes_first(p, s, code)];
    }
}

/* The word of each combination of a group's codes, for one tree: *joint*, made member by member. */
static void join_words(const plan *p, const word_group *group, const uint32_t *start, const uint64_t *possible, uint64_t *joint) {
    joint[0] = UINT64_MAX;
    for (const word_feature *member = p->members + group->first_member, *end = member + group->n_members; member < end; member++)
        for (uint32_t code = p->features[member->feature].n_codes; code-- > 0;) /* the last first: code 0 is written over */
            for (uint32_t c = 0; c < member->factor; c++)
                joint[code * member->factor + c] = joint[c] & possible[start[member->feature] + code];
}

/* words[group][combination][tree] */
plan_refusal plan_make_words(making *m) {
    plan *p = m->to;
    if (p->max_leaves > 64 || p->n_used == 0 || p->n_used > WORDS_MOST_FEATURES) return PLAN_OK;
    const size_t size = p->max_leaves <= 32 ? 4 : 8, block = WORDS_BLOCK_BYTES / size;
    const size_t stride = (p->n_trees + block - 1) / block * block;
    size_t codes = 0;
    for (uint32_t u = 0; u < p->n_used; u++) codes += p->features[p->used[u]].n_codes;
    if (codes > WORDS_MOST_BYTES / (stride * size)) return PLAN_OK; /* single rows use the walk */
    p->words_stride = (uint32_t)stride;
    plan_refusal refusal = group_features(m, stride * size);
    if (refusal != PLAN_OK) return refusal;
    void *words = arena_get(m->kept, p->words_codes * stride, size);
    uint64_t *possible = BORROW(m, codes, uint64_t), *joint = BORROW(m, p->words_codes, uint64_t);
    uint32_t *start = BORROW(m, p->n_features, uint32_t);
    if (words == NULL || possible == NULL || joint == NULL || start == NULL) return no_room(m);
    for (uint32_t u = 0, next = 0; u < p->n_used; u++) {
        start[p->used[u]] = next;
        next += p->features[p->used[u]].n_codes;
    }
    for (uint32_t t = 0; t < p->n_trees; t++) {
        possible_leaves(p, p->trees + t, start, possible, codes);
        for (uint32_t g = 0; g < p->n_groups; g++) {
            const size_t end = g + 1 < p->n_groups ? p->groups[g + 1].table : p->words_codes * stride;
            join_words(p, p->groups + g, start, possible, joint);
            for (size_t at = p->groups[g].table + t, c = 0; at < end; at += stride, c++) {
                if (size == 4) ((uint32_t *)words)[at] = (uint32_t)joint[c];
                else ((uint64_t *)words)[at] = joint[c];
            }
        }
    }
    p->words = words;
    p->row = size == 4 ? ROW_WORDS32 : ROW_WORDS64;
    return PLAN_OK;
}
