/* Which centers are nearest, found in whole numbers of 16 bits, for one set of vector instructions: named VARIANT,
 * allowed by TARGET, with vectors of so many BYTES. ADD_PRODUCTS(sum, x, y) adds the products of two numbers in each
 * word, LARGER_WORDS(x, y) is the larger of each two words; both undefined again. Most processors multiply these
 * numbers twice as fast as single precision.
 *
 * Two numbers of a row, or of a center, share a word of 32 bits. Sums of their products are exact: by Cauchy and
 * Schwarz they stay below 1.1e9, and |c|^2 / 2 below 2^29.
 */

#define NAME(name) JOINED(name, short, VARIANT)
#define INLINE TARGET static inline __attribute__((always_inline))
#define LANES (BYTES / (int64_t)sizeof(int32_t))
#define words NAME(words)

typedef int32_t words __attribute__((vector_size(BYTES)));

INLINE words NAME(load)(const int32_t *from) {
    words value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE words NAME(all)(int32_t value) { return value - (words){0}; }

/* Copy the words of the rows to lines, each of a pair of coordinates. */
INLINE void NAME(turn)(const struct screen *screen) {
    const int32_t *rows = screen->rows;
    int32_t *across = screen->across;
    const int64_t pairs = screen->pairs, width = screen->width;
    for (int64_t p = 0; p < pairs; p += 4)
        for (int64_t r = 0; r < ASSIGNED; r += 4) {
            single_quad x[4];
            for (int i = 0; i < 4; i++)
                memcpy(&x[i], rows + (r + i) * width + p, sizeof x[i]);
            transpose_float(x);
            for (int i = 0; i < 4; i++)
                memcpy(across + (p + i) * ASSIGNED + r, &x[i], sizeof x[i]);
        }
}

/* Put m centers, of which the first has this number, beside the nearest and the second nearest ones so far of two
 * vectors of rows. The lowest bits of a score, those of `low`, make room for the number of its center. */
INLINE void NAME(screen_group)(const int m, const int32_t *centers, int64_t pairs, const int32_t *start, int32_t number,
                               const int32_t *across, words low, words *best, words *second) {
    words score[GROUP][2];
    for (int c = 0; c < m; c++)
        for (int v = 0; v < 2; v++)
            score[c][v] = NAME(all)(start[c]);
    for (int64_t p = 0; p < pairs; p++) {
        const words left = NAME(load)(across + p * ASSIGNED), right = NAME(load)(across + p * ASSIGNED + LANES);
        for (int c = 0; c < m; c++) {
            const words coordinates = NAME(all)(centers[c * pairs + p]);
            ADD_PRODUCTS(score[c][0], coordinates, left);
            ADD_PRODUCTS(score[c][1], coordinates, right);
        }
    }
    for (int c = 0; c < m; c++)
        for (int v = 0; v < 2; v++) {
            const words numbered = (score[c][v] & ~low) | (number + c);
            const words nearer = LARGER_WORDS(best[v], numbered);
            /* The other one of the two. */
            second[v] = LARGER_WORDS(second[v], best[v] ^ numbered ^ nearer);
            best[v] = nearer;
        }
}

/* Write which centers are nearest to the rows; -1 where another one is so near that rounding could have decided. */
TARGET static void NAME(screen_rows)(const struct screen *screen, int32_t *number) {
    const int64_t pairs = screen->pairs, groups = (screen->k + GROUP - 1) / GROUP, rest = screen->k % groups;
    const words low = NAME(all)(screen->low);
    words best[2], second[2];
    NAME(turn)(screen);
    for (int v = 0; v < 2; v++)
        best[v] = second[v] = NAME(all)(INT32_MIN);
    for (int64_t g = 0, c = 0; g < groups; g++) {
        const int64_t m = screen->k / groups + (g < rest);
        const int32_t *centers = screen->centers + c * pairs, *start = screen->start + c;
        UP_TO_6(m, NAME(screen_group), centers, pairs, start, c, screen->across, low, best, second)
        c += m;
    }
    for (int v = 0; v < 2; v++) {
        /* A comparison that fails is 0, its opposite all ones: -1. */
        const words nearest = (best[v] & low) | ~(best[v] > second[v] + screen->margin);
        memcpy(number + v * LANES, &nearest, sizeof nearest);
    }
}

#undef NAME
#undef INLINE
#undef LANES
#undef words
#undef ADD_PRODUCTS
#undef LARGER_WORDS
