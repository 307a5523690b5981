/* What kernels.h does with vectors of 64 bytes in another way than with shorter ones; included once, with AVX-512
 * allowed by TARGET. */

#define INLINE TARGET static inline __attribute__((always_inline))

typedef double octet __attribute__((vector_size(64)));
typedef float single_wide __attribute__((vector_size(64)));

#ifdef __clang__
#define WIDE_SHUFFLE SHUFFLE
#else
typedef int64_t wide_places __attribute__((vector_size(64)));
#define WIDE_SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (wide_places){__VA_ARGS__})
#endif

/* Return sums of the lanes, of every eighth one, in double precision. */
INLINE octet eighths_double(octet x) { return x; }

INLINE octet eighths_float(single_wide x) {
    const __m512 lanes = (__m512)x;
    return (octet)(_mm512_cvtps_pd(_mm512_castps512_ps256(lanes)) + _mm512_cvtps_pd(_mm512_extractf32x8_ps(lanes, 1)));
}

/* Return the sum of the lanes of each of four. */
INLINE quad add_eight_lanes(const octet *x) {
    octet pairs[2];
    for (int i = 0; i < 2; i++, x += 2)
        pairs[i] =
            WIDE_SHUFFLE(x[0], x[1], 0, 8, 2, 10, 4, 12, 6, 14) + WIDE_SHUFFLE(x[0], x[1], 1, 9, 3, 11, 5, 13, 7, 15);
    octet all = WIDE_SHUFFLE(pairs[0], pairs[1], 0, 1, 2, 3, 8, 9, 10, 11) +
                WIDE_SHUFFLE(pairs[0], pairs[1], 4, 5, 6, 7, 12, 13, 14, 15);
    all += WIDE_SHUFFLE(all, all, 2, 3, 0, 1, 6, 7, 4, 5);
    return (quad){all[0], all[1], all[4], all[5]};
}

/* exp(r) is 1 + r q(r) for |r| <= log(2) / 32: the terms of q, which is (exp(r) - 1) / r at the zeros of a Chebyshev
 * polynomial and within 3e-9, 2e-17 of exp(r) elsewhere. */
static const double QUOTIENT_float[] = {1.0, 0.500014662434374272, 0.166669599143713679};
static const double QUOTIENT_double[] = {
    1.00000000000000064,  0.50000000000000008,   0.166666666642097071,
    0.041666666663595473, 0.0083334729749512293, 0.00138890634406553261,
};

/* 2^(i / 16) */
#define ROOTS                                                                                                          \
    1.0, 1.04427378242741384, 1.09050773266525766, 1.13878863475669165, 1.18920711500272107, 1.24185781207348405,      \
        1.29683955465100967, 1.35425554693689273, 1.41421356237309505, 1.47682614593949931, 1.54221082540794082,       \
        1.61049033194925431, 1.68179283050742909, 1.75625216037329948, 1.83400808640934246, 1.91520656139714729
static const float ROOTS_float[] = {ROOTS};
static const double ROOTS_double[] = {ROOTS};

/* Return 2^(n / 16) of whole numbers in the lowest bits: the last four say which root, the others are its exponent. */
INLINE single_wide power_float(single_wide n) {
    const __m512i bits = (__m512i)n, i = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    /* Less what these four add to it below. */
    const __m512i roots = _mm512_sub_epi32(_mm512_loadu_si512(ROOTS_float), _mm512_slli_epi32(i, 19));
    return (single_wide)_mm512_add_epi32(_mm512_permutexvar_epi32(bits, roots), _mm512_slli_epi32(bits, 19));
}

INLINE octet power_double(octet n) {
    const __m512i bits = (__m512i)n, i = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0), eight = _mm512_set1_epi64(8);
    const __m512i low = _mm512_sub_epi64(_mm512_loadu_si512(ROOTS_double), _mm512_slli_epi64(i, 48));
    const __m512i high = _mm512_sub_epi64(_mm512_loadu_si512(ROOTS_double + 8), _mm512_slli_epi64(i + eight, 48));
    return (octet)_mm512_add_epi64(_mm512_permutex2var_epi64(low, bits, high), _mm512_slli_epi64(bits, 48));
}

#undef INLINE
