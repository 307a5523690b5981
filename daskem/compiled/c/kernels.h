/* The kernels for one floating type and one set of vector instructions; kernels.c includes this file once for each.
 *
 * REAL      the type computed in
 * INTEGER   the integer type of its size
 * NAME(x)   the name of the variant of x
 * TARGET    the attribute that allows its instructions
 * BYTES     of a vector
 * SHARES    components whose moments are summed at a time
 *
 * and what types.h says of a type. All but TARGET are undefined again at the end.
 *
 * Rows are walked in tiles that are copied next to each other, since columns of blocks lie powers of two apart and
 * would push each other out of the caches. The tail of the last tile is filled with zeros, so that a row's bits do not
 * depend on how many rows share its tile, and a tile's products are added to double precision sums.
 */

#define LANES (BYTES / (int64_t)sizeof(REAL))
/* Rows of a tile of densities, a multiple of four vectors. */
#define DENSITY_ROWS (DENSITY_BYTES / (int64_t)sizeof(REAL))
#define INLINE TARGET static inline __attribute__((always_inline))
#define four NAME(four)
#define vector NAME(vector)
#define mask NAME(mask)

typedef REAL four __attribute__((vector_size(4 * sizeof(REAL))));
typedef REAL vector __attribute__((vector_size(BYTES)));
typedef INTEGER mask __attribute__((vector_size(BYTES)));

INLINE vector NAME(all)(REAL value) {
    /* Not 0 + value, which is another number for -0 and costs an addition. */
    return value - (vector){0};
}

INLINE vector NAME(load)(const REAL *from) {
    vector value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE void NAME(store)(REAL *to, vector value) { memcpy(to, &value, sizeof value); }

INLINE vector NAME(choose)(mask which, vector yes, vector no) {
    return (vector)((which & (mask)yes) | (~which & (mask)no));
}

/* Return the values, and 0 where `which`. */
INLINE vector NAME(unless)(mask which, vector value) { return (vector)(~which & (mask)value); }

/* Return the larger of each two numbers: the second where one is NaN. */
INLINE vector NAME(larger)(vector a, vector b) { return LARGER(a, b); }

/* Copy `rows` columns of `count` lines that lie `stride` apart to lines that lie `apart`, and fill `width` with zeros.
 */
INLINE void NAME(gather)(const REAL *from, int64_t stride, int64_t count, int64_t rows, int64_t width, REAL *to,
                         int64_t apart) {
    for (int64_t i = 0; i < count; i++, from += stride, to += apart) {
        if (rows == width) {
            for (int64_t r = 0; r < width; r += LANES)
                NAME(store)(to + r, NAME(load)(from + r));
        } else {
            for (int64_t r = 0; r < width; r++)
                to[r] = r < rows ? from[r] : 0;
        }
    }
}

/* Have rows of d numbers fetched that the next tile is made of, while this one is computed: the processor's own
 * foresight comes too late. They may lie beyond the last one: nothing is read. */
INLINE void NAME(fetch)(const REAL *next, int64_t stride, int64_t rows, int64_t d) {
    const int64_t lines = stride == d ? 1 : rows, numbers = stride == d ? rows * d : d;
    for (int64_t r = 0; r < lines; r++, next += stride)
        for (int64_t i = 0; i < numbers; i += 64 / (int64_t)sizeof(REAL))
            __builtin_prefetch(next + i);
}

/* Return (x - shift) * scale of four features of a row. Single precision is kept from rounding the shift, which would
 * move the means. */
INLINE quad NAME(shift_four)(const REAL *x, const double *shift, const double *scale) {
    four value;
    quad less, by;
    memcpy(&value, x, sizeof value);
    memcpy(&less, shift, sizeof less);
    memcpy(&by, scale, sizeof by);
    return (__builtin_convertvector(value, quad) - less) * by;
}

/* Write (x - shift) * scale of columns j to `end` of `count` rows, which lie `stride` apart, to as many lines of `out`,
 * which lie `apart`. */
INLINE void NAME(shift_tile)(const REAL *rows, int64_t stride, const double *shift, const double *scale, REAL *out,
                             int64_t apart, int64_t count, int64_t j, int64_t end) {
    const int64_t whole = count / 4 * 4, square = j + (end - j) / 4 * 4;
    for (int64_t r = 0; r < whole; r += 4)
        for (int64_t q = j; q < square; q += 4) {
            quad x[4];
            for (int i = 0; i < 4; i++)
                x[i] = NAME(shift_four)(rows + (r + i) * stride + q, shift + q, scale + q);
            transpose_double(x);
            for (int i = 0; i < 4; i++) {
                const four column = __builtin_convertvector(x[i], four);
                memcpy(out + (q + i) * apart + r, &column, sizeof column);
            }
        }
    for (; j < end; j++)
        for (int64_t r = j < square ? whole : 0; r < count; r++)
            out[j * apart + r] = (REAL)(((double)rows[r * stride + j] - shift[j]) * scale[j]);
}

TARGET static int NAME(shifted)(const REAL *rows, int64_t stride, const double *shift, const double *scale, REAL *out,
                                int64_t n, int64_t d) {
    /* A few lines at a time: all of them do not stay in a cache. */
    for (int64_t j = 0; j < d; j += 4)
        NAME(shift_tile)(rows, stride, shift, scale, out, n, n, j, d - j < 4 ? d : j + 4);
    return 0;
}

/* Return the next `count` features of T(u), the 1 left out, in lines of `width` rows: those of `u` itself, which has
 * its d lines of that width, where all are linear, and else such that are written to `out`.
 *
 * The upper triangle goes by rows: u_i u_j for j >= i. i = -1 stands for the linear features; i and j move on. */
INLINE const REAL *NAME(features)(enum form form, const REAL *u, int64_t d, int64_t width, int64_t count, int64_t *i,
                                  int64_t *j, REAL *out) {
    const REAL *linear = *i < 0 && *j + count <= d ? u + *j * width : NULL;
    REAL *to = out;
    while (count > 0) {
        int64_t run = d - *j < count ? d - *j : count;
        const REAL *right = u + *j * width;
        if (*i >= 0) {
            for (int64_t q = 0; q < run; q++) {
                const REAL *left = form == FULL ? u + *i * width : right + q * width;
                for (int64_t r = 0; r < width; r += LANES)
                    NAME(store)(to + q * width + r, NAME(load)(left + r) * NAME(load)(right + q * width + r));
            }
        } else if (!linear) {
            NAME(gather)(right, width, run, width, width, to, width);
        }
        to += run * width;
        count -= run;
        *j += run;
        if (*j == d) {
            *i += 1;
            *j = form == FULL ? *i : 0;
        }
    }
    return linear ? linear : out;
}

/* Write to `out` (m lines of two vectors) the product of m lines of `natural` and `count` features of as many rows,
 * more than m `constants`, or more than what is there where that is NULL. */
INLINE void NAME(density_group)(const int m, const REAL *constants, const REAL *natural, int64_t p, const REAL *t,
                                int64_t count, REAL *out) {
    const int64_t width = DENSITY_ROWS;
    vector sum[GROUP][2];
    for (int c = 0; c < m; c++)
        for (int v = 0; v < 2; v++)
            sum[c][v] = constants ? NAME(all)(constants[c * p]) : NAME(load)(out + c * width + v * LANES);
    for (int64_t f = 0; f < count; f++) {
        vector left = NAME(load)(t + f * width), right = NAME(load)(t + f * width + LANES);
        for (int c = 0; c < m; c++) {
            vector coefficient = NAME(all)(natural[c * p + f]);
            sum[c][0] += coefficient * left;
            sum[c][1] += coefficient * right;
        }
    }
    for (int c = 0; c < m; c++)
        for (int v = 0; v < 2; v++)
            NAME(store)(out + c * width + v * LANES, sum[c][v]);
}

/* Write the log densities of `tile`, d lines of DENSITY_ROWS, to the k lines of `out`, or add them; `t` has room for
 * PANEL lines. Unless `next` is NULL, the rows of the next tile, which lie `stride` apart there, are fetched meanwhile,
 * some before each product: a processor that is asked for all of them at once waits. */
TARGET static void NAME(density_tile)(enum form form, const REAL *tile, const REAL *natural, int add, REAL *out,
                                      REAL *t, int64_t d, int64_t k, const REAL *next, int64_t stride) {
    const int64_t width = DENSITY_ROWS, p = n_features(form, d), groups = (k + GROUP - 1) / GROUP;
    const int64_t products = groups * ((p + PANEL - 2) / PANEL),
                  share = products ? (width + products - 1) / products : width;
    int64_t fetched = next ? 0 : width;
    for (int64_t c = 0; (add || p == 1) && c < k; c++)
        for (int64_t r = 0; r < width; r += LANES) {
            const vector constant = NAME(all)(natural[c * p]);
            NAME(store)(out + c * width + r, add ? NAME(load)(out + c * width + r) + constant : constant);
        }
    int64_t i = -1, j = 0;
    for (int64_t f = 1; f < p; f += PANEL) {
        const int64_t count = p - f < PANEL ? p - f : PANEL;
        const REAL *of = NAME(features)(form, tile, d, width, count, &i, &j, t);
        for (int64_t g = 0, c = 0; g < groups; g++) {
            /* Components are shared out evenly: a group of one or two would leave the arithmetic units idle. */
            const int64_t m = (k - c + groups - g - 1) / (groups - g);
            if (fetched < width) {
                NAME(fetch)(next + fetched * stride, stride, share, d);
                fetched += share;
            }
            for (int64_t r = 0; r < width; r += 2 * LANES) {
                const REAL *constants = f > 1 || add ? NULL : natural + c * p, *parameters = natural + c * p + f;
                REAL *to = out + c * width + r;
                UP_TO_6(m, NAME(density_group), constants, parameters, p, of + r, count, to)
            }
            c += m;
        }
    }
}

TARGET static int NAME(log_prob)(enum form form, const REAL *u, const REAL *natural, REAL *out, int64_t n, int64_t d,
                                 int64_t k) {
    const int64_t width = DENSITY_ROWS;
    REAL *tile = allocate((d + k + PANEL) * width * sizeof(REAL));
    if (!tile) return -1;
    REAL *result = tile + d * width, *t = result + k * width;
    for (int64_t row = 0; row < n; row += width) {
        const int64_t rows = n - row < width ? n - row : width;
        NAME(gather)(u + row, n, d, rows, width, tile, width);
        NAME(density_tile)(form, tile, natural, 0, result, t, d, k, NULL, 0);
        for (int64_t c = 0; c < k; c++)
            memcpy(out + c * n + row, result + c * width, rows * sizeof(REAL));
    }
    free(tile);
    return 0;
}

/* Return sums of the lanes, of every fourth one, in double precision. */
INLINE quad NAME(fold)(vector value) {
    quad sum = {value[0], value[1], value[2], value[3]};
    for (int64_t lane = 4; lane < LANES; lane += 4)
        sum += (quad){value[lane], value[lane + 1], value[lane + 2], value[lane + 3]};
    return sum;
}

/* Return the sum of the lanes of each of four, in double precision. */
INLINE quad NAME(totals)(const vector *values) {
#if BYTES == 64
    octet x[4];
    for (int i = 0; i < 4; i++)
        x[i] = EIGHTHS(values[i]);
    return add_eight_lanes(x);
#else
    quad x[4];
    for (int i = 0; i < 4; i++)
        x[i] = NAME(fold)(values[i]);
    const quad left = SHUFFLE(x[0], x[1], 0, 4, 2, 6) + SHUFFLE(x[0], x[1], 1, 5, 3, 7);
    const quad right = SHUFFLE(x[2], x[3], 0, 4, 2, 6) + SHUFFLE(x[2], x[3], 1, 5, 3, 7);
    return SHUFFLE(left, right, 0, 1, 4, 5) + SHUFFLE(left, right, 2, 3, 6, 7);
#endif
}

/* Return the sum of the lanes, in double precision. */
INLINE double NAME(total)(vector value) {
    const quad sum = NAME(fold)(value);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* Add to sums[c * p + f], for m components and four features (of which `used` count), their products over a tile. */
INLINE void NAME(moment_group)(const int m, const REAL *resp, const REAL *t, int64_t used, double *sums, int64_t p) {
    vector sum[GROUP][4];
    for (int c = 0; c < m; c++)
        for (int f = 0; f < 4; f++)
            sum[c][f] = (vector){0};
    for (int64_t r = 0; r < TILE_ROWS; r += LANES) {
        vector share[GROUP];
        for (int c = 0; c < m; c++)
            share[c] = NAME(load)(resp + c * TILE_ROWS + r);
        for (int f = 0; f < 4; f++) {
            const vector feature = NAME(load)(t + f * TILE_ROWS + r);
            for (int c = 0; c < m; c++)
                sum[c][f] += share[c] * feature;
        }
    }
    for (int c = 0; c < m; c++, sums += p) {
        const quad more = NAME(totals)(sum[c]);
        if (used >= 4) {
            quad total;
            memcpy(&total, sums, sizeof total);
            total += more;
            memcpy(sums, &total, sizeof total);
        } else {
            for (int f = 0; f < used; f++)
                sums[f] += more[f];
        }
    }
}

/* Add to sums (k, p) the moments of `tile` under `shares`, d and k lines of TILE_ROWS; `t` has room for MOMENTS lines.
 * Of linear features three lines beyond those of `tile` may be read, and are not used. */
TARGET static void NAME(moment_tile)(enum form form, const REAL *tile, const REAL *shares, REAL *t, double *sums,
                                     int64_t d, int64_t k) {
    const int64_t p = n_features(form, d), groups = (k + SHARES - 1) / SHARES;
    for (int64_t c = 0; c < k; c++) {
        vector sum = {0};
        for (int64_t r = 0; r < TILE_ROWS; r += LANES)
            sum += NAME(load)(shares + c * TILE_ROWS + r);
        sums[c * p] += NAME(total)(sum);
    }
    int64_t i = -1, j = 0;
    for (int64_t f = 1; f < p; f += MOMENTS) {
        const int64_t count = p - f < MOMENTS ? p - f : MOMENTS;
        const REAL *lines = NAME(features)(form, tile, d, TILE_ROWS, count, &i, &j, t);
        for (int64_t group = 0, c = 0; group < groups; group++) {
            const int64_t m = (k - c + groups - group - 1) / (groups - group);
            const REAL *share = shares + c * TILE_ROWS;
            for (int64_t g = 0; g < count; g += 4) {
                double *to = sums + c * p + f + g;
                const REAL *of = lines + g * TILE_ROWS;
                UP_TO_6(m, NAME(moment_group), share, of, count - g, to, p)
            }
            c += m;
        }
    }
}

TARGET static int NAME(moments)(enum form form, const REAL *u, const REAL *resp, double *sums, int64_t n, int64_t d,
                                int64_t k) {
    REAL *tile = allocate((d + k + MOMENTS) * TILE_ROWS * sizeof(REAL));
    if (!tile) return -1;
    REAL *shares = tile + d * TILE_ROWS, *t = shares + k * TILE_ROWS;
    memset(sums, 0, k * n_features(form, d) * sizeof(double));
    for (int64_t row = 0; row < n; row += TILE_ROWS) {
        const int64_t rows = n - row < TILE_ROWS ? n - row : TILE_ROWS;
        NAME(gather)(u + row, n, d, rows, TILE_ROWS, tile, TILE_ROWS);
        NAME(gather)(resp + row, n, k, rows, TILE_ROWS, shares, TILE_ROWS);
        NAME(moment_tile)(form, tile, shares, t, sums, d, k);
    }
    free(tile);
    return 0;
}

/* Turn four vectors of x <= 0 into exp(x) to about one unit in the last place; 0 where it is smaller than normal
 * numbers, NaN of NaN.
 *
 * x = n log(2) / STEPS + r with |r| at most half such a step, and exp(r) by a polynomial: its Taylor series, or that of
 * wide.h, which is shorter since steps are. The four go step by step together: each step waits for the one before, and
 * processors do not look far enough ahead to find the next vector's themselves. */
INLINE void NAME(exp)(vector *x) {
#if BYTES == 64
    enum { STEPS = 16, TERMS = sizeof QUOTIENT / sizeof *QUOTIENT };
    const double *series = QUOTIENT;
#else
    enum { STEPS = 1, TERMS = EXP_TERMS };
    const double *series = EXP_SERIES;
#endif
    vector n[4], r[4], sum[4];
    for (int v = 0; v < 4; v++)
        /* Adding this leaves the whole number in the lowest bits. */
        n[v] = x[v] * (REAL)(STEPS * 1.4426950408889634) + ROUND;
    for (int v = 0; v < 4; v++) {
        const vector whole = n[v] - ROUND;
        r[v] = (x[v] - whole * (EXP_LOG2_HIGH / STEPS)) - whole * (EXP_LOG2_LOW / STEPS);
        sum[v] = NAME(all)((REAL)series[TERMS - 1]);
    }
    for (int term = TERMS - 2; term >= 0; term--)
        for (int v = 0; v < 4; v++)
            sum[v] = sum[v] * r[v] + (REAL)series[term];
    for (int v = 0; v < 4; v++) {
#if BYTES == 64
        const vector power = POWER(n[v]), result = power + power * (sum[v] * r[v]);
#else
        const vector result = sum[v] * (vector)(((mask)n[v] + EXP_BIAS) << EXP_SHIFT);
#endif
        x[v] = NAME(unless)(x[v] < EXP_SMALLEST, result);
    }
}

/* Return log(x) to about one unit in the last place; NaN where x is not a positive normal number.
 *
 * x = 2^e f with f about one, and log f = 2 artanh((f - 1) / (f + 1)) by its series. */
INLINE vector NAME(log)(vector x) {
    const mask half = (mask)NAME(all)((REAL)0x1.6a09e667f3bcdp-1);
    const mask exponent = ((mask)x - half) >> EXP_SHIFT;
    const vector f = (vector)((mask)x - (exponent << EXP_SHIFT));
    const vector s = (f - 1) / (f + 1), square = s * s;
    vector sum = NAME(all)((REAL)(1.0 / LOG_LAST));
    for (int term = LOG_LAST - 2; term >= 1; term -= 2)
        sum = sum * square + (REAL)(1.0 / term);
    /* A whole number that is added to the bits of ROUND is added to its value. */
    const vector e = (vector)((mask)NAME(all)(ROUND) + exponent) - ROUND;
    const vector result = e * EXP_LOG2_HIGH + (2 * s * sum + e * EXP_LOG2_LOW);
    return NAME(choose)((x >= SMALLEST) & (x <= LARGEST), result, NAME(all)(NAN));
}

/* Turn the log densities of 4 LANES rows, in k lines that lie `stride` apart, into responsibilities times weight (or 1,
 * where weight is NULL) in lines of `out` that lie `apart`; they are lost. Of the first `rows` write the largest, with
 * the log weights added, or 0 where that is -inf, and the sum of exp(log density - largest); the others get zeros. */
TARGET static void NAME(normalise_tile)(REAL *tile, int64_t stride, const double *log_weights, const double *weight,
                                        REAL *out, int64_t apart, double *largest, REAL *total, int64_t rows,
                                        int64_t k) {
    vector most[4], sum[4], factor[4];
    for (int v = 0; v < 4; v++)
        most[v] = NAME(all)(-(REAL)INFINITY);
    for (int64_t c = 0; c < k; c++) {
        const vector log_weight = NAME(all)((REAL)log_weights[c]);
        for (int v = 0; v < 4; v++) {
            const vector x = NAME(load)(tile + c * stride + v * LANES) + log_weight;
            /* NaN is passed over, and found in the sum. */
            most[v] = NAME(larger)(x, most[v]);
        }
    }
    for (int v = 0; v < 4; v++) {
        most[v] = NAME(unless)(most[v] == -(REAL)INFINITY, most[v]);
        sum[v] = (vector){0};
    }
    for (int64_t c = 0; c < k; c++) {
        REAL *at = tile + c * stride;
        const vector log_weight = NAME(all)((REAL)log_weights[c]);
        vector x[4];
        for (int v = 0; v < 4; v++)
            x[v] = NAME(load)(at + v * LANES) + log_weight - most[v];
        NAME(exp)(x);
        for (int v = 0; v < 4; v++) {
            NAME(store)(at + v * LANES, x[v]);
            sum[v] += x[v];
        }
    }
    REAL share[4 * LANES], values[2][4 * LANES];
    /* Vectors that are loaded from numbers just stored wait for them: not where there are no weights. */
    for (int64_t r = 0; weight && r < 4 * LANES; r++)
        share[r] = r < rows ? (REAL)weight[r] : 1;
    for (int v = 0; v < 4; v++) {
        factor[v] = weight ? NAME(load)(share + v * LANES) : NAME(all)(1);
        factor[v] /= NAME(choose)(sum[v] == 0, NAME(all)(1), sum[v]);
        NAME(store)(values[0] + v * LANES, most[v]);
        NAME(store)(values[1] + v * LANES, sum[v]);
    }
    for (int64_t r = 0; r < rows; r++) {
        largest[r] = values[0][r];
        total[r] = values[1][r];
    }
    for (int64_t c = 0; c < k; c++)
        for (int v = 0; v < 4; v++)
            NAME(store)(out + c * apart + v * LANES, NAME(load)(tile + c * stride + v * LANES) * factor[v]);
    /* No factor makes zeros of what there may be in the place of rows that are not there. */
    for (int64_t r = rows < 0 ? 0 : rows; r < 4 * LANES; r++)
        for (int64_t c = 0; c < k; c++)
            out[c * apart + r] = 0;
}

TARGET static int NAME(normalise)(REAL *joint, const double *log_weights, const double *weight, double *largest,
                                  REAL *total, int64_t n, int64_t k) {
    const int64_t width = 4 * LANES;
    REAL *tile = allocate(k * width * sizeof(REAL));
    if (!tile) return -1;
    for (int64_t row = 0; row < n; row += width) {
        const int64_t rows = n - row < width ? n - row : width;
        NAME(gather)(joint + row, n, k, rows, width, tile, width);
        NAME(normalise_tile)(tile, width, log_weights, weight ? weight + row : NULL, tile, width, largest + row,
                             total + row, rows, k);
        for (int64_t c = 0; c < k; c++)
            memcpy(joint + c * n + row, tile + c * width, rows * sizeof(REAL));
    }
    free(tile);
    return 0;
}

/* Turn log densities of Gaussian components in k lines of DENSITY_ROWS into those of Student-t components, and write to
 * lines that lie `apart` the expected precision u of each row and log w, where u is `most` / w.
 *
 * A component's `tail` is five numbers: the Gaussian's log density at the mean, 1 / dof, most = 1 + d / dof, (dof + d)
 * / 2 and the log density at the location. */
TARGET static void NAME(tail_tile)(REAL *density, const double *tail, REAL *u, REAL *log_w, int64_t apart, int64_t k) {
    for (int64_t c = 0; c < k; c++, tail += 5)
        for (int64_t r = 0; r < DENSITY_ROWS; r += LANES) {
            REAL *at = density + c * DENSITY_ROWS + r;
            vector distance = -2 * (NAME(load)(at) - (REAL)tail[0]);
            /* Rounding takes rows near a mean below zero. */
            distance = NAME(unless)(distance < 0, distance);
            const vector w = distance * (REAL)tail[1] + 1, log = NAME(choose)(w > LARGEST, w, NAME(log)(w));
            NAME(store)(u + c * apart + r, (REAL)tail[2] / w);
            NAME(store)(log_w + c * apart + r, log);
            NAME(store)(at, (REAL)tail[4] - (REAL)tail[3] * log);
        }
}

/* Add the sums of `shares`, and of shares times log w, to `tallies` (k, 2), and multiply the shares by u. */
TARGET static void NAME(weigh_tile)(REAL *shares, const REAL *u, const REAL *log_w, double *tallies, int64_t k) {
    for (int64_t c = 0; c < k; c++) {
        vector sum[2] = {{0}, {0}};
        for (int64_t i = c * TILE_ROWS; i < (c + 1) * TILE_ROWS; i += LANES) {
            const vector share = NAME(load)(shares + i), product = share * NAME(load)(log_w + i);
            sum[0] += share;
            /* A row at infinity has no share. */
            sum[1] += NAME(unless)(share == 0, product);
            NAME(store)(shares + i, share * NAME(load)(u + i));
        }
        tallies[2 * c] += NAME(total)(sum[0]);
        tallies[2 * c + 1] += NAME(total)(sum[1]);
    }
}

/* Return whether all numbers are whole ones from 0 to `most`, which is less than half of ROUND. */
INLINE int NAME(whole_line)(const REAL *numbers, double most, int64_t n) {
    int64_t i = 0;
    while (i + LANES <= n) {
        const int64_t end = n - i < 64 * LANES ? n - LANES + 1 : i + 64 * LANES;
        mask bad = {0};
        for (; i < end; i += LANES) {
            const vector x = NAME(load)(numbers + i);
            bad |= (x < 0) | (x > (REAL)most) | ((x + ROUND) - ROUND != x);
        }
        for (int lane = 0; lane < LANES; lane++)
            if (bad[lane]) return 0;
    }
    for (; i < n; i++)
        if (!(numbers[i] >= 0 && numbers[i] <= (REAL)most && (numbers[i] + ROUND) - ROUND == numbers[i])) return 0;
    return 1;
}

/* Return the same of n rows of d numbers, which lie `stride` apart. */
TARGET static int NAME(whole)(const REAL *rows, int64_t stride, double most, int64_t n, int64_t d) {
    if (stride == d) return NAME(whole_line)(rows, most, n * d);
    for (int64_t r = 0; r < n; r++)
        if (!NAME(whole_line)(rows + r * stride, most, d)) return 0;
    return 1;
}

/* Do what shifted, log_prob, normalise and moments do one after the other, tile by tile: what stands between them does
 * not leave the second cache. Log densities are sums of `groups` terms, each over rows of its own. With `tails` (see
 * tail_tile) components are Student-t, the sums those under the responsibilities times u, and `tallies` the sums of
 * responsibilities and of these times log w. Return 1, and no results, where rows hold what they are not to. */
TARGET static int NAME(e_step)(const struct terms *terms, int64_t groups, const double *tails,
                               const double *log_weights, const double *weight, double *tallies, double *largest,
                               REAL *total, int64_t n, int64_t k) {
    const int64_t width = DENSITY_ROWS, span = 4 * LANES, lines = (tails ? 3 : 1) * k;
    const int64_t scratch = PANEL * width > MOMENTS * TILE_ROWS ? PANEL * width : MOMENTS * TILE_ROWS;
    int64_t all = 0;
    for (int64_t g = 0; g < groups; g++) {
        all += terms[g].d;
        memset(terms[g].sums, 0, k * n_features(terms[g].form, terms[g].d) * sizeof(double));
    }
    REAL *tile = allocate(((all + lines) * TILE_ROWS + (all + k) * width + scratch) * sizeof(REAL));
    if (!tile) return -1;
    REAL *shares = tile + all * TILE_ROWS, *u = shares + k * TILE_ROWS, *log_w = u + k * TILE_ROWS;
    REAL *part = shares + lines * TILE_ROWS, *resp = part + all * width, *t = resp + k * width;
    if (tails) memset(tallies, 0, 2 * k * sizeof(double));
    for (int64_t row = 0; row < n; row += TILE_ROWS) {
        for (int64_t at = 0; at < TILE_ROWS; at += width) {
            const int64_t first = row + at, left = n - first, count = left < 0 ? 0 : left < width ? left : width;
            if (count < width) memset(part, 0, all * width * sizeof(REAL));
            REAL *of = part;
            for (int64_t g = 0; g < groups; of += terms[g++].d * width) {
                const struct terms *own = terms + g;
                const REAL *rows = (const REAL *)own->rows + first * own->stride;
                NAME(shift_tile)(rows, own->stride, own->shift, own->scale, of, width, count, 0, own->d);
                if (own->most >= 0 && !NAME(whole_line)(of, own->most, own->d * width)) {
                    free(tile);
                    return 1;
                }
                NAME(density_tile)(own->form, of, own->natural, g > 0, resp, t, own->d, k, rows + width * own->stride,
                                   own->stride);
            }
            if (tails) NAME(tail_tile)(resp, tails, u + at, log_w + at, TILE_ROWS, k);
            for (int64_t r = 0; r < width; r += span)
                NAME(normalise_tile)(resp + r, width, log_weights, weight ? weight + first + r : NULL, shares + at + r,
                                     TILE_ROWS, largest + first + r, total + first + r,
                                     count - r < span ? count - r : span, k);
            NAME(gather)(part, width, all, width, width, tile + at, TILE_ROWS);
        }
        if (tails) NAME(weigh_tile)(shares, u, log_w, tallies, k);
        REAL *of = tile;
        for (int64_t g = 0; g < groups; of += terms[g++].d * TILE_ROWS)
            NAME(moment_tile)(terms[g].form, of, shares, t, terms[g].sums, terms[g].d, k);
    }
    free(tile);
    return 0;
}

#include "holes.h"
#include "nearest.h"

#undef LANES
#undef DENSITY_ROWS
#undef INLINE
#undef four
#undef vector
#undef mask
#undef REAL
#undef INTEGER
#undef NAME
#undef TILE_ROWS
#undef EXP_SMALLEST
#undef ROUND
#undef EXP_LOG2_HIGH
#undef EXP_LOG2_LOW
#undef EXP_TERMS
#undef EXP_BIAS
#undef EXP_SHIFT
#undef LOG_LAST
#undef SMALLEST
#undef LARGEST
#undef SCREENS
#undef TRANSPOSE
#undef LARGER
#undef EIGHTHS
#undef POWER
#undef QUOTIENT
