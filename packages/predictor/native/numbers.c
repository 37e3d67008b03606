#include "numbers.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0
#error "the compiler must round each float64 product once: use SSE2, not x87"
#endif

typedef unsigned __int128 uint128;

static inline int is_digit(char c) { return (unsigned char)(c - '0') <= 9; }

const char *number_end(const char *at, const char *end) {
    if (at < end && *at == '-') at++;
    if (at == end) return NULL;
    if (*at == 'i') return end - at >= 3 && at[1] == 'n' && at[2] == 'f' ? at + 3 : NULL;
    if (!is_digit(*at)) return NULL;
    if (*at == '0' && at + 1 < end && is_digit(at[1])) return NULL;
    while (at < end && is_digit(*at)) at++;
    if (at < end && *at == '.') {
        if (++at == end || !is_digit(*at)) return NULL;
        while (at < end && is_digit(*at)) at++;
    }
    if (at < end && *at == 'e') {
        if (++at < end && (*at == '-' || *at == '+')) at++;
        if (at == end || !is_digit(*at)) return NULL;
        while (at < end && is_digit(*at)) at++;
    }
    return at;
}

PyObject *numbers_are_floats(PyObject *module, PyObject *text) {
    char *at;
    Py_ssize_t size;
    (void)module;
    if (PyBytes_AsStringAndSize(text, &at, &size) < 0) return NULL;
    const char *next = at, *end = at + size;
    for (;;) {
        if ((next = number_end(next, end)) == NULL) Py_RETURN_FALSE;
        if (next == end) Py_RETURN_TRUE;
        if (*next++ != ' ') Py_RETURN_FALSE;
    }
}

#define MOST_FIVES 27 /* 5^27 is the largest power of 5 below 2^63 */

static const uint64_t fives[MOST_FIVES + 1] = {
    1u, 5u, 25u, 125u, 625u, 3125u, 15625u, 78125u, 390625u, 1953125u, 9765625u, 48828125u, 244140625u, 1220703125u,
    6103515625u, 30517578125u, 152587890625u, 762939453125u, 3814697265625u, 19073486328125u, 95367431640625u, 476837158203125u,
    2384185791015625u, 11920928955078125u, 59604644775390625u, 298023223876953125u, 1490116119384765625u, 7450580596923828125u,
};

static int high_bit(uint128 value) { /* value > 0 */
    uint64_t high = (uint64_t)(value >> 64);
    return high ? 127 - __builtin_clzll(high) : 63 - __builtin_clzll((uint64_t)value);
}

/*
 * digits * 10^exponent, rounded to nearest even; digits > 0, |exponent| <= MOST_FIVES.
 *
 * Exact: 10^e = 5^e * 2^e. The product with a power of five has at most 127 bits. A quotient has at least 64 bits, and it is
 * known whether there is a remainder. The power of two does not round in this range.
 */
static double scaled(uint64_t digits, int exponent) {
    if (digits < (1ULL << 53) && exponent >= -22 && exponent <= 22) { /* float64 holds digits and the power exactly */
        static const double tens[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                      1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
        return exponent < 0 ? (double)digits / tens[-exponent] : (double)digits * tens[exponent];
    }
    uint128 value;
    int twos = exponent, left_over = 0;
    if (exponent >= 0) {
        value = (uint128)digits * fives[exponent];
    } else {
        int shift = 64 + __builtin_clzll(digits);
        uint128 numerator = (uint128)digits << shift;
        value = numerator / fives[-exponent];
        left_over = value * fives[-exponent] != numerator;
        twos -= shift;
    }
    int drop = high_bit(value) - 52;
    if (drop > 0) {
        uint128 lost = value & (((uint128)1 << drop) - 1), half = (uint128)1 << (drop - 1);
        value >>= drop;
        if (lost > half || (lost == half && (left_over || (value & 1)))) value++;
        twos += drop;
    }
    return ldexp((double)(uint64_t)value, twos);
}

static double slow_number(const char *start, const char *end, last_slow *last) {
    char *stop;
    if (end - start != last->size || memcmp(start, last->text, (size_t)last->size) != 0)
        *last = (last_slow){start, end - start, PyOS_string_to_double(start, &stop, NULL)};
    return last->value;
}

double number_value(const char *at, const char *end, last_slow *last) {
    const char *start = at;
    int is_negative = *at == '-', exponent = 0, stated = 0, counted = 0;
    uint64_t digits = 0;
    at += is_negative;
    if (*at == 'i') return is_negative ? -INFINITY : INFINITY;
    for (int after_point = 0; at < end && *at != 'e'; at++) {
        if (*at == '.') {
            after_point = 1;
            continue;
        }
        counted += digits != 0 || *at != '0';
        if (counted <= 19) digits = digits * 10 + (uint64_t)(*at - '0');
        exponent -= after_point;
    }
    if (at < end) { /* the exponent */
        int is_below = at[1] == '-';
        at += 1 + (at[1] == '-' || at[1] == '+');
        for (; at < end && stated < 10000; at++) stated = stated * 10 + (*at - '0');
        exponent += is_below ? -stated : stated;
    }
    if (digits == 0 && counted == 0) return is_negative ? -0.0 : 0.0;
    /* If the loop above left digits of the exponent, they might make up for as many zeros: at < end. */
    if (counted > 19 || exponent < -MOST_FIVES || exponent > MOST_FIVES || at < end)
        return slow_number(start, end, last);
    double value = scaled(digits, exponent);
    return is_negative ? -value : value;
}

PyObject *numbers_to_floats(PyObject *module, PyObject *args) {
    (void)module;
    const char *text;
    Py_ssize_t size, n = 0;
    Py_buffer out;
    if (!PyArg_ParseTuple(args, "y#w*", &text, &size, &out)) return NULL;
    const char *at = text, *end = text + size;
    last_slow slow = NO_SLOW_NUMBER;
    Py_ssize_t room = out.len / (Py_ssize_t)sizeof(double);
    while (at < end && n < room) {
        const char *last = number_end(at, end);
        if (last == NULL) break;
        double value = number_value(at, last, &slow);
        memcpy((char *)out.buf + n++ * (Py_ssize_t)sizeof(double), &value, sizeof value);
        at = last + 1;
    }
    PyBuffer_Release(&out);
    return PyErr_Occurred() ? NULL : PyLong_FromSsize_t(n);
}

PyObject *numbers_to_ints(PyObject *module, PyObject *args) {
    (void)module;
    const char *text;
    Py_ssize_t size, n = 0;
    Py_buffer out;
    if (!PyArg_ParseTuple(args, "y#w*", &text, &size, &out)) return NULL;
    const char *at = text, *end = text + size;
    Py_ssize_t room = out.len / (Py_ssize_t)sizeof(int64_t);
    for (;;) {
        int is_negative = at < end && *at == '-';
        at += is_negative;
        if (at == end || !is_digit(*at) || n == room) {
            n = -1;
            break;
        }
        int64_t value = 0; /* a number beyond 64 bits becomes INT64_MAX, which is outside every caller's range */
        for (; at < end && is_digit(*at); at++)
            if (value < INT64_MAX / 10) value = value * 10 + (*at - '0');
            else value = INT64_MAX;
        if (is_negative) value = -value;
        memcpy((char *)out.buf + n++ * (Py_ssize_t)sizeof(int64_t), &value, sizeof value);
        if (at == end) break;
        if (*at++ != ' ') {
            n = -1;
            break;
        }
    }
    PyBuffer_Release(&out);
    return PyLong_FromSsize_t(n);
}
