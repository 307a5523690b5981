/* The kernel of k-means for one floating type and one set of vector instructions; kernels.h includes this file, and it
 * and types.h say what the names mean.
 *
 * u = (row - shift) * scale is nearest to the center c with the largest score u c - |c|^2 / 2; of equals the first one
 * stands. Tiles of rows are screened in whole numbers of 16 bits (screen.h). Rows for which these do not tell are put
 * aside until they fill a tile, and looked at in the type of the rows; so are all rows where many would be.
 */

#define clusters NAME(clusters)

typedef float NAME(singles) __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t NAME(wholes) __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef int16_t NAME(shorts) __attribute__((vector_size(LANES * sizeof(int16_t))));

/* Sums over rows by their nearest centers.
 *
 * sums   (k, d+2) of weight times u, of weight, and of weight times |u|^2
 * found  (n) the center of each row; -1 where its square is too large for this type, or NaN. Or NULL
 * part   (k, length + LANES) of rows that are yet to be added, so many as `held` (k) says: sums of u and of squares
 */
struct clusters {
    double *sums;
    int32_t *found;
    REAL *part;
    int64_t *held;
    int64_t d, length;
};

/* Put m centers, of which the first has this number, beside the nearest ones so far of two vectors of rows.
 *
 * The product is summed on its own, as BLAS does it: where rows are as far from one center as from another, rounding
 * decides, here as there. */
INLINE void NAME(nearest_group)(const int m, const REAL *centers, const REAL *half, int64_t d, INTEGER number,
                                const REAL *u, vector *best, mask *nearest) {
    vector score[GROUP][2];
    for (int c = 0; c < m; c++)
        for (int v = 0; v < 2; v++)
            score[c][v] = (vector){0};
    for (int64_t j = 0; j < d; j++) {
        vector left = NAME(load)(u + j * ASSIGNED), right = NAME(load)(u + j * ASSIGNED + LANES);
        for (int c = 0; c < m; c++) {
            vector coordinate = NAME(all)(centers[c * d + j]);
            score[c][0] += coordinate * left;
            score[c][1] += coordinate * right;
        }
    }
    for (int c = 0; c < m; c++)
        for (int v = 0; v < 2; v++) {
            const vector nearness = score[c][v] - half[c];
            const mask closer = nearness > best[v];
            best[v] = NAME(larger)(nearness, best[v]);
            nearest[v] = (closer & (number + c)) | (~closer & nearest[v]);
        }
}

/* Write which of the centers (k, d) are nearest to the ASSIGNED rows of a tile, which lie `length` numbers apart;
 * `across` has room for d lines. */
INLINE void NAME(nearest_rows)(const REAL *tile, int64_t length, const REAL *centers, const REAL *half, int64_t d,
                               int64_t k, REAL *across, int32_t *number) {
    const int64_t groups = (k + GROUP - 1) / GROUP, square = d / 4 * 4;
    for (int64_t r = 0; r < ASSIGNED; r += 4)
        for (int64_t j = 0; j < square; j += 4) {
            four x[4];
            for (int i = 0; i < 4; i++)
                memcpy(&x[i], tile + (r + i) * length + j, sizeof x[i]);
            TRANSPOSE(x);
            for (int i = 0; i < 4; i++)
                memcpy(across + (j + i) * ASSIGNED + r, &x[i], sizeof x[i]);
        }
    for (int64_t j = square; j < d; j++)
        for (int64_t r = 0; r < ASSIGNED; r++)
            across[j * ASSIGNED + r] = tile[r * length + j];
    for (int64_t r = 0; r < ASSIGNED; r += 2 * LANES) {
        vector best[2] = {NAME(all)(-(REAL)INFINITY), NAME(all)(-(REAL)INFINITY)};
        mask nearest[2] = {{0}, {0}};
        for (int64_t g = 0, c = 0; g < groups; g++) {
            const int64_t m = (k - c + groups - g - 1) / (groups - g);
            UP_TO_6(m, NAME(nearest_group), centers + c * d, half + c, d, c, across + r, best, nearest)
            c += m;
        }
        for (int64_t lane = 0; lane < 2 * LANES; lane++)
            number[r + lane] = (int32_t)nearest[lane / LANES][lane % LANES];
    }
}

/* Round the centers (k, d) for the screen, and say by how much that can mislead; return whether there can be one.
 *
 * With u and c in the units of their whole numbers, each of these is off by at most 1/2 (and by what the multiplication
 * rounds), so a score by at most sqrt(d) / 2 (|u| + |c|) and 1 for |c|^2 / 2. What numbers of this type would decide
 * between centers is off by at most (d + 4) / 2^24 of the largest score (Higham 2002, Accuracy and Stability of
 * Numerical Algorithms, section 3.1). */
INLINE int NAME(round_centers)(const REAL *centers, int64_t d, int64_t k, struct screen *screen) {
    double longest = 0;
    for (int64_t c = 0; c < k; c++) {
        double square = 0;
        for (int64_t j = 0; j < d; j++)
            square += (double)centers[c * d + j] * (double)centers[c * d + j];
        if (!(square <= SCREENED * SCREENED)) return 0;
        longest = fmax(longest, sqrt(square));
    }
    if (longest < 1 / SCREENED || d > MOST_SCREENED || k > MOST_SCREENED) return 0;
    screen->longest = longest;
    while (screen->low < k - 1)
        screen->low = 2 * screen->low + 1;
    screen->margin = (int32_t)(1.02 * sqrt((double)d) * (2 * LONGEST) + 200.0 * (double)(d + 4)) + screen->low;
    for (int64_t c = 0; c < k; c++)
        for (int64_t j = 0; j < d; j++) {
            const int64_t whole = lrint((double)centers[c * d + j] * (LONGEST / longest));
            const uint32_t half = (uint32_t)whole & 0xffff;
            screen->centers[c * screen->pairs + j / 2] |= (int32_t)(j % 2 ? half << 16 : half);
        }
    return 1;
}

/* Return sums of the squares of `length` numbers in whole vectors. */
INLINE vector NAME(squares)(const REAL *u, int64_t length) {
    vector sums = {0};
    for (int64_t j = 0; j < length; j += LANES)
        sums += NAME(load)(u + j) * NAME(load)(u + j);
    return sums;
}

/* Write u of the next `count` rows, filled up with zeros to whole vectors, to a tile of ASSIGNED; return a length that
 * none of them exceeds, unless it holds NaN: then the sums of its cluster are NaN, wherever it goes. Where numbers of
 * this type hold the shift and the scale, that is what `own_shift` is, and else NULL. */
INLINE double NAME(shift_rows)(const REAL *rows, int64_t count, int64_t d, const double *shift, double scale,
                               const REAL *own_shift, REAL *tile) {
    const int64_t length = (d + LANES - 1) / LANES * LANES;
    vector largest = {0};
    for (int64_t r = 0; r < count; r++) {
        const REAL *from = rows + r * d;
        REAL *u = tile + r * length;
        NAME(fetch)(from + ASSIGNED * d, d, 1, d);
        int64_t j = 0;
        if (own_shift)
            for (; j + LANES <= d; j += LANES)
                NAME(store)(u + j, (NAME(load)(from + j) - NAME(load)(own_shift + j)) * (REAL)scale);
        for (; j < d; j++)
            u[j] = (REAL)(((double)from[j] - shift[j]) * scale);
        largest = NAME(larger)(NAME(squares)(u, length), largest);
    }
    memset(tile + count * length, 0, (ASSIGNED - count) * length * sizeof(REAL));
    return sqrt(NAME(total)(largest));
}

/* Round the ASSIGNED rows of a tile, none longer than `longest`, which have `length` numbers in whole vectors, and what
 * scores start from for the screen. */
INLINE void NAME(round_rows)(const REAL *tile, int64_t length, double longest, const REAL *half,
                             struct screen *screen) {
    const double factor = LONGEST / fmax(longest, screen->longest), both = factor * (LONGEST / screen->longest);
    for (int64_t r = 0; r < ASSIGNED; r++)
        for (int64_t j = 0; j < length; j += LANES) {
            /* Adding this leaves the whole number in the lowest bits. */
            const vector value = NAME(load)(tile + r * length + j) * (REAL)factor;
            const NAME(singles) sum = __builtin_convertvector(value, NAME(singles)) + 0x1.8p23f;
            const NAME(shorts) whole = __builtin_convertvector((NAME(wholes))sum, NAME(shorts));
            memcpy((int16_t *)(screen->rows + r * screen->width) + j, &whole, sizeof whole);
        }
    for (int64_t c = 0; c < screen->k; c++)
        screen->start[c] = (int32_t)(-(double)half[c] * both);
}

/* Return |u|^2; u has `length` numbers in whole vectors. */
INLINE double NAME(square)(const REAL *u, int64_t length) {
    double sum = NAME(total)(NAME(squares)(u, length));
    if (sum <= DBL_MAX) return sum;
    /* Too large for the type of u, or NaN. */
    sum = 0;
    for (int64_t j = 0; j < length; j++)
        sum += (double)u[j] * u[j];
    return sum;
}

/* Add what is held of a cluster; leave zeros. */
INLINE void NAME(hand_over)(const struct clusters *to, int64_t c) {
    const int64_t d = to->d, length = to->length;
    REAL *part = to->part + c * (length + LANES);
    double *sums = to->sums + c * (d + 2);
    for (int64_t j = 0; j < d; j++)
        sums[j] += part[j];
    sums[d] += (double)to->held[c];
    sums[d + 1] += NAME(total)(NAME(load)(part + length));
    memset(part, 0, (length + LANES) * sizeof(REAL));
    to->held[c] = 0;
}

/* Add a row u, whose numbers are filled up with zeros to whole vectors, to cluster c: at once where that is `exact`,
 * else, its weight being 1, in the type of the rows. */
INLINE void NAME(add_row)(const struct clusters *to, int64_t row, int64_t c, const REAL *u, double weight, int exact) {
    const int64_t d = to->d, length = to->length;
    if (to->found) to->found[row] = NAME(total)(NAME(squares)(u, length)) <= DBL_MAX ? (int32_t)c : -1;
    if (exact) {
        double *sums = to->sums + c * (d + 2);
        for (int64_t j = 0; j < d; j++)
            sums[j] += weight * u[j];
        sums[d] += weight;
        sums[d + 1] += weight * NAME(square)(u, length);
        return;
    }
    REAL *part = to->part + c * (length + LANES);
    vector squares = NAME(load)(part + length);
    for (int64_t j = 0; j < length; j += LANES) {
        const vector value = NAME(load)(u + j);
        NAME(store)(part + j, NAME(load)(part + j) + value);
        squares += value * value;
    }
    NAME(store)(part + length, squares);
    if (++to->held[c] == HELD) NAME(hand_over)(to, c);
}

/* Add rows that were put aside to the clusters of their nearest centers; `across` has room for d lines of a tile. */
INLINE void NAME(settle)(const struct clusters *to, const REAL *aside, const int64_t *row, const double *weight,
                         int64_t count, int exact, const REAL *centers, const REAL *half, int64_t k, REAL *across) {
    int32_t number[ASSIGNED];
    NAME(nearest_rows)(aside, to->length, centers, half, to->d, k, across, number);
    for (int64_t r = 0; r < count; r++)
        NAME(add_row)(to, row[r], number[r], aside + r * to->length, weight[r], exact);
}

/* Write the sums over the rows (n, d) nearest to each center, or known to be of its cluster where labels (or NULL) are
 * not negative, of weight (or 1) times u, then of the weight and of weight times |u|^2: (k, d+2); and what is
 * `found`. The centers (k, d) are in the units of u, half (k) are their |c|^2 / 2. */
TARGET static int NAME(nearest)(const REAL *rows, const double *shift, double scale, const REAL *centers,
                                const REAL *half, const double *weight, const int64_t *labels, double *sums,
                                int32_t *found, int64_t n, int64_t d, int64_t k) {
    const int64_t length = (d + LANES - 1) / LANES * LANES;
    const int64_t reals = k * (length + LANES) + 2 * ASSIGNED * length + (ASSIGNED + 1) * d;
    const size_t bytes = k * sizeof(int64_t) + reals * sizeof(REAL);
    int64_t *held = allocate(bytes);
    struct screen screen;
    if (!held || !make_screen(&screen, ASSIGNED, d, k)) {
        free(held);
        return -1;
    }
    memset(held, 0, bytes);
    memset(sums, 0, k * (d + 2) * sizeof(double));
    REAL *part = (REAL *)(held + k), *tile = part + k * (length + LANES), *aside = tile + ASSIGNED * length;
    REAL *across = aside + ASSIGNED * length, *own_shift = across + ASSIGNED * d;
    int holds = (double)(REAL)scale == scale;
    for (int64_t j = 0; j < d; j++) {
        own_shift[j] = (REAL)shift[j];
        holds &= (double)own_shift[j] == shift[j];
    }
    double aside_weight[ASSIGNED];
    int64_t aside_row[ASSIGNED];
    const struct clusters to = {sums, found, part, held, d, length};
    const int possible = SCREENS && NAME(round_centers)(centers, d, k, &screen);
    int64_t looked = 0, doubtful = 0, waiting = 0;
    /* Single precision does not hold all weights, nor the squares of all rows. */
    int aside_exact = weight != NULL;
    for (int64_t row = 0; row < n; row += ASSIGNED) {
        const int64_t count = n - row < ASSIGNED ? n - row : ASSIGNED;
        const double longest = NAME(shift_rows)(rows + row * d, count, d, shift, scale, holds ? own_shift : NULL, tile);
        const int plain = longest <= SCREENED, exact = weight || !plain;
        /* Where half of the rows are in doubt, looking twice does not pay. */
        const int screened = possible && plain && 2 * doubtful <= looked + 8 * ASSIGNED;
        int32_t number[ASSIGNED];
        if (screened) {
            NAME(round_rows)(tile, length, longest, half, &screen);
            SCREEN(&screen, number);
            looked += count;
        }
        for (int64_t r = 0; r < count; r++) {
            const int64_t known = labels ? labels[row + r] : -1, c = known >= 0 ? known : screened ? number[r] : -1;
            const REAL *u = tile + r * length;
            const double own = weight ? weight[row + r] : 1.0;
            if (c >= 0) {
                NAME(add_row)(&to, row + r, c, u, own, exact);
                continue;
            }
            doubtful += screened;
            aside_exact |= exact;
            memcpy(aside + waiting * length, u, length * sizeof(REAL));
            aside_row[waiting] = row + r;
            aside_weight[waiting++] = own;
            if (waiting == ASSIGNED) {
                NAME(settle)(&to, aside, aside_row, aside_weight, waiting, aside_exact, centers, half, k, across);
                waiting = 0;
                aside_exact = weight != NULL;
            }
        }
    }
    NAME(settle)(&to, aside, aside_row, aside_weight, waiting, aside_exact, centers, half, k, across);
    for (int64_t c = 0; c < k; c++)
        NAME(hand_over)(&to, c);
    free(screen.rows);
    free(held);
    return 0;
}

#undef clusters
