/* The kernels for both floating types with one set of vector instructions, named VARIANT and allowed by TARGET, whose
 * vectors have so many BYTES and whose registers hold the sums of so many SHARES (see kernels.h); all undefined again.
 *
 * SCREEN says which centers are nearest to the rows of a tile (see screen.h), with rows of single precision too where
 * SCREENS_SINGLE: a type's SCREENS. LARGER_float and LARGER_double are the larger of each two numbers of vectors, the
 * second where one is NaN: a type's LARGER. TRANSPOSE turns four by four. TILE_ROWS are the rows of a tile of moments:
 * 2 KiB of each feature.
 *
 * ROUND rounds to a whole number when it is added; normal numbers are from SMALLEST to LARGEST. What exp needs of a
 * type beside: the argument below which its result is not normal, log 2 in two parts of which the first has so few
 * digits that whole numbers times it are exact, the terms of its series, and the exponent's bias and place; log needs
 * the last term of its own series. EIGHTHS, POWER and QUOTIENT are those of wide.h, for vectors of 64 bytes. */

#define REAL float
#define INTEGER int32_t
#define TILE_ROWS 512
#define NAME(name) JOINED(name, float, VARIANT)
#define EXP_SMALLEST (-87.0f)
#define ROUND 0x1.8p23f
#define EXP_LOG2_HIGH 0.693359375f
#define EXP_LOG2_LOW -2.12194440054690583e-4f
#define EXP_TERMS 8
#define EXP_BIAS 127
#define EXP_SHIFT 23
#define LOG_LAST 9
#define SMALLEST FLT_MIN
#define LARGEST FLT_MAX
#define TRANSPOSE transpose_float
#define LARGER LARGER_float
#define EIGHTHS eighths_float
#define POWER power_float
#define QUOTIENT QUOTIENT_float
#define SCREENS SCREENS_SINGLE
#include "kernels.h"

#define REAL double
#define INTEGER int64_t
#define TILE_ROWS 256
#define NAME(name) JOINED(name, double, VARIANT)
#define EXP_SMALLEST (-708.0)
#define ROUND 0x1.8p52
#define EXP_LOG2_HIGH 6.93147180369123816490e-01
#define EXP_LOG2_LOW 1.90821492927058770002e-10
#define EXP_TERMS 14
#define EXP_BIAS 1023
#define EXP_SHIFT 52
#define LOG_LAST 23
#define SMALLEST DBL_MIN
#define LARGEST DBL_MAX
#define TRANSPOSE transpose_double
#define LARGER LARGER_double
#define EIGHTHS eighths_double
#define POWER power_double
#define QUOTIENT QUOTIENT_double
#define SCREENS 1
#include "kernels.h"

#undef VARIANT
#undef TARGET
#undef BYTES
#undef SHARES
#undef SCREENS_SINGLE
#undef SCREEN
#undef LARGER_float
#undef LARGER_double
