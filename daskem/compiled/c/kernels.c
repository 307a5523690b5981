/* Compiled arithmetic of E-steps: plain C with the vector extensions of GCC and Clang, called through ctypes. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Components whose densities are summed at a time: two vectors of rows of each fill the sixteen registers of AVX2, and
 * keep the arithmetic units of AVX-512 busy. */
#define GROUP 6
/* Bytes of a feature in a tile of densities, whose rows share the parameters that are fetched, and so many of its
 * features are made at a time: they stay in the first cache. */
#define DENSITY_BYTES 256
#define PANEL 64
/* Features of a tile of moments that are made at a time, a multiple of four: they and the responsibilities of SHARES
 * components stay in the first cache. */
#define MOMENTS 8
/* Rows that are given to their nearest centers at a time: two vectors of single precision. */
#define ASSIGNED (2 * BYTES / (int64_t)sizeof(float))
/* Rows of a cluster that are summed in the type of the rows. */
#define HELD 64
/* In the whole numbers of the screen of rows: the length of the longest row or center. How many features and centers
 * there may be at most, and what their product must be at least, for a screen to pay. And the length of rows and
 * centers for which there can be one at most, or 1 over at least. */
#define LONGEST 32767
#define MOST_SCREENED (1 << 16)
#define LEAST_SCREENED 256
#define SCREENED 1e15

typedef double quad __attribute__((vector_size(32)));
typedef float single_quad __attribute__((vector_size(16)));

/* Call `function` with a number of components that is known when it is compiled, so that its sums stay in registers. */
#define CASE(size, function, ...)                                                                                      \
    case size: function(size, __VA_ARGS__); break;
#define CASES_TO_4(function, ...)                                                                                      \
    CASE(1, function, __VA_ARGS__)                                                                                     \
    CASE(2, function, __VA_ARGS__)                                                                                     \
    CASE(3, function, __VA_ARGS__)                                                                                     \
    CASE(4, function, __VA_ARGS__)
#define UP_TO_4(size, function, ...)                                                                                   \
    switch (size) { CASES_TO_4(function, __VA_ARGS__) }
#define UP_TO_6(size, function, ...)                                                                                   \
    switch (size) { CASES_TO_4(function, __VA_ARGS__) CASE(5, function, __VA_ARGS__) CASE(6, function, __VA_ARGS__) }

/* The same with a number of vectors that may be larger, and then is not known. */
#define OF_FEW_VECTORS(m, function, ...)                                                                               \
    switch (m) { CASES_TO_4(function, __VA_ARGS__) default : function(m, __VA_ARGS__); }

#ifdef __clang__
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#define SINGLE_SHUFFLE SHUFFLE
#else
typedef int64_t places __attribute__((vector_size(32)));
typedef int32_t single_places __attribute__((vector_size(16)));
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (places){__VA_ARGS__})
#define SINGLE_SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (single_places){__VA_ARGS__})
#endif

/* Turn four rows of four into their columns, in steps that are one instruction of AVX2 each. */
static inline __attribute__((always_inline)) void transpose_double(quad *x) {
    const quad even[2] = {SHUFFLE(x[0], x[1], 0, 4, 2, 6), SHUFFLE(x[2], x[3], 0, 4, 2, 6)};
    const quad odd[2] = {SHUFFLE(x[0], x[1], 1, 5, 3, 7), SHUFFLE(x[2], x[3], 1, 5, 3, 7)};
    x[0] = SHUFFLE(even[0], even[1], 0, 1, 4, 5);
    x[1] = SHUFFLE(odd[0], odd[1], 0, 1, 4, 5);
    x[2] = SHUFFLE(even[0], even[1], 2, 3, 6, 7);
    x[3] = SHUFFLE(odd[0], odd[1], 2, 3, 6, 7);
}

static inline __attribute__((always_inline)) void transpose_float(single_quad *x) {
    const single_quad low[2] = {SINGLE_SHUFFLE(x[0], x[1], 0, 4, 1, 5), SINGLE_SHUFFLE(x[2], x[3], 0, 4, 1, 5)};
    const single_quad high[2] = {SINGLE_SHUFFLE(x[0], x[1], 2, 6, 3, 7), SINGLE_SHUFFLE(x[2], x[3], 2, 6, 3, 7)};
    x[0] = SINGLE_SHUFFLE(low[0], low[1], 0, 1, 4, 5);
    x[1] = SINGLE_SHUFFLE(low[0], low[1], 2, 3, 6, 7);
    x[2] = SINGLE_SHUFFLE(high[0], high[1], 0, 1, 4, 5);
    x[3] = SINGLE_SHUFFLE(high[0], high[1], 2, 3, 6, 7);
}

static void *allocate(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

/* The features T(u) of a row u: 1 and u, and with them nothing, u^2 or the upper triangle of u u^T. */
enum form { LINEAR, DIAGONAL, FULL };

/* What the screen of rows (screen.h) takes, all in whole numbers.
 *
 * centers, rows   (k, pairs) and (rows, width), coordinates j and j + 1 in a word, zero beyond the last one
 * start           (k) -|c|^2 / 2, which sums of products are added to
 * across          room for the rows turned into lines
 * low             the bits of a score that hold the number of its center
 * margin          what tells two scores apart for certain
 * longest         |c| of the longest center, in its own unit
 */
struct screen {
    int32_t *centers, *start, *rows, *across;
    int64_t k, pairs, width;
    int32_t low, margin;
    double longest;
};

/* Return whether there is memory for a screen: free its rows after use. */
static int make_screen(struct screen *screen, int64_t rows, int64_t d, int64_t k) {
    const int64_t pairs = (d + 1) / 2, width = (d + 15) / 16 * 8, words = k * (pairs + 1) + 2 * rows * width;
    int32_t *memory = allocate(words * sizeof(int32_t));
    if (!memory) return 0;
    memset(memory, 0, words * sizeof(int32_t));
    *screen = (struct screen){.rows = memory, .k = k, .pairs = pairs, .width = width};
    screen->across = memory + rows * width;
    screen->centers = screen->across + rows * width;
    screen->start = screen->centers + k * pairs;
    return 1;
}

static int64_t n_features(enum form form, int64_t d) {
    return 1 + d + (form == FULL ? d * (d + 1) / 2 : form == DIAGONAL ? d : 0);
}

/* Terms of log densities: those of u = (row - shift) * scale of rows (n, d), which lie `stride` numbers apart, where
 * `natural` (k, p) multiplies T(u); and the sums (k, p) of T(u) that are asked for. u is to hold whole numbers from 0
 * to `most`; anything where that is negative. */
struct terms {
    const void *rows;
    const double *shift, *scale;
    const void *natural;
    double *sums;
    double most;
    int64_t d, stride;
    enum form form;
};

/* 1 / n! */
static const double EXP_SERIES[] = {
    1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
    1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800,
};

#define JOIN(name, type, variant) name##_##type##_##variant
#define JOINED(name, type, variant) JOIN(name, type, variant)

#define VARIANT base
#define TARGET
#define BYTES 32
#define SHARES 3
#define ADD_PRODUCTS(sum, x, y) sum += ((x) << 16 >> 16) * ((y) << 16 >> 16) + ((x) >> 16) * ((y) >> 16)
#define CHOOSE(which, x, y) (typeof(x))(((typeof(which))(x) & (which)) | ((typeof(which))(y) & ~(which)))
#define LARGER_WORDS(x, y) CHOOSE((x) > (y), x, y)
#define LARGER_float(x, y) CHOOSE((x) > (y), x, y)
#define LARGER_double(x, y) CHOOSE((x) > (y), x, y)
#include "screen.h"
/* Products of words take two instructions here: as many as products of single precision. */
#define SCREENS_SINGLE 0
#define SCREEN screen_rows_short_base
#include "types.h"

/* The most that is used of what only some processors have: 1 is AVX2, 2 AVX-512. */
static int allowed = 2;

/* PORTABLE leaves them out, as other processors do, for a test. */
#if defined(__x86_64__) && !defined(PORTABLE)
#include <immintrin.h>

static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

static int has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && has_avx2();
}

/* Whether VNNI may be used: for a test, since the numbers are the same without. */
int vnni = 1;

static int has_vnni(void) { return vnni && __builtin_cpu_supports("avx512vnni"); }

#define VARIANT avx2
#define TARGET __attribute__((target("avx2,fma")))
#define BYTES 32
#define SHARES 3
#define ADD_PRODUCTS(sum, x, y) sum += (typeof(sum))_mm256_madd_epi16((__m256i)(x), (__m256i)(y))
#define LARGER_WORDS(x, y) (typeof(x))_mm256_max_epi32((__m256i)(x), (__m256i)(y))
#define LARGER_float(x, y) (typeof(x))_mm256_max_ps((__m256)(x), (__m256)(y))
#define LARGER_double(x, y) (typeof(x))_mm256_max_pd((__m256d)(x), (__m256d)(y))
#include "screen.h"
#define SCREENS_SINGLE 1
#define SCREEN screen_rows_short_avx2
#include "types.h"

/* The screen alone, for the next set of instructions where the processor has VNNI too. */
#define VARIANT vnni
#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512vnni,fma")))
#define BYTES 64
/* GCC 12 would copy each sum twice around its own function for this instruction. */
#define ADD_PRODUCTS(sum, x, y) __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y))
#define LARGER_WORDS(x, y) (typeof(x))_mm512_max_epi32((__m512i)(x), (__m512i)(y))
#include "screen.h"
#undef VARIANT
#undef TARGET
#undef BYTES

#define VARIANT avx512
#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,fma")))
#define BYTES 64
#define SHARES 6
#define ADD_PRODUCTS(sum, x, y) sum += (typeof(sum))_mm512_madd_epi16((__m512i)(x), (__m512i)(y))
#define LARGER_WORDS(x, y) (typeof(x))_mm512_max_epi32((__m512i)(x), (__m512i)(y))
#define LARGER_float(x, y) (typeof(x))_mm512_max_ps((__m512)(x), (__m512)(y))
#define LARGER_double(x, y) (typeof(x))_mm512_max_pd((__m512d)(x), (__m512d)(y))
#include "screen.h"
#include "wide.h"
#define SCREENS_SINGLE 1
#define SCREEN (has_vnni() ? screen_rows_short_vnni : screen_rows_short_avx512)
#include "types.h"

int instructions(void) { return allowed >= 2 && has_avx512() ? 2 : allowed >= 1 && has_avx2() ? 1 : 0; }

#define CALL_AT(level, name, type, ...)                                                                                \
    (level == 2   ? name##_##type##_avx512(__VA_ARGS__)                                                                \
     : level == 1 ? name##_##type##_avx2(__VA_ARGS__)                                                                  \
                  : name##_##type##_base(__VA_ARGS__))
#else
int instructions(void) { return 0; }

#define CALL_AT(level, name, type, ...) ((void)(level), name##_##type##_base(__VA_ARGS__))
#endif

#define CALL(name, type, ...) CALL_AT(instructions(), name, type, __VA_ARGS__)

/* Which of these levels suits vectors of k components of `size` bytes: no wider ones than they fill. */
static inline int level_for(int64_t k, size_t size) {
    const int level = instructions();
    return level == 2 && k * (int64_t)size <= 32 ? 1 : level;
}

/* Use no more than `level`; return what is used then. */
int limit(int level) {
    allowed = level;
    return instructions();
}

#define EXPORT(type)                                                                                                   \
    int shifted_##type(const type *rows, int64_t stride, const double *shift, const double *scale, type *out,          \
                       int64_t n, int64_t d) {                                                                         \
        return CALL(shifted, type, rows, stride, shift, scale, out, n, d);                                             \
    }                                                                                                                  \
    int log_prob_##type(enum form form, const type *u, const type *natural, type *out, int64_t n, int64_t d,           \
                        int64_t k) {                                                                                   \
        return CALL(log_prob, type, form, u, natural, out, n, d, k);                                                   \
    }                                                                                                                  \
    int moments_##type(enum form form, const type *u, const type *resp, double *sums, int64_t n, int64_t d,            \
                       int64_t k) {                                                                                    \
        return CALL(moments, type, form, u, resp, sums, n, d, k);                                                      \
    }                                                                                                                  \
    int normalise_##type(type *joint, const double *log_weights, const double *weight, double *largest, type *total,   \
                         int64_t n, int64_t k) {                                                                       \
        return CALL(normalise, type, joint, log_weights, weight, largest, total, n, k);                                \
    }                                                                                                                  \
    int e_step_##type(const struct terms *terms, int64_t groups, const double *tails, const double *log_weights,       \
                      const double *weight, double *tallies, double *largest, type *total, int64_t n, int64_t k) {     \
        return CALL(e_step, type, terms, groups, tails, log_weights, weight, tallies, largest, total, n, k);           \
    }                                                                                                                  \
    int whole_##type(const type *rows, int64_t stride, double most, int64_t n, int64_t d) {                            \
        return CALL(whole, type, rows, stride, most, n, d);                                                            \
    }                                                                                                                  \
    int nearest_##type(const type *rows, const double *shift, double scale, const type *centers, const type *half,     \
                       const double *weight, const int64_t *labels, double *sums, int32_t *found, int64_t n,           \
                       int64_t d, int64_t k) {                                                                         \
        return CALL(nearest, type, rows, shift, scale, centers, half, weight, labels, sums, found, n, d, k);           \
    }                                                                                                                  \
    int condition_##type(const type *rows, const int64_t *feature, const int64_t *first, const int64_t *pattern,       \
                         const int64_t *place, const double *point, const double *scale, const double *delta,          \
                         const double *precision, const double *peak, const double *constant, type *log_prob,          \
                         type *offset, double *peaks, int64_t n, int64_t stride, int64_t d, int64_t k, int64_t points, \
                         int64_t precisions) {                                                                         \
        return CALL_AT(level_for(k, sizeof(type)), condition, type, rows, feature, first, pattern, place, point,       \
                       scale, delta, precision, peak, constant, log_prob, offset, peaks, n, stride, d, k, points,      \
                       precisions);                                                                                    \
    }                                                                                                                  \
    int filled_##type(const type *rows, const int64_t *feature, const int64_t *first, const int64_t *pattern,          \
                      const int64_t *place, const double *point, const double *scale, const double *delta,             \
                      const double *precision, const type *offset, const type *resp, const type *loose, double *sum,   \
                      double *product, int64_t n, int64_t stride, int64_t d, int64_t k, int64_t points,                \
                      int64_t precisions) {                                                                            \
        return CALL_AT(level_for(k, sizeof(type)), filled, type, rows, feature, first, pattern, place, point, scale,   \
                       delta, precision, offset, resp, loose, sum, product, n, stride, d, k, points, precisions);      \
    }

EXPORT(double)
EXPORT(float)
