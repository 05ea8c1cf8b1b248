/* Statistics of tensors in main memory, one pass each: what gradscope/meters.py calls on a CPU.
 *
 * torch has no reduction that gives a norm, the extremes and counts at once, and at the size of a
 * training step reading memory is the whole cost. The functions take addresses, not tensors, so the
 * module depends on no version of torch; the caller keeps the tensors alive and dense.
 *
 * The loops are written in lanes that compilers turn into vector instructions without being allowed
 * to reorder sums, so that NaN and Inf keep their meaning. Magnitudes are compared as integers:
 * without the sign bit the patterns of IEEE 754 are ordered like the numbers, Inf above all of
 * them and NaN above Inf.
 */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__linux__)
#include <dlfcn.h>
#endif

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU
#endif

enum { LANES = 32, BLOCK = 4096, MAX_THREADS = 64 };
enum dtype { FLOAT32, FLOAT64, BFLOAT16, DTYPES };

/* Below this many bytes a thread each costs more than it brings. */
enum { BYTES_PER_THREAD = 1 << 16 };

static const size_t size_of[DTYPES] = {4, 8, 2};

typedef struct {
    double squares; /* of the elements divided by `unit` */
    double largest; /* magnitude; NaN if there is one */
    int64_t zeros;
    int64_t nonfinite;
} summary;

static inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline double as_double(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#define SAME(bits) (bits)
#define WIDENED(bits) ((uint32_t)(bits) << 16)

/* STORED: unsigned integer of an element's size; BITS: of a REAL's size; PATTERN: STORED -> BITS.
 * A block is summed in REAL lanes, the blocks in double. */
#define DEFINE_SUMMARY(NAME, STORED, BITS, REAL, PATTERN, AS_REAL, MAGNITUDE, INFINITE)              \
    FOR_EACH_CPU static void NAME(const void *data, int64_t numel, summary *found) {                 \
        double squares = 0;                                                                          \
        BITS largest = 0;                                                                            \
        int64_t zeros = 0;                                                                           \
        for (int64_t at = 0; at < numel; at += BLOCK) {                                              \
            const STORED *block = (const STORED *)data + at;                                         \
            int64_t size = numel - at < BLOCK ? numel - at : BLOCK, i = 0;                           \
            REAL sum[LANES] = {0};                                                                   \
            BITS top[LANES] = {0}, empty[LANES] = {0};                                               \
            for (; i + LANES <= size; i += LANES)                                                    \
                for (int lane = 0; lane < LANES; lane++) {                                           \
                    BITS bits = PATTERN(block[i + lane]) & MAGNITUDE;                                \
                    REAL value = AS_REAL(bits);                                                      \
                    sum[lane] += value * value;                                                      \
                    top[lane] = top[lane] > bits ? top[lane] : bits;                                 \
                    empty[lane] += bits == 0;                                                        \
                }                                                                                    \
            for (int lane = 0; i < size; i++, lane++) {                                              \
                BITS bits = PATTERN(block[i]) & MAGNITUDE;                                           \
                REAL value = AS_REAL(bits);                                                          \
                sum[lane] += value * value;                                                          \
                top[lane] = top[lane] > bits ? top[lane] : bits;                                     \
                empty[lane] += bits == 0;                                                            \
            }                                                                                        \
            for (int lane = 0; lane < LANES; lane++) {                                               \
                squares += sum[lane];                                                                \
                largest = largest > top[lane] ? largest : top[lane];                                 \
                zeros += (int64_t)empty[lane];                                                       \
            }                                                                                        \
        }                                                                                            \
        found->squares = squares;                                                                    \
        found->largest = AS_REAL(largest);                                                           \
        found->zeros = zeros;                                                                        \
        found->nonfinite = 0;                                                                        \
        if (largest >= INFINITE)                                                                     \
            for (int64_t i = 0; i < numel; i++)                                                      \
                found->nonfinite += (PATTERN(((const STORED *)data)[i]) & MAGNITUDE) >= INFINITE;    \
    }

DEFINE_SUMMARY(summary_float32, uint32_t, uint32_t, float, SAME, as_float, 0x7fffffffu, 0x7f800000u)
DEFINE_SUMMARY(summary_bfloat16, uint16_t, uint32_t, float, WIDENED, as_float, 0x7fffffffu,
               0x7f800000u)
DEFINE_SUMMARY(summary_float64, uint64_t, uint64_t, double, SAME, as_double, 0x7fffffffffffffffull,
               0x7ff0000000000000ull)

static void (*const summary_of[DTYPES])(const void *, int64_t, summary *) = {
    [FLOAT32] = summary_float32, [FLOAT64] = summary_float64, [BFLOAT16] = summary_bfloat16};

static inline double from_float32(const void *data, int64_t i) { return ((const float *)data)[i]; }
static inline double from_float64(const void *data, int64_t i) { return ((const double *)data)[i]; }
static inline double from_bfloat16(const void *data, int64_t i) {
    return as_float(WIDENED(((const uint16_t *)data)[i]));
}

static double (*const element_of[DTYPES])(const void *, int64_t) = {
    [FLOAT32] = from_float32, [FLOAT64] = from_float64, [BFLOAT16] = from_bfloat16};

/* Sum of the squared differences of two vectors. */
#define DEFINE_SQUARES(NAME, ELEMENT)                                                                \
    FOR_EACH_CPU static double NAME(const void *a, const void *b, int64_t length) {                  \
        double sum[LANES / 2] = {0}, total = 0;                                                      \
        int64_t i = 0;                                                                               \
        for (; i + LANES / 2 <= length; i += LANES / 2)                                              \
            for (int lane = 0; lane < LANES / 2; lane++) {                                           \
                double change = ELEMENT(a, i + lane) - ELEMENT(b, i + lane);                         \
                sum[lane] += change * change;                                                        \
            }                                                                                        \
        for (; i < length; i++) {                                                                    \
            double change = ELEMENT(a, i) - ELEMENT(b, i);                                           \
            total += change * change;                                                                \
        }                                                                                            \
        for (int lane = 0; lane < LANES / 2; lane++)                                                 \
            total += sum[lane];                                                                      \
        return total;                                                                                \
    }

DEFINE_SQUARES(squares_float32, from_float32)
DEFINE_SQUARES(squares_float64, from_float64)
DEFINE_SQUARES(squares_bfloat16, from_bfloat16)

static double (*const squares_of[DTYPES])(const void *, const void *, int64_t) = {
    [FLOAT32] = squares_float32, [FLOAT64] = squares_float64, [BFLOAT16] = squares_bfloat16};

/* Norm of elements whose squares leave the range of their type. */
static double scaled_norm(const void *data, enum dtype dtype, int64_t numel, double largest) {
    double squares = 0;
    for (int64_t i = 0; i < numel; i++) {
        double value = element_of[dtype](data, i) / largest;
        squares += value * value;
    }
    return largest * sqrt(squares);
}

/* The threads of torch itself, lent for one call: threads of our own would compete with them. */
static void (*run_parallel)(void (*)(void *), void *, unsigned, unsigned);
static int (*thread_index)(void);
static int (*team_size)(void);

static void find_threads(void) {
#if defined(__linux__)
    *(void **)&run_parallel = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    *(void **)&thread_index = dlsym(RTLD_DEFAULT, "omp_get_thread_num");
    *(void **)&team_size = dlsym(RTLD_DEFAULT, "omp_get_num_threads");
    if (!thread_index || !team_size)
        run_parallel = NULL;
#endif
}

typedef struct {
    const char *data;
    enum dtype dtype;
    int64_t numel;
    int parts;
    summary found[MAX_THREADS];
} job;

/* Parts are whole blocks, so that the sum of a block does not depend on the number of threads. */
static void run_part(job *work, int part) {
    int64_t blocks = (work->numel + BLOCK - 1) / BLOCK;
    int64_t from = blocks * part / work->parts * BLOCK;
    int64_t to = blocks * (part + 1) / work->parts * BLOCK;
    if (to > work->numel)
        to = work->numel;
    summary_of[work->dtype](work->data + from * size_of[work->dtype], to - from,
                            &work->found[part]);
}

static void run_share(void *argument) {
    job *work = argument;
    for (int part = thread_index(); part < work->parts; part += team_size())
        run_part(work, part);
}

static summary summarise(const void *data, enum dtype dtype, int64_t numel, int threads) {
    job work = {.data = data, .dtype = dtype, .numel = numel, .parts = 1};
    int64_t useful = numel * (int64_t)size_of[dtype] / BYTES_PER_THREAD;
    if (run_parallel && threads > 1 && useful > 1)
        work.parts = threads < useful ? threads : (int)useful;
    if (work.parts > MAX_THREADS)
        work.parts = MAX_THREADS;
    if (work.parts == 1)
        run_part(&work, 0);
    else
        run_parallel(run_share, &work, (unsigned)work.parts, 0);
    summary whole = work.found[0];
    for (int part = 1; part < work.parts; part++) {
        const summary *other = &work.found[part];
        whole.squares += other->squares;
        whole.zeros += other->zeros;
        whole.nonfinite += other->nonfinite;
        if (!(whole.largest >= other->largest)) /* also true where one of them is NaN */
            whole.largest = isnan(whole.largest) ? whole.largest : other->largest;
    }
    return whole;
}

static double norm_of(const summary *found, const void *data, enum dtype dtype, int64_t numel) {
    double norm = sqrt(found->squares);
    double low = dtype == FLOAT64 ? 1e-150 : 1e-15, high = dtype == FLOAT64 ? 1e150 : 1e18;
    if ((norm > low && norm < high) || found->largest == 0 || !isfinite(found->largest))
        return isinf(found->largest) ? INFINITY : norm;
    return scaled_norm(data, dtype, numel, found->largest);
}

/* Python's side */

static int integers(PyObject *const *args, Py_ssize_t given, Py_ssize_t wanted, int64_t *values) {
    if (given != wanted) {
        PyErr_Format(PyExc_TypeError, "%zd arguments expected, got %zd", wanted, given);
        return 0;
    }
    for (Py_ssize_t i = 0; i < wanted; i++) {
        values[i] = PyLong_AsLongLong(args[i]);
        if (values[i] == -1 && PyErr_Occurred())
            return 0;
    }
    return 1;
}

static int known(int64_t dtype) {
    if (dtype >= 0 && dtype < DTYPES)
        return 1;
    PyErr_Format(PyExc_ValueError, "no kernel for dtype code %d", (int)dtype);
    return 0;
}

#define ADDRESS(value) ((void *)(intptr_t)(value))

static PyObject *py_summarise(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t v[6];
    if (!integers(args, given, 6, v) || !known(v[1]))
        return NULL;
    const void *data = ADDRESS(v[0]);
    enum dtype dtype = (enum dtype)v[1];
    int64_t numel = v[2], wanted = v[4];
    float *out = ADDRESS(v[3]);
    if (numel <= 0)
        Py_RETURN_NONE;
    summary found;
    double norm;
    Py_BEGIN_ALLOW_THREADS
    found = summarise(data, dtype, numel, (int)v[5]);
    norm = norm_of(&found, data, dtype, numel);
    Py_END_ALLOW_THREADS
    double values[4] = {norm, (double)found.nonfinite / (double)numel, found.largest,
                        (double)found.zeros / (double)numel};
    for (int64_t i = 0; i < wanted && i < 4; i++)
        out[i] = (float)values[i];
    Py_RETURN_NONE;
}

static PyObject *py_copy_runs(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t v[6];
    if (!integers(args, given, 6, v) || !known(v[1]))
        return NULL;
    size_t size = size_of[v[1]];
    const char *data = ADDRESS(v[0]);
    char *copy = ADDRESS(v[5]);
    for (int64_t run = 0; run < v[4]; run++)
        memcpy(copy + run * v[2] * size, data + run * v[3] * size, v[2] * size);
    Py_RETURN_NONE;
}

static PyObject *py_change(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t v[8];
    if (!integers(args, given, 8, v) || !known(v[1]))
        return NULL;
    enum dtype dtype = (enum dtype)v[1];
    int64_t length = v[2], stride = v[3], runs = v[4], numel = v[6];
    const char *data = ADDRESS(v[0]), *before = ADDRESS(v[5]);
    if (numel <= 0)
        Py_RETURN_NONE;
    double squares = 0;
    for (int64_t run = 0; run < runs; run++)
        squares += squares_of[dtype](data + run * stride * (int64_t)size_of[dtype],
                                     before + run * length * (int64_t)size_of[dtype], length);
    *(float *)ADDRESS(v[7]) = (float)sqrt(squares * (double)numel / (double)(length * runs));
    Py_RETURN_NONE;
}

static int any_nonzero(const char *data, int64_t bytes, enum dtype dtype) {
    uint64_t seen = 0; /* -0.0 is zero, so the sign bits are left out */
    static const uint64_t magnitude[DTYPES] = {0x7fffffff7fffffffull, 0x7fffffffffffffffull,
                                               0x7fff7fff7fff7fffull};
    int64_t at = 0;
    for (; at + 8 <= bytes; at += 8) {
        uint64_t word;
        memcpy(&word, data + at, 8);
        seen |= word & magnitude[dtype];
    }
    if (at < bytes) {
        uint64_t word = 0;
        memcpy(&word, data + at, (size_t)(bytes - at));
        seen |= word & magnitude[dtype];
    }
    return seen != 0;
}

static PyObject *py_dead_units(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t v[7];
    if (!integers(args, given, 7, v) || !known(v[1]))
        return NULL;
    const char *data = ADDRESS(v[0]);
    enum dtype dtype = (enum dtype)v[1];
    int64_t outer = v[2], units = v[3], bytes = v[4] * (int64_t)size_of[dtype], dead = 0;
    unsigned char *active = ADDRESS(v[5]);
    if (outer * units * bytes <= 0)
        Py_RETURN_NONE;
    for (int64_t unit = 0; unit < units; unit++) {
        for (int64_t i = 0; i < outer && !active[unit]; i++)
            active[unit] = any_nonzero(data + (i * units + unit) * bytes, bytes, dtype);
        dead += !active[unit];
    }
    *(float *)ADDRESS(v[6]) = (float)((double)dead / (double)units);
    Py_RETURN_NONE;
}

#define FAST(name) (PyCFunction)(void (*)(void)) name, METH_FASTCALL

static PyMethodDef methods[] = {
    {"summarise", FAST(py_summarise),
     "summarise(address, dtype, numel, out, wanted, threads)\n\n"
     "Write the first `wanted` of norm, share of NaN and Inf, largest magnitude, share of zeros to\n"
     "the float32 at `out`."},
    {"copy_runs", FAST(py_copy_runs),
     "copy_runs(address, dtype, length, stride, runs, copy)\n\n"
     "Copy runs of `length` elements that begin `stride` elements apart."},
    {"change", FAST(py_change),
     "change(address, dtype, length, stride, runs, before, numel, out)\n\n"
     "Write the norm of the change since copy_runs to `out`, scaled up from the runs to `numel`."},
    {"dead_units", FAST(py_dead_units),
     "dead_units(address, dtype, outer, units, inner, active, out)\n\n"
     "Mark in the bytes at `active` which units of a dense (outer, units, inner) tensor are not\n"
     "zero everywhere; write the share of units never marked to `out`."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernels",
                                    "Statistics of tensors in main memory, one pass each.", 0,
                                    methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void) {
    find_threads();
    return PyModuleDef_Init(&module);
}
