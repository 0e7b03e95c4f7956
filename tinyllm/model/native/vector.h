/* What the C files share: numbers in two formats, and loops that compilers vectorize. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

/* Read x[i], which is a float, or a bfloat16 if `narrow` is set. Where this is inlined, `narrow` is a constant. */
INLINE float load(const void *x, int64_t i, int narrow) {
    if (!narrow) return ((const float *)x)[i];
    union { uint32_t bits; float value; } wide = {(uint32_t)((const uint16_t *)x)[i] << 16};
    return wide.value;
}

/* Write x[i], rounded to the nearest bfloat16, ties to even, if `narrow` is set. NaN stays NaN. */
INLINE void store(void *x, int64_t i, float value, int narrow) {
    if (!narrow) {
        ((float *)x)[i] = value;
        return;
    }
    union { float value; uint32_t bits; } wide = {value};
    uint32_t rounded = (wide.bits + 0x7fff + (wide.bits >> 16 & 1)) >> 16;
    ((uint16_t *)x)[i] = value != value ? 0x7fc0 : (uint16_t)rounded;
}

/* e^x to about one unit in the last place, for x <= 0, in a form that compilers vectorize. NaN stays NaN. */
INLINE float exponential(float x) {
    float low = x < -87.0f ? -87.0f : x; /* e^-87 is the smallest that is not denormal */
    float whole = nearbyintf((x > -87.0f ? x : -87.0f) * 1.44269504f); /* also where x is NaN, which `low` keeps */
    float rest = fmaf(whole, -0.693359375f, low);
    rest = fmaf(whole, 2.12194440e-4f, rest);
    float p = 1.9875691500e-4f;
    p = fmaf(p, rest, 1.3981999507e-3f);
    p = fmaf(p, rest, 8.3334519073e-3f);
    p = fmaf(p, rest, 4.1665795894e-2f);
    p = fmaf(p, rest, 1.6666665459e-1f);
    p = fmaf(p, rest, 5.0000001201e-1f);
    p = fmaf(p, rest * rest, rest + 1.0f);
    union { int32_t bits; float value; } power = {((int32_t)whole + 127) << 23};
    return p * power.value * (x < -87.0f ? 0.0f : 1.0f); /* factors, as branches would keep sums from being vectorized */
}

/* 1 / (1 + e^-x); never overflows. */
INLINE float sigmoid(float x) {
    float small = exponential(-fabsf(x));
    return (x >= 0 ? 1.0f : small) / (1.0f + small);
}

/* The largest of x[from], ..., x[to - 1], NaN left out. */
INLINE float largest(const void *x, int64_t from, int64_t to, int narrow) {
    float found = -INFINITY;
#pragma omp simd reduction(max : found) /* compilers do not reorder comparisons that may meet NaN by themselves */
    for (int64_t i = from; i < to; i++) found = load(x, i, narrow) > found ? load(x, i, narrow) : found;
    return found;
}
