/* The kernel of k-means for one floating type and one set of vector instructions; kernels.h includes this file, and it
 * and types.h say what the names mean.
 *
 * u = (row - shift) * scale is nearest to the center c with the largest score u c - |c|^2 / 2; of equals the first one
 * stands. Tiles of rows are screened in whole numbers of 16 bits (screen.h). Rows for which these do not tell are
 * looked at again in the type of the rows; so are all rows where many would be. Rows are added in their order, whatever
 * told their centers: for a fit to end, the same sums must have the same bits.
 */

#define search NAME(search)
#define clusters NAME(clusters)
/* The centers that a row is compared with at a time. */
#define PADDED (4 * LANES)

typedef float NAME(singles) __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t NAME(wholes) __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef int16_t NAME(shorts) __attribute__((vector_size(LANES * sizeof(int16_t))));

/* What finds the nearest centers.
 *
 * centers, half     (k, d) in the units of u, and (k) |c|^2 / 2
 * turned, far       (d, padded) the centers turned into lines, and (padded) their halves; infinity beyond the last one
 * tile, across      room for u of ASSIGNED rows, and for these turned into lines
 * screen            see screen.h, if there can be one (`screens`)
 * looked, doubtful  rows that were screened, and those of them whose centers the screen did not tell
 */
struct search {
    const REAL *centers, *half;
    REAL *turned, *far, *tile, *across;
    int64_t d, k, length, padded, looked, doubtful;
    struct screen screen;
    int screens;
};

/* Sums over rows by their nearest centers.
 *
 * sums   (k, d+2) of weight times u, of weight, and of weight times |u|^2
 * part   (k, length + LANES) of rows that are yet to be added, so many as `held` (k) says: sums of u and of squares
 */
struct clusters {
    double *sums;
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

/* Write which centers are nearest to the ASSIGNED rows of the tile. */
INLINE void NAME(nearest_rows)(const struct search *search, int32_t *number) {
    const int64_t d = search->d, k = search->k, length = search->length;
    const int64_t groups = (k + GROUP - 1) / GROUP, square = d / 4 * 4;
    const REAL *tile = search->tile;
    REAL *across = search->across;
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
            const REAL *centers = search->centers + c * d, *half = search->half + c;
            UP_TO_6(m, NAME(nearest_group), centers, half, d, c, across + r, best, nearest)
            c += m;
        }
        for (int64_t lane = 0; lane < 2 * LANES; lane++)
            number[r + lane] = (int32_t)nearest[lane / LANES][lane % LANES];
    }
}

/* Turn the centers into lines, filled up with such that are nearest to nothing. */
INLINE void NAME(turn_centers)(const struct search *search) {
    const int64_t d = search->d, k = search->k, padded = search->padded;
    for (int64_t c = 0; c < padded; c++)
        search->far[c] = c < k ? search->half[c] : (REAL)INFINITY;
    for (int64_t c = 0; c < k; c++)
        for (int64_t j = 0; j < d; j++)
            search->turned[j * padded + c] = search->centers[c * d + j];
}

/* Return which center is nearest to u. */
INLINE int32_t NAME(nearest_row)(const struct search *search, const REAL *u) {
    const int64_t d = search->d, padded = search->padded;
    vector best = NAME(all)(-(REAL)INFINITY);
    mask nearest = {0}, number;
    for (int lane = 0; lane < LANES; lane++)
        number[lane] = lane;
    for (int64_t c = 0; c < padded; c += PADDED) {
        vector score[4] = {{0}};
        for (int64_t j = 0; j < d; j++) {
            const vector value = NAME(all)(u[j]);
            for (int v = 0; v < 4; v++)
                score[v] += value * NAME(load)(search->turned + j * padded + c + v * LANES);
        }
        for (int v = 0; v < 4; v++) {
            const vector nearness = score[v] - NAME(load)(search->far + c + v * LANES);
            const mask closer = nearness > best;
            best = NAME(larger)(nearness, best);
            nearest = (closer & number) | (~closer & nearest);
            number += LANES;
        }
    }
    REAL top = best[0];
    for (int lane = 1; lane < LANES; lane++)
        top = best[lane] > top ? best[lane] : top;
    const mask others = NAME(all)(top) > best;
    nearest = (~others & nearest) | (others & number);
    INTEGER first = nearest[0];
    for (int lane = 1; lane < LANES; lane++)
        first = nearest[lane] < first ? nearest[lane] : first;
    return (int32_t)first;
}

/* Round the centers (k, d) for the screen, and say by how much that can mislead; return whether there can be one.
 *
 * In the units of the whole numbers no row or center is longer than LONGEST = L before it is rounded. Rounding moves a
 * row by at most sqrt(d) / 2 and a center by what is measured here, so a score by at most L times their sum, and by 1
 * for |c|^2 / 2 (0.51 and 1.01 make room for their product and for what multiplications round). What numbers of this
 * type would decide is off by at most (d + 4) / 2^24 of the largest score, 1.5 L^2 (Higham 2002, Accuracy and Stability
 * of Numerical Algorithms, section 3.1). Each of two scores counts; and where they fall on both sides of a multiple of
 * low + 1, the numbers of their centers are off by `low` twice. */
INLINE int NAME(round_centers)(struct search *search) {
    const int64_t d = search->d, k = search->k;
    struct screen *screen = &search->screen;
    double longest = 0;
    for (int64_t c = 0; c < k; c++) {
        double square = 0;
        for (int64_t j = 0; j < d; j++)
            square += (double)search->centers[c * d + j] * (double)search->centers[c * d + j];
        if (!(square <= SCREENED * SCREENED)) return 0;
        longest = fmax(longest, sqrt(square));
    }
    if (longest < 1 / SCREENED || d > MOST_SCREENED || k > MOST_SCREENED) return 0;
    screen->longest = longest;
    while (screen->low < k - 1)
        screen->low = 2 * screen->low + 1;
    double farthest = 0;
    for (int64_t c = 0; c < k; c++) {
        double off = 0;
        for (int64_t j = 0; j < d; j++) {
            const double exact = (double)search->centers[c * d + j] * (LONGEST / longest);
            const int64_t whole = lrint(exact);
            const uint32_t bits = (uint32_t)whole & 0xffff;
            screen->centers[c * screen->pairs + j / 2] |= (int32_t)(j % 2 ? bits << 16 : bits);
            off += (exact - (double)whole) * (exact - (double)whole);
        }
        farthest = fmax(farthest, sqrt(off));
    }
    const double rounded = 0.51 * sqrt((double)d) + 1.01 * farthest;
    screen->margin = (int32_t)(2 * LONGEST * rounded + 200.0 * (double)(d + 4)) + 2 * screen->low;
    return 1;
}

/* Return sums of the squares of m vectors. */
INLINE vector NAME(squares)(const int64_t m, const REAL *u) {
    vector sums = {0};
    for (int64_t v = 0; v < m; v++)
        sums += NAME(load)(u + v * LANES) * NAME(load)(u + v * LANES);
    return sums;
}

/* Write u of ASSIGNED rows, filled up with zeros to m vectors, to the tile; return for each lane the largest sum of a
 * row's squares. */
INLINE vector NAME(shift_vectors)(const int64_t m, const REAL *rows, int64_t d, const REAL *shift, REAL scale, mask own,
                                  REAL *tile) {
    vector largest = {0};
    for (int64_t r = 0; r < ASSIGNED; r++, rows += d, tile += m * LANES) {
        vector squares = {0};
        NAME(fetch)(rows + ASSIGNED * d, d, 1, d);
        for (int64_t v = 0; v < m; v++) {
            vector u = (NAME(load)(rows + v * LANES) - NAME(load)(shift + v * LANES)) * scale;
            if (v == m - 1) u = (vector)((mask)u & own);
            NAME(store)(tile + v * LANES, u);
            squares += u * u;
        }
        largest = NAME(larger)(squares, largest);
    }
    return largest;
}

/* Write u of ASSIGNED rows, filled up with zeros to whole vectors, to the tile, in numbers of its type; what is read
 * reaches up to a vector beyond them. `own` are the numbers of the last vector of a row that are its own.
 *
 * Return a length that no row exceeds, up to sqrt(LANES) times the longest one's: it is taken lane by lane. A row that
 * holds NaN may be longer: wherever it is counted, the sums are NaN. */
INLINE double NAME(shift_whole)(const REAL *rows, int64_t d, int64_t length, const REAL *shift, REAL scale, mask own,
                                REAL *tile) {
    vector largest;
    OF_FEW_VECTORS(length / LANES, largest = NAME(shift_vectors), rows, d, shift, scale, own, tile)
    return sqrt(NAME(total)(largest));
}

/* Write u of `count` rows, rounded once and filled up with zeros to whole vectors and ASSIGNED rows, to the tile.
 * Return the length of the longest one, of those that hold no NaN. */
INLINE double NAME(shift_numbers)(const REAL *rows, int64_t count, int64_t d, int64_t length, const double *shift,
                                  double scale, REAL *tile) {
    double largest = 0;
    memset(tile, 0, ASSIGNED * length * sizeof(REAL));
    for (int64_t r = 0; r < count; r++, rows += d, tile += length) {
        double square = 0;
        for (int64_t j = 0; j < d; j++) {
            tile[j] = (REAL)(((double)rows[j] - shift[j]) * scale);
            square += (double)tile[j] * (double)tile[j];
        }
        largest = square > largest ? square : largest;
    }
    return sqrt(largest);
}

/* Round `count` numbers of a tile, multiplied by a factor. */
INLINE void NAME(round_numbers)(const REAL *numbers, int64_t count, REAL factor, int32_t *to) {
    for (int64_t i = 0; i < count; i += LANES) {
        /* Adding this leaves the whole number in the lowest bits. */
        const vector value = NAME(load)(numbers + i) * factor;
        const NAME(singles) sum = __builtin_convertvector(value, NAME(singles)) + 0x1.8p23f;
        const NAME(shorts) whole = __builtin_convertvector((NAME(wholes))sum, NAME(shorts));
        memcpy((int16_t *)to + i, &whole, sizeof whole);
    }
}

/* Round the rows of the tile, none longer than `longest`, and what scores start from for the screen. */
INLINE void NAME(round_rows)(struct search *search, double longest) {
    struct screen *screen = &search->screen;
    const int64_t length = search->length;
    const double factor = LONGEST / fmax(longest, screen->longest), both = factor * (LONGEST / screen->longest);
    const int beside = length == 2 * screen->width;
    for (int64_t r = 0; r < ASSIGNED; r += beside ? ASSIGNED : 1)
        NAME(round_numbers)(search->tile + r * length, beside ? ASSIGNED * length : length, (REAL)factor,
                            screen->rows + r * screen->width);
    for (int64_t c = 0; c < search->k; c++)
        screen->start[c] = (int32_t)(-(double)search->half[c] * both);
}

/* Write which centers are nearest to the first `count` rows of the tile, none longer than `longest`. */
INLINE void NAME(label_tile)(struct search *search, int64_t count, double longest, int32_t *number) {
    /* Where half of the rows are in doubt, but for those of the first tiles, looking twice does not pay. */
    if (!search->screens || !(longest <= SCREENED) || 2 * search->doubtful > search->looked + 8 * ASSIGNED) {
        NAME(nearest_rows)(search, number);
        return;
    }
    NAME(round_rows)(search, longest);
    SCREEN(&search->screen, number);
    search->looked += count;
    for (int64_t r = 0; r < count; r++) {
        if (number[r] >= 0) continue;
        number[r] = NAME(nearest_row)(search, search->tile + r * search->length);
        search->doubtful++;
    }
}

/* Return |u|^2; u has `length` numbers in whole vectors. */
INLINE double NAME(square)(const REAL *u, int64_t length) {
    double sum = NAME(total)(NAME(squares)(length / LANES, u));
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

/* Add rows u, whose numbers are filled up with zeros to m vectors, to what is held of their clusters. */
INLINE void NAME(hold_vectors)(const int64_t m, const struct clusters *to, const int32_t *number, const REAL *u,
                               int64_t count) {
    for (int64_t r = 0; r < count; r++, u += m * LANES) {
        const int64_t c = number[r];
        REAL *part = to->part + c * (m + 1) * LANES;
        vector squares = NAME(load)(part + m * LANES);
        for (int64_t v = 0; v < m; v++) {
            const vector value = NAME(load)(u + v * LANES);
            NAME(store)(part + v * LANES, NAME(load)(part + v * LANES) + value);
            squares += value * value;
        }
        NAME(store)(part + m * LANES, squares);
        if (++to->held[c] == HELD) NAME(hand_over)(to, c);
    }
}

/* Add the first `count` rows of a tile to their clusters, in the type of the rows. */
INLINE void NAME(hold_rows)(const struct clusters *to, const int32_t *number, const REAL *tile, int64_t count) {
    const int64_t vectors = to->length / LANES;
    OF_FEW_VECTORS(vectors, NAME(hold_vectors), to, number, tile, count)
}

/* Add these, times their weights (or 1), to their clusters at once. */
INLINE void NAME(add_rows)(const struct clusters *to, const int32_t *number, const REAL *u, const double *weight,
                           int64_t count) {
    const int64_t d = to->d;
    for (int64_t r = 0; r < count; r++, u += to->length) {
        const double times = weight ? weight[r] : 1.0;
        double *sums = to->sums + number[r] * (d + 2);
        for (int64_t j = 0; j < d; j++)
            sums[j] += times * u[j];
        sums[d] += times;
        sums[d + 1] += times * NAME(square)(u, to->length);
    }
}

/* Write the sums over the rows (n, d) nearest to each center, or known to be of its cluster where labels (or NULL) are
 * not negative, of weight (or 1) times u, then of the weight and of weight times |u|^2: (k, d+2); and to `found` (n),
 * or NULL, the center of each row, -1 where its square is too large for this type, or NaN. The centers (k, d) are in
 * the units of u, half (k) are their |c|^2 / 2. */
TARGET static int NAME(nearest)(const REAL *rows, const double *shift, double scale, const REAL *centers,
                                const REAL *half, const double *weight, const int64_t *labels, double *sums,
                                int32_t *found, int64_t n, int64_t d, int64_t k) {
    const int64_t length = (d + LANES - 1) / LANES * LANES, padded = (k + PADDED - 1) / PADDED * PADDED;
    const int64_t reals = k * (length + LANES) + (ASSIGNED + 1) * length + ASSIGNED * d + padded * (d + 1);
    const size_t bytes = k * sizeof(int64_t) + reals * sizeof(REAL);
    struct search search = {.centers = centers, .half = half, .d = d, .k = k, .length = length, .padded = padded};
    int64_t *held = allocate(bytes);
    if (!held || !make_screen(&search.screen, ASSIGNED, d, k)) {
        free(held);
        return -1;
    }
    memset(held, 0, bytes);
    memset(sums, 0, k * (d + 2) * sizeof(double));
    REAL *part = (REAL *)(held + k), *own_shift = part + k * (length + LANES);
    const struct clusters to = {sums, part, held, d, length};
    search.tile = own_shift + length;
    search.across = search.tile + ASSIGNED * length;
    search.turned = search.across + ASSIGNED * d;
    search.far = search.turned + padded * d;
    NAME(turn_centers)(&search);
    search.screens = SCREENS && d * k >= LEAST_SCREENED && NAME(round_centers)(&search);
    /* Where numbers of this type hold the shift and the scale, nothing is lost by computing u in it. */
    int holds = (double)(REAL)scale == scale;
    for (int64_t j = 0; j < d; j++) {
        own_shift[j] = (REAL)shift[j];
        holds &= (double)own_shift[j] == shift[j];
    }
    mask own;
    for (int lane = 0; lane < LANES; lane++)
        own[lane] = -(length - LANES + lane < d);
    for (int64_t row = 0; row < n; row += ASSIGNED) {
        const int64_t count = n - row < ASSIGNED ? n - row : ASSIGNED;
        const REAL *from = rows + row * d;
        const double longest =
            /* Vectors may reach into the row after. */
            holds && (row + ASSIGNED) * d + length <= n * d
                ? NAME(shift_whole)(from, d, length, own_shift, (REAL)scale, own, search.tile)
                : NAME(shift_numbers)(from, count, d, length, shift, scale, search.tile);
        int32_t number[ASSIGNED];
        NAME(label_tile)(&search, count, longest, number);
        for (int64_t r = 0; labels && r < count; r++)
            if (labels[row + r] >= 0) number[r] = (int32_t)labels[row + r];
        /* Single precision does not hold all weights, nor the squares of all rows. */
        if (weight || !(longest <= SCREENED))
            NAME(add_rows)(&to, number, search.tile, weight ? weight + row : NULL, count);
        else
            NAME(hold_rows)(&to, number, search.tile, count);
        for (int64_t r = 0; found && r < count; r++) {
            const vector squares = NAME(squares)(length / LANES, search.tile + r * length);
            found[row + r] = NAME(total)(squares) <= LARGEST ? number[r] : -1;
        }
    }
    for (int64_t c = 0; c < k; c++)
        NAME(hand_over)(&to, c);
    free(search.screen.rows);
    free(held);
    return 0;
}

#undef search
#undef clusters
#undef PADDED
