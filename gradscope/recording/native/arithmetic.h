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

typedef struct {
    double squares; /* of the differences, each computed in the type of the elements */
    int64_t alike;  /* elements that are the same, bit for bit */
} difference;

typedef void reduction(const char *data, int64_t numel, summary *found);

typedef struct {
    int64_t size; /* bytes */
    /* Between these a norm tells that no square left the range of its type, so that no element was
     * NaN or Inf either. */
    double least_norm, most_norm;
    reduction *summarise;
    reduction *add_squares; /* `squares` alone: half the time where a tensor lies in a cache */
    /* Adds to `found` how two vectors differ. */
    void (*compare)(const char *now, const char *before, int64_t length, difference *found);
    /* Sum of the squared differences where those leave the range of their type. */
    double (*squared_change)(const char *now, const char *before, int64_t length);
    /* Norm of elements whose squares leave the range of their type. */
    double (*scaled_norm)(const char *data, int64_t numel, double largest);
    int (*any_nonzero)(const char *data, int64_t numel); /* -0.0 is zero */
} element;

extern const element FLOAT32, FLOAT64, BFLOAT16;

/* Changes when words of a block do, but for chance. */
uint64_t checksum(const char *data, int64_t bytes);

#endif
