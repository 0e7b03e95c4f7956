/* What lies between the matrix products of a training step on a CPU, forward and backward: normalization, heads, softmax, activation, losses.

The same computation as the plain forms in `model/kernels.py` and `model/heads.py`, which are used where there is no C compiler; `kernels.py` beside it calls
these functions, and `tests/model/test_native_kernels.py` compares the two. Each function makes one pass over its arrays.

`narrow` tells which arrays are bfloat16 and which float; sums are float. All arrays are contiguous unless a stride is given. Gradients of
gains are summed in `chunks` parts, whatever the number of threads, so that they do not depend on it.
*/

#include "vector.h"

#define LARGEST_HEAD 512
#define LONGEST 1024 /* keys of a softmax */
#define SMALL 16384 /* numbers that one thread handles alone */
#define PART 4096

enum { NARROW_X = 1, NARROW_OUT = 2 };

/* --- RMS norm ------------------------------------------------------------------------------------------------------------------------ */

INLINE float rms_scale(const void *x, int64_t start, int64_t n, float eps, int narrow) {
    float total = 0;
    for (int64_t i = 0; i < n; i++) total += load(x, start + i, narrow) * load(x, start + i, narrow);
    return 1 / sqrtf(total / n + eps);
}

INLINE float norm_row(const void *x, int64_t start, int64_t n, const float *gain, float eps, void *out, int xn, int on) {
    float scale = rms_scale(x, start, n, eps, xn);
    for (int64_t i = 0; i < n; i++) store(out, start + i, load(x, start + i, xn) * scale * gain[i], on);
    return scale;
}

/* out = x * scale * gain, with scale = 1 / rms(x) of each row, which is kept. */
void norm(int64_t rows, int64_t width, float eps, int64_t narrow, const void *x, const float *gain, void *out, float *scales) {
#pragma omp parallel for if (rows * width > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        int64_t at = row * width;
        if (narrow == 0) scales[row] = norm_row(x, at, width, gain, eps, out, 0, 0);
        else if (narrow == NARROW_OUT) scales[row] = norm_row(x, at, width, gain, eps, out, 0, 1);
        else if (narrow == NARROW_X) scales[row] = norm_row(x, at, width, gain, eps, out, 1, 0);
        else scales[row] = norm_row(x, at, width, gain, eps, out, 1, 1);
    }
}

/* With u = x * scale and g = gradient * gain: dx = scale * (g - u * mean(g * u)), and dgain = the sum of gradient * u over rows. */
INLINE void norm_row_backward(
    const void *gradient, const void *x, int64_t start, int64_t n, const float *gain, float scale, void *to_x, float *to_gain, int xn, int on
) {
    float along = 0;
    for (int64_t i = 0; i < n; i++) along += load(gradient, start + i, on) * gain[i] * load(x, start + i, xn);
    along *= scale / n;
    for (int64_t i = 0; i < n; i++) {
        float g = load(gradient, start + i, on), unit = load(x, start + i, xn) * scale;
        to_gain[i] += g * unit;
        store(to_x, start + i, scale * (g * gain[i] - unit * along), xn);
    }
}

void norm_backward(
    int64_t rows, int64_t width, int64_t chunks, int64_t narrow, const void *gradient, const void *x, const float *gain, const float *scales,
    void *to_x, float *to_gain /* (chunks, width) */
) {
#pragma omp parallel for if (rows * width > SMALL)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        float *sums = to_gain + chunk * width;
        memset(sums, 0, width * sizeof(float));
        for (int64_t row = rows * chunk / chunks; row < rows * (chunk + 1) / chunks; row++) {
            int64_t at = row * width;
            if (narrow == 0) norm_row_backward(gradient, x, at, width, gain, scales[row], to_x, sums, 0, 0);
            else if (narrow == NARROW_OUT) norm_row_backward(gradient, x, at, width, gain, scales[row], to_x, sums, 0, 1);
            else if (narrow == NARROW_X) norm_row_backward(gradient, x, at, width, gain, scales[row], to_x, sums, 1, 0);
            else norm_row_backward(gradient, x, at, width, gain, scales[row], to_x, sums, 1, 1);
        }
    }
}

/* --- heads: (B, T, H, D) to (B, H, T, D) ---------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t rows, length, heads, width, rotated, narrow; /* rotated: dimensions of a head, 0 without rotation */
    int64_t rotation_stride;                             /* of rows of `cos` and `sin`; 0: all rows have the same */
    int64_t stride;                                      /* of tokens in `tokens` */
    int64_t chunks;
    float eps;
    const float *gain;       /* (width), or NULL without normalization */
    const float *cos, *sin;  /* (rows or 1, length, rotated / 2) */
    const void *tokens;      /* (rows, length, heads, width) */
    void *heads_of;          /* (rows, heads, length, width) */
    float *scales;           /* (rows, length, heads) */
    void *to_tokens;         /* (rows, length, heads, width), contiguous */
    float *to_gain;          /* (chunks, width) */
} Heads;

INLINE void head_forward(const Heads *a, int64_t row, int64_t t, int64_t head, int64_t width, int narrow) {
    int64_t from = (row * a->length + t) * a->stride + head * width, to = ((row * a->heads + head) * a->length + t) * width;
    float x[LARGEST_HEAD];
    for (int64_t i = 0; i < width; i++) x[i] = load(a->tokens, from + i, narrow);
    if (a->gain) {
        float scale = rms_scale(x, 0, width, a->eps, 0);
        a->scales[(row * a->length + t) * a->heads + head] = scale;
        for (int64_t i = 0; i < width; i++) x[i] *= scale * a->gain[i];
    }
    int64_t half = a->rotated / 2;
    const float *cos = a->cos + row * a->rotation_stride + t * half, *sin = a->sin + row * a->rotation_stride + t * half;
    for (int64_t i = 0; i < half; i++) {
        float first = x[i], second = x[half + i];
        x[i] = first * cos[i] - second * sin[i];
        x[half + i] = second * cos[i] + first * sin[i];
    }
    for (int64_t i = 0; i < width; i++) store(a->heads_of, to + i, x[i], narrow);
}

INLINE void head_backward(const Heads *a, int64_t row, int64_t t, int64_t head, int64_t width, float *sums, int narrow) {
    int64_t token = row * a->length + t, from = ((row * a->heads + head) * a->length + t) * width;
    int64_t to = (token * a->heads + head) * width, of_x = token * a->stride + head * width, half = a->rotated / 2;
    float g[LARGEST_HEAD], x[LARGEST_HEAD], out[LARGEST_HEAD];
    for (int64_t i = 0; i < width; i++) g[i] = load(a->heads_of, from + i, narrow);
    const float *cos = a->cos + row * a->rotation_stride + t * half, *sin = a->sin + row * a->rotation_stride + t * half;
    for (int64_t i = 0; i < half; i++) {
        float first = g[i], second = g[half + i];
        g[i] = first * cos[i] + second * sin[i];
        g[half + i] = second * cos[i] - first * sin[i];
    }
    if (a->gain) {
        for (int64_t i = 0; i < width; i++) x[i] = load(a->tokens, of_x + i, narrow);
        norm_row_backward(g, x, 0, width, a->gain, a->scales[token * a->heads + head], out, sums, 0, 0);
    }
    for (int64_t i = 0; i < width; i++) store(a->to_tokens, to + i, a->gain ? out[i] : g[i], narrow);
}

INLINE void heads_of_token(const Heads *a, int64_t row, int64_t t, int64_t width, int narrow) {
    for (int64_t head = 0; head < a->heads; head++) head_forward(a, row, t, head, width, narrow);
}

INLINE void heads_of_token_backward(const Heads *a, int64_t row, int64_t t, int64_t width, float *sums, int narrow) {
    for (int64_t head = 0; head < a->heads; head++) head_backward(a, row, t, head, width, sums, narrow);
}

/* Normalize (where there are gains), rotate and transpose. */
void heads(const Heads *a) {
#pragma omp parallel for collapse(2) if (a->rows * a->length * a->heads * a->width > SMALL)
    for (int64_t row = 0; row < a->rows; row++)
        for (int64_t t = 0; t < a->length; t++) {
            if (a->narrow) heads_of_token(a, row, t, a->width, 1);
            else if (a->width == 64) heads_of_token(a, row, t, 64, 0);
            else heads_of_token(a, row, t, a->width, 0);
        }
}

/* The gradient of `tokens` from that of `heads_of`. */
void heads_backward(const Heads *a) {
    int64_t tokens = a->rows * a->length;
#pragma omp parallel for if (tokens * a->heads * a->width > SMALL)
    for (int64_t chunk = 0; chunk < a->chunks; chunk++) {
        float *sums = a->to_gain + chunk * a->width;
        if (a->gain) memset(sums, 0, a->width * sizeof(float));
        for (int64_t token = tokens * chunk / a->chunks; token < tokens * (chunk + 1) / a->chunks; token++) {
            int64_t row = token / a->length, t = token % a->length;
            if (a->narrow) heads_of_token_backward(a, row, t, a->width, sums, 1);
            else if (a->width == 64) heads_of_token_backward(a, row, t, 64, sums, 0);
            else heads_of_token_backward(a, row, t, a->width, sums, 0);
        }
    }
}

/* --- gated MLP: silu(gate) * up --------------------------------------------------------------------------------------------------------- */

INLINE void gate_part(const void *gate, const void *up, void *out, int64_t from, int64_t to, int narrow) {
    for (int64_t i = from; i < to; i++) {
        float x = load(gate, i, narrow);
        store(out, i, x * sigmoid(x) * load(up, i, narrow), narrow);
    }
}

void gate(int64_t n, int64_t narrow, const void *gate, const void *up, void *out) {
#pragma omp parallel for if (n > SMALL)
    for (int64_t from = 0; from < n; from += PART) {
        int64_t to = from + PART < n ? from + PART : n;
        if (narrow) gate_part(gate, up, out, from, to, 1);
        else gate_part(gate, up, out, from, to, 0);
    }
}

INLINE void gate_part_backward(
    const void *gradient, const void *gate, const void *up, void *to_gate, void *to_up, int64_t from, int64_t to, int narrow
) {
    for (int64_t i = from; i < to; i++) {
        float g = load(gradient, i, narrow), x = load(gate, i, narrow), share = sigmoid(x), y = load(up, i, narrow);
        store(to_up, i, g * x * share, narrow);
        store(to_gate, i, g * y * share * (1 + x * (1 - share)), narrow);
    }
}

void gate_backward(int64_t n, int64_t narrow, const void *gradient, const void *gate, const void *up, void *to_gate, void *to_up) {
#pragma omp parallel for if (n > SMALL)
    for (int64_t from = 0; from < n; from += PART) {
        int64_t to = from + PART < n ? from + PART : n;
        if (narrow) gate_part_backward(gradient, gate, up, to_gate, to_up, from, to, 1);
        else gate_part_backward(gradient, gate, up, to_gate, to_up, from, to, 0);
    }
}

/* --- attention: probabilities of the keys that a query sees, itself and those before it -------------------------------------------------- */

INLINE void softmax_row(void *scores, int64_t start, int64_t seen, int64_t length, float scale, int narrow) {
    float highest = largest(scores, start, start + seen, narrow), total = 0, e[LONGEST];
    for (int64_t i = 0; i < seen; i++) total += e[i] = exponential((load(scores, start + i, narrow) - highest) * scale);
    for (int64_t i = 0; i < seen; i++) store(scores, start + i, e[i] / total, narrow);
    for (int64_t i = seen; i < length; i++) store(scores, start + i, 0, narrow);
}

/* scores (heads, length, length) become softmax(scores * scale) of the keys that each query sees, and 0 for others; scale > 0 */
void causal_softmax(int64_t heads, int64_t length, float scale, int64_t narrow, void *scores) {
#pragma omp parallel for if (heads * length * length > SMALL) schedule(static, 64)
    for (int64_t row = 0; row < heads * length; row++) {
        if (narrow) softmax_row(scores, row * length, row % length + 1, length, scale, 1);
        else softmax_row(scores, row * length, row % length + 1, length, scale, 0);
    }
}

INLINE void softmax_row_backward(
    const void *probabilities, void *gradient, int64_t start, int64_t seen, int64_t length, float scale, int narrow
) {
    float along = 0;
    for (int64_t i = start; i < start + seen; i++) along += load(probabilities, i, narrow) * load(gradient, i, narrow);
    for (int64_t i = start; i < start + seen; i++)
        store(gradient, i, scale * load(probabilities, i, narrow) * (load(gradient, i, narrow) - along), narrow);
    for (int64_t i = start + seen; i < start + length; i++) store(gradient, i, 0, narrow);
}

/* The gradient of probabilities becomes that of scores. */
void causal_softmax_backward(int64_t heads, int64_t length, float scale, int64_t narrow, const void *probabilities, void *gradient) {
#pragma omp parallel for if (heads * length * length > SMALL) schedule(static, 64)
    for (int64_t row = 0; row < heads * length; row++) {
        if (narrow) softmax_row_backward(probabilities, gradient, row * length, row % length + 1, length, scale, 1);
        else softmax_row_backward(probabilities, gradient, row * length, row % length + 1, length, scale, 0);
    }
}

/* --- log-probabilities over a vocabulary ------------------------------------------------------------------------------------------------ */

/* onehot(target) - p from e^(x - highest), whose sum is `total` */
INLINE void gap_row(const float *powers, int64_t n, float total, int64_t target, void *gap, int narrow) {
    float factor = -1 / total, at_target = 1 - powers[target] / total;
    for (int64_t i = 0; i < n; i++) store(gap, i, powers[i] * factor, narrow);
    store(gap, target, at_target, narrow);
}

/* log p(target) of each row of logits; where they are wanted, entropies, and onehot(target) - p: then the logits are overwritten. */
void log_probabilities(
    int64_t rows, int64_t width, int64_t narrow, float *logits, const int64_t *targets, float *log_probs, float *entropies, void *gaps
) {
#pragma omp parallel for if (rows * width > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        float *x = logits + row * width;
        float highest = largest(x, 0, width, 0), at_target = x[targets[row]] - highest, total = 0, weighed = 0;
        if (entropies) /* -sum p log p = log(total) - sum p (x - highest) */
            for (int64_t i = 0; i < width; i++) {
                float below = x[i] - highest, e = exponential(below);
                total += e;
                weighed += e > 0 ? e * below : e; /* 0 where below is -inf; NaN stays */
                if (gaps) x[i] = e;
            }
        else if (gaps)
            for (int64_t i = 0; i < width; i++) total += x[i] = exponential(x[i] - highest);
        else
            for (int64_t i = 0; i < width; i++) total += exponential(x[i] - highest);
        if (log_probs) log_probs[row] = at_target - logf(total);
        if (entropies) entropies[row] = logf(total) - weighed / total;
        if (gaps) {
            if (narrow) gap_row(x, width, total, targets[row], (uint16_t *)gaps + row * width, 1);
            else if (gaps == logits) gap_row(x, width, total, targets[row], x, 0); /* visibly the same array */
            else gap_row(x, width, total, targets[row], (float *)gaps + row * width, 0);
        }
    }
}
