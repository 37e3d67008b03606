/*
 * Contributions: exact SHAP values of the path-dependent kind, which are LightGBM's (Lundberg et al., Nature Machine
 * Intelligence 2, 2020), without its recursion over subsets.
 *
 * Follow the path to one leaf. For each feature j on it let o_j be 1 where the row passes all of j's splits and 0 where it
 * does not, and z_j the share of training rows that pass them. The leaf's value goes to feature j with the weight
 *
 *     (o_j - z_j) * integral over u from 0 to 1 of  product over i != j of (z_i + u (o_i - z_i))  du,
 *
 * because the integral of u^a (1 - u)^b is the Shapley weight a! b! / (a + b + 1)!. The integrand is a polynomial, so
 * Gauss-Legendre quadrature with half as many nodes as the path has features is exact. Each lane of a vector is one node.
 *
 * All leaves share one pass down and one up. Down: G(edge), the product of the path's factors so far; an edge whose feature
 * was seen above divides the earlier factor out. Up: H(edge), the sum over the leaves below of value * G. A leaf's factor for
 * feature j is the one at its last edge of j, so with r = (o - z) / (z + u (o - z)) each edge adds H * (r - r of the edge
 * above with the same feature) to its feature. (Compare Yu et al., Linear TreeShap, NeurIPS 2022.)
 */

typedef double doubles __attribute__((vector_size(BYTES), may_alias));
typedef int64_t lane_masks __attribute__((vector_size(BYTES), may_alias));

INLINE doubles doubles_all(double x) { return (doubles){0} + x; }

/* One tree, LANES nodes of the quadrature: adds to *shares*, [feature], one vector each. */
INLINE void tree_contributions(const plan *p, const tree *t, uint32_t first_node, const uint8_t *passes, doubles *product,
                               doubles *factor_inverse, doubles *ratio, doubles *shares) {
    const uint32_t n_splits = t->n_leaves - 1, n = n_splits + t->n_leaves;
    const edge *edges = p->edges + t->first_edge;
    const split *splits = p->splits + t->first_split;
    const double *value = p->leaf_value + t->first_leaf;
    const doubles *inverses = (const doubles *)(p->edge_inverse + (size_t)first_node * p->n_edges + t->first_edge * LANES);
    const doubles u = *(const doubles *)(p->node + first_node), rest = 1.0 - u, rest_inverse = 1.0 / rest;
    product[0] = *(const doubles *)(p->node_weight + first_node);
    factor_inverse[0] = doubles_all(1.0);
    ratio[0] = doubles_all(0.0);
    for (uint32_t e = 1; e < n; e++) {
        const edge *own = edges + e;
        const double on = passes[e];
        const lane_masks mask = (lane_masks){0} - (int64_t)passes[e];
        const doubles if_off = rest_inverse * own->share_inverse;
        const doubles inverse = (doubles)(((lane_masks)inverses[e] & mask) | ((lane_masks)if_off & ~mask));
        const doubles own_ratio = (on - own->share) * inverse;
        product[e] = product[own->parent] * (own->share * rest + on * u) * factor_inverse[own->prior];
        factor_inverse[e] = inverse;
        ratio[e] = own_ratio;
        if (e >= n_splits) {
            product[e] *= value[e - n_splits];
            shares[own->feature] += product[e] * (own_ratio - ratio[own->prior]);
        }
    }
    for (uint32_t e = n_splits; e-- > 1;) {
        const int32_t left = splits[e].child[0], right = splits[e].child[1];
        product[e] = product[left < 0 ? n_splits + (uint32_t)~left : (uint32_t)left]
                     + product[right < 0 ? n_splits + (uint32_t)~right : (uint32_t)right];
        shares[edges[e].feature] += product[e] * (ratio[e] - ratio[edges[e].prior]);
    }
}

/* Whether the row passes each edge and those above it with the same feature. Edge 0 stands for "none above". */
INLINE void find_passes(const plan *p, const tree *t, const uint8_t *bytes_of_row, uint8_t *left, uint8_t *passes) {
    const uint32_t n_splits = t->n_leaves - 1, n = n_splits + t->n_leaves;
    const split *splits = p->splits + t->first_split;
    const edge *edges = p->edges + t->first_edge;
    for (uint32_t i = 0; i < n_splits; i++) left[i] = (bytes_of_row[splits[i].column] & splits[i].mask) <= splits[i].bound;
    passes[0] = 1;
    for (uint32_t e = 1; e < n; e++) passes[e] = (left[edges[e].parent] == edges[e].is_left) & passes[edges[e].prior];
}

static int level_contributions(const plan *p, const double *rows, size_t n, double *out) {
    const size_t most = 2 * (size_t)p->max_leaves, vectors = 3 * most + p->n_features;
    void *memory;
    if (posix_memalign(&memory, 64, vectors * sizeof(doubles) + 2 * most + p->n_columns) != 0) return -1;
    doubles *product = memory, *factor_inverse = product + most, *ratio = factor_inverse + most, *shares = ratio + most;
    uint8_t *left = (uint8_t *)(shares + p->n_features), *passes = left + most, *bytes_of_row = passes + most;
    for (size_t r = 0; r < n; r++) {
        row_bytes(p, rows + r * p->n_features, bytes_of_row);
        for (uint32_t k = 0; k < p->n_outputs; k++, out += p->n_features + 1) {
            for (uint32_t f = 0; f < p->n_features; f++) shares[f] = doubles_all(0.0);
            for (uint32_t t = k; t < p->n_trees; t += p->n_outputs) {
                if (p->trees[t].n_leaves == 1) continue; /* it only moves the expected score */
                find_passes(p, p->trees + t, bytes_of_row, left, passes);
                for (uint32_t node = 0; node < p->n_nodes; node += LANES)
                    tree_contributions(p, p->trees + t, node, passes, product, factor_inverse, ratio, shares);
            }
            for (uint32_t f = 0; f < p->n_features; f++) {
                double sum = 0.0;
                for (int lane = 0; lane < LANES; lane++) sum += shares[f][lane];
                out[f] = sum;
            }
            out[p->n_features] = p->expected[k];
        }
    }
    free(memory);
    return 0;
}
