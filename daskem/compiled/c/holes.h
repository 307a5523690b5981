/* Gaussian components over rows with holes, in double precision, with one set of vector instructions. The letters, the
 * formulas and their sources are in daskem/models/gaussian_missing.py.
 *
 * A run has n rows (n, d) with q holes each, NaN or whatever; those with the same pattern follow each other. Its list of
 * holes has the a-th hole of row r at a * n + r. There are k components, and precisions of each, or one of all (m = 1).
 */

/* Fill `work` (q, q) with the Cholesky factor of L_mm, m being the holes of a row, and return log det L_mm. */
INLINE double NAME(factorise)(const double *precision, long d, const long *feature, long n, long q, double *work) {
    double product = 1, sum = 0;
    for (long a = 0; a < q; a++)
        for (long b = 0; b <= a; b++) {
            double value = precision[feature[a * n] * d + feature[b * n]];
            for (long i = 0; i < b; i++) value -= work[a * q + i] * work[b * q + i];
            if (b < a) {
                work[a * q + b] = value / work[b * q + b];
                continue;
            }
            work[a * q + a] = sqrt(value);
            product *= value;
            /* A logarithm takes longer than all the rest of a row with one hole: as few as there can be. */
            if (!(product > 1e-100 && product < 1e100)) {
                sum += log(product);
                product = 1;
            }
        }
    return sum + log(product);
}

/* Write z L (LANES * v numbers) for z (d) and L (d, LANES * v), and return z L z^T. */
INLINE double NAME(product)(const int v, const double *z, const double *precision, long d, double *out) {
    vector sum[MOST_HOLED / LANES], square = {0};
    for (int i = 0; i < v; i++) sum[i] = (vector){0};
    for (long j = 0; j < d; j++) {
        const vector coordinate = NAME(all)(z[j]);
        for (int i = 0; i < v; i++) sum[i] += coordinate * NAME(load)(precision + (j * v + i) * LANES);
    }
    for (int i = 0; i < v; i++) {
        NAME(store)(out + i * LANES, sum[i]);
        square += sum[i] * NAME(load)(z + i * LANES);
    }
    return NAME(total)(square);
}

/* Write log p(values present | component) of the rows to log_prob (k, stride), the offsets of the conditional means
 * (holes, k), and for each pattern what the log density at the mean is more than `peak` (k), that of complete rows.
 * `constant` (d) is half of log 2 pi less the log of the scale. */
TARGET static int NAME(condition)(const double *rows, const long *feature, const long *pattern, const double *reference,
                                  const double *scale, const double *delta, const double *precision, const double *peak,
                                  const double *constant, double *log_prob, double *offset, double *peaks, long n,
                                  long stride, long q, long d, long k, long m) {
    const long v = (d + LANES - 1) / LANES, width = v * LANES;
    double *padded = allocate((d * width + 2 * width + q * q + q) * sizeof(double));
    if (!padded) return -1;
    double *z = padded + d * width, *y = z + width, *work = y + width, *w = work + q * q;
    memset(padded, 0, (d * width + width) * sizeof(double));
    for (long c = 0; c < k; c++) {
        const double *l = precision + (m > 1 ? c : 0) * d * d;
        const double *mean = delta + c * d, *about = reference + c * d;
        for (long i = 0; i < d; i++) memcpy(padded + i * width, l + i * d, d * sizeof(double));
        long known = -1;
        double high = 0, square = 0;
        for (long r = 0; r < n; r++) {
            const double *x = rows + r * d;
            const long *hole = feature + r;
            for (long j = 0; j < d; j++) z[j] = (x[j] - about[j]) * scale[j] - mean[j];
            for (long a = 0; a < q; a++) z[hole[a * n]] = 0;
            switch (v) {
            case 1: square = NAME(product)(1, z, padded, d, y); break;
            case 2: square = NAME(product)(2, z, padded, d, y); break;
            case 3: square = NAME(product)(3, z, padded, d, y); break;
            case 4: square = NAME(product)(4, z, padded, d, y); break;
            case 5: square = NAME(product)(5, z, padded, d, y); break;
            case 6: square = NAME(product)(6, z, padded, d, y); break;
            case 7: square = NAME(product)(7, z, padded, d, y); break;
            case 8: square = NAME(product)(8, z, padded, d, y); break;
            }
            if (pattern[r] != known) {
                known = pattern[r];
                high = -0.5 * NAME(factorise)(l, d, hole, n, q, work);
                for (long a = 0; a < q; a++) high += constant[hole[a * n]];
                peaks[known * k + c] = high;
            }
            double gain = 0;
            for (long a = 0; a < q; a++) {
                double value = y[hole[a * n]];
                for (long i = 0; i < a; i++) value -= work[a * q + i] * w[i];
                w[a] = value / work[a * q + a];
                gain += w[a] * w[a];
            }
            for (long a = q - 1; a >= 0; a--) {
                for (long i = a + 1; i < q; i++) w[a] -= work[i * q + a] * w[i];
                w[a] /= work[a * q + a];
                offset[(a * n + r) * k + c] = -w[a];
            }
            log_prob[c * stride + r] = peak[c] + high + 0.5 * (gain - square);
        }
    }
    free(padded);
    return 0;
}

/* Add the moments of the rows, filled with conditional means, about the references: to `first` (k, d) weighted by `resp`
 * (k, stride), to the upper triangles of `second` (m, d, d) likewise, and there the conditional covariances by `loose`. */
TARGET static int NAME(filled)(const double *rows, const long *feature, const long *pattern, const double *reference,
                               const double *scale, const double *delta, const double *precision, const double *offset,
                               const double *resp, const double *loose, double *first, double *second, long n,
                               long stride, long q, long d, long k, long m) {
    const long width = (d + LANES - 1) / LANES * LANES;
    double *sum = allocate((d * width + 4 * width + 2 * q * q) * sizeof(double));
    if (!sum) return -1;
    double *u = sum + d * width, *work = u + 4 * width, *inverse = work + q * q;
    memset(u, 0, 4 * width * sizeof(double));
    for (long c = 0; c < k; c++) {
        const double *l = precision + (m > 1 ? c : 0) * d * d;
        const double *mean = delta + c * d, *about = reference + c * d;
        double *to = second + (m > 1 ? c : 0) * d * d;
        memset(sum, 0, d * width * sizeof(double));
        for (long row = 0; row < n; row += 4) {
            double share[4];
            for (long r = 0; r < 4; r++) {
                /* Rows past the last count for nothing. */
                const long at = row + r < n ? row + r : n - 1;
                const double *x = rows + at * d;
                double *of = u + r * width;
                share[r] = row + r < n ? resp[c * stride + at] : 0;
                for (long j = 0; j < d; j++) of[j] = (x[j] - about[j]) * scale[j];
                for (long a = 0; a < q; a++) {
                    const long j = feature[a * n + at];
                    of[j] = mean[j] + offset[(a * n + at) * k + c];
                }
                for (long j = 0; j < d; j++) first[c * d + j] += share[r] * of[j];
            }
            for (long i = 0; i < d; i++) {
                vector by[4];
                for (int r = 0; r < 4; r++) by[r] = NAME(all)(share[r] * u[r * width + i]);
                for (long j = i / LANES * LANES; j < width; j += LANES) {
                    vector value = NAME(load)(sum + i * width + j);
                    for (int r = 0; r < 4; r++) value += by[r] * NAME(load)(u + r * width + j);
                    NAME(store)(sum + i * width + j, value);
                }
            }
        }
        for (long i = 0; i < d; i++)
            for (long j = i; j < d; j++) to[i * d + j] += sum[i * width + j];
        for (long r = 0, next; r < n; r = next) {
            double share = 0;
            for (next = r; next < n && pattern[next] == pattern[r]; next++) share += loose[c * stride + next];
            NAME(factorise)(l, d, feature + r, n, q, work);
            /* inverse holds that of the factor F, C = F^-T F^-1. */
            for (long b = 0; b < q; b++)
                for (long a = b; a < q; a++) {
                    double value = a == b;
                    for (long i = b; i < a; i++) value -= work[a * q + i] * inverse[i * q + b];
                    inverse[a * q + b] = value / work[a * q + a];
                }
            for (long a = 0; a < q; a++)
                for (long b = a; b < q; b++) {
                    double value = 0;
                    for (long i = b; i < q; i++) value += inverse[i * q + a] * inverse[i * q + b];
                    /* Features of a pattern are in increasing order. */
                    to[feature[a * n + r] * d + feature[b * n + r]] += share * value;
                }
        }
    }
    free(sum);
    return 0;
}
