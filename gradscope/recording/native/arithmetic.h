/* Arithmetic on elements that lie side by side, for each of their types; knows nothing of Python. */

#ifndef ARITHMETIC_H
#define ARITHMETIC_H

#include <stdint.h>

/* Elements are summed block by block; a block is as much as is looked at again in one piece. */
enum { BLOCK = 4096 };

typedef struct {
    double squares;
    double largest; /* magnitude; NaN if there is one */
    int64_t zeros;
    int64_t nonfinite;
    int64_t block; /* of the largest */
} summary;

typedef void reduction(const char *data, int64_t numel, summary *found);

typedef struct {
    int64_t size; /* bytes */
    /* Between these a norm tells that no square left the range of its type, so that no element was
     * NaN or Inf either. */
    double least_norm, most_norm;
    reduction *summarise;
    reduction *add_squares; /* `squares` alone: half the time where a tensor lies in a cache */
    /* Sum of the squared differences of two vectors. */
    double (*squared_change)(const char *now, const char *before, int64_t length);
    /* How many elements of two vectors are the same, bit for bit. */
    int64_t (*count_alike)(const char *now, const char *before, int64_t length);
    /* Norm of elements whose squares leave the range of their type. */
    double (*scaled_norm)(const char *data, int64_t numel, double largest);
    int (*any_nonzero)(const char *data, int64_t numel); /* -0.0 is zero */
} element;

extern const element FLOAT32, FLOAT64, BFLOAT16;

/* Changes when words of a block do, but for chance. */
uint64_t checksum(const char *data, int64_t bytes);

#endif
