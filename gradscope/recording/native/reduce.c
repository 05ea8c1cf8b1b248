/* torch has no reduction that gives a norm, the largest magnitude and counts at once, and at the size
 * of a training step reading memory is most of the cost. */

#include "reduce.h"
#include "threads.h"
#include <math.h>

enum { MAX_PARTS = 64 };

/* Below this many bytes a thread each costs more than it brings. */
enum { BYTES_PER_THREAD = 1 << 16 };

typedef struct {
    const element *of;
    const char *data;
    int64_t numel;
    reduction *function;
    int parts;
    summary found[MAX_PARTS]; /* each is written before it is read */
} job;

/* Parts are whole blocks, so that the sum of a block does not depend on the number of threads. */
static void reduce_part(void *argument, int part) {
    job *work = argument;
    int64_t blocks = (work->numel + BLOCK - 1) / BLOCK;
    int64_t from = blocks * part / work->parts * BLOCK;
    int64_t to = blocks * (part + 1) / work->parts * BLOCK;
    if (to > work->numel)
        to = work->numel;
    work->function(work->data + from * work->of->size, to - from, &work->found[part]);
    work->found[part].block += from / BLOCK;
}

static void join(summary *whole, const summary *part) {
    whole->squares += part->squares;
    whole->zeros += part->zeros;
    whole->nonfinite += part->nonfinite;
    if (!isnan(whole->largest) && !(whole->largest >= part->largest)) { /* also where it is NaN */
        whole->largest = part->largest;
        whole->block = part->block;
    }
}

static int parts_for(int64_t bytes) {
    int64_t useful = bytes / BYTES_PER_THREAD;
    int threads = useful > 1 ? threads_at_hand() : 1;
    int parts = threads < useful ? threads : (int)useful;
    return parts < 1 ? 1 : parts < MAX_PARTS ? parts : MAX_PARTS;
}

summary reduce(const element *of, const char *data, int64_t numel, reduction *function) {
    job work;
    work.of = of;
    work.data = data;
    work.numel = numel;
    work.function = function;
    work.parts = parts_for(numel * of->size);
    run_parts(reduce_part, &work, work.parts);
    for (int part = 1; part < work.parts; part++)
        join(&work.found[0], &work.found[part]);
    return work.found[0];
}

int is_plain(const element *of, double norm) {
    return norm > of->least_norm && norm < of->most_norm;
}

double norm_of(const element *of, const char *data, int64_t numel, const summary *found) {
    double norm = sqrt(found->squares);
    if (is_plain(of, norm) || found->largest == 0 || !isfinite(found->largest))
        return isinf(found->largest) ? INFINITY : norm;
    return of->scaled_norm(data, numel, found->largest);
}
