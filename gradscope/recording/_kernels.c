/* Statistics of tensors in main memory, one pass each: what gradscope/recording/meters.py calls on a CPU.
 *
 * torch has no reduction that gives a norm, the largest magnitude and counts at once, and at the
 * size of a training step reading memory is most of the cost; Python between the reads is the rest.
 * Where a tensor lies in memory comes from DLPack's exchange API, so the module is built without
 * torch and works with any version of it.
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
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>
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

/* From this many bytes on, other threads of Python may run meanwhile: some ten microseconds. */
enum { LONG_READ = 1 << 20 };

/* So many statistics do without a look at single elements. */
enum { NORM_AND_NONFINITE = 2 };

static const size_t size_of[DTYPES] = {4, 8, 2};

typedef struct {
    double squares;
    double largest; /* magnitude; NaN if there is one */
    int64_t zeros;
    int64_t nonfinite;
    int64_t block; /* of the largest */
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
        int64_t zeros = 0, where = 0;                                                                \
        for (int64_t at = 0; at < numel; at += BLOCK) {                                              \
            const STORED *block = (const STORED *)data + at;                                         \
            int64_t size = numel - at < BLOCK ? numel - at : BLOCK, i = 0;                           \
            REAL sum[LANES] = {0};                                                                   \
            BITS top[LANES] = {0}, empty[LANES] = {0}, before = largest;                             \
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
            where = largest > before ? at / BLOCK : where;                                           \
        }                                                                                            \
        found->squares = squares;                                                                    \
        found->largest = AS_REAL(largest);                                                           \
        found->zeros = zeros;                                                                        \
        found->nonfinite = 0;                                                                        \
        found->block = where;                                                                        \
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

/* The same for the sum of squares alone: where a tensor lies in a cache this takes half the time. */
#define DEFINE_ENERGY(NAME, STORED, BITS, REAL, PATTERN, AS_REAL)                                    \
    FOR_EACH_CPU static void NAME(const void *data, int64_t numel, summary *found) {                 \
        double squares = 0;                                                                          \
        for (int64_t at = 0; at < numel; at += BLOCK) {                                              \
            const STORED *block = (const STORED *)data + at;                                         \
            int64_t size = numel - at < BLOCK ? numel - at : BLOCK, i = 0;                           \
            REAL sum[LANES] = {0};                                                                   \
            for (; i + LANES <= size; i += LANES)                                                    \
                for (int lane = 0; lane < LANES; lane++) {                                           \
                    REAL value = AS_REAL((BITS)PATTERN(block[i + lane]));                            \
                    sum[lane] += value * value;                                                      \
                }                                                                                    \
            for (int lane = 0; i < size; i++, lane++) {                                              \
                REAL value = AS_REAL((BITS)PATTERN(block[i]));                                       \
                sum[lane] += value * value;                                                          \
            }                                                                                        \
            for (int lane = 0; lane < LANES; lane++)                                                 \
                squares += sum[lane];                                                                \
        }                                                                                            \
        *found = (summary){.squares = squares};                                                      \
    }

DEFINE_ENERGY(energy_float32, uint32_t, uint32_t, float, SAME, as_float)
DEFINE_ENERGY(energy_bfloat16, uint16_t, uint32_t, float, WIDENED, as_float)
DEFINE_ENERGY(energy_float64, uint64_t, uint64_t, double, SAME, as_double)

static void (*const energy_of[DTYPES])(const void *, int64_t, summary *) = {
    [FLOAT32] = energy_float32, [FLOAT64] = energy_float64, [BFLOAT16] = energy_bfloat16};

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

/* How many elements two vectors have alike, bit for bit. */
#define DEFINE_ALIKE(NAME, WORD)                                                                     \
    FOR_EACH_CPU static int64_t NAME(const void *a, const void *b, int64_t length) {                 \
        const WORD *left = a, *right = b;                                                            \
        int64_t alike = 0;                                                                           \
        for (int64_t i = 0; i < length; i++)                                                         \
            alike += left[i] == right[i];                                                            \
        return alike;                                                                                \
    }

DEFINE_ALIKE(alike_4, uint32_t)
DEFINE_ALIKE(alike_8, uint64_t)
DEFINE_ALIKE(alike_2, uint16_t)

static int64_t (*const alike_of[DTYPES])(const void *, const void *, int64_t) = {
    [FLOAT32] = alike_4, [FLOAT64] = alike_8, [BFLOAT16] = alike_2};

/* Changes when words of a block do, but for chance. */
FOR_EACH_CPU static uint64_t checksum(const char *data, int64_t bytes) {
    uint64_t sum[LANES / 2] = {0}, total = 0;
    enum { STRIDE = LANES / 2 * sizeof(uint32_t) };
    for (; bytes >= STRIDE; data += STRIDE, bytes -= STRIDE) {
        uint32_t words[LANES / 2];
        memcpy(words, data, STRIDE);
        for (int lane = 0; lane < LANES / 2; lane++)
            sum[lane] += words[lane];
    }
    uint32_t rest[LANES / 2] = {0};
    memcpy(rest, data, (size_t)bytes);
    for (int lane = 0; lane < LANES / 2; lane++)
        total += sum[lane] + rest[lane];
    return total;
}

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
static int (*most_threads)(void);

static void find_threads(void) {
#if defined(__linux__)
    *(void **)&run_parallel = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    *(void **)&thread_index = dlsym(RTLD_DEFAULT, "omp_get_thread_num");
    *(void **)&team_size = dlsym(RTLD_DEFAULT, "omp_get_num_threads");
    *(void **)&most_threads = dlsym(RTLD_DEFAULT, "omp_get_max_threads");
    if (!thread_index || !team_size || !most_threads)
        run_parallel = NULL;
#endif
}

typedef struct {
    const char *data;
    enum dtype dtype;
    int64_t numel;
    void (*read)(const void *, int64_t, summary *);
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
    work->read(work->data + from * size_of[work->dtype], to - from, &work->found[part]);
    work->found[part].block += from / BLOCK;
}

static void run_share(void *argument) {
    job *work = argument;
    for (int part = thread_index(); part < work->parts; part += team_size())
        run_part(work, part);
}

static summary summarise(const void *data, enum dtype dtype, int64_t numel,
                         void (*read)(const void *, int64_t, summary *)) {
    job work; /* each part is written before it is read */
    work.data = data;
    work.dtype = dtype;
    work.numel = numel;
    work.read = read;
    work.parts = 1;
    int64_t useful = numel * (int64_t)size_of[dtype] / BYTES_PER_THREAD;
    if (run_parallel && useful > 1) {
        int threads = most_threads();
        work.parts = threads < useful ? threads : (int)useful;
    }
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
        if (!isnan(whole.largest) && !(whole.largest >= other->largest)) { /* also where it is NaN */
            whole.largest = other->largest;
            whole.block = other->block;
        }
    }
    return whole;
}

/* Whether no square left the range of its type, so that no element was NaN or Inf either. */
static int is_plain(double norm, enum dtype dtype) {
    return dtype == FLOAT64 ? norm > 1e-150 && norm < 1e150 : norm > 1e-15 && norm < 1e18;
}

static double norm_of(const summary *found, const void *data, enum dtype dtype, int64_t numel) {
    double norm = sqrt(found->squares);
    if (is_plain(norm, dtype) || found->largest == 0 || !isfinite(found->largest))
        return isinf(found->largest) ? INFINITY : norm;
    return scaled_norm(data, dtype, numel, found->largest);
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

/* Python's side */

/* What `configure` was given. */
static PyObject *plain_types[2]; /* Tensor and Parameter */
static int64_t width;            /* cells of a column */

#define ATTRIBUTES(EACH)                                                                             \
    EACH(grad) EACH(grad_fn) EACH(_version) EACH(_backward_hooks)                \
    EACH(_register_hook_dict) EACH(base) EACH(numel) EACH(calls) EACH(outputs) EACH(read)            \
    EACH(also) EACH(read_gradient) EACH(hooks)
#define DECLARE(attribute) static PyObject *name_##attribute;
ATTRIBUTES(DECLARE)

/* DLPack's C exchange API, version 1, as far as it is used here:
 * https://github.com/dmlc/dlpack/blob/main/include/dlpack/dlpack.h */
typedef struct {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    const int64_t *shape, *strides;
    uint64_t byte_offset;
} dl_tensor;

typedef struct {
    struct {
        uint32_t major, minor;
    } version;
    void *previous;
    void (*unused[3])(void);
    int (*view)(PyObject *, dl_tensor *); /* borrows: valid until control returns to the owner */
} dl_exchange;

enum { DL_CPU = 1, DL_FLOAT = 2, DL_BFLOAT = 4 };

static const dl_exchange *exchange;

typedef struct {
    char *data;
    enum dtype dtype;
    int64_t numel;
    int contiguous, ndim;
    const int64_t *shape;
} vector;

/* Whether the elements lie side by side in some order of the dimensions, as in channels_last. */
static int is_dense(const dl_tensor *seen) {
    uint64_t found = 0; /* dimensions, of which torch allows 64 */
    int64_t numel = 1;
    for (int i = 0; i < seen->ndim; i++) {
        int next = 0;
        while (next < seen->ndim &&
               (found >> next & 1 || (seen->shape[next] != 1 && seen->strides[next] != numel)))
            next++;
        if (next == seen->ndim)
            return 0;
        found |= (uint64_t)1 << next;
        numel *= seen->shape[next];
    }
    return 1;
}

/* 1 where the tensor is dense and of a known dtype, 0 where it must be converted. */
static int read_tensor(PyObject *tensor, vector *read) {
    PyObject *type = (PyObject *)Py_TYPE(tensor);
    dl_tensor seen;
    if (type != plain_types[0] && type != plain_types[1])
        return 0;
    if (exchange->view(tensor, &seen) != 0) { /* sparse, or without memory as in torch.func */
        PyErr_Clear();
        return 0;
    }
    if (seen.device.type != DL_CPU)
        return 0;
    if (seen.dtype.code == DL_FLOAT && seen.dtype.bits == 32)
        read->dtype = FLOAT32;
    else if (seen.dtype.code == DL_FLOAT && seen.dtype.bits == 64)
        read->dtype = FLOAT64;
    else if (seen.dtype.code == DL_BFLOAT && seen.dtype.bits == 16)
        read->dtype = BFLOAT16;
    else
        return 0;
    read->numel = read->contiguous = 1;
    for (int i = seen.ndim - 1; i >= 0; i--) {
        if (seen.shape[i] != 1 && seen.strides[i] != read->numel)
            read->contiguous = 0;
        read->numel *= seen.shape[i];
    }
    if (read->numel && !read->contiguous && !is_dense(&seen))
        return 0;
    read->data = (char *)seen.data + seen.byte_offset;
    read->ndim = seen.ndim;
    read->shape = seen.shape;
    return 1;
}

/* The cells of a device, gradscope.recording.buffer.Area. They move when it grows, so what stands in it is
 * where their address is. */
typedef struct {
    PyObject *owner;
    PyObject *numel; /* list: real numbers of the tensor of each column in this step */
    float **cells;
} area;

/* What is found stays with the owner, which must outlive it. */
static int look_into(PyObject *owner, area *found) {
    PyObject *base = PyObject_GetAttr(owner, name_base);
    PyObject *numel = base ? PyObject_GetAttr(owner, name_numel) : NULL;
    found->owner = owner;
    found->numel = numel;
    found->cells = base ? (float **)(intptr_t)PyLong_AsLongLong(base) : NULL;
    Py_XDECREF(base);
    Py_XDECREF(numel);
    return !PyErr_Occurred();
}

static float *cell(const area *in, int64_t column, int64_t place) {
    return *in->cells + column * width + place;
}

static int measure(const vector *read, const area *into, int64_t column, int64_t wanted,
                   int64_t *block) {
    summary found = {0};
    double norm = 0, numel = (double)read->numel;
    if (read->numel > 0) {
        int64_t bytes = read->numel * (int64_t)size_of[read->dtype];
        PyThreadState *waiting = bytes > LONG_READ ? PyEval_SaveThread() : NULL;
        if (wanted <= NORM_AND_NONFINITE) {
            found = summarise(read->data, read->dtype, read->numel, energy_of[read->dtype]);
            norm = sqrt(found.squares);
        }
        if (!is_plain(norm, read->dtype)) {
            found = summarise(read->data, read->dtype, read->numel, summary_of[read->dtype]);
            norm = norm_of(&found, read->data, read->dtype, read->numel);
        }
        if (waiting)
            PyEval_RestoreThread(waiting);
    }
    double values[5] = {norm, numel ? (double)found.nonfinite / numel : 0, found.largest,
                        numel ? (double)found.zeros / numel : NAN, norm};
    *block = found.block;
    float *out = cell(into, column, 0);
    for (int64_t i = 0; i < wanted && i < 5; i++)
        out[i] = (float)values[i];
    PyObject *seen = PyLong_FromLongLong(read->numel);
    return seen ? PyList_SetItem(into->numel, (Py_ssize_t)column, seen) : -1;
}

static int integers(PyObject *const *args, Py_ssize_t n, int64_t *values) {
    for (Py_ssize_t i = 0; i < n; i++)
        values[i] = PyLong_AsLongLong(args[i]);
    return !PyErr_Occurred();
}

static int expect(Py_ssize_t given, Py_ssize_t wanted) {
    if (given != wanted)
        PyErr_Format(PyExc_TypeError, "%zd arguments expected, got %zd", wanted, given);
    return given == wanted;
}

/* Call `use` for every tensor of a list; the indices of those that it did not read, because they
 * must be converted or do not fit. `use` answers 1 or, where it does not fit, 0; -1 on errors. */
typedef int (*use)(const vector *, Py_ssize_t index, void *context);

static PyObject *for_each(PyObject *tensors, use function, void *context) {
    PyObject *left = PyList_New(0);
    Py_ssize_t n = left ? PyList_Size(tensors) : -1;
    for (Py_ssize_t i = 0; i < n; i++) {
        vector read;
        int known = read_tensor(PyList_GetItem(tensors, i), &read);
        if (known == 1)
            known = function(&read, i, context);
        if (known == 0) {
            PyObject *index = PyLong_FromSsize_t(i);
            if (!index || PyList_Append(left, index) < 0)
                known = -1;
            Py_XDECREF(index);
        }
        if (known == -1)
            n = -1;
    }
    if (n < 0)
        Py_CLEAR(left);
    return left;
}

typedef struct {
    area in;
    PyObject *columns, *samples;
    int64_t place, unchanged, wanted;
} places;

static int column_at(const places *where, Py_ssize_t i, int64_t *column) {
    PyObject *item = PyList_GetItem(where->columns, i);
    return item && integers(&item, 1, column);
}

static int measure_one(const vector *read, Py_ssize_t i, void *context) {
    const places *where = context;
    int64_t column, block;
    if (!column_at(where, i, &column))
        return -1;
    return measure(read, &where->in, column, where->wanted, &block) < 0 ? -1 : 1;
}

static PyObject *py_measure(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    places where = {.columns = args[1]};
    if (!expect(given, 4) || !look_into(args[0], &where.in) || !integers(args + 3, 1, &where.wanted))
        return NULL;
    return for_each(args[2], measure_one, &where);
}

/* What tells whether a gradient is still the one that was measured. An identity alone may be that of
 * another tensor at the same place, and a version does not count what is written through `.data` or
 * by an extension; all but contrived changes touch the block that has the largest element. */
typedef struct {
    uint64_t grad, version;
    int64_t block;
    uint64_t sum;
} mark;

static uint64_t checksum_of(const vector *read, int64_t block) {
    int64_t from = block * BLOCK, size = read->numel - from < BLOCK ? read->numel - from : BLOCK;
    int64_t bytes = (int64_t)size_of[read->dtype];
    return size > 0 ? checksum(read->data + from * bytes, size * bytes) : 0;
}

static int is_measured(const mark *before, PyObject *grad, uint64_t version, const vector *read) {
    return before->grad == (uint64_t)(uintptr_t)grad && before->version == version &&
           before->sum == checksum_of(read, before->block);
}

/* 1 where the gradient was measured, now or before; 0 where it must be converted; -1 on errors. */
static int measure_gradient(const places *where, Py_ssize_t i, PyObject *grad, mark *kept) {
    int64_t column, block;
    vector read;
    if (!column_at(where, i, &column))
        return -1;
    if (!column || !read_tensor(grad, &read))
        return 0;
    PyObject *number = PyObject_GetAttr(grad, name__version);
    uint64_t version = number ? PyLong_AsUnsignedLongLong(number) : 0;
    Py_XDECREF(number);
    if (PyErr_Occurred())
        return -1;
    if (is_measured(kept, grad, version, &read))
        return 1;
    if (measure(&read, &where->in, column, where->wanted, &block) < 0)
        return -1;
    *kept = (mark){(uint64_t)(uintptr_t)grad, version, block, checksum_of(&read, block)};
    return 1;
}

/* Whether a set of identities has that of an object; -1 on errors. */
static int is_among(PyObject *identities, PyObject *object) {
    if (!PySet_Size(identities))
        return 0;
    PyObject *identity = PyLong_FromVoidPtr(object);
    int found = identity ? PySet_Contains(identities, identity) : -1;
    Py_XDECREF(identity);
    return found;
}

static PyObject *py_measure_gradients(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    places where = {.columns = args[1]};
    if (!expect(given, 6) || !look_into(args[0], &where.in) || !integers(args + 5, 1, &where.wanted))
        return NULL;
    PyObject *parameters = args[2], *others = args[3], *marks = args[4];
    Py_ssize_t n = PyList_Size(parameters), bytes = n * (Py_ssize_t)sizeof(mark);
    if (n < 0)
        return NULL;
    if (PyByteArray_Size(marks) != bytes) { /* nothing was measured yet */
        if (PyByteArray_Resize(marks, bytes) < 0)
            return NULL;
        memset(PyByteArray_AsString(marks), 0, (size_t)bytes);
    }
    PyObject *left = PyList_New(0);
    for (Py_ssize_t i = 0; left && i < n; i++) {
        PyObject *parameter = PyList_GetItem(parameters, i), *index = NULL;
        PyObject *grad = parameter ? PyObject_GetAttr(parameter, name_grad) : NULL;
        int done = grad == Py_None ? 1 : grad ? is_among(others, parameter) : -1;
        if (done == 0 && PyByteArray_Size(marks) == bytes) {
            mark kept;
            memcpy(&kept, PyByteArray_AsString(marks) + i * (Py_ssize_t)sizeof kept, sizeof kept);
            done = measure_gradient(&where, i, grad, &kept);
            if (PyByteArray_Size(marks) == bytes) /* other threads may have run meanwhile */
                memcpy(PyByteArray_AsString(marks) + i * (Py_ssize_t)sizeof kept, &kept, sizeof kept);
        }
        if (done == 0 && (!(index = PyLong_FromSsize_t(i)) || PyList_Append(left, index) < 0))
            done = -1;
        Py_XDECREF(index);
        Py_XDECREF(grad);
        if (done < 0)
            Py_CLEAR(left);
    }
    return left;
}

/* Length, distance and number of the runs of a sample, the address of their copy, and for how many
 * elements of which dtype there is room. */
typedef struct {
    int64_t length, stride, runs, copy, numel, dtype;
} sample;

/* The sample of a tensor and its column; answers as `use` does. */
static int sample_at(const places *where, Py_ssize_t i, const vector *read, sample *found,
                     int64_t *column) {
    PyObject *item = PyList_GetItem(where->samples, i);
    int64_t values[6];
    for (Py_ssize_t j = 0; item && j < 6; j++) {
        PyObject *number = PyTuple_GetItem(item, j);
        if (!number || !integers(&number, 1, values + j))
            return -1;
    }
    if (!item || !column_at(where, i, column))
        return -1;
    memcpy(found, values, sizeof *found);
    return found->numel == read->numel && found->dtype == (int64_t)read->dtype;
}

/* A root of a sum of squares over a sample, scaled up to all elements. */
static float scaled_up(double norm, int64_t numel, int64_t sampled) {
    return (float)(norm * sqrt((double)numel / (double)sampled));
}

static int remember_one(const vector *read, Py_ssize_t i, void *context) {
    const places *where = context;
    int64_t column, size = (int64_t)size_of[read->dtype];
    sample of;
    int fits = sample_at(where, i, read, &of, &column);
    if (fits != 1)
        return fits;
    char *copy = (char *)(intptr_t)of.copy;
    for (int64_t run = 0; run < of.runs; run++)
        memcpy(copy + run * of.length * size, (char *)read->data + run * of.stride * size,
               (size_t)(of.length * size));
    int64_t sampled = of.length * of.runs;
    if (sampled) {
        summary found;
        summary_of[read->dtype](copy, sampled, &found);
        double norm = norm_of(&found, copy, read->dtype, sampled);
        *cell(&where->in, column, where->place) = scaled_up(norm, read->numel, sampled);
    }
    return 1;
}

static PyObject *for_each_sample(PyObject *const *args, Py_ssize_t given, use function) {
    places where = {.columns = args[1], .samples = args[3]};
    if (!expect(given, 6) || !look_into(args[0], &where.in) ||
        !integers(args + 4, 1, &where.place) || !integers(args + 5, 1, &where.unchanged))
        return NULL;
    return for_each(args[2], function, &where);
}

static PyObject *py_remember(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    return for_each_sample(args, given, remember_one);
}

static int change_one(const vector *read, Py_ssize_t i, void *context) {
    const places *where = context;
    int64_t column, size = (int64_t)size_of[read->dtype];
    sample of;
    int fits = sample_at(where, i, read, &of, &column);
    if (fits != 1)
        return fits;
    const char *copy = (char *)(intptr_t)of.copy;
    double squares = 0;
    int64_t alike = 0, sampled = of.length * of.runs;
    for (int64_t run = 0; run < of.runs; run++) {
        const char *now = (char *)read->data + run * of.stride * size;
        const char *before = copy + run * of.length * size;
        squares += squares_of[read->dtype](now, before, of.length);
        alike += alike_of[read->dtype](now, before, of.length);
    }
    if (sampled) {
        *cell(&where->in, column, where->place) = scaled_up(sqrt(squares), read->numel, sampled);
        *cell(&where->in, column, where->unchanged) = (float)((double)alike / (double)sampled);
    }
    return 1;
}

static PyObject *py_change(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    return for_each_sample(args, given, change_one);
}

static PyObject *py_dead_units(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t v[3], dead = 0;
    area in;
    vector read;
    if (!expect(given, 7) || !look_into(args[0], &in) || !integers(args + 1, 3, v))
        return NULL;
    if (!read_tensor(args[6], &read) || !read.contiguous)
        return PyObject_CallFunctionObjArgs(args[5], args[6], NULL);
    if (v[2] >= read.ndim) {
        PyErr_SetString(PyExc_IndexError, "no such dimension");
        return NULL;
    }
    int64_t units = read.shape[v[2]], inner = 1;
    for (int i = (int)v[2] + 1; i < read.ndim; i++)
        inner *= read.shape[i];
    if (!read.numel)
        Py_RETURN_NONE;
    if (PyByteArray_Size(args[4]) != units) { /* first use, or another width: nothing known */
        if (PyByteArray_Resize(args[4], units) < 0)
            return NULL;
        memset(PyByteArray_AsString(args[4]), 0, (size_t)units);
    }
    char *active = PyByteArray_AsString(args[4]);
    int64_t outer = read.numel / (units * inner), bytes = inner * (int64_t)size_of[read.dtype];
    for (int64_t unit = 0; unit < units; unit++) {
        const char *first = (char *)read.data + unit * bytes;
        for (int64_t i = 0; i < outer && !active[unit]; i++)
            active[unit] = (char)any_nonzero(first + i * units * bytes, bytes, read.dtype);
        dead += !active[unit];
    }
    *cell(&in, v[0], v[1]) = (float)((double)dead / (double)units);
    Py_RETURN_NONE;
}

/* Calls `otherwise` for what is not to be done here; -1 on errors. */
static int give_to(PyObject *otherwise, PyObject *tensor) {
    PyObject *answer = PyObject_CallFunctionObjArgs(otherwise, tensor, NULL);
    Py_XDECREF(answer);
    return answer ? 0 : -1;
}

static PyObject *made(PyObject *type) {
    return ((allocfunc)PyType_GetSlot((PyTypeObject *)type, Py_tp_alloc))((PyTypeObject *)type, 0);
}

static void unmade(PyObject *self) {
    PyObject *type = (PyObject *)Py_TYPE(self);
    ((freefunc)PyType_GetSlot((PyTypeObject *)type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* Reader(area, column, wanted, convert): measures the tensor that it is called with. */
typedef struct {
    PyObject_HEAD
    area into;
    PyObject *convert;
    int64_t column, wanted;
} reader;

static PyObject *reader_type;

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    area into;
    PyObject *owner, *convert;
    long long column, wanted;
    if (!PyArg_ParseTuple(args, "OLLO", &owner, &column, &wanted, &convert) ||
        !look_into(owner, &into))
        return NULL;
    reader *self = (reader *)made((PyObject *)type);
    if (!self)
        return NULL;
    Py_INCREF(into.owner);
    Py_INCREF(into.numel);
    Py_INCREF(convert);
    self->into = into;
    self->convert = convert;
    self->column = column;
    self->wanted = wanted;
    return (PyObject *)self;
}

static void reader_dealloc(PyObject *object) {
    reader *self = (reader *)object;
    Py_XDECREF(self->into.owner);
    Py_XDECREF(self->into.numel);
    Py_XDECREF(self->convert);
    unmade(object);
}

static PyObject *reader_call(PyObject *object, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    reader *self = (reader *)object;
    PyObject *tensor;
    vector read;
    int64_t block;
    if (!PyArg_UnpackTuple(args, "Reader", 1, 1, &tensor))
        return NULL;
    int failed = read_tensor(tensor, &read)
                     ? measure(&read, &self->into, self->column, self->wanted, &block)
                     : give_to(self->convert, tensor);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

static PyType_Slot reader_slots[] = {{Py_tp_new, reader_new},
                                     {Py_tp_dealloc, reader_dealloc},
                                     {Py_tp_call, reader_call},
                                     {0, NULL}};

static PyType_Spec reader_spec = {.name = "gradscope.recording._kernels.Reader",
                                  .basicsize = sizeof(reader),
                                  .flags = Py_TPFLAGS_DEFAULT,
                                  .slots = reader_slots};

/* ForwardHook(modules, usual, hooks, key, otherwise): forward_reader.ForwardReader.saw for a module whose
 * call gave one plain tensor in an earlier step and now gives one with a history. Anything else goes
 * to `otherwise`.
 *
 * modules: id of a module -> forward_reader._Module
 * usual: (function, what it returns within a plain forward pass), ...
 * hooks: class of a tensor's dictionary of hooks
 * key: stands for this hook among those of a tensor that it took */
enum { MODULES, USUAL, HOOKS, KEY, OTHERWISE, GIVEN };

typedef struct {
    PyObject_HEAD
    PyObject *given[GIVEN];
    char active; /* whether it may do anything itself */
} hook;

static PyObject *hook_type;

static PyObject *hook_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    if (!expect(PyTuple_Size(args), GIVEN))
        return NULL;
    hook *self = (hook *)made((PyObject *)type);
    if (!self)
        return NULL;
    for (int i = 0; i < GIVEN; i++) {
        self->given[i] = PyTuple_GetItem(args, i);
        Py_INCREF(self->given[i]);
    }
    self->active = 0;
    return (PyObject *)self;
}

static void hook_dealloc(PyObject *object) {
    hook *self = (hook *)object;
    for (int i = 0; i < GIVEN; i++)
        Py_XDECREF(self->given[i]);
    unmade(object);
}

static int is_usual(PyObject *usual) {
    int same = 1;
    for (Py_ssize_t i = 0; i < PyTuple_Size(usual) && same == 1; i++) {
        PyObject *pair = PyTuple_GetItem(usual, i);
        PyObject *found = PyObject_CallNoArgs(PyTuple_GetItem(pair, 0));
        same = found ? PyObject_RichCompareBool(found, PyTuple_GetItem(pair, 1), Py_EQ) : -1;
        Py_XDECREF(found);
    }
    return same == 1;
}

/* The hooks for a tensor of this output: those of an earlier step, if that step's graph is gone and
 * nobody else added to them. */
static PyObject *hooks_for(hook *self, PyObject *output) {
    PyObject *hooks = PyObject_GetAttr(output, name_hooks);
    if (!hooks || (hooks != Py_None && Py_REFCNT(hooks) == 2 && PyDict_Size(hooks) == 1))
        return hooks;
    Py_DECREF(hooks);
    hooks = PyObject_CallNoArgs(self->given[HOOKS]);
    PyObject *read = hooks ? PyObject_GetAttr(output, name_read_gradient) : NULL;
    if (!read || PyObject_SetItem(hooks, self->given[KEY], read) < 0 ||
        PyObject_SetAttr(output, name_hooks, hooks) < 0)
        Py_CLEAR(hooks);
    Py_XDECREF(read);
    return hooks;
}

/* Have the gradient read: what Tensor.register_hook does, without a handle to remove it with. */
static int await_gradient(hook *self, PyObject *tensor, PyObject *node, PyObject *output) {
    PyObject *hooks = hooks_for(self, output), *done = NULL;
    if (hooks && PyObject_SetAttr(tensor, name__backward_hooks, hooks) == 0)
        done = PyObject_CallMethodObjArgs(node, name__register_hook_dict, tensor, NULL);
    Py_XDECREF(hooks);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

static int note_call(PyObject *known, PyObject *calls) {
    PyObject *next = PyLong_FromLong(PyLong_AsLong(calls) + 1);
    int failed = !next || PyObject_SetAttr(known, name_calls, next) < 0;
    Py_XDECREF(next);
    return failed ? -1 : 0;
}

static int take_also(PyObject *output, PyObject *tensor) {
    PyObject *also = PyObject_GetAttr(output, name_also);
    Py_ssize_t n = also ? PyTuple_Size(also) : -1;
    int failed = n < 0;
    for (Py_ssize_t i = 0; i < n && !failed; i++)
        failed = give_to(PyTuple_GetItem(also, i), tensor) < 0;
    Py_XDECREF(also);
    return failed ? -1 : 0;
}

/* 1 where the output was taken; 0 where it is not as expected, and nothing was changed. */
static int take(hook *self, PyObject *module, PyObject *tensor) {
    enum { ID, NODE, AWAITED, CALLS, OUTPUTS, READ, OWNED };
    PyObject *own[OWNED] = {NULL}, *known = NULL, *output = NULL;
    vector read;
    int taken = 0;
    if ((PyObject *)Py_TYPE(tensor) != plain_types[0])
        return 0;
    if (!(own[ID] = PyLong_FromVoidPtr(module)) ||
        !(known = PyDict_GetItemWithError(self->given[MODULES], own[ID])) ||
        !(own[NODE] = PyObject_GetAttr(tensor, name_grad_fn)) || own[NODE] == Py_None ||
        !(own[AWAITED] = PyObject_GetAttr(tensor, name__backward_hooks)) ||
        !(own[CALLS] = PyObject_GetAttr(known, name_calls)) || !is_usual(self->given[USUAL]))
        goto done;
    if (own[AWAITED] != Py_None) { /* taken where a module within this one returned it, or a user's */
        taken = PyMapping_HasKey(own[AWAITED], self->given[KEY]) && note_call(known, own[CALLS]) == 0;
        goto done;
    }
    if (!(own[OUTPUTS] = PyObject_GetAttr(known, name_outputs)) ||
        !(output = PyDict_GetItemWithError(own[OUTPUTS], own[CALLS])) || /* index 0 */
        !(own[READ] = PyObject_GetAttr(output, name_read)) ||
        (PyObject *)Py_TYPE(own[READ]) != reader_type || !read_tensor(tensor, &read))
        goto done;
    reader *of = (reader *)own[READ];
    int64_t block;
    taken = note_call(known, own[CALLS]) == 0 &&
            measure(&read, &of->into, of->column, of->wanted, &block) == 0 &&
            take_also(output, tensor) == 0 && await_gradient(self, tensor, own[NODE], output) == 0;
done:
    for (int i = 0; i < OWNED; i++)
        Py_XDECREF(own[i]);
    return PyErr_Occurred() ? -1 : taken;
}

static PyObject *hook_call(PyObject *object, PyObject *args, PyObject *kwargs) {
    hook *self = (hook *)object;
    PyObject *module, *inputs, *output;
    if (!PyArg_UnpackTuple(args, "ForwardHook", 3, 3, &module, &inputs, &output))
        return NULL;
    int taken = self->active ? take(self, module, output) : 0;
    if (taken == 0)
        return PyObject_Call(self->given[OTHERWISE], args, kwargs);
    if (taken < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyMemberDef hook_members[] = {
    {"active", T_BOOL, offsetof(hook, active), 0, "Whether it may do anything itself."},
    {NULL, 0, 0, 0, NULL}};

static PyType_Slot hook_slots[] = {{Py_tp_new, hook_new},
                                   {Py_tp_dealloc, hook_dealloc},
                                   {Py_tp_call, hook_call},
                                   {Py_tp_members, hook_members},
                                   {0, NULL}};

static PyType_Spec hook_spec = {.name = "gradscope.recording._kernels.ForwardHook",
                                .basicsize = sizeof(hook),
                                .flags = Py_TPFLAGS_DEFAULT,
                                .slots = hook_slots};

static PyObject *py_configure(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    if (!expect(given, 4) || !integers(args + 3, 1, &width))
        return NULL;
    const dl_exchange *found = PyCapsule_GetPointer(args[2], "dlpack_exchange_api");
    if (!found)
        return NULL;
    if (found->version.major != 1 || !found->view) {
        PyErr_SetString(PyExc_ImportError, "another version of DLPack's exchange");
        return NULL;
    }
    exchange = found;
    for (int i = 0; i < 2; i++) {
        Py_INCREF(args[i]);
        plain_types[i] = args[i];
    }
    find_threads();
    Py_RETURN_NONE;
}

#define FAST(name) (PyCFunction)(void (*)(void)) name, METH_FASTCALL

static PyMethodDef methods[] = {
    {"configure", FAST(py_configure),
     "configure(Tensor, Parameter, exchange, width)\n\n"
     "The types that can be read, the capsule with DLPack's exchange API, the cells of a column."},
    {"measure", FAST(py_measure),
     "measure(area, columns, tensors, wanted)\n\n"
     "Write the first `wanted` of norm, share of NaN and Inf, largest magnitude, share of zeros,\n"
     "norm of each tensor to the cells of its column, and how many numbers it has; returns the\n"
     "indices of tensors that must be converted."},
    {"measure_gradients", FAST(py_measure_gradients),
     "measure_gradients(area, columns, parameters, others, marks, wanted)\n\n"
     "The same for the gradients of parameters, but of those whose identity is in the set `others`,\n"
     "and of those that the bytearray `marks` shows as measured, which it brings up to date; also\n"
     "returns the indices of those without a column."},
    {"remember", FAST(py_remember),
     "remember(area, columns, tensors, samples, place)\n\n"
     "Copy the runs of each tensor and write its norm, scaled up from them; returns as `measure`."},
    {"change", FAST(py_change),
     "change(area, columns, tensors, samples, place)\n\n"
     "Write the norm of the change since `remember`, scaled up alike; returns as `measure`."},
    {"dead_units", FAST(py_dead_units),
     "dead_units(area, column, place, dim, active, convert, tensor)\n\n"
     "Mark in the bytearray `active` which units along a dimension are not zero everywhere; write\n"
     "the share of those never marked. Calls `convert` as a Reader does."},
    {NULL, NULL, 0, NULL}};

static int execute(PyObject *module) {
#define INTERN(attribute) name_##attribute = PyUnicode_InternFromString(#attribute);
    ATTRIBUTES(INTERN)
    reader_type = PyType_FromSpec(&reader_spec);
    hook_type = PyType_FromSpec(&hook_spec);
    if (PyErr_Occurred() || PyModule_AddObjectRef(module, "Reader", reader_type) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "ForwardHook", hook_type);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef module = {.m_base = PyModuleDef_HEAD_INIT,
                                    .m_name = "_kernels",
                                    .m_doc = "Statistics of tensors in main memory.",
                                    .m_methods = methods,
                                    .m_slots = slots};

PyMODINIT_FUNC PyInit__kernels(void) {
    return PyModuleDef_Init(&module);
}
