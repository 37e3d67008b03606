/* Makes the tables for the contributions; shap_body.h has the mathematics. */
#include <math.h>

#include "plan_parts.h"

#define MOST_NODES 512 /* quadrature nodes; enough for 1,024 different features on one path */

/*
 * Nodes and weights of Gauss-Legendre quadrature on (0, 1), exact for polynomials up to degree 2n - 1. Finds the roots of the
 * Legendre polynomial by Newton's method and its three-term recurrence (Press et al., Numerical Recipes, 4.6).
 */
static void gauss_legendre(uint32_t n, double *node, double *weight) {
    const double pi = 3.14159265358979323846;
    for (uint32_t i = 0; i < n; i++) {
        double x = cos(pi * (i + 0.75) / (n + 0.5)), slope = 1.0;
        for (int turn = 0; turn < 100; turn++) {
            double before = 0.0, value = 1.0;
            for (uint32_t k = 1; k <= n; k++) {
                double next = ((2.0 * k - 1.0) * x * value - (k - 1.0) * before) / k;
                before = value;
                value = next;
            }
            slope = n * (x * value - before) / (x * x - 1.0);
            double step = value / slope;
            x -= step;
            if (fabs(step) < 1e-15) break;
        }
        node[i] = 0.5 * (1.0 - x);
        weight[i] = 1.0 / ((1.0 - x * x) * slope * slope);
    }
}

/* The mean raw score of each output over the training rows, summed in the order of LightGBM's Tree::ExpectedValue. */
static void expect(const plan *p, const forest *f, double *expected) {
    for (uint32_t t = 0; t < p->n_trees; t++) {
        const tree *own = p->trees + t;
        double mean = 0.0;
        if (own->n_leaves == 1) {
            mean = p->leaf_value[own->first_leaf];
        } else {
            double total = f->split_count[own->first_split];
            for (uint32_t l = 0; l < own->n_leaves; l++)
                mean += f->leaf_count[own->first_leaf + l] / total * p->leaf_value[own->first_leaf + l];
        }
        expected[t % p->n_outputs] += mean;
    }
}

/* What is known of an edge while the paths of its tree are followed. */
typedef struct {
    uint32_t from;     /* the split where it begins */
    uint32_t distinct; /* different features on the path down to it */
    double share;      /* as in shap_split; 1 of edge 0, which stands for "none" */
} path_edge;

/*
 * Fill *own*, the splits of one tree, depth first from the root: `last[feature]` is the nearest edge above with that feature.
 * Returns the largest number of different features on a path.
 */
static uint32_t follow_paths(making *m, const tree *t, shap_split *own, path_edge *edges, uint32_t *last, int32_t *stack) {
    const forest *f = m->from;
    const uint32_t n_splits = t->n_leaves - 1;
    uint32_t most = 0;
    size_t depth = 0;
    edges[0] = (path_edge){.share = 1.0};
    stack[depth++] = 0;
    while (depth > 0) {
        const int32_t at = stack[--depth];
        if (at < 0) { /* all edges below edge ~at are done */
            const shap_split *from = own + edges[~at].from;
            last[from->feature] = from->prior;
            continue;
        }
        if (at > 0) {
            last[own[edges[at].from].feature] = (uint32_t)at;
            stack[depth++] = ~at;
        }
        if ((uint32_t)at >= n_splits) continue;
        const size_t number = t->first_split + (size_t)at;
        shap_split *s = own + at;
        s->feature = (uint32_t)f->feature[number];
        s->prior = last[s->feature];
        for (int side = 0; side < 2; side++) {
            const int32_t child = m->splits[number].child[side];
            const uint32_t to = child < 0 ? n_splits + (uint32_t)~child : (uint32_t)child;
            const double count = child < 0 ? f->leaf_count[t->first_leaf + (size_t)~child] : f->split_count[t->first_split + (size_t)child];
            const double share = count / f->split_count[number] * edges[s->prior].share;
            s->child[side] = to;
            s->share[side] = share;
            s->inverse_share[side] = 1.0 / share;
            edges[to] = (path_edge){(uint32_t)at, edges[at].distinct + (s->prior == 0), share};
            if (edges[to].distinct > most) most = edges[to].distinct;
            stack[depth++] = (int32_t)to;
        }
    }
    return most;
}

plan_refusal plan_make_shap(making *m, uint32_t lanes) {
    const forest *f = m->from;
    plan *p = m->to;
    size_t room = 2 * (size_t)p->max_leaves;
    uint32_t most = 0;
    if (f->split_count == NULL || f->leaf_count == NULL) return PLAN_OK;
    for (size_t i = 0; i < f->n_splits; i++)
        if (!(f->split_count[i] > 0.0)) return PLAN_OK;
    for (uint32_t t = 0; t < p->n_trees; t++) /* without training rows a leaf has the share 0, and factors could be 0 */
        for (uint32_t l = 0; l < p->trees[t].n_leaves && p->trees[t].n_leaves > 1; l++)
            if (!(f->leaf_count[p->trees[t].first_leaf + l] > 0.0)) return PLAN_OK;
    shap_split *splits = KEEP(m, f->n_splits, shap_split);
    double *expected = KEEP(m, p->n_outputs, double);
    uint32_t *last = BORROW(m, p->n_features, uint32_t);
    path_edge *edges = BORROW(m, room, path_edge);
    int32_t *stack = BORROW(m, 2 * room, int32_t);
    if (splits == NULL || expected == NULL || last == NULL || edges == NULL || stack == NULL) return no_room(m);
    for (uint32_t t = 0; t < p->n_trees; t++)
        if (p->trees[t].n_leaves > 1) {
            const uint32_t found = follow_paths(m, p->trees + t, splits + p->trees[t].first_split, edges, last, stack);
            if (found > most) most = found;
        }
    /* The integrand has a factor for each feature of the path but one, so its degree is most - 1: n nodes suffice. */
    uint32_t n = (most + 1) / 2;
    n = (n > 0 ? n + lanes - 1 : lanes) / lanes * lanes;
    if (n > MOST_NODES) return PLAN_OK; /* LightGBM computes the contributions */
    double *node = KEEP(m, n, double), *weight = KEEP(m, n, double);
    if (node == NULL || weight == NULL) return no_room(m);
    gauss_legendre(n, node, weight);
    expect(p, f, expected);
    p->shap_splits = splits;
    p->expected = expected;
    p->node = node;
    p->node_weight = weight;
    p->n_nodes = n;
    p->has_contributions = 1;
    return PLAN_OK;
}
