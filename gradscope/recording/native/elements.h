/* The functions of one element type. arithmetic.c includes this once for each, with these defined:
 *
 *   OF(name)      what a function is called for this type
 *   STORED        unsigned integer of an element's size
 *   REAL, BITS    type that is computed in, and an unsigned integer of its size
 *   SHIFT         by how many bits a STORED pattern lies higher in a REAL
 *   INFINITE      pattern of Inf
 *
 * The loops run in lanes that compilers turn into vector instructions without being allowed to
 * reorder sums, so that NaN and Inf keep their meaning. Magnitudes are compared as integers: without
 * the sign bit the patterns of IEEE 754 are ordered like the numbers, Inf above all of them and NaN
 * above Inf. A block is summed in REAL lanes, the blocks in double. Nothing is taken for aligned.
 */

typedef struct {
    REAL sum[LANES];
    BITS largest[LANES], zeros[LANES];
} OF(lanes);

INLINE STORED OF(stored)(const char *data, int64_t i) {
    STORED stored;
    memcpy(&stored, data + i * (int64_t)sizeof stored, sizeof stored);
    return stored;
}

INLINE BITS OF(pattern)(const char *data, int64_t i) {
    return (BITS)OF(stored)(data, i) << SHIFT;
}

INLINE BITS OF(magnitude)(const char *data, int64_t i) {
    return OF(pattern)(data, i) & ((BITS)-1 >> 1);
}

INLINE REAL OF(real)(BITS pattern) {
    REAL value;
    memcpy(&value, &pattern, sizeof value);
    return value;
}

INLINE double OF(value)(const char *data, int64_t i) {
    return OF(real)(OF(pattern)(data, i));
}

INLINE void OF(add)(OF(lanes) *kept, int lane, BITS magnitude) {
    REAL value = OF(real)(magnitude);
    kept->sum[lane] += value * value;
    kept->largest[lane] = kept->largest[lane] > magnitude ? kept->largest[lane] : magnitude;
    kept->zeros[lane] += magnitude == 0;
}

FOR_EACH_CPU static void OF(summarise)(const char *data, int64_t numel, summary *found) {
    double squares = 0;
    BITS largest = 0;
    int64_t zeros = 0, where = 0, nonfinite = 0;
    for (int64_t at = 0; at < numel; at += BLOCK) {
        const char *block = data + at * (int64_t)sizeof(STORED);
        int64_t size = numel - at < BLOCK ? numel - at : BLOCK, i = 0;
        BITS before = largest;
        OF(lanes) kept = {{0}, {0}, {0}};
        for (; i + LANES <= size; i += LANES) {
            ask_ahead(block + i * (int64_t)sizeof(STORED));
            for (int lane = 0; lane < LANES; lane++)
                OF(add)(&kept, lane, OF(magnitude)(block, i + lane));
        }
        for (int lane = 0; i < size; i++, lane++)
            OF(add)(&kept, lane, OF(magnitude)(block, i));
        for (int lane = 0; lane < LANES; lane++) {
            squares += kept.sum[lane];
            largest = largest > kept.largest[lane] ? largest : kept.largest[lane];
            zeros += (int64_t)kept.zeros[lane];
        }
        where = largest > before ? at / BLOCK : where;
    }
    if (largest >= INFINITE)
        for (int64_t i = 0; i < numel; i++)
            nonfinite += OF(magnitude)(data, i) >= INFINITE;
    *found = (summary){squares, OF(real)(largest), zeros, nonfinite, where};
}

FOR_EACH_CPU static void OF(add_squares)(const char *data, int64_t numel, summary *found) {
    double squares = 0;
    for (int64_t at = 0; at < numel; at += BLOCK) {
        const char *block = data + at * (int64_t)sizeof(STORED);
        int64_t size = numel - at < BLOCK ? numel - at : BLOCK, i = 0;
        REAL sum[LANES] = {0};
        for (; i + LANES <= size; i += LANES) {
            ask_ahead(block + i * (int64_t)sizeof(STORED));
            for (int lane = 0; lane < LANES; lane++) {
                REAL value = OF(real)(OF(pattern)(block, i + lane));
                sum[lane] += value * value;
            }
        }
        for (int lane = 0; i < size; i++, lane++) {
            REAL value = OF(real)(OF(pattern)(block, i));
            sum[lane] += value * value;
        }
        for (int lane = 0; lane < LANES; lane++)
            squares += sum[lane];
    }
    *found = (summary){.squares = squares};
}

FOR_EACH_CPU static void OF(compare)(const char *now, const char *before, int64_t length,
                                     difference *found) {
    enum { LINE = LANES / 2 }; /* the shortest runs that are compared have no more */
    for (int64_t i = 0; i < length;) {
        int64_t end = length - i < BLOCK ? length : i + BLOCK;
        REAL sum[LINE] = {0};
        STORED alike[LINE] = {0}; /* a block brings each lane less than the narrowest holds */
        for (; i + LINE <= end; i += LINE)
            for (int lane = 0; lane < LINE; lane++) {
                STORED a = OF(stored)(now, i + lane), b = OF(stored)(before, i + lane);
                REAL change = OF(real)((BITS)a << SHIFT) - OF(real)((BITS)b << SHIFT);
                sum[lane] += change * change;
                alike[lane] = (STORED)(alike[lane] + (a == b));
            }
        for (; i < end; i++) {
            REAL change = OF(real)(OF(pattern)(now, i)) - OF(real)(OF(pattern)(before, i));
            sum[0] += change * change;
            found->alike += OF(stored)(now, i) == OF(stored)(before, i);
        }
        for (int lane = 0; lane < LINE; lane++) {
            found->squares += sum[lane];
            found->alike += (int64_t)alike[lane];
        }
    }
}

static double OF(squared_change)(const char *now, const char *before, int64_t length) {
    double total = 0;
    for (int64_t i = 0; i < length; i++) {
        double change = OF(value)(now, i) - OF(value)(before, i);
        total += change * change;
    }
    return total;
}

static double OF(scaled_norm)(const char *data, int64_t numel, double largest) {
    double squares = 0;
    for (int64_t i = 0; i < numel; i++) {
        double value = OF(value)(data, i) / largest;
        squares += value * value;
    }
    return largest * sqrt(squares);
}

static int OF(any_nonzero)(const char *data, int64_t numel) {
    BITS seen = 0;
    for (int64_t i = 0; i < numel; i++)
        seen |= OF(magnitude)(data, i);
    return seen != 0;
}
