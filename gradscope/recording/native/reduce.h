/* What is known of a whole vector after one pass over it. */

#ifndef REDUCE_H
#define REDUCE_H

#include "arithmetic.h"

/* One pass over elements side by side, large ones on several threads. */
summary reduce(const element *of, const char *data, int64_t numel, reduction *function);

/* Whether no square left the range of its type, so that no element was NaN or Inf either. */
int is_plain(const element *of, double norm);

/* The norm that belongs to a summary, also where squares left the range of their type. */
double norm_of(const element *of, const char *data, int64_t numel, const summary *found);

#endif
