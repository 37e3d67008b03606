/* The output transforms, from raw scores to the objective's outputs: LightGBM's formulas and order, with libm's exp. */
#ifndef PREDICTOR_FINISH_H
#define PREDICTOR_FINISH_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

/* _engine.py uses the same numbers. */
typedef enum { FINISH_NONE, FINISH_EXP, FINISH_SIGMOID, FINISH_SOFTMAX, FINISH_LOG1P_EXP, FINISH_SIGNED_SQUARE, FINISH_KINDS } finish_kind;

/* Transform *scores* [n][n_outputs] in place. *scale* is the objective's sigmoid parameter. */
static inline void finish_scores(finish_kind kind, double scale, double *scores, size_t n, uint32_t n_outputs) {
    size_t all = n * n_outputs;
    switch (kind) {
    case FINISH_EXP:
        for (size_t i = 0; i < all; i++) scores[i] = exp(scores[i]);
        break;
    case FINISH_SIGMOID:
        for (size_t i = 0; i < all; i++) scores[i] = 1.0 / (1.0 + exp(-scale * scores[i]));
        break;
    case FINISH_LOG1P_EXP:
        for (size_t i = 0; i < all; i++) scores[i] = log1p(exp(scores[i]));
        break;
    case FINISH_SIGNED_SQUARE:
        for (size_t i = 0; i < all; i++) scores[i] = ((scores[i] > 0) - (scores[i] < 0)) * scores[i] * scores[i];
        break;
    case FINISH_SOFTMAX:
        for (double *row = scores; row < scores + all; row += n_outputs) {
            double most = row[0], sum = 0.0;
            uint32_t at = 0;
            for (uint32_t k = 1; k < n_outputs; k++) {
                at = row[k] > most ? k : at;
                most = row[k] > most ? row[k] : most;
            }
            /* The largest one's is exp(0), which is 1 (C11, F.10.3.1); but infinity less itself is NaN. No branch depends on
               where it is. */
            const double at_most = most - most == 0.0 ? 1.0 : exp(most - most);
            for (uint32_t j = 0; j + 1 < n_outputs; j++) {
                const uint32_t k = j + (j >= at);
                row[k] = exp(row[k] - most);
            }
            row[at] = at_most;
            for (uint32_t k = 0; k < n_outputs; k++) sum += row[k];
            for (uint32_t k = 0; k < n_outputs; k++) row[k] /= sum;
        }
        break;
    default:
        break;
    }
}

#endif
