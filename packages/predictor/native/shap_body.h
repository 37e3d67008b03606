/*
 * Contributions: exact path-dependent SHAP values, as LightGBM computes them (Lundberg et al., Nature Machine Intelligence 2,
 * 2020), but without its recursion over subsets.
 *
 * Take the path to one leaf. For each feature j on it, let o_j be 1 if the row passes all splits on j and 0 if not, and z_j
 * the share of training rows that pass them. The leaf's value is added to feature j with the weight
 *
 *     (o_j - z_j) * integral over u from 0 to 1 of  product over i != j of (z_i + u (o_i - z_i))  du,
 *
 * because the integral of u^a (1 - u)^b is the Shapley weight a! b! / (a + b + 1)!. The integrand is a polynomial, so
 * Gauss-Legendre quadrature with half as many nodes as the path has features is exact. Each lane of a vector is one node.
 *
 * One pass down and one pass up serve all leaves. Down: G(edge) is the product of the factors on the path so far; an edge
 * whose feature occurred above divides by the earlier factor. Up: H(edge) is the sum of value * G over the leaves below. A
 * leaf's factor for feature j is that of its last edge on j. So with r = (o - z) / (z + u (o - z)), each edge adds
 * H * (r - r of the edge above with the same feature) to its feature. (Compare Yu et al., Linear TreeShap, NeurIPS 2022.)
 *
 * Of a split's two children the row goes to the hot one, and never to the cold one (the names that LightGBM and SHAP use). The
 * cold edge has o = 0, so its factor is z (1 - u) and r = -1 / (1 - u): only the hot edge needs a division.
 */

/*
 * Adds one tree's contributions to *shares* [feature][2], for *wide* (1 or 2) vectors of nodes. With two vectors each split is
 * read once for both, and the processor computes one while the other waits for its parent's product. *hot* has the side of
 * each split's hot child; *passes* is o of each edge.
 */
INLINE void tree_contributions(const plan *p, const tree *t, uint32_t first_node, const uint8_t *hot, const uint8_t *passes,
                               doubles *product, doubles *factor_inverse, doubles *ratio, doubles *shares, uint32_t wide) {
    const uint32_t n_splits = t->n_leaves - 1;
    const shap_split *splits = p->shap_splits + t->first_split;
    const double *value = p->leaf_value + t->first_leaf;
    doubles u[2], rest[2], rest_inverse[2];
    for (uint32_t v = 0; v < wide; v++) {
        const uint32_t node = first_node + v * LANES;
        u[v] = *(const doubles *)(p->node + node);
        rest[v] = 1.0 - u[v];
        rest_inverse[v] = 1.0 / rest[v];
        product[v] = *(const doubles *)(p->node_weight + node);
        factor_inverse[v] = doubles_all(1.0);
        ratio[v] = doubles_all(0.0);
    }
    for (uint32_t i = 0; i < n_splits; i++) {
        const shap_split *s = splits + i;
        const uint32_t side = hot[i], to_hot = s->child[side] * wide, to_cold = s->child[!side] * wide, prior = s->prior * wide;
        const double on = passes[s->prior], share = s->share[side], cold_share = s->share[!side], cold_inverse = s->inverse_share[!side];
        for (uint32_t v = 0; v < wide; v++) {
            const doubles above = product[i * wide + v] * factor_inverse[prior + v];
            const doubles factor = share * rest[v] + on * u[v], inverse = reciprocal(factor);
            product[to_hot + v] = above * factor;
            factor_inverse[to_hot + v] = inverse;
            ratio[to_hot + v] = (on - share) * inverse;
            product[to_cold + v] = above * (cold_share * rest[v]);
            factor_inverse[to_cold + v] = cold_inverse * rest_inverse[v];
            ratio[to_cold + v] = -rest_inverse[v];
        }
    }
    for (uint32_t l = 0; l < t->n_leaves; l++)
        for (uint32_t v = 0; v < wide; v++) product[(n_splits + l) * wide + v] *= value[l];
    for (uint32_t i = n_splits; i-- > 0;) {
        const shap_split *s = splits + i;
        const uint32_t left = s->child[0] * wide, right = s->child[1] * wide, prior = s->prior * wide;
        for (uint32_t v = 0; v < wide; v++) {
            const doubles sum = product[left + v] + product[right + v];
            product[i * wide + v] = sum;
            shares[s->feature * 2 + v] +=
                product[left + v] * ratio[left + v] + product[right + v] * ratio[right + v] - sum * ratio[prior + v];
        }
    }
}

/* The side of each split's hot child; and for each edge, whether the row passes it and all edges above it with the same feature. */
INLINE void find_passes(const plan *p, const tree *t, const uint8_t *bytes_of_row, uint8_t *hot, uint8_t *passes) {
    const split *splits = p->splits + t->first_split;
    const shap_split *edges_of = p->shap_splits + t->first_split;
    passes[0] = 1;
    for (uint32_t i = 0; i < t->n_leaves - 1; i++) {
        const shap_split *s = edges_of + i;
        hot[i] = (bytes_of_row[splits[i].column] & splits[i].mask) > splits[i].bound;
        passes[s->child[hot[i]]] = passes[s->prior];
        passes[s->child[!hot[i]]] = 0;
    }
}

/* Rows per tile, for which each tree's splits are read from memory once. Few, because each row has a sum per feature. */
#define SHAP_ROWS 8

static int level_contributions(const plan *p, const double *rows, size_t n, double *out) {
    const size_t most = 2 * (size_t)p->max_leaves, per_row = (size_t)p->n_outputs * (p->n_features + 1);
    const size_t own_shares = 2 * (size_t)p->n_features, vectors = 6 * most + SHAP_ROWS * own_shares;
    void *memory;
    if (posix_memalign(&memory, 64, vectors * sizeof(doubles) + 2 * most + SHAP_ROWS * (size_t)p->n_columns) != 0) return -1;
    doubles *product = memory, *factor_inverse = product + 2 * most, *ratio = factor_inverse + 2 * most, *shares = ratio + 2 * most;
    uint8_t *hot = (uint8_t *)(shares + SHAP_ROWS * own_shares), *passes = hot + most, *tile_bytes_of = passes + most;
    for (size_t first = 0; first < n; first += SHAP_ROWS) {
        const size_t count = n - first < SHAP_ROWS ? n - first : SHAP_ROWS;
        for (size_t r = 0; r < count; r++) row_bytes(p, rows + (first + r) * p->n_features, tile_bytes_of + r * p->n_columns);
        for (uint32_t k = 0; k < p->n_outputs; k++) {
            for (size_t i = 0; i < count * own_shares; i++) shares[i] = doubles_all(0.0);
            for (uint32_t t = k; t < p->n_trees; t += p->n_outputs) {
                if (p->trees[t].n_leaves == 1) continue; /* it contributes to the expected score only */
                for (size_t r = 0; r < count; r++) {
                    doubles *own = shares + r * own_shares;
                    find_passes(p, p->trees + t, tile_bytes_of + r * p->n_columns, hot, passes);
                    uint32_t node = 0;
                    for (; node + 2 * LANES <= p->n_nodes; node += 2 * LANES)
                        tree_contributions(p, p->trees + t, node, hot, passes, product, factor_inverse, ratio, own, 2);
                    if (node < p->n_nodes)
                        tree_contributions(p, p->trees + t, node, hot, passes, product, factor_inverse, ratio, own, 1);
                }
            }
            for (size_t r = 0; r < count; r++) {
                double *answer = out + (first + r) * per_row + (size_t)k * (p->n_features + 1);
                for (uint32_t f = 0; f < p->n_features; f++) {
                    double sum = 0.0;
                    for (uint32_t v = 0; v < 2; v++)
                        for (int lane = 0; lane < LANES; lane++) sum += shares[r * own_shares + 2 * f + v][lane];
                    answer[f] = sum;
                }
                answer[p->n_features] = p->expected[k];
            }
        }
    }
    free(memory);
    return 0;
}
