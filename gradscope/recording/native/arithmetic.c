/* The element types, each made of the functions in elements.h. */

#include "arithmetic.h"
#include <math.h>
#include <string.h>

/* One wheel serves every CPU: the widest vector instructions are chosen when it is loaded. */
#ifndef FOR_EACH_CPU
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU
#endif
#endif

/* What such a function calls must be compiled for its CPU too. */
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

enum { LANES = 32 };

/* What comes a while after this, two cache lines of it: processors stop guessing at the end of each
 * page, and a gradient that was just written is read a tenth faster so. No harm beyond the end. */
INLINE void ask_ahead(const char *data) {
    enum { AHEAD = 1024, CACHE_LINE = 64 };
#if defined(__GNUC__)
    __builtin_prefetch(data + AHEAD);
    __builtin_prefetch(data + AHEAD + CACHE_LINE);
#else
    (void)data;
#endif
}

#define OF(name) name##_float32
#define STORED uint32_t
#define REAL float
#define BITS uint32_t
#define SHIFT 0
#define INFINITE 0x7f800000u
#include "elements.h"
#undef OF
#undef STORED
#undef SHIFT

#define OF(name) name##_bfloat16
#define STORED uint16_t
#define SHIFT 16
#include "elements.h"
#undef OF
#undef STORED
#undef REAL
#undef BITS
#undef SHIFT
#undef INFINITE

#define OF(name) name##_float64
#define STORED uint64_t
#define REAL double
#define BITS uint64_t
#define SHIFT 0
#define INFINITE 0x7ff0000000000000u
#include "elements.h"

const element FLOAT32 = {4,
                         1e-15,
                         1e18,
                         summarise_float32,
                         add_squares_float32,
                         compare_float32,
                         squared_change_float32,
                         scaled_norm_float32,
                         any_nonzero_float32};

const element BFLOAT16 = {2,
                          1e-15,
                          1e18,
                          summarise_bfloat16,
                          add_squares_bfloat16,
                          compare_bfloat16,
                          squared_change_bfloat16,
                          scaled_norm_bfloat16,
                          any_nonzero_bfloat16};

const element FLOAT64 = {8,
                         1e-150,
                         1e150,
                         summarise_float64,
                         add_squares_float64,
                         compare_float64,
                         squared_change_float64,
                         scaled_norm_float64,
                         any_nonzero_float64};

FOR_EACH_CPU uint64_t checksum(const char *data, int64_t bytes) {
    enum { WORDS = LANES / 2, STRIDE = WORDS * sizeof(uint32_t) };
    uint64_t sum[WORDS] = {0}, total = 0;
    for (; bytes >= STRIDE; data += STRIDE, bytes -= STRIDE) {
        uint32_t words[WORDS];
        memcpy(words, data, STRIDE);
        for (int lane = 0; lane < WORDS; lane++)
            sum[lane] += words[lane];
    }
    uint32_t rest[WORDS] = {0};
    memcpy(rest, data, (size_t)bytes);
    for (int lane = 0; lane < WORDS; lane++)
        total += sum[lane] + rest[lane];
    return total;
}
