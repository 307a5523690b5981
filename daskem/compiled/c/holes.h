/* Gaussian components over rows with holes, in double precision, with one set of vector instructions. The letters, the
 * formulas and their sources are in daskem/models/gaussian_missing.py.
 *
 * A run has n rows (n, d) with q holes each, NaN or whatever; those with the same pattern follow each other. Its list
 * of holes has the a-th hole of row r at a * n + r. There are k components, and precisions of each, or one of all (m =
 * 1). Four components at a time are the lanes of vectors.
 */

/* Put (k, count) numbers of four components, the last one again and again where there are no more, side by side. */
INLINE void NAME(abreast)(const double *from, int64_t c, int64_t k, int64_t count, double *to) {
    for (int64_t i = 0; i < count; i++)
        for (int64_t lane = 0; lane < LANES; lane++)
            to[i * LANES + lane] = from[(c + lane < k ? c + lane : k - 1) * count + i];
}

/* Return sum_j left_j right_j, in four parts that need not wait for each other. */
INLINE vector NAME(dot)(const double *left, const vector *right, int64_t count) {
    vector sum[4] = {{0}, {0}, {0}, {0}};
    int64_t j = 0;
    for (; j + 4 <= count; j += 4)
        for (int i = 0; i < 4; i++)
            sum[i] += NAME(load)(left + (j + i) * LANES) * right[j + i];
    for (; j < count; j++)
        sum[0] += NAME(load)(left + j * LANES) * right[j];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* Decompose L_mm = F D F^T, m being the holes of a row: fill `work` (q, q) with F, 1 / D in the place of its diagonal
 * of ones, and return log det L_mm. */
INLINE vector NAME(decompose)(const double *precision, int64_t d, const int64_t *feature, int64_t n, int64_t q,
                              vector *work, vector *line) {
    vector sum = {0};
    for (int64_t a = 0; a < q; a++) {
        const double *from = precision + feature[a * n] * d * LANES;
        vector *to = work + a * q, pivot = NAME(load)(from + feature[a * n] * LANES);
        for (int64_t b = 0; b < a; b++) {
            vector value = NAME(load)(from + feature[b * n] * LANES);
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

/* Write log p(values present | component) of the rows to log_prob (k, stride), the offsets of the conditional means
 * (holes, k), and for each pattern what the log density at the mean is more than `peak` (k), that of complete rows.
 * `constant` (d) is half of log 2 pi less the log of the scale. */
TARGET static int NAME(condition)(const double *rows, const int64_t *feature, const int64_t *pattern,
                                  const double *reference, const double *scale, const double *delta,
                                  const double *precision, const double *peak, const double *constant, double *log_prob,
                                  double *offset, double *peaks, int64_t n, int64_t stride, int64_t q, int64_t d,
                                  int64_t k, int64_t m) {
    double *l = allocate((d * d + 3 * d + q * q + 2 * q) * sizeof(vector));
    if (!l) return -1;
    double *about = l + d * d * LANES, *mean = about + d * LANES;
    vector *z = (vector *)(mean + d * LANES), *work = z + d, *w = work + q * q, *line = w + q;
    for (int64_t c = 0; c < k; c += LANES) {
        const int64_t used = k - c < LANES ? k - c : LANES;
        NAME(abreast)(precision, m > 1 ? c : 0, m, d * d, l);
        NAME(abreast)(reference, c, k, d, about);
        NAME(abreast)(delta, c, k, d, mean);
        double tops[LANES];
        NAME(abreast)(peak, c, k, 1, tops);
        vector high = {0};
        int64_t known = -1;
        for (int64_t r = 0; r < n; r++) {
            const double *x = rows + r * d;
            const int64_t *hole = feature + r;
            for (int64_t j = 0; j < d; j++)
                z[j] = (x[j] - NAME(load)(about + j * LANES)) * scale[j] - NAME(load)(mean + j * LANES);
            for (int64_t a = 0; a < q; a++)
                z[hole[a * n]] = (vector){0};
            vector square = {0};
            for (int64_t i = 0; i < d; i++) {
                const double *of = l + i * d * LANES;
                square += z[i] * (0.5 * NAME(load)(of + i * LANES) * z[i] + NAME(dot)(of, z, i));
            }
            if (pattern[r] != known) {
                known = pattern[r];
                high = -0.5 * NAME(decompose)(l, d, hole, n, q, work, line);
                for (int64_t a = 0; a < q; a++)
                    high += constant[hole[a * n]];
                for (int64_t lane = 0; lane < used; lane++)
                    peaks[known * k + c + lane] = high[lane];
            }
            vector gain = {0};
            for (int64_t a = 0; a < q; a++) {
                const double *of = l + hole[a * n] * d * LANES;
                vector value = NAME(dot)(of, z, d);
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
                double *to = offset + (a * n + r) * k + c;
                if (used == LANES)
                    NAME(store)(to, -value);
                else
                    for (int64_t lane = 0; lane < used; lane++)
                        to[lane] = -value[lane];
            }
            const vector density = NAME(load)(tops) + high + (0.5 * gain - square);
            for (int64_t lane = 0; lane < used; lane++)
                log_prob[(c + lane) * stride + r] = density[lane];
        }
    }
    free(l);
    return 0;
}

/* Add the moments of the rows, filled with conditional means, about the references: to `first` (k, d) weighted by
 * `resp` (k, stride), to the upper triangles of `second` (m, d, d) likewise, and there the conditional covariances by
 * `loose`. */
TARGET static int NAME(filled)(const double *rows, const int64_t *feature, const int64_t *pattern,
                               const double *reference, const double *scale, const double *delta,
                               const double *precision, const double *offset, const double *resp, const double *loose,
                               double *first, double *second, int64_t n, int64_t stride, int64_t q, int64_t d,
                               int64_t k, int64_t m) {
    double *l = allocate((2 * d * d + 3 * d + 2 * d + 2 * q * q + q) * sizeof(vector));
    if (!l) return -1;
    double *about = l + d * d * LANES, *mean = about + d * LANES;
    vector *sum = (vector *)(mean + d * LANES), *total = sum + d * d, *u = total + d;
    vector *work = u + 2 * d, *inverse = work + q * q, *line = inverse + q * q;
    for (int64_t c = 0; c < k; c += LANES) {
        const int64_t used = k - c < LANES ? k - c : LANES;
        NAME(abreast)(precision, m > 1 ? c : 0, m, d * d, l);
        NAME(abreast)(reference, c, k, d, about);
        NAME(abreast)(delta, c, k, d, mean);
        memset(sum, 0, (d * d + d) * sizeof(vector));
        for (int64_t row = 0; row < n; row += 2) {
            vector share[2] = {{0}, {0}};
            for (int64_t r = 0; r < 2; r++) {
                /* A row past the last counts for nothing. */
                const int64_t at = row + r < n ? row + r : n - 1;
                vector *of = u + r * d;
                if (row + r < n)
                    for (int64_t lane = 0; lane < used; lane++)
                        share[r][lane] = resp[(c + lane) * stride + at];
                for (int64_t j = 0; j < d; j++)
                    of[j] = (rows[at * d + j] - NAME(load)(about + j * LANES)) * scale[j];
                for (int64_t a = 0; a < q; a++) {
                    const int64_t j = feature[a * n + at];
                    const double *more = offset + (a * n + at) * k + c;
                    of[j] = NAME(load)(mean + j * LANES);
                    if (used == LANES)
                        of[j] += NAME(load)(more);
                    else
                        for (int64_t lane = 0; lane < used; lane++)
                            of[j][lane] += more[lane];
                }
            }
            for (int64_t i = 0; i < d; i++) {
                const vector left = share[0] * u[i], right = share[1] * u[d + i];
                total[i] += left + right;
                for (int64_t j = i; j < d; j++)
                    sum[i * d + j] += left * u[j] + right * u[d + j];
            }
        }
        for (int64_t r = 0, next; r < n; r = next) {
            vector share = {0};
            for (next = r; next < n && pattern[next] == pattern[r]; next++)
                for (int64_t lane = 0; lane < used; lane++)
                    share[lane] += loose[(c + lane) * stride + next];
            NAME(decompose)(l, d, feature + r, n, q, work, line);
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
                    sum[feature[a * n + r] * d + feature[b * n + r]] += share * value;
                }
        }
        for (int64_t lane = 0; lane < used; lane++) {
            double *to = second + (m > 1 ? c + lane : 0) * d * d;
            for (int64_t i = 0; i < d; i++) {
                first[(c + lane) * d + i] += total[i][lane];
                for (int64_t j = i; j < d; j++)
                    to[i * d + j] += sum[i * d + j][lane];
            }
        }
    }
    free(l);
    return 0;
}
