/* What lies between the matrix products of one decoding step, in float32: normalization, rotation, attention, activation, sampling; and
products of few rows with weights that bfloat16 holds.

The same computation as `one_token.py` and `choosing.py`, which are used where there is no C compiler; `tests/model/test_native.py` compares
the two. Small models spend most of a step in calling many small operations, and rows of a few hundred tokens in reading their keys and
values; here each of them is read once, in the order of memory.

Rows are divided among threads if the library is built with OpenMP. All arrays are float32 and contiguous unless a stride is given.
*/

#include "../native/vector.h"

#define LARGEST_HEAD 256
#define BLOCK 64 /* probabilities that are summed at once */
#define LINE 32 /* bfloat16 numbers in a line of the cache */
#define AHEAD 2304 /* numbers: 4.5 KB */

typedef struct {
    int64_t rows, width;
    float eps;
    const float *x, *gain;
    float *out;
} Norm;

typedef struct {
    int64_t rows, heads, groups, width, rotated; /* rotated: dimensions of a head, 0 without rotary embeddings */
    int64_t rotation_stride;                     /* between the factors of two rows; 0: all rows have the same */
    int64_t row_stride, head_stride;             /* of keys and values */
    int64_t place, end;                          /* the column that is written, and how many are read */
    int64_t mask_stride;
    float eps, scale;
    const float *gains; /* (heads + groups, width), or NULL without normalization */
    const float *cos, *sin; /* (rows, rotated), of which the second half of sin has the other sign: see one_token._doubled */
    const float *mask; /* (rows, columns), 0 or -inf; NULL where rows see all columns */
    float *qkv; /* (rows, (heads + 2 groups) width); overwritten */
    float *keys, *values;
    float *scores; /* (rows, heads, columns), scratch */
    float *out; /* (rows, heads width) */
} Attention;

typedef struct {
    int64_t rows, width;
    const float *x; /* (rows, 2 width): gate, up */
    float *out;
} Gate;

typedef struct {
    int64_t rows, inputs, outputs, added; /* added: 1 adds to `out`, 0 overwrites it */
    const uint16_t *weight; /* (outputs, inputs), bfloat16 */
    const float *x; /* (rows, inputs) */
    float *out; /* (rows, outputs) */
} Product;

typedef struct {
    int64_t rows, vocabulary, uniform_stride;
    float scale; /* 1 / temperature */
    const float *logits;
    const float *uniform;
    float *scratch; /* (rows, vocabulary) */
    int64_t *ids;
    float *log_probs;
} Draw;

static inline float sum_of_squares(const float *x, int64_t n) {
    float total = 0;
    for (int64_t i = 0; i < n; i++) total += x[i] * x[i];
    return total;
}

void norm(const Norm *a) {
#pragma omp parallel for if (a->rows * a->width > 16384)
    for (int64_t row = 0; row < a->rows; row++) {
        const float *x = a->x + row * a->width;
        float *out = a->out + row * a->width;
        float scale = 1 / sqrtf(sum_of_squares(x, a->width) / a->width + a->eps);
        for (int64_t i = 0; i < a->width; i++) out[i] = x[i] * scale * a->gain[i];
    }
}

/* Normalize and rotate one head, in place. */
static void prepare(const Attention *a, int64_t row, int64_t head, float *x) {
    int64_t half = a->rotated / 2;
    if (a->gains) {
        const float *gain = a->gains + head * a->width;
        float scale = 1 / sqrtf(sum_of_squares(x, a->width) / a->width + a->eps);
        for (int64_t i = 0; i < a->width; i++) x[i] = x[i] * scale * gain[i];
    }
    const float *cos = a->cos + row * a->rotation_stride, *sin = a->sin + row * a->rotation_stride;
    for (int64_t i = 0; i < half; i++) {
        float first = x[i], second = x[half + i];
        x[i] = first * cos[i] + second * sin[i];
        x[half + i] = second * cos[half + i] + first * sin[half + i];
    }
}

/* Attention of the queries of one group. `width` is head_dim, a constant where this is inlined, so that compilers keep it in registers. */
static inline void attend_with(const Attention *a, int64_t row, int64_t group, int64_t width) {
    int64_t shared = a->heads / a->groups, end = a->end;
    const float *keys = a->keys + row * a->row_stride + group * a->head_stride;
    const float *values = a->values + row * a->row_stride + group * a->head_stride;
    const float *mask = a->mask ? a->mask + row * a->mask_stride : 0;
    for (int64_t h = 0; h < shared; h++) {
        const float *q = a->qkv + row * (a->heads + 2 * a->groups) * width + (group * shared + h) * width;
        int64_t head = row * a->heads + group * shared + h;
        float *p = a->scores + head * end, total = 0, sums[LARGEST_HEAD];
        for (int64_t s = 0; s < end; s++) {
            const float *key = keys + s * width;
            float product = 0;
            for (int64_t i = 0; i < width; i++) product += q[i] * key[i];
            p[s] = product * a->scale;
        }
        if (mask)
            for (int64_t s = 0; s < end; s++) p[s] += mask[s];
        float highest = largest(p, 0, end, 0);
        for (int64_t s = 0; s < end; s++) p[s] = exponential(p[s] - highest);
        for (int64_t s = 0; s < end; s++) total += p[s];
        for (int64_t i = 0; i < width; i++) sums[i] = 0;
        for (int64_t s = 0; s < end; s++) {
            const float *value = values + s * width;
            for (int64_t i = 0; i < width; i++) sums[i] += p[s] * value[i];
        }
        for (int64_t i = 0; i < width; i++) a->out[head * width + i] = sums[i] / total;
    }
}

static void attend(const Attention *a, int64_t row, int64_t group) {
    switch (a->width) {
    case 32: attend_with(a, row, group, 32); break;
    case 64: attend_with(a, row, group, 64); break;
    case 128: attend_with(a, row, group, 128); break;
    default: attend_with(a, row, group, a->width);
    }
}

/* From the product of a row with W_qkv to the heads' outputs. */
void attention(const Attention *a) {
    int64_t width = a->width;
#pragma omp parallel for if (a->rows * a->end * a->heads * width > 65536)
    for (int64_t row = 0; row < a->rows; row++) {
        float *q = a->qkv + row * (a->heads + 2 * a->groups) * width;
        float *k = q + a->heads * width, *v = k + a->groups * width;
        for (int64_t head = 0; head < a->heads + a->groups; head++) prepare(a, row, head, q + head * width);
        for (int64_t group = 0; group < a->groups; group++) {
            int64_t at = row * a->row_stride + group * a->head_stride + a->place * width;
            memcpy(a->keys + at, k + group * width, width * sizeof(float));
            memcpy(a->values + at, v + group * width, width * sizeof(float));
        }
        for (int64_t group = 0; group < a->groups; group++) attend(a, row, group);
    }
}

/* silu(gate) * up */
void gate(const Gate *a) {
#pragma omp parallel for if (a->rows * a->width > 16384)
    for (int64_t row = 0; row < a->rows; row++) {
        const float *g = a->x + row * 2 * a->width, *up = g + a->width;
        float *out = a->out + row * a->width;
        for (int64_t i = 0; i < a->width; i++) {
            out[i] = g[i] * sigmoid(g[i]) * up[i];
        }
    }
}

/* x W^T. The weight is read from memory once for all rows, in order and ahead of its use: most of the time is spent waiting for it. */
void product(const Product *a) {
    int64_t n = a->inputs;
#pragma omp parallel for
    for (int64_t output = 0; output < a->outputs; output++) {
        const uint16_t *weight = a->weight + output * n;
        for (int64_t i = 0; i < n; i += LINE) __builtin_prefetch(weight + i + AHEAD); /* also behind the last row, which does no harm */
        for (int64_t row = 0; row < a->rows; row++) {
            const float *x = a->x + row * n;
            float sum = 0, *out = a->out + row * a->outputs + output;
            for (int64_t i = 0; i < n; i++) sum += load(weight, i, 1) * x[i];
            *out = sum + (a->added ? *out : 0);
        }
    }
}

/* Write `count` float32 numbers as bfloat16. Returns 0 if bfloat16 does not hold all of them without loss. */
int narrowed(const uint32_t *x, uint16_t *out, int64_t count) {
    uint32_t lost = 0;
    for (int64_t i = 0; i < count && i < 4096; i++) lost |= x[i] & 0xffff; /* most that do not fit show it at once */
    if (lost) return 0;
#pragma omp parallel for reduction(| : lost)
    for (int64_t i = 0; i < count; i++) {
        lost |= x[i] & 0xffff;
        out[i] = x[i] >> 16;
    }
    return !lost;
}

/* Draw one token a row: the first whose cumulated probability exceeds a uniform number, and its log-probability. */
void draw(const Draw *a) {
#pragma omp parallel for if (a->rows * a->vocabulary > 16384)
    for (int64_t row = 0; row < a->rows; row++) {
        const float *logits = a->logits + row * a->vocabulary;
        float *p = a->scratch + row * a->vocabulary, highest = largest(logits, 0, a->vocabulary, 0), scale = a->scale;
        double total = 0, before = 0;
        for (int64_t i = 0; i < a->vocabulary; i++) p[i] = exponential((logits[i] - highest) * scale);
        for (int64_t start = 0; start < a->vocabulary; start += BLOCK) {
            int64_t stop = start + BLOCK < a->vocabulary ? start + BLOCK : a->vocabulary;
            float part = 0;
            for (int64_t i = start; i < stop; i++) part += p[i];
            total += part;
        }
        double target = total * a->uniform[row * a->uniform_stride];
        int64_t start = 0, chosen = -1, final = (a->vocabulary - 1) / BLOCK * BLOCK;
        for (; start < final; start += BLOCK) {
            int64_t stop = start + BLOCK < a->vocabulary ? start + BLOCK : a->vocabulary;
            float part = 0;
            for (int64_t i = start; i < stop; i++) part += p[i];
            if (before + part > target) break;
            before += part;
        }
        for (int64_t i = start; i < a->vocabulary; i++) {
            if (p[i] > 0) chosen = i; /* by rounding errors the sum can end below the target: then it is the last possible token */
            before += p[i];
            if (before > target) break;
        }
        for (int64_t i = start; chosen < 0 && i-- > 0;)
            if (p[i] > 0) chosen = i;
        a->ids[row] = chosen < 0 ? 0 : chosen;
        a->log_probs[row] = chosen < 0 ? NAN : (logits[chosen] - highest) * scale - (float)log(total);
    }
}
