/* Batches: the leaves of all trees for a tile of rows, by the programs of plan_chains.c, and the sums of their values. */

#define FEW_SUMS 16 /* of so few rows the leaves are read one by one */
#define ANY_LENGTH UINT32_MAX
#define WIDE 8 /* vectors of leaf numbers that a chain keeps in registers */

/* One step of a chain over *wide* vectors of rows, from *row* on. `deep`: the operand may be a slot. */
INLINE void take_step(const chain_step *s, const uint8_t *columns, const uint8_t *numbers, uint32_t tile, size_t row, uint32_t wide, int deep,
                      int has_sets, bytes *leaf) {
    const bytes limit = limit_of(s->bound), mask = bytes_all(s->mask), number = bytes_all((uint8_t)s->other);
    const bytes *column = (const bytes *)(columns + (size_t)s->column * tile + row);
    /* A slot has a vector for each of the tile's, a leaf number the same for all: a stride of 0, and no branch. */
    const uint32_t is_slot = s->other >= UNIT_LEAVES;
    const size_t slot = (size_t)(s->other - UNIT_LEAVES) & -(size_t)is_slot, stride = BYTES & -(size_t)is_slot;
    const uint8_t *other = numbers + (s->other - slot) * BYTES + slot * tile + (row & -(size_t)is_slot);
#pragma GCC unroll 8
    for (uint32_t v = 0; v < wide; v++) {
        bytes byte = column[v];
        if (has_sets) byte &= mask;
        leaf[v] = choose_above(byte, limit, deep ? *(const bytes *)(other + v * stride) : number, leaf[v]);
    }
}

/*
 * Run *count* chains over a tile. `numbers` has a vector of each leaf number, then the slots; `deep`: slots may be operands;
 * *length*: the steps of every one; or ANY_LENGTH, then they are long ones, which have an even number of steps.
 */
INLINE void run_chains(const chain *chains, uint32_t count, const chain_step *steps, const uint8_t *columns, uint8_t *numbers,
                       uint32_t tile, int deep, int has_sets, uint32_t length) {
    enum { AT_A_TIME = WIDE * BYTES };
    const uint32_t wide = tile < AT_A_TIME ? tile / BYTES : WIDE;
    uint8_t *slots = numbers + UNIT_LEAVES * BYTES;
    for (uint32_t c = 0; c < count; c++) {
        const chain own = chains[c];
        const uint32_t n_steps = length == ANY_LENGTH ? own.n_steps : length;
        for (size_t row = 0; row < tile; row += AT_A_TIME) {
            bytes leaf[WIDE];
            for (uint32_t v = 0; v < wide; v++) leaf[v] = bytes_all(own.start);
            if (length == ANY_LENGTH) {
                for (uint32_t first = 0; first < n_steps; first += 2)
#pragma GCC unroll 2
                    for (uint32_t i = first; i < first + 2; i++) take_step(steps + i, columns, numbers, tile, row, wide, deep, has_sets, leaf);
            } else {
                for (uint32_t i = 0; i < length; i++) take_step(steps + i, columns, numbers, tile, row, wide, deep, has_sets, leaf);
            }
            bytes *out = (bytes *)(slots + (size_t)own.out * tile + row);
            for (uint32_t v = 0; v < wide; v++) out[v] = leaf[v];
        }
        steps += n_steps;
    }
}

INLINE void run_unit(const plan *p, const blend_unit *u, const uint8_t *columns, uint8_t *numbers, uint32_t tile, int has_sets) {
    const chain *chains = p->chains + u->first_chain;
    const chain_step *steps = p->steps + u->first_step;
    uint32_t done = 0;
#pragma GCC unroll 4
    for (uint32_t length = 0; length < SHORT_CHAIN; length++) { /* without loops, whose ends would have to be guessed */
        run_chains(chains + done, u->n_short[length], steps, columns, numbers, tile, 0, has_sets, length);
        done += u->n_short[length];
        steps += u->n_short[length] * length;
    }
    run_chains(chains + done, u->n_flat - done, steps, columns, numbers, tile, 0, has_sets, ANY_LENGTH);
    steps = p->steps + u->first_step + u->n_flat_steps;
    run_chains(chains + u->n_flat, u->n_chains - u->n_flat, steps, columns, numbers, tile, 1, has_sets, ANY_LENGTH);
}

/* Each row's sum grows by the values of its leaves in *count* trees, in the order of the model. */
INLINE void add_leaves(const double *values, uint32_t count, uint32_t n, const uint8_t *leaves, uint32_t tile, double *sums) {
    __asm__("" : "+r"(values)); /* one address in a register, not two to be added for each leaf */
    for (double *sum = sums; sum < sums + n; sum++, leaves++) {
        double own = *sum;
#pragma GCC unroll 8
        for (size_t g = 0; g < count; g++) own += values[leaves[g * tile]];
        *sum = own;
    }
}

/* The same where the level can look leaves up. Each block of BYTES rows has its sums in the order of `sum_of_row`. */
INLINE void look_up_leaves(const plan *p, const blend_unit *u, uint32_t n, const uint8_t *leaves, uint32_t tile, double *sums) {
    const uint32_t *halves = p->value_halves + 2 * u->first_value;
    for (uint32_t row = 0; row < n; row += BYTES) {
        if (p->leaf_room == 32) add_looked_up(halves, 32, u->n_trees, leaves + row, tile, sums + row);
        else add_looked_up(halves, 64, u->n_trees, leaves + row, tile, sums + row);
    }
}

/* The complements of the columns, after the columns. */
INLINE void complement_columns(const plan *p, uint8_t *columns, uint32_t tile) {
    const bytes most = bytes_all(MOST_OF_BYTE);
    bytes *out = (bytes *)(columns + (size_t)p->n_columns * tile);
    for (uint32_t c = 0; c < p->n_complements; c++) {
        const bytes *column = (const bytes *)(columns + (size_t)p->complements[c] * tile);
        for (uint32_t v = 0; v < tile / BYTES; v++) *out++ = subtract_bytes(most, column[v]);
    }
}

/* At most *tile* rows. `work` is a vector of each leaf number, the slots, the columns, and their complements. */
INLINE void tile_rows(const plan *p, const double *rows, uint32_t n, uint32_t tile, uint8_t *work, double *scores, int32_t *leaves) {
    uint8_t *slots = work + UNIT_LEAVES * BYTES, *columns = slots + (size_t)p->n_slots * tile;
    const int looks_up = LOOKS_UP && p->leaf_room > 0 && n > FEW_SUMS;
    double sums[LARGE_TILE] __attribute__((aligned(BYTES)));
    tile_bytes(p, rows, n, tile, columns);
    complement_columns(p, columns, tile);
    for (const blend_unit *u = p->units; u < p->units + p->n_units; u++) {
        const uint32_t k = u->first_tree % p->n_outputs, next = u->first_tree + u->n_trees * p->n_outputs;
        const double *values = p->unit_values + u->first_value;
        if (u->has_sets) run_unit(p, u, columns, work, tile, 1);
        else run_unit(p, u, columns, work, tile, 0);
        if (leaves != NULL) {
            for (uint32_t g = 0; g < u->n_trees; g++) {
                int32_t *own = leaves + u->first_tree + g * p->n_outputs;
                for (uint32_t r = 0; r < n; r++) own[(size_t)r * p->n_trees] = slots[g * tile + r] - u->first_leaf[g];
            }
            continue;
        }
        if (u->first_tree == k) memset(sums, 0, tile * sizeof *sums);
        if (looks_up) look_up_leaves(p, u, n, slots, tile, sums);
        else switch (u->n_trees) {
        case UNIT_TREES: add_leaves(values, UNIT_TREES, n, slots, tile, sums); break;
        case 4: add_leaves(values, 4, n, slots, tile, sums); break;
        case 1: add_leaves(values, 1, n, slots, tile, sums); break;
        default: add_leaves(values, u->n_trees, n, slots, tile, sums);
        }
        if (next >= p->n_trees)
            for (uint32_t r = 0; r < n; r++) scores[(size_t)r * p->n_outputs + k] = sums[looks_up ? sum_of_row(r) : r];
    }
}
