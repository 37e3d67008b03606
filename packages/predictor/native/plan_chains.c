/*
 * The blend programs: trees cut into chains, and the chains of a unit put in order.
 *
 * A chain follows the deeper child of each split, so a tree has as many chains as it has splits of two leaves, and the
 * results of few are needed at a time. The chains of a unit's trees run level by level, those of equal length one
 * after the other: then the processor guesses the ends of their loops.
 */
#include <stdlib.h>

#include "plan_parts.h"

#define BLEND_MOST_COLUMNS 32000 /* that steps can number with all complements */

/* A chain while its unit is put together; its splits are found from theirs. */
typedef struct {
    uint32_t tree, level, n_steps, first_step; /* level 1: all its operands are leaves */
    uint16_t out;
    uint8_t start, is_root, repeats; /* repeats: whether its last step is there twice */
} draft;

/* Where a split went: its chain, its step of that, and the child that the chain comes from. */
typedef struct {
    uint32_t chain, step;
    uint8_t level, deeper;
} placed;

/* Cut tree *number* of a unit into chains, from its last split up to its root. Returns how many there are. */
static uint32_t cut_tree(const plan *p, const tree *t, uint32_t number, draft *chains, placed *places) {
    uint32_t n = 0;
    if (t->n_leaves == 1) {
        chains[0] = (draft){.tree = number, .level = 1, .is_root = 1};
        return 1;
    }
    for (uint32_t i = t->n_leaves - 1; i-- > 0;) {
        const int32_t *child = p->splits[t->first_split + i].child;
        const int left = child[0] < 0 ? 0 : places[child[0]].level, right = child[1] < 0 ? 0 : places[child[1]].level;
        placed *own = places + i;
        own->deeper = right > left;
        own->level = level_above(left, right);
        const int32_t from = child[own->deeper];
        if (from < 0) { /* both are leaves */
            own->chain = n;
            chains[n++] = (draft){.tree = number, .start = (uint8_t)~from};
        } else {
            own->chain = places[from].chain;
        }
        own->step = chains[own->chain].n_steps++;
        chains[own->chain].level = own->level;
    }
    chains[places[0].chain].is_root = 1;
    return n;
}

/*
 * A long chain takes two steps at a time. If their number is odd, its last step is taken twice, which changes nothing. So there are
 * fewer lengths, and the processor guesses wrong less often where a loop ends.
 */
static int chain_is_long(uint32_t level, uint32_t n_steps) { return level > 1 || n_steps >= SHORT_CHAIN; }

/* By level, then by length; then as they were made, so that every machine makes the same plan. */
static int compare_chains(const void *a, const void *b) {
    const draft *x = *(const draft *const *)a, *y = *(const draft *const *)b;
    if (x->level != y->level) return x->level < y->level ? -1 : 1;
    if (x->n_steps != y->n_steps) return x->n_steps < y->n_steps ? -1 : 1;
    return x < y ? -1 : x > y;
}

/*
 * The step of one split, but its operand. A row goes to the second child if byte > bound; and to the first if byte <= bound,
 * that is 127 - byte > 126 - bound. Of a category split the second child is always the other one. *complement_of* has for each
 * column the index of its complement plus 1, or 0.
 */
static chain_step step_of(plan *p, const split *s, int other_is_second, uint16_t *complements, uint16_t *complement_of) {
    if (other_is_second) return (chain_step){.column = s->column, .mask = s->mask, .bound = s->bound};
    if (complement_of[s->column] == 0) {
        complements[p->n_complements++] = s->column;
        complement_of[s->column] = (uint16_t)p->n_complements;
    }
    return (chain_step){.column = (uint16_t)(p->n_columns + complement_of[s->column] - 1), .mask = s->mask,
                        .bound = (uint8_t)(MOST_OF_BYTE - 1 - s->bound)};
}

static void cut_in_two(const double *values, uint32_t n, uint32_t *halves) {
    for (uint32_t i = 0; i < n; i++) {
        uint64_t bits;
        memcpy(&bits, values + i, sizeof bits);
        halves[i] = (uint32_t)bits;
        halves[n + i] = (uint32_t)(bits >> 32);
    }
}

plan_refusal plan_make_chains(making *m) {
    plan *p = m->to;
    if (p->max_leaves > UNIT_LEAVES || p->n_columns == 0 || p->n_columns > BLEND_MOST_COLUMNS) return PLAN_OK; /* the walk serves */
    size_t n_units = 0, n_chains = 0, n_steps = 0, n_values = 0;
    chain_step *steps = KEEP(m, m->from->n_splits + m->from->n_splits / 3, chain_step); /* a chain that repeats one has three or more */
    chain *chains = KEEP(m, m->from->n_leaves, chain);
    blend_unit *units = KEEP(m, p->n_trees, blend_unit);
    p->leaf_room = p->max_leaves <= 32 ? 32 : p->max_leaves <= 64 ? 64 : 0;
    const size_t most_values = p->leaf_room > 0 ? (size_t)p->n_trees * p->leaf_room : m->from->n_leaves;
    double *values = KEEP(m, most_values, double);
    uint32_t *halves = KEEP(m, p->leaf_room > 0 ? 2 * most_values : 0, uint32_t);
    /* A unit has at most as many chains, and fewer splits, than leaves: a tree that would not fit is not cut for it. */
    draft *drafts = BORROW(m, UNIT_LEAVES, draft), **order = BORROW(m, UNIT_LEAVES, draft *);
    placed *places = BORROW(m, UNIT_LEAVES, placed);
    uint16_t *complements = KEEP(m, p->n_columns, uint16_t), *complement_of = BORROW(m, p->n_columns, uint16_t);
    if (steps == NULL || chains == NULL || units == NULL || values == NULL || halves == NULL || drafts == NULL || order == NULL
        || places == NULL || complements == NULL || complement_of == NULL)
        return no_room(m);
    for (uint32_t k = 0; k < p->n_outputs; k++)
        for (uint32_t first = k; first < p->n_trees;) {
            blend_unit *u = units + n_units++;
            draft *own_drafts[UNIT_TREES];
            uint32_t n = 0, n_leaves = 0, own_steps = 0;
            *u = (blend_unit){.first_tree = first, .first_chain = n_chains, .first_step = n_steps, .first_value = n_values};
            for (uint32_t t = first; t < p->n_trees && u->n_trees < UNIT_TREES; t += p->n_outputs) {
                const tree *own = p->trees + t;
                const uint32_t room = p->leaf_room > 0 ? p->leaf_room : own->n_leaves;
                if (n_leaves + room > UNIT_LEAVES) break;
                own_drafts[u->n_trees] = drafts + n;
                u->first_leaf[u->n_trees] = (uint8_t)n_leaves;
                n += cut_tree(p, own, u->n_trees++, drafts + n, places + n_leaves);
                memcpy(values + n_values, p->leaf_value + own->first_leaf, own->n_leaves * sizeof *values);
                if (p->leaf_room > 0) cut_in_two(values + n_values, room, halves + 2 * n_values);
                n_values += room;
                n_leaves += room;
            }
            for (uint32_t c = 0; c < n; c++) {
                draft *d = order[c] = drafts + c;
                d->repeats = chain_is_long(d->level, d->n_steps) && d->n_steps % 2 == 1;
                d->n_steps += d->repeats;
            }
            qsort(order, n, sizeof *order, compare_chains);
            uint32_t slots = u->n_trees;
            for (uint32_t c = 0; c < n; c++) {
                draft *d = order[c];
                d->out = (uint16_t)(d->is_root ? d->tree : slots++);
                d->first_step = own_steps;
                own_steps += d->n_steps;
                if (d->level == 1) {
                    u->n_flat++;
                    if (d->n_steps < SHORT_CHAIN) u->n_short[d->n_steps]++;
                    u->n_flat_steps = own_steps;
                }
                chains[n_chains++] = (chain){(uint16_t)d->n_steps, d->out, (uint8_t)(u->first_leaf[d->tree] + d->start)};
            }
            for (uint32_t g = 0; g < u->n_trees; g++) {
                const tree *own = p->trees + first + g * p->n_outputs;
                const placed *place = places + u->first_leaf[g];
                for (uint32_t i = 0; i + 1 < own->n_leaves; i++) {
                    const split *s = p->splits + own->first_split + i;
                    const int32_t other = s->child[!place[i].deeper];
                    const uint32_t source = other < 0 ? u->first_leaf[g] + (uint32_t)~other
                                                      : UNIT_LEAVES + (uint32_t)own_drafts[g][place[other].chain].out;
                    chain_step *step = steps + n_steps + own_drafts[g][place[i].chain].first_step + place[i].step;
                    *step = step_of(p, s, !place[i].deeper, complements, complement_of);
                    step->other = (uint16_t)source;
                    u->has_sets |= s->mask != WHOLE_BYTE;
                }
            }
            for (uint32_t c = 0; c < n; c++) {
                chain_step *end = steps + n_steps + drafts[c].first_step + drafts[c].n_steps;
                if (drafts[c].repeats) end[-1] = end[-2];
            }
            u->n_chains = n;
            n_steps += own_steps;
            if (slots > p->n_slots) p->n_slots = slots;
            first += u->n_trees * p->n_outputs;
        }
    p->units = units;
    p->n_units = (uint32_t)n_units;
    p->unit_values = values;
    p->value_halves = halves;
    p->chains = chains;
    p->steps = steps;
    p->complements = complements;
    p->has_blend = 1;
    return PLAN_OK;
}
