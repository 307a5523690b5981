/* Gaussian components over rows with holes, for one floating type and one set of vector instructions; kernels.h
 * includes this file. The letters, the formulas and their sources are in daskem/models/gaussian_missing.py.
 *
 * The n rows (n, d) hold anything at their holes, and those with the same pattern follow each other. `pattern` and
 * `place` say which pattern each row has, and which column in arrays of a whole block; the holes of pattern i are those
 * features, in increasing order, that stand from first[i] up to first[i + 1]. The holes of all rows are listed row by
 * row. There are k components, and points that values are about and precisions of each, or one of all (points = 1,
 * precisions = 1). As many components as a vector has lanes are computed at a time.
 */

/* Rows whose log densities are computed at a time, which share the precisions that are fetched. */
#define CONDITIONED 4
/* Rows that are filled before their products are summed: they stay in the first cache. */
#define FILLED 32
/* Tiles of them that are summed in the type of the rows. */
#define FILLED_TILES 8

/* Put (k, count) numbers of components c, c + 1, ... side by side, the last one again where there are no more. */
INLINE void NAME(abreast)(const double *from, int64_t c, int64_t k, int64_t count, REAL *to) {
    for (int64_t i = 0; i < count; i++)
        for (int64_t lane = 0; lane < LANES; lane++)
            to[i * LANES + lane] = (REAL)from[(c + lane < k ? c + lane : k - 1) * count + i];
}

/* Write u = (x - point) * scale of a row about the points of components c, c + 1, ..., or about the one that they
 * share, less `mean` unless that is NULL; features lie `apart`. `line` has room for d numbers. */
INLINE void NAME(about)(const REAL *x, const double *point, int64_t points, int64_t c, const double *scale,
                        const REAL *mean, int64_t d, REAL *line, vector *u, int64_t apart) {
    if (points == 1) {
        for (int64_t j = 0; j < d; j++)
            line[j] = (REAL)((x[j] - point[j]) * scale[j]);
        for (int64_t j = 0; j < d; j++)
            u[j * apart] = mean ? line[j] - NAME(load)(mean + j * LANES) : NAME(all)(line[j]);
    } else {
        for (int64_t lane = 0; lane < LANES; lane++) {
            const double *own = point + (c + lane < points ? c + lane : points - 1) * d;
            for (int64_t j = 0; j < d; j++)
                u[j * apart][lane] = (REAL)((x[j] - own[j]) * scale[j]);
        }
        for (int64_t j = 0; j < d && mean; j++)
            u[j * apart] -= NAME(load)(mean + j * LANES);
    }
}

/* Return sum_j left_j right_j, in four parts that need not wait for each other; those of `right` lie `apart`. */
INLINE vector NAME(dot)(const REAL *left, const vector *right, int64_t apart, int64_t count) {
    vector sum[4] = {{0}, {0}, {0}, {0}};
    int64_t j = 0;
    for (; j + 4 <= count; j += 4)
        for (int i = 0; i < 4; i++)
            sum[i] += NAME(load)(left + (j + i) * LANES) * right[(j + i) * apart];
    for (; j < count; j++)
        sum[0] += NAME(load)(left + j * LANES) * right[j * apart];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* Add to `square`, half of z^T L z of CONDITIONED rows, what m lines of L from i on have on and left of the diagonal.
 * Features of z lie CONDITIONED apart. */
INLINE void NAME(quadratic)(const int m, const REAL *precision, int64_t i, int64_t d, const vector *z, vector *square) {
    vector sum[2][CONDITIONED];
    for (int a = 0; a < m; a++)
        for (int r = 0; r < CONDITIONED; r++)
            sum[a][r] = (vector){0};
    const REAL *of = precision + i * d * LANES;
    for (int64_t j = 0; j < i; j++)
        for (int a = 0; a < m; a++) {
            const vector left = NAME(load)(of + (a * d + j) * LANES);
            for (int r = 0; r < CONDITIONED; r++)
                sum[a][r] += left * z[j * CONDITIONED + r];
        }
    z += i * CONDITIONED;
    for (int a = 0; a < m; a++)
        for (int r = 0; r < CONDITIONED; r++) {
            for (int b = 0; b < a; b++)
                sum[a][r] += NAME(load)(of + (a * d + i + b) * LANES) * z[b * CONDITIONED + r];
            const vector own = z[a * CONDITIONED + r];
            square[r] += own * ((REAL)0.5 * NAME(load)(of + (a * d + i + a) * LANES) * own + sum[a][r]);
        }
}

/* Decompose L_mm = F D F^T, m being the holes of a row: fill `work` (q, q) with F, 1 / D in the place of its diagonal
 * of ones, and return log det L_mm. */
INLINE vector NAME(decompose)(const REAL *precision, int64_t d, const int64_t *hole, int64_t q, vector *work,
                              vector *line) {
    vector sum = {0};
    for (int64_t a = 0; a < q; a++) {
        const REAL *from = precision + hole[a] * d * LANES;
        vector *to = work + a * q, pivot = NAME(load)(from + hole[a] * LANES);
        for (int64_t b = 0; b < a; b++) {
            vector value = NAME(load)(from + hole[b] * LANES);
            for (int64_t i = 0; i < b; i++)
                value -= line[i] * work[b * q + i];
            line[b] = value;
            to[b] = value * work[b * q + b];
            pivot -= value * to[b];
        }
        to[a] = 1 / pivot;
        sum += NAME(log)(pivot);
    }
    return sum;
}

/* Write the offsets of a row's conditional means to `offset` (q, apart), and return g_m^T C g_m. */
INLINE vector NAME(expect)(const REAL *precision, int64_t d, const int64_t *hole, int64_t q, const vector *z,
                           const vector *work, vector *w, vector *line, REAL *offset, int64_t apart, int64_t used) {
    vector gain = {0};
    for (int64_t a = 0; a < q; a++) {
        vector value = NAME(dot)(precision + hole[a] * d * LANES, z, CONDITIONED, d);
        for (int64_t i = 0; i < a; i++)
            value -= work[a * q + i] * w[i];
        w[a] = value;
        line[a] = value * work[a * q + a];
        gain += value * line[a];
    }
    for (int64_t a = q - 1; a >= 0; a--) {
        vector value = line[a];
        for (int64_t i = a + 1; i < q; i++)
            value -= work[i * q + a] * w[i];
        w[a] = value;
        if (used == LANES)
            NAME(store)(offset + a * apart, -value);
        else
            for (int64_t lane = 0; lane < used; lane++)
                offset[a * apart + lane] = -value[lane];
    }
    return gain;
}

/* Write log p(values present | component) of the rows to their places in log_prob (k, stride), the offsets of the
 * conditional means (holes, k), and for each pattern what the log density at the mean is more than `peak` (k), that of
 * complete rows. `constant` (d) is half of log 2 pi less the log of the scale. */
TARGET static int NAME(condition)(const REAL *rows, const int64_t *feature, const int64_t *first,
                                  const int64_t *pattern, const int64_t *place, const double *point,
                                  const double *scale, const double *delta, const double *precision, const double *peak,
                                  const double *constant, REAL *log_prob, REAL *offset, double *peaks, int64_t n,
                                  int64_t stride, int64_t d, int64_t k, int64_t points, int64_t precisions) {
    REAL *l = allocate((2 * d * d + (CONDITIONED + 4) * d) * sizeof(vector));
    if (!l) return -1;
    REAL *mean = l + d * d * LANES, *flat = mean + d * LANES;
    vector *z = (vector *)(flat + d * LANES), *work = z + CONDITIONED * d, *w = work + d * d, *line = w + d;
    for (int64_t c = 0; c < k; c += LANES) {
        const int64_t used = k - c < LANES ? k - c : LANES;
        REAL tops[LANES], *to = offset + c;
        NAME(abreast)(precision, precisions > 1 ? c : 0, precisions, d * d, l);
        NAME(abreast)(delta, c, k, d, mean);
        NAME(abreast)(peak, c, k, 1, tops);
        vector high = {0};
        int64_t known = -1;
        for (int64_t row = 0; row < n; row += CONDITIONED) {
            for (int64_t r = 0; r < CONDITIONED; r++) {
                const int64_t at = row + r < n ? row + r : n - 1;
                NAME(about)(rows + at * d, point, points, c, scale, mean, d, flat, z + r, CONDITIONED);
                for (int64_t a = first[pattern[at]]; a < first[pattern[at] + 1]; a++)
                    z[feature[a] * CONDITIONED + r] = (vector){0};
            }
            vector square[CONDITIONED];
            for (int r = 0; r < CONDITIONED; r++)
                square[r] = (vector){0};
            for (int64_t i = 0; i + 2 <= d; i += 2)
                NAME(quadratic)(2, l, i, d, z, square);
            if (d % 2) NAME(quadratic)(1, l, d - 1, d, z, square);
            for (int64_t r = row; r < n && r < row + CONDITIONED; r++) {
                const int64_t *hole = feature + first[pattern[r]], q = first[pattern[r] + 1] - first[pattern[r]];
                if (pattern[r] != known) {
                    known = pattern[r];
                    high = (REAL)-0.5 * NAME(decompose)(l, d, hole, q, work, line);
                    for (int64_t a = 0; a < q; a++)
                        high += (REAL)constant[hole[a]];
                    for (int64_t lane = 0; lane < used; lane++)
                        peaks[known * k + c + lane] = high[lane];
                }
                const vector gain = NAME(expect)(l, d, hole, q, z + (r - row), work, w, line, to, k, used);
                vector density = NAME(load)(tops) + high + ((REAL)0.5 * gain - square[r - row]);
                /* Of a row so far off that both are infinite. */
                density = NAME(choose)(square[r - row] > LARGEST, NAME(all)(-(REAL)INFINITY), density);
                for (int64_t lane = 0; lane < used; lane++)
                    log_prob[(c + lane) * stride + place[r]] = density[lane];
                to += q * k;
            }
        }
    }
    free(l);
    return 0;
}

/* Add to the three lines of `sum` from i on, at the m places from j on, the products of `count` rows. */
INLINE void NAME(product_block)(const int m, const vector *left, const vector *right, int64_t count, int64_t apart,
                                int64_t i, int64_t j, vector *sum) {
    vector block[3][4];
    for (int a = 0; a < 3; a++)
        for (int b = 0; b < m; b++)
            block[a][b] = (vector){0};
    for (int64_t r = 0; r < count; r++) {
        const vector x = left[r * apart + i], y = left[r * apart + i + 1], z = left[r * apart + i + 2];
        for (int b = 0; b < m; b++) {
            const vector value = right[r * apart + j + b];
            block[0][b] += x * value;
            block[1][b] += y * value;
            block[2][b] += z * value;
        }
    }
    for (int a = 0; a < 3; a++)
        for (int b = 0; b < m; b++)
            sum[(i + a) * apart + j + b] += block[a][b];
}

/* Add a vector to sums in double precision. */
INLINE void NAME(add)(double *sums, vector value) {
    for (int64_t lane = 0; lane < LANES; lane += 4) {
        quad sum;
        memcpy(&sum, sums + lane, sizeof sum);
        sum += (quad){value[lane], value[lane + 1], value[lane + 2], value[lane + 3]};
        memcpy(sums + lane, &sum, sizeof sum);
    }
}

/* Write u of a row with its holes at their conditional means, which are `offset` (q, apart) from `mean`; a one behind
 * it; and both times its `share`. */
INLINE void NAME(fill)(const REAL *x, const double *point, int64_t points, int64_t c, const double *scale,
                       const REAL *mean, const int64_t *hole, int64_t q, const REAL *offset, int64_t apart,
                       int64_t used, vector share, int64_t d, REAL *flat, vector *u, vector *shared) {
    NAME(about)(x, point, points, c, scale, NULL, d, flat, u, 1);
    for (int64_t a = 0; a < q; a++) {
        vector *to = u + hole[a];
        *to = NAME(load)(mean + hole[a] * LANES);
        if (used == LANES)
            *to += NAME(load)(offset + a * apart);
        else
            for (int64_t lane = 0; lane < used; lane++)
                (*to)[lane] += offset[a * apart + lane];
    }
    u[d] = NAME(all)(1);
    for (int64_t j = 0; j <= d; j++)
        shared[j] = share * u[j];
}

/* Add to `sums` the conditional covariance of a pattern times its `share`. */
INLINE void NAME(spread)(const REAL *precision, int64_t d, const int64_t *hole, int64_t q, vector share, vector *work,
                         vector *inverse, vector *line, double *sums, int64_t apart) {
    NAME(decompose)(precision, d, hole, q, work, line);
    /* inverse holds F^-1, C = F^-T D^-1 F^-1. */
    for (int64_t b = 0; b < q; b++) {
        inverse[b * q + b] = NAME(all)(1);
        for (int64_t a = b + 1; a < q; a++) {
            vector value = {0};
            for (int64_t i = b; i < a; i++)
                value -= work[a * q + i] * inverse[i * q + b];
            inverse[a * q + b] = value;
        }
    }
    for (int64_t a = 0; a < q; a++)
        for (int64_t b = a; b < q; b++) {
            vector value = {0};
            for (int64_t i = b; i < q; i++)
                value += inverse[i * q + a] * work[i * q + i] * inverse[i * q + b];
            /* Features of a pattern are in increasing order. */
            NAME(add)(sums + (hole[a] * apart + hole[b]) * LANES, share * value);
        }
}

/* Add the moments of the rows, filled with conditional means, about the points: to `sum` (k, d) weighted by `resp` (k,
 * stride), to the upper triangles of `product` (precisions, d, d) likewise, and there the conditional covariances by
 * `loose`. */
TARGET static int NAME(filled)(const REAL *rows, const int64_t *feature, const int64_t *first, const int64_t *pattern,
                               const int64_t *place, const double *point, const double *scale, const double *delta,
                               const double *precision, const REAL *offset, const REAL *resp, const REAL *loose,
                               double *sum, double *product, int64_t n, int64_t stride, int64_t d, int64_t k,
                               int64_t points, int64_t precisions) {
    /* Lines of d features and a one, and so many more that three lines from any on can be worked on. */
    const int64_t apart = d + 3, size = apart * apart, tile = FILLED * apart;
    vector *part = allocate((size + 2 * tile + 3 * d * d + 3 * d) * sizeof(vector) + size * LANES * sizeof(double));
    if (!part) return -1;
    vector *u = part + size, *shared = u + tile, *work = shared + tile, *inverse = work + d * d,
           *line = inverse + d * d;
    REAL *l = (REAL *)(line + d), *mean = l + d * d * LANES, *flat = mean + d * LANES;
    double *sums = (double *)(flat + d * LANES);
    memset(u, 0, 2 * tile * sizeof(vector));
    for (int64_t c = 0; c < k; c += LANES) {
        const int64_t used = k - c < LANES ? k - c : LANES;
        const REAL *from = offset + c;
        NAME(abreast)(precision, precisions > 1 ? c : 0, precisions, d * d, l);
        NAME(abreast)(delta, c, k, d, mean);
        memset(part, 0, size * sizeof(vector));
        memset(sums, 0, size * LANES * sizeof(double));
        for (int64_t row = 0, tiles = 1; row < n; row += FILLED, tiles++) {
            const int64_t count = n - row < FILLED ? n - row : FILLED;
            for (int64_t r = 0; r < count; r++) {
                const int64_t at = row + r, *hole = feature + first[pattern[at]];
                const int64_t q = first[pattern[at] + 1] - first[pattern[at]];
                vector share = {0};
                for (int64_t lane = 0; lane < used; lane++)
                    share[lane] = resp[(c + lane) * stride + place[at]];
                NAME(fill)(rows + at * d, point, points, c, scale, mean, hole, q, from, k, used, share, d, flat,
                           u + r * apart, shared + r * apart);
                from += q * k;
            }
            for (int64_t i = 0; i < d; i += 3)
                for (int64_t j = i; j <= d; j += 4)
                    UP_TO_4(d + 1 - j < 4 ? (int)(d + 1 - j) : 4, NAME(product_block), shared, u, count, apart, i, j,
                            part)
            if (tiles % FILLED_TILES == 0 || row + count == n) {
                for (int64_t i = 0; i < size; i++)
                    NAME(add)(sums + i * LANES, part[i]);
                memset(part, 0, size * sizeof(vector));
            }
        }
        for (int64_t r = 0, next; r < n; r = next) {
            const int64_t *hole = feature + first[pattern[r]], q = first[pattern[r] + 1] - first[pattern[r]];
            double total[LANES] = {0};
            for (next = r; next < n && pattern[next] == pattern[r]; next++)
                for (int64_t lane = 0; lane < used; lane++)
                    total[lane] += loose[(c + lane) * stride + place[next]];
            vector share;
            for (int64_t lane = 0; lane < LANES; lane++)
                share[lane] = (REAL)total[lane];
            NAME(spread)(l, d, hole, q, share, work, inverse, line, sums, apart);
        }
        for (int64_t lane = 0; lane < used; lane++) {
            double *to = product + (precisions > 1 ? c + lane : 0) * d * d;
            for (int64_t i = 0; i < d; i++) {
                sum[(c + lane) * d + i] += sums[(i * apart + d) * LANES + lane];
                for (int64_t j = i; j < d; j++)
                    to[i * d + j] += sums[(i * apart + j) * LANES + lane];
            }
        }
    }
    free(part);
    return 0;
}

#undef CONDITIONED
#undef FILLED
#undef FILLED_TILES
