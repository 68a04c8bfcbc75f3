/* Element types, compiled: what clipgguf/encode.py does with numpy, to the same bits.
 *
 * It works on parts of a fixed size, so that compilers turn the inner loops into vector instructions at -O2. Compile
 * with -ffp-contract=off: a fused multiply-add rounds once where the reference rounds twice.
 */
#include <float.h>
#include <stdint.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0 || !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "this is for float arithmetic that is rounded to float, and for little-endian machines, as GGUF is"
#endif

#ifdef _WIN32
#define EXPORTED __declspec(dllexport)
#else
#define EXPORTED
#endif
/* Inlined into each of the two variants below, and compiled for the processor of that variant. */
#define INLINE static inline __attribute__((always_inline))

enum { PART = 256, BLOCK = 32 };
/* Their numbers are those of clipgguf/kernels/__init__.py. */
enum { FROM_F64, FROM_F32, FROM_F16, FROM_BF16 };
enum { TO_F32, TO_F16, TO_BF16, TO_Q8_0, TO_Q5_0, TO_Q5_1, TO_Q4_0, TO_Q4_1 };
static const size_t SOURCE_NBYTES[] = {8, 4, 2, 2};
static const size_t TARGET_NBYTES[] = {128, 64, 64, 34, 22, 24, 18, 20}; /* For BLOCK values. */

static const int32_t MAGNITUDE = 0x7fffffff, INFINITE = 0x7f800000;
/* The bits of 2**15. From here on, something may be too large for a float16. */
static const int32_t LARGE = 0x47000000;
/* From here on up to infinity, finite values round to an infinite bfloat16. */
static const int32_t TOO_LARGE_FOR_BF16 = 0x7f7f8000;

INLINE int32_t bits_of(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
INLINE float float_of(int32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
INLINE int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }
INLINE int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }

/* ---- reading: a part as float32; true where it is left to numpy ------------------------------------------------- */

INLINE int from_f64(const double *source, float *values) {
    int32_t largest = 0;
    for (int i = 0; i < PART; i++) {
        values[i] = (float)source[i];
        largest = larger(largest, bits_of(values[i]) & MAGNITUDE);
    }
    return largest >= INFINITE;
}

INLINE int from_f16(const uint16_t *source, float *values) {
    int32_t largest = 0;
    for (int i = 0; i < PART; i++) {
        int32_t bits = source[i], magnitude = bits & 0x7fff, is_subnormal = (magnitude - 0x400) >> 31;
        int32_t normal = (magnitude << 13) + (112 << 23), subnormal = bits_of((float)magnitude * 0x1p-24f);
        int32_t single = (subnormal & is_subnormal) | (normal & ~is_subnormal);
        largest = larger(largest, magnitude);
        values[i] = float_of(single | (int32_t)((uint32_t)(bits ^ magnitude) << 16));
    }
    return largest >= 0x7c00;
}

INLINE int from_bf16(const uint16_t *source, float *values) {
    for (int i = 0; i < PART; i++) {
        uint32_t bits = (uint32_t)source[i] << 16;
        memcpy(values + i, &bits, sizeof bits);
    }
    return 0;
}

/* ---- writing: a part of float32; true where it is left to numpy ------------------------------------------------- */

/* Round to nearest even. Adding 2**(e + 13) to a magnitude of exponent e rounds it to float16's significant bits, and
 * leaves them lowest; clipgguf/encode.py says more. Right below LARGE. */
INLINE uint16_t f16_of(float value) {
    int32_t bits = bits_of(value), exponent = larger(bits & INFINITE, 0x38800000);
    uint32_t addend = (uint32_t)exponent + (uint32_t)(exponent >> 13) + (13 << 23) - (113 << 10);
    uint32_t sum = (uint32_t)bits_of(float_of(bits & MAGNITUDE) + float_of((int32_t)addend));
    return (uint16_t)(((uint32_t)bits >> 16 & 0x8000) + sum);
}

INLINE int to_f16(const float *values, uint16_t *target) {
    int32_t largest = 0;
    for (int i = 0; i < PART; i++) {
        largest = larger(largest, bits_of(values[i]) & MAGNITUDE);
        target[i] = f16_of(values[i]);
    }
    return largest >= LARGE;
}

INLINE int to_bf16(const float *values, uint16_t *target) {
    int32_t largest = 0;
    for (int i = 0; i < PART; i++) {
        uint32_t bits = (uint32_t)bits_of(values[i]);
        largest = larger(largest, (int32_t)(bits & 0x7fffffff));
        target[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    return largest >= TOO_LARGE_FOR_BF16;
}

/* The scale's inverse, 0 for a scale of 0. Infinite for very small scales: numpy knows what comes of these. */
INLINE float inverse(float scale) { return scale == 0 ? 0 : 1 / scale; }

/* The largest magnitude of a block in bits; which signs it comes with: 1 positive, 2 negative, 3 both. */
INLINE int32_t largest_magnitude(const float *x, int *signs) {
    int32_t positive = INT32_MIN, negative = INT32_MIN;
    for (int i = 0; i < BLOCK; i++) {
        positive = larger(positive, bits_of(x[i]));
        negative = larger(negative, bits_of(-x[i]));
    }
    int32_t largest = larger(positive, negative);
    *signs = (positive == largest) | (negative == largest) << 1;
    return largest;
}

INLINE void put(uint8_t *target, float scale) {
    uint16_t half = f16_of(scale);
    memcpy(target, &half, sizeof half);
}

INLINE int q8_0_block(const float *x, uint8_t *target) {
    int signs;
    int32_t largest = largest_magnitude(x, &signs);
    float scale = float_of(largest) / 127, by = inverse(scale);
    int8_t quants[BLOCK];
    if (largest >= LARGE || bits_of(by) >= INFINITE)
        return 1;
    put(target, scale);
    for (int i = 0; i < BLOCK; i++) {
        /* Halves away from zero: with the float before 0.5, as 0.49999997 + 0.5 is 1. */
        float value = x[i] * by;
        quants[i] = (int8_t)(int32_t)(value + float_of((bits_of(value) & ~MAGNITUDE) | 0x3effffff));
    }
    memcpy(target + 2, quants, sizeof quants);
    return 0;
}

/* Four bits of each quant, the second half of the block above the first. */
INLINE void put_low_bits(uint8_t *target, const uint8_t *quants) {
    uint8_t packed[BLOCK / 2];
    for (int i = 0; i < BLOCK / 2; i++)
        packed[i] = (uint8_t)((quants[i] & 15) | quants[i + BLOCK / 2] << 4);
    memcpy(target, packed, sizeof packed);
}

/* The fifth bit of each quant. A product collects eight bytes' lowest bits in its own highest byte. */
INLINE void put_high_bits(uint8_t *target, const uint8_t *quants) {
    for (int i = 0; i < BLOCK / 8; i++) {
        uint64_t eight;
        memcpy(&eight, quants + 8 * i, sizeof eight);
        target[i] = (uint8_t)(((eight >> 4 & 0x0101010101010101u) * 0x0102040810204080u) >> 56);
    }
}

/* Quants around zero: the value of the largest magnitude becomes 0. */
INLINE int symmetric_block(const float *x, uint8_t *target, int bits) {
    int signs;
    const int32_t half = 1 << (bits - 1);
    int32_t largest = largest_magnitude(x, &signs);
    float value = float_of(largest);
    if (signs == 3) {
        int first = 0;
        while ((bits_of(x[first]) & MAGNITUDE) != largest)
            first++;
        value = x[first];
    } else if (signs == 2) {
        value = -value;
    }
    float scale = value / (float)-half, by = inverse(scale);
    uint8_t quants[BLOCK];
    if (largest >= LARGE || (bits_of(by) & MAGNITUDE) >= INFINITE)
        return 1;
    put(target, scale);
    for (int i = 0; i < BLOCK; i++)
        quants[i] = (uint8_t)smaller((int32_t)(x[i] * by + ((float)half + 0.5f)), 2 * half - 1);
    if (bits == 5)
        put_high_bits(target + 2, quants);
    put_low_bits(target + (bits == 5 ? 6 : 2), quants);
    return 0;
}

/* In this order of whole numbers, -0 is below 0. It is its own inverse. */
INLINE int32_t order_of(int32_t bits) { return bits ^ (bits >> 31 & MAGNITUDE); }

/* Quants from the smallest value on. Where that is -0 there may be a 0 as well, of which numpy takes either. */
INLINE int offset_block(const float *x, uint8_t *target, int bits) {
    int32_t most = INT32_MIN, least = INT32_MAX;
    for (int i = 0; i < BLOCK; i++) {
        int32_t order = order_of(bits_of(x[i]));
        most = larger(most, order);
        least = smaller(least, order);
    }
    const int32_t top = (1 << bits) - 1;
    float offset = float_of(order_of(least));
    float scale = (float_of(order_of(most)) - offset) / (float)top, by = inverse(scale);
    uint8_t quants[BLOCK];
    if (most >= LARGE || least <= order_of(LARGE | ~MAGNITUDE) || least == -1 || bits_of(by) >= INFINITE)
        return 1;
    put(target, scale);
    put(target + 2, offset);
    for (int i = 0; i < BLOCK; i++)
        quants[i] = (uint8_t)smaller((int32_t)((x[i] - offset) * by + 0.5f), top);
    if (bits == 5)
        put_high_bits(target + 4, quants);
    put_low_bits(target + (bits == 5 ? 8 : 4), quants);
    return 0;
}

/* ---- a part ----------------------------------------------------------------------------------------------------- */

INLINE int read_part(int from, const void *source, float *values) {
    switch (from) {
    case FROM_F64: return from_f64(source, values);
    case FROM_F32: memcpy(values, source, PART * sizeof *values); return 0;
    case FROM_F16: return from_f16(source, values);
    default: return from_bf16(source, values);
    }
}

#define EACH_BLOCK(call) \
    for (int block = 0; block < PART / BLOCK; block++) { \
        const float *x = values + block * BLOCK; \
        uint8_t *out = (uint8_t *)target + (size_t)block * TARGET_NBYTES[to]; \
        left |= call; \
    } \
    return left

INLINE int write_part(int to, const float *values, void *target) {
    int left = 0;
    switch (to) {
    case TO_F32:
        if (target != values)
            memcpy(target, values, PART * sizeof *values);
        return 0;
    case TO_F16: return to_f16(values, target);
    case TO_BF16: return to_bf16(values, target);
    case TO_Q8_0: EACH_BLOCK(q8_0_block(x, out));
    case TO_Q5_0: EACH_BLOCK(symmetric_block(x, out, 5));
    case TO_Q5_1: EACH_BLOCK(offset_block(x, out, 5));
    case TO_Q4_0: EACH_BLOCK(symmetric_block(x, out, 4));
    default: EACH_BLOCK(offset_block(x, out, 4));
    }
}

/* Encode parts until one is left to numpy; what does not fill a part is filled up with zeros. */
INLINE size_t encode(int from, int to, const char *source, char *target, size_t elements) {
    size_t done = 0, read = SOURCE_NBYTES[from], written = TARGET_NBYTES[to];
    float values[PART];
    for (; elements - done >= PART; done += PART) {
        const char *part = source + done * read;
        char *out = target + done / BLOCK * written;
        float *singles = to == TO_F32 ? (float *)(void *)out : values;
        if (from == FROM_F32 ? write_part(to, (const float *)(const void *)part, out)
                             : read_part(from, part, singles) || write_part(to, singles, out))
            return done;
    }
    size_t rest = elements - done;
    double last[PART] = {0};
    float encoded[PART];
    memcpy(last, source + done * read, rest * read);
    if (rest == 0 || read_part(from, last, values) || write_part(to, values, encoded))
        return done;
    memcpy(target + done / BLOCK * written, encoded, rest * written / BLOCK);
    return elements;
}

/* ---- variants --------------------------------------------------------------------------------------------------- */

static size_t encode_plain(int from, int to, const char *source, char *target, size_t elements) {
    return encode(from, to, source, target, elements);
}
#if defined(__x86_64__) || defined(__i386__)
__attribute__((target("avx2")))
static size_t encode_avx2(int from, int to, const char *source, char *target, size_t elements) {
    return encode(from, to, source, target, elements);
}
#define HAS_AVX2 (__builtin_cpu_init(), __builtin_cpu_supports("avx2"))
#else
#define encode_avx2 encode_plain
#define HAS_AVX2 0
#endif

/* Encode elements of one type, whole blocks of the other, and return how many: the first ones, up to a part with
 * something that is left to numpy, as NaNs, infinities, and what may become infinite. The name has a number, so that a
 * library of another version is not taken for this one. With `plain`, for tests, as on the least processor. */
EXPORTED size_t clipgguf_encode_1(int from, int to, const void *source, void *target, size_t elements, int plain) {
    if (from < FROM_F64 || from > FROM_BF16 || to < TO_F32 || to > TO_Q4_1)
        return 0;
    return (plain || !HAS_AVX2 ? encode_plain : encode_avx2)(from, to, source, target, elements);
}
