/* Statistics of tensors in main memory, one pass each: what gradscope/meters.py calls on a CPU.
 *
 * torch has no reduction that gives a norm, the largest magnitude and counts at once, and at the
 * size of a training step reading memory is most of the cost; Python between the reads is the rest.
 * Tensors are asked for their address by their own methods, so the module is built without torch
 * and works with any version of it.
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
    double squares;
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

static summary summarise(const void *data, enum dtype dtype, int64_t numel) {
    job work = {.data = data, .dtype = dtype, .numel = numel, .parts = 1};
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

static PyObject *plain_types[2], *codes; /* Tensor and Parameter; dtype -> enum dtype */

#define ATTRIBUTES(EACH)                                                                             \
    EACH(dtype) EACH(is_cpu) EACH(data_ptr) EACH(numel) EACH(is_contiguous) EACH(size) EACH(stride)
#define DECLARE(attribute) static PyObject *name_##attribute;
ATTRIBUTES(DECLARE)

typedef struct {
    void *data;
    enum dtype dtype;
    int64_t numel;
} vector;

static int64_t ask(PyObject *tensor, PyObject *method, PyObject *argument) {
    PyObject *answer = PyObject_CallMethodObjArgs(tensor, method, argument, NULL);
    if (!answer)
        return -1;
    int64_t value = PyLong_AsLongLong(answer);
    Py_DECREF(answer);
    return value;
}

/* 1 where the tensor is dense and of a known dtype, 0 where it must be converted, -1 on errors. */
static int read_tensor(PyObject *tensor, vector *read) {
    PyObject *type = (PyObject *)Py_TYPE(tensor);
    if (type != plain_types[0] && type != plain_types[1])
        return 0;
    PyObject *dtype = PyObject_GetAttr(tensor, name_dtype);
    if (!dtype)
        return -1;
    PyObject *code = PyDict_GetItemWithError(codes, dtype);
    Py_DECREF(dtype);
    if (!code)
        return PyErr_Occurred() ? -1 : 0;
    read->dtype = (enum dtype)PyLong_AsLong(code);
    PyObject *is_cpu = PyObject_GetAttr(tensor, name_is_cpu);
    Py_XDECREF(is_cpu);
    if (is_cpu != Py_True)
        return is_cpu ? 0 : -1;
    if (ask(tensor, name_is_contiguous, NULL) == 1) {
        read->data = (void *)(intptr_t)ask(tensor, name_data_ptr, NULL);
        read->numel = ask(tensor, name_numel, NULL);
        if (!PyErr_Occurred())
            return read->data || !read->numel;
    }
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_RuntimeError))
        return -1;
    PyErr_Clear(); /* sparse, or without memory as in torch.func's transforms */
    return 0;
}

/* Cells move when their area grows, so they are named by where its address stands and an offset. */
static float *cell(int64_t base, int64_t offset) {
    return *(float **)(intptr_t)base + offset;
}

static void measure(const vector *read, float *out, int64_t wanted) {
    summary found = {0};
    double norm = 0, numel = (double)read->numel;
    if (read->numel > 0) {
        Py_BEGIN_ALLOW_THREADS
        found = summarise(read->data, read->dtype, read->numel);
        norm = norm_of(&found, read->data, read->dtype, read->numel);
        Py_END_ALLOW_THREADS
    }
    double values[5] = {norm, numel ? (double)found.nonfinite / numel : 0, found.largest,
                        numel ? (double)found.zeros / numel : NAN, norm};
    for (int64_t i = 0; i < wanted && i < 5; i++)
        out[i] = (float)values[i];
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
 * must be converted or do not fit. `use` answers as read_tensor does. */
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
    PyObject *offsets, *samples;
    int64_t base, wanted;
} places;

static int offset_at(const places *where, Py_ssize_t i, int64_t *offset) {
    PyObject *item = PyList_GetItem(where->offsets, i);
    return item && integers(&item, 1, offset);
}

static int measure_one(const vector *read, Py_ssize_t i, void *context) {
    const places *where = context;
    int64_t offset;
    if (!offset_at(where, i, &offset))
        return -1;
    measure(read, cell(where->base, offset), where->wanted);
    return 1;
}

static PyObject *py_measure(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t v[2];
    if (!expect(given, 4) || !integers(args + 2, 2, v))
        return NULL;
    places where = {.offsets = args[1], .base = v[0], .wanted = v[1]};
    return for_each(args[0], measure_one, &where);
}

static PyObject *py_measure_output(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t v[3];
    vector read;
    if (!expect(given, 5) || !integers(args, 3, v))
        return NULL;
    int known = read_tensor(args[4], &read);
    if (known == 0)
        return PyObject_CallFunctionObjArgs(args[3], args[4], NULL);
    if (known < 0)
        return NULL;
    measure(&read, cell(v[0], v[1]), v[2]);
    Py_RETURN_NONE;
}

static PyObject *py_measure_gradient(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    int64_t column;
    if (!expect(given, 7) || !integers(args + 1, 1, &column))
        return NULL;
    char *seen = PyByteArray_AsString(args[0]);
    if (!seen || column >= PyByteArray_Size(args[0])) {
        PyErr_SetString(PyExc_IndexError, "no mark for this column");
        return NULL;
    }
    seen[column] = 1;
    return py_measure_output(self, args + 2, given - 2);
}

/* Length, distance and number of the runs of a sample, the address of their copy, and for how many
 * elements of which dtype there is room. */
typedef struct {
    int64_t length, stride, runs, copy, numel, dtype;
} sample;

/* The sample of a tensor and the offset of its cell; answers as read_tensor does. */
static int sample_at(const places *where, Py_ssize_t i, const vector *read, sample *found,
                     int64_t *offset) {
    PyObject *item = PyList_GetItem(where->samples, i);
    int64_t values[6];
    for (Py_ssize_t j = 0; item && j < 6; j++) {
        PyObject *number = PyTuple_GetItem(item, j);
        if (!number || !integers(&number, 1, values + j))
            return -1;
    }
    if (!item || !offset_at(where, i, offset))
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
    int64_t offset, size = (int64_t)size_of[read->dtype];
    sample of;
    int fits = sample_at(where, i, read, &of, &offset);
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
        *cell(where->base, offset) = scaled_up(norm, read->numel, sampled);
    }
    return 1;
}

static PyObject *for_each_sample(PyObject *const *args, Py_ssize_t given, use function) {
    places where = {0};
    if (!expect(given, 4) || !integers(args + 3, 1, &where.base))
        return NULL;
    where.samples = args[1];
    where.offsets = args[2];
    return for_each(args[0], function, &where);
}

static PyObject *py_remember(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    return for_each_sample(args, given, remember_one);
}

static int change_one(const vector *read, Py_ssize_t i, void *context) {
    const places *where = context;
    int64_t offset, size = (int64_t)size_of[read->dtype];
    sample of;
    int fits = sample_at(where, i, read, &of, &offset);
    if (fits != 1)
        return fits;
    const char *copy = (char *)(intptr_t)of.copy;
    double squares = 0;
    for (int64_t run = 0; run < of.runs; run++)
        squares += squares_of[read->dtype]((char *)read->data + run * of.stride * size,
                                           copy + run * of.length * size, of.length);
    int64_t sampled = of.length * of.runs;
    if (sampled)
        *cell(where->base, offset) = scaled_up(sqrt(squares), read->numel, sampled);
    return 1;
}

static PyObject *py_change(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    return for_each_sample(args, given, change_one);
}

static PyObject *py_dead_units(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t v[2], dead = 0;
    vector read;
    if (!expect(given, 6) || !integers(args, 2, v))
        return NULL;
    int known = read_tensor(args[5], &read);
    if (known == 0)
        return PyObject_CallFunctionObjArgs(args[4], args[5], NULL);
    if (known < 0)
        return NULL;
    int64_t units = ask(args[5], name_size, args[2]);
    /* The stride of a dimension of one element says nothing, even of a contiguous tensor. */
    int64_t inner = units == 1 ? read.numel : ask(args[5], name_stride, args[2]);
    if (PyErr_Occurred())
        return NULL;
    if (!read.numel)
        Py_RETURN_NONE;
    if (PyByteArray_Size(args[3]) != units) { /* first use, or another width: nothing known */
        if (PyByteArray_Resize(args[3], units) < 0)
            return NULL;
        memset(PyByteArray_AsString(args[3]), 0, (size_t)units);
    }
    char *active = PyByteArray_AsString(args[3]);
    int64_t outer = read.numel / (units * inner), bytes = inner * (int64_t)size_of[read.dtype];
    for (int64_t unit = 0; unit < units; unit++) {
        const char *first = (char *)read.data + unit * bytes;
        for (int64_t i = 0; i < outer && !active[unit]; i++)
            active[unit] = (char)any_nonzero(first + i * units * bytes, bytes, read.dtype);
        dead += !active[unit];
    }
    *cell(v[0], v[1]) = (float)((double)dead / (double)units);
    Py_RETURN_NONE;
}

static PyObject *py_configure(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    if (!expect(given, 3))
        return NULL;
    for (int i = 0; i < 2; i++) {
        Py_INCREF(args[i]);
        plain_types[i] = args[i];
    }
    Py_INCREF(args[2]);
    codes = args[2];
    find_threads();
    Py_RETURN_NONE;
}

#define FAST(name) (PyCFunction)(void (*)(void)) name, METH_FASTCALL

static PyMethodDef methods[] = {
    {"configure", FAST(py_configure), "configure(Tensor, Parameter, codes): what can be read."},
    {"measure", FAST(py_measure),
     "measure(tensors, offsets, base, wanted)\n\n"
     "Write the first `wanted` of norm, share of NaN and Inf, largest magnitude, share of zeros,\n"
     "norm of each tensor to its cells; returns the indices of tensors that must be converted."},
    {"measure_output", FAST(py_measure_output),
     "measure_output(base, offset, wanted, convert, tensor)\n\n"
     "The same for one; calls `convert` with a tensor that must be converted."},
    {"measure_gradient", FAST(py_measure_gradient),
     "measure_gradient(seen, column, base, offset, wanted, convert, gradient)\n\n"
     "The same for a gradient, and marks its column as seen."},
    {"remember", FAST(py_remember),
     "remember(tensors, samples, offsets, base)\n\n"
     "Copy the runs of each tensor and write its norm, scaled up from them; returns as `measure`."},
    {"change", FAST(py_change),
     "change(tensors, samples, offsets, base)\n\n"
     "Write the norm of the change since `remember`, scaled up alike; returns as `measure`."},
    {"dead_units", FAST(py_dead_units),
     "dead_units(base, offset, dim, active, convert, tensor)\n\n"
     "Mark in the bytearray `active` which units along a dimension are not zero everywhere; write\n"
     "the share of those never marked. Calls `convert` as `measure_output` does."},
    {NULL, NULL, 0, NULL}};

static int execute(PyObject *module) {
    (void)module;
#define INTERN(attribute) name_##attribute = PyUnicode_InternFromString(#attribute);
    ATTRIBUTES(INTERN)
    return PyErr_Occurred() ? -1 : 0;
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
