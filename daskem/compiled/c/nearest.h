/* The kernel of k-means for one floating type and one set of vector instructions; kernels.h includes this file and says
 * what its names mean. */

/* Put m centers, of which the first has this number, beside the nearest ones so far of two vectors of rows, and beside
 * the scores of the second nearest, if asked for.
 *
 * The nearest center c has the largest u c - |c|^2 / 2; of equals the first stands. The product is summed on its own,
 * as BLAS does it: where rows are as far from one center as from another, rounding decides, here as there. */
INLINE void NAME(nearest_group)(const int m, const REAL *centers, const REAL *half, int64_t d, INTEGER number,
                                const REAL *u, int64_t apart, vector *best, vector *second, mask *nearest) {
    vector score[GROUP][2];
    for (int c = 0; c < m; c++)
        for (int v = 0; v < 2; v++)
            score[c][v] = (vector){0};
    for (int64_t j = 0; j < d; j++) {
        vector left = NAME(load)(u + j * apart), right = NAME(load)(u + j * apart + LANES);
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
            if (second) second[v] = NAME(larger)(NAME(smaller)(nearness, best[v]), second[v]);
            best[v] = NAME(larger)(nearness, best[v]);
            nearest[v] = (closer & (number + c)) | (~closer & nearest[v]);
        }
}

/* Find the nearest centers of two vectors of rows, whose d features lie `apart`. */
INLINE void NAME(nearest_tile)(const REAL *u, int64_t apart, const REAL *centers, const REAL *half, int64_t d,
                               int64_t k, vector *best, vector *second, mask *nearest) {
    const int64_t groups = (k + GROUP - 1) / GROUP;
    for (int v = 0; v < 2; v++) {
        best[v] = NAME(all)(-(REAL)INFINITY);
        if (second) second[v] = best[v];
        nearest[v] = (mask){0};
    }
    for (int64_t g = 0, c = 0; g < groups; g++) {
        const int64_t m = (k - c + groups - g - 1) / (groups - g);
        UP_TO_6(m, NAME(nearest_group), centers + c * d, half + c, d, c, u, apart, best, second, nearest)
        c += m;
    }
}

/* Return |u|^2; u has `length` numbers in whole vectors. */
INLINE double NAME(square)(const REAL *u, int64_t length) {
    vector squares = {0};
    for (int64_t j = 0; j < length; j += LANES)
        squares += NAME(load)(u + j) * NAME(load)(u + j);
    double sum = NAME(total)(squares);
    if (sum <= DBL_MAX) return sum;
    /* Too large for the type of u, or NaN. */
    sum = 0;
    for (int64_t j = 0; j < length; j++)
        sum += (double)u[j] * u[j];
    return sum;
}

/* Add `part` (d) to `sums`; leave zeros. */
INLINE void NAME(hand_over)(REAL *part, int64_t d, double *sums) {
    for (int64_t j = 0; j < d; j++)
        sums[j] += part[j];
    memset(part, 0, d * sizeof(REAL));
}

/* Define a function that copies the d columns of a tile of ASSIGNED rows, which lie `stride` apart, to the lines of
 * `across`. */
#define TURN(name, type, fours)                                                                                        \
    INLINE void NAME(name)(const type *tile, int64_t stride, int64_t d, REAL *across) {                                \
        int64_t j = 0;                                                                                                 \
        for (; j + 4 <= d; j += 4)                                                                                     \
            for (int64_t r = 0; r < ASSIGNED; r += 4) {                                                                \
                fours x[4];                                                                                            \
                for (int i = 0; i < 4; i++) {                                                                          \
                    fours row;                                                                                         \
                    memcpy(&row, tile + (r + i) * stride + j, sizeof row);                                             \
                    x[i] = row;                                                                                        \
                }                                                                                                      \
                transpose_##type(x);                                                                                   \
                for (int i = 0; i < 4; i++) {                                                                          \
                    const four column = __builtin_convertvector(x[i], four);                                           \
                    memcpy(across + (j + i) * ASSIGNED + r, &column, sizeof column);                                   \
                }                                                                                                      \
            }                                                                                                          \
        for (; j < d; j++)                                                                                             \
            for (int64_t r = 0; r < ASSIGNED; r++)                                                                     \
                across[j * ASSIGNED + r] = (REAL)tile[r * stride + j];                                                 \
    }
#ifdef SCREENS
TURN(turn, float, single_quad)
TURN(turn_double, double, quad)

/* Find the nearest centers (k, d) of ASSIGNED rows of double precision, which lie `stride` apart, in single precision;
 * return whether they are the nearest ones for certain, far enough from the second nearest that rounding cannot have
 * decided.
 *
 * A score is off by at most (d + 4) / 2^24 (|u| |c| + |c|^2 / 2), or by what is not a normal number (Higham 2002,
 * Accuracy and Stability of Numerical Algorithms, section 3.1); `longest` is the largest |c|. */
TARGET static int NAME(settled)(const double *tile, int64_t stride, const REAL *centers, const REAL *half, REAL longest,
                                int64_t d, int64_t k, REAL *across, int64_t *number) {
    vector square[2] = {{0}, {0}}, best[2], second[2];
    mask nearest[2], sure;
    NAME(turn_double)(tile, stride, d, across);
    for (int64_t j = 0; j < d; j++)
        for (int v = 0; v < 2; v++) {
            const vector value = NAME(load)(across + j * ASSIGNED + v * LANES);
            square[v] += value * value;
        }
    NAME(nearest_tile)(across, ASSIGNED, centers, half, d, k, best, second, nearest);
    const REAL unit = (REAL)(d + 8) * FLT_EPSILON, least = (REAL)(d + 8) * FLT_MIN;
    for (int v = 0; v < 2; v++) {
        /* Twice (|u| |c| + |c|^2 / 2) <= |u|^2 + 2 |c|^2: no root is to be taken. */
        const vector margin = unit * (square[v] + 2 * longest * longest) + least;
        sure = v ? sure & (best[v] - second[v] > margin) : best[v] - second[v] > margin;
        for (int lane = 0; lane < LANES; lane++)
            number[v * LANES + lane] = nearest[v][lane];
    }
    for (int lane = 0; lane < LANES; lane++)
        if (!sure[lane]) return 0;
    return 1;
}
#else
TURN(turn, double, quad)
#endif
#undef TURN

/* Write the sums over the rows (n, d) nearest to each center, or known to be of its cluster where labels (or NULL) are
 * not negative, of weight (or 1) times u = (row - shift) * scale, then of the weight and of weight times |u|^2: (k,
 * d+2). The centers (k, d) are in the units of u, half (k) are their |c|^2 / 2. */
TARGET static int NAME(nearest)(const REAL *rows, const double *shift, double scale, const REAL *centers,
                                const REAL *half, const double *weight, const int64_t *labels, double *sums, int64_t n,
                                int64_t d, int64_t k) {
    /* Rows are filled up with zeros to whole vectors. */
    const int64_t width = ASSIGNED, length = (d + LANES - 1) / LANES * LANES;
    const size_t bytes = k * sizeof(int64_t) + ((width + k) * length + width * d) * sizeof(REAL);
    int64_t *held = allocate(bytes);
    if (!held) return -1;
    memset(held, 0, bytes);
    REAL *tile = (REAL *)(held + k), *part = tile + width * length, *across = part + k * length;
#ifdef SCREEN
    float *screen = allocate((d * (width + k) + k) * sizeof(float)), longest = 0;
    if (!screen) {
        free(held);
        return -1;
    }
    float *rough = screen + d * width, *rough_half = rough + k * d;
    for (int64_t i = 0; i < k * d; i++)
        rough[i] = (float)centers[i];
    for (int64_t c = 0; c < k; c++) {
        rough_half[c] = (float)half[c];
        longest = fmaxf(longest, 1.0001f * sqrtf(2 * rough_half[c]));
    }
    int64_t doubts = 0, tiles = 0;
#endif
    memset(sums, 0, k * (d + 2) * sizeof(double));
    for (int64_t row = 0; row < n; row += width) {
        const int64_t count = n - row < width ? n - row : width;
        for (int64_t r = 0; r < count; r++) {
            const REAL *from = rows + (row + r) * d;
            for (int64_t j = 0; j < d; j++)
                tile[r * length + j] = (REAL)(((double)from[j] - shift[j]) * scale);
        }
        if (count < width) memset(tile + count * length, 0, (width - count) * length * sizeof(REAL));
        int64_t number[ASSIGNED];
        int found = 0;
#ifdef SCREEN
        /* Where half of the rows are in doubt, looking twice does not pay. */
        if (2 * doubts <= tiles + 8) {
            found = SCREEN(tile, length, rough, rough_half, longest, d, k, screen, number);
            doubts += !found;
            tiles++;
        }
#endif
        if (!found) NAME(turn)(tile, length, d, across);
        for (int64_t r = 0; r < width && !found; r += 2 * LANES) {
            vector best[2];
            mask nearest[2];
            NAME(nearest_tile)(across + r, width, centers, half, d, k, best, NULL, nearest);
            for (int64_t lane = 0; lane < 2 * LANES; lane++)
                number[r + lane] = nearest[lane / LANES][lane % LANES];
        }
        for (int64_t r = 0; r < count; r++) {
            NAME(fetch)(rows + (row + width + r) * d, d, 1, d);
            const int64_t known = labels ? labels[row + r] : -1;
            const int64_t c = known >= 0 ? known : number[r];
            const double share = weight ? weight[row + r] : 1.0;
            const REAL *u = tile + r * length;
            double *to = sums + (d + 2) * c;
            to[d] += share;
            to[d + 1] += share * NAME(square)(u, length);
            if (weight) {
                /* Single precision does not hold all weights. */
                for (int64_t j = 0; j < d; j++)
                    to[j] += share * u[j];
                continue;
            }
            REAL *sum = part + c * length;
            for (int64_t j = 0; j < length; j += LANES)
                NAME(store)(sum + j, NAME(load)(sum + j) + NAME(load)(u + j));
            if (++held[c] == HELD) {
                NAME(hand_over)(sum, d, to);
                held[c] = 0;
            }
        }
    }
    for (int64_t c = 0; c < k; c++)
        NAME(hand_over)(part + c * length, d, sums + (d + 2) * c);
#ifdef SCREEN
    free(screen);
#endif
    free(held);
    return 0;
}
