/*
 * Codes and columns: how a value is converted to a small number, and how splits test it.
 *
 * All numbers between two neighbouring cuts of a feature, in (cut[c - 1], cut[c]], go the same way at every split. So they
 * have one code, c, and cut[c] can represent them. NaN has its own code, or that of the numbers that go the same way as it
 * at every split (`find_plain`). If a split takes zero as missing, the two ends of
 * LightGBM's range of zero are cuts too, so that either all numbers of a code are zero, or none.
 *
 * Splits of one feature that treat missing values alike share a column: a byte with the number of *their* thresholds below
 * the value. A missing value gets the smallest or the largest such number, so that it goes in the same direction at all of
 * them. More than 127 thresholds need several columns, each with its part of the count. A category set is one bit of a
 * column, eight sets in a byte: a batch masks the set's bit, and compares what is left.
 *
 * A batch follows the deeper child of each split, and asks which rows go to the other one. So a category split is turned, if
 * necessary, until its deeper child comes first, and the set's bit is 1 for the categories of the other one.
 */
#include <math.h>

#include "plan_parts.h"

#define MOST_CODES 65000
#define MOST_COLUMNS 65000
#define SETS_A_COLUMN 8 /* one bit of a byte each */
#define PAGE MOST_OF_BYTE /* thresholds in one column: its bytes count from 0 to 127 */

enum { RULES = 5 }; /* how a split treats missing values: 0 none are missing, 1 and 2 zero goes left or right, 3 and 4 NaN */
static int rule_of(uint8_t decision) {
    int missing = DECISION_MISSING(decision);
    return missing == MISSING_NONE ? 0 : 2 * missing - (decision & DECISION_DEFAULT_LEFT ? 1 : 0);
}
static int rule_is_zero(int rule) { return rule == 1 || rule == 2; }
static int rule_goes_left(int rule) { return rule == 1 || rule == 3; }

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static plan_refusal number_cuts(making *m, feature_codes *codes, const uint32_t *own, size_t count) {
    const forest *f = m->from;
    double *cuts = KEEP(m, count + 2 + CUT_BLOCK, double);
    size_t n = 0, kept = 0;
    int zero = 0;
    if (cuts == NULL) return no_room(m);
    for (size_t i = 0; i < count; i++) {
        cuts[n++] = f->threshold[own[i]] + 0.0; /* -0.0 becomes 0.0: they are equal, so only one may be a cut */
        zero |= rule_is_zero(rule_of(f->decision[own[i]]));
    }
    if (zero) {
        cuts[n++] = nextafter(-ZERO_THRESHOLD, -INFINITY);
        cuts[n++] = ZERO_THRESHOLD;
    }
    qsort(cuts, n, sizeof *cuts, compare_doubles);
    for (size_t i = 0; i < n; i++)
        if (kept == 0 || cuts[i] != cuts[kept - 1]) cuts[kept++] = cuts[i];
    if (kept > MOST_CODES) return PLAN_MANY_CODES;
    for (size_t i = kept; i < kept + CUT_BLOCK; i++) cuts[i] = INFINITY;
    const size_t blocks = kept / CUT_BLOCK;
    double *last_cuts = KEEP(m, blocks + CUT_BLOCK, double);
    if (last_cuts == NULL) return no_room(m);
    for (size_t b = 0; b < blocks + CUT_BLOCK; b++) last_cuts[b] = b < blocks ? cuts[b * CUT_BLOCK + CUT_BLOCK - 1] : INFINITY;
    codes->cuts = cuts;
    codes->last_cuts = last_cuts;
    codes->n_cuts = (uint32_t)kept;
    codes->nan_code = (uint32_t)kept + 1;
    codes->n_codes = (uint32_t)kept + 2;
    return PLAN_OK;
}

static plan_refusal number_categories(making *m, feature_codes *codes, const uint32_t *own, size_t count) {
    const forest *f = m->from;
    size_t words = 0;
    uint32_t next = 0;
    codes->is_category = 1;
    for (size_t i = 0; i < count; i++)
        if ((size_t)f->set_size[own[i]] > words) words = (size_t)f->set_size[own[i]];
    if (words > ((size_t)INT32_MAX + 1) / 32) words = ((size_t)INT32_MAX + 1) / 32; /* LightGBM's categories are int32 */
    uint16_t *code_of = KEEP(m, words * 32, uint16_t);
    if (code_of == NULL) return no_room(m);
    for (size_t i = 0; i < count; i++) {
        const uint32_t *set = f->set_words + f->set_start[own[i]];
        for (size_t w = 0; w < (size_t)f->set_size[own[i]] && w < words; w++)
            for (uint32_t rest = set[w]; rest != 0; rest &= rest - 1) code_of[w * 32 + (size_t)__builtin_ctz(rest)] = 1;
    }
    for (size_t c = 0; c < words * 32; c++)
        if (code_of[c]) {
            if (next >= MOST_CODES) return PLAN_MANY_CODES;
            code_of[c] = (uint16_t)next++;
        } else {
            code_of[c] = UINT16_MAX;
        }
    for (size_t c = 0; c < words * 32; c++)
        if (code_of[c] == UINT16_MAX) code_of[c] = (uint16_t)next;
    codes->code_of = code_of;
    codes->n_categories = (uint32_t)(words * 32);
    codes->n_codes = next + 1;
    return PLAN_OK;
}

plan_refusal plan_number_codes(making *m) {
    const forest *f = m->from;
    size_t n_features = m->to->n_features;
    m->features = KEEP(m, n_features, feature_codes);
    m->feature_start = BORROW(m, n_features + 2, size_t);
    m->by_feature = BORROW(m, f->n_splits, uint32_t);
    uint32_t *used = KEEP(m, n_features, uint32_t);
    if (m->features == NULL || m->feature_start == NULL || m->by_feature == NULL || used == NULL) return no_room(m);
    m->to->features = m->features;
    m->to->used = used;
    /* Counting sort by feature. Counts are stored two places on; each becomes the start of its feature, then the end. */
    for (size_t i = 0; i < f->n_splits; i++) m->feature_start[f->feature[i] + 2]++;
    for (size_t i = 2; i < n_features + 2; i++) m->feature_start[i] += m->feature_start[i - 1];
    for (size_t i = 0; i < f->n_splits; i++) m->by_feature[m->feature_start[f->feature[i] + 1]++] = (uint32_t)i;
    for (uint32_t feature = 0; feature < n_features; feature++) {
        const uint32_t *own = m->by_feature + m->feature_start[feature];
        size_t count = m->feature_start[feature + 1] - m->feature_start[feature];
        if (count == 0) continue;
        used[m->to->n_used++] = feature;
        int category = f->decision[own[0]] & DECISION_CATEGORY;
        for (size_t i = 0; i < count; i++)
            if ((f->decision[own[i]] & DECISION_CATEGORY) != category) return PLAN_MIXED_FEATURE;
        plan_refusal refusal = category ? number_categories(m, m->features + feature, own, count)
                                        : number_cuts(m, m->features + feature, own, count);
        if (refusal != PLAN_OK) return refusal;
    }
    return PLAN_OK;
}

/* A growing list of columns. Its room doubles, so that all old copies together take no more memory than the last. */
typedef struct {
    column *items;
    size_t count, room;
} column_list;

static plan_refusal add_column(making *m, column_list *list, uint32_t feature, uint8_t **bytes) {
    if (list->count >= MOST_COLUMNS) return PLAN_MANY_COLUMNS;
    if (list->count == list->room) {
        size_t room = list->room ? 2 * list->room : 256;
        column *items = KEEP(m, room, column);
        if (items == NULL) return no_room(m);
        if (list->count) memcpy(items, list->items, list->count * sizeof *items);
        list->items = items;
        list->room = room;
    }
    if ((*bytes = KEEP(m, m->features[feature].n_codes, uint8_t)) == NULL) return no_room(m);
    list->items[list->count++] = (column){.feature = feature, .byte_of = *bytes};
    return PLAN_OK;
}

/* The columns of one feature and one rule, with the tests of its splits. */
static plan_refusal number_columns(making *m, column_list *list, uint32_t feature, int rule, uint32_t *below) {
    const forest *f = m->from;
    const feature_codes *codes = m->features + feature;
    size_t first = m->feature_start[feature], end = m->feature_start[feature + 1];
    uint32_t n_cuts = codes->n_cuts, n = 0, base = (uint32_t)list->count;
    int any = 0;
    /* below[c]: how many of this rule's thresholds are cuts before c. First each threshold is marked, then they are summed. */
    memset(below, 0, (n_cuts + 1) * sizeof *below);
    for (size_t i = first; i < end; i++)
        if (rule_of(f->decision[m->by_feature[i]]) == rule) {
            below[rank_of(codes->cuts, n_cuts, f->threshold[m->by_feature[i]] + 0.0)] = 1;
            any = 1;
        }
    if (!any) return PLAN_OK;
    for (uint32_t c = 0; c <= n_cuts; c++) {
        uint32_t is_own = below[c];
        below[c] = n;
        n += is_own;
    }
    uint32_t missing = rule_goes_left(rule) ? 0 : n;
    for (uint32_t page = 0; page < n; page += PAGE) {
        uint8_t *bytes;
        plan_refusal refusal = add_column(m, list, feature, &bytes);
        if (refusal != PLAN_OK) return refusal;
        for (uint32_t code = 0; code < codes->n_codes; code++) {
            uint32_t count;
            if (code > n_cuts) { /* NaN: a split without missing values reads it as zero, the others as missing */
                count = rule == 0 ? below[rank_of(codes->cuts, n_cuts, 0.0)] : missing;
            } else {
                int is_zero = code < n_cuts && fabs(codes->cuts[code]) <= ZERO_THRESHOLD;
                count = is_zero && rule_is_zero(rule) ? missing : below[code];
            }
            bytes[code] = (uint8_t)(count < page ? 0 : count - page > PAGE ? PAGE : count - page);
        }
    }
    for (size_t i = first; i < end; i++) {
        uint32_t at = m->by_feature[i];
        if (rule_of(f->decision[at]) != rule) continue;
        uint32_t index = below[rank_of(codes->cuts, n_cuts, f->threshold[at] + 0.0)];
        m->splits[at].column = (uint16_t)(base + index / PAGE);
        m->splits[at].bound = (uint8_t)(index % PAGE);
        m->splits[at].mask = WHOLE_BYTE;
    }
    return PLAN_OK;
}

/* Turn each category split whose right child is the deeper one: that of the higher level. */
static plan_refusal turn_categories(making *m) {
    uint8_t *level = BORROW(m, m->to->max_leaves, uint8_t);
    m->turned = BORROW(m, m->from->n_splits, uint8_t);
    if (level == NULL || m->turned == NULL) return no_room(m);
    for (uint32_t t = 0; t < m->to->n_trees; t++) {
        const size_t first = m->trees[t].first_split;
        for (uint32_t i = m->trees[t].n_leaves - 1; i-- > 0;) {
            int32_t *child = m->splits[first + i].child;
            const int left = child[0] < 0 ? 0 : level[child[0]], right = child[1] < 0 ? 0 : level[child[1]];
            level[i] = level_above(left, right);
            if (right <= left || !(m->from->decision[first + i] & DECISION_CATEGORY)) continue;
            const int32_t deeper = child[1];
            child[1] = child[0];
            child[0] = deeper;
            m->turned[first + i] = 1;
        }
    }
    return PLAN_OK;
}

/* The columns of a category feature: one bit for each set, 1 if the category goes to the second child. Equal sets share a bit. */
static plan_refusal set_columns(making *m, column_list *list, uint32_t feature) {
    const forest *f = m->from;
    const feature_codes *codes = m->features + feature;
    size_t first = m->feature_start[feature], count = m->feature_start[feature + 1] - first;
    size_t size = ((size_t)codes->n_codes + 7) / 8, places = 1, n_sets = 0;
    uint32_t base = (uint32_t)list->count;
    uint8_t *bytes = NULL;
    while (places < 2 * count) places *= 2;
    uint8_t *members = BORROW(m, count * size, uint8_t); /* per distinct set: one bit for each code in it */
    uint32_t *place = BORROW(m, places, uint32_t);       /* hash table of the sets: index + 1, or 0 */
    if (members == NULL || place == NULL) return no_room(m);
    for (size_t i = 0; i < count; i++) {
        uint32_t at = m->by_feature[first + i];
        const uint32_t *set = f->set_words + f->set_start[at];
        uint8_t *own = members + n_sets * size;
        uint64_t hash = 14695981039346656037u; /* FNV-1a */
        memset(own, 0, size);
        for (size_t w = 0; w < (size_t)f->set_size[at] && w < codes->n_categories / 32; w++)
            for (uint32_t rest = set[w]; rest != 0; rest &= rest - 1) {
                uint16_t code = codes->code_of[w * 32 + (size_t)__builtin_ctz(rest)];
                own[code / 8] |= (uint8_t)(1 << code % 8);
            }
        if (m->turned[at]) {
            for (size_t b = 0; b < size; b++) own[b] ^= 0xFF;
            if (codes->n_codes % 8 != 0) own[size - 1] &= (uint8_t)((1 << codes->n_codes % 8) - 1);
        }
        for (size_t b = 0; b < size; b++) hash = (hash ^ own[b]) * 1099511628211u;
        size_t at_place = (size_t)(hash ^ hash >> 32) & (places - 1);
        while (place[at_place] && memcmp(members + (place[at_place] - 1) * size, own, size) != 0)
            at_place = (at_place + 1) & (places - 1);
        if (!place[at_place]) {
            if (n_sets % SETS_A_COLUMN == 0) {
                plan_refusal refusal = add_column(m, list, feature, &bytes);
                if (refusal != PLAN_OK) return refusal;
            }
            for (uint32_t code = 0; code < codes->n_codes; code++)
                if (!(own[code / 8] >> code % 8 & 1)) bytes[code] |= (uint8_t)(1 << n_sets % SETS_A_COLUMN);
            place[at_place] = (uint32_t)++n_sets;
        }
        uint32_t index = place[at_place] - 1;
        m->splits[at].column = (uint16_t)(base + index / SETS_A_COLUMN);
        m->splits[at].mask = (uint8_t)(1 << index % SETS_A_COLUMN);
        m->splits[at].bound = (uint8_t)(m->splits[at].mask - 1);
    }
    return PLAN_OK;
}

/*
 * A feature is plain if its code, cut off at each column's share, is the byte of that column: one rule, under which each cut is a
 * threshold and zero a number like any other. NaN then goes where zero goes, or left or right of all thresholds, and needs no
 * code of its own.
 */
static void find_plain(const making *m, uint32_t feature) {
    feature_codes *codes = m->features + feature;
    const size_t first = m->feature_start[feature], end = m->feature_start[feature + 1];
    const int rule = rule_of(m->from->decision[m->by_feature[first]]);
    if (rule_is_zero(rule) || codes->n_cuts > 2 * PAGE) return;
    for (size_t i = first; i < end; i++)
        if (rule_of(m->from->decision[m->by_feature[i]]) != rule) return;
    codes->nan_as = rule == 0 ? 0.0 : rule_goes_left(rule) ? -INFINITY : INFINITY;
    codes->is_plain = rule == 0 || rule_goes_left(rule) || codes->cuts[codes->n_cuts - 1] < INFINITY;
    if (!codes->is_plain) return;
    codes->nan_code = rank_of(codes->cuts, codes->n_cuts, codes->nan_as);
    codes->n_codes = codes->n_cuts + 1;
}

plan_refusal plan_make_columns(making *m) {
    column_list list = {0};
    uint32_t *below = BORROW(m, MOST_CODES + 1, uint32_t);
    if (below == NULL) return no_room(m);
    plan_refusal turning = turn_categories(m);
    if (turning != PLAN_OK) return turning;
    for (uint32_t i = 0; i < m->to->n_used; i++) {
        uint32_t feature = m->to->used[i];
        if (m->features[feature].is_category) {
            plan_refusal refusal = set_columns(m, &list, feature);
            if (refusal != PLAN_OK) return refusal;
        } else {
            find_plain(m, feature);
            for (int rule = 0; rule < RULES; rule++) {
                plan_refusal refusal = number_columns(m, &list, feature, rule, below);
                if (refusal != PLAN_OK) return refusal;
            }
        }
    }
    m->to->columns = list.items;
    m->to->n_columns = (uint32_t)list.count;
    return PLAN_OK;
}
