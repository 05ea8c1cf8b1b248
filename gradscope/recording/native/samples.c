/* Samples of weights before a step, to compare with after it. */

#include "kernels.h"
#include "reduce.h"
#include <math.h>
#include <string.h>

/* Runs of neighbours at equal distances. A bytearray begins with this, in the order of Python's
 * side, and goes on with room for a copy of their elements. */
typedef struct {
    int64_t length, stride, runs;
    int64_t numel, size; /* of the tensor, and of an element of it in bytes */
} sample;

typedef struct {
    cells in;
    PyObject *columns, *samples;
    long long place;
} request;

/* 1 where a sample with room for so many bytes belongs to such a tensor, else 0. */
static int fits(const sample *of, const tensor *read, int64_t room) {
    if (of->numel != read->numel || of->size != read->of->size || of->length < 0 || of->runs < 0 ||
        of->length > of->numel)
        return 0;
    if (of->length && of->runs > room / of->size / of->length)
        return 0;
    return of->runs < 2 ||
           (of->stride >= 0 && of->stride <= (of->numel - of->length) / (of->runs - 1));
}

/* The sample of a tensor and where its copy lies, in the list's bytearray; answers as `use` does. */
static int sample_at(const request *asked, Py_ssize_t i, const tensor *read, sample *found,
                     char **copy) {
    PyObject *item = PyList_GetItem(asked->samples, i);
    int64_t header = (int64_t)sizeof *found;
    if (!item)
        return -1;
    if (!PyByteArray_Check(item) || PyByteArray_Size(item) < header) {
        PyErr_SetString(PyExc_TypeError, "a sample is a bytearray that begins with five numbers");
        return -1;
    }
    *copy = PyByteArray_AsString(item) + header;
    memcpy(found, *copy - header, sizeof *found);
    return fits(found, read, PyByteArray_Size(item) - header);
}

/* Write a norm over a sample, scaled up to all elements, and in the next place, unless it is NaN, a
 * share of them; 1, or -1 on errors. */
static int write_sample(const request *asked, Py_ssize_t i, int64_t numel, const sample *of,
                        double norm, double share) {
    double sampled = (double)(of->length * of->runs);
    float values[2] = {(float)(norm * sqrt((double)numel / sampled)), (float)share};
    int64_t column;
    if (as_integer(PyList_GetItem(asked->columns, i), &column) < 0 ||
        write_cells(&asked->in, column, asked->place, values, isnan(share) ? 1 : 2) < 0)
        return -1;
    return 1;
}

/* Where a run of a sample lies. The runs are cache lines far from each other, of which no processor
 * guesses the next: it is asked for some before it is needed. */
static const char *run_at(const tensor *read, const sample *of, int64_t run) {
    enum { AHEAD = 8 };
    int64_t bytes = of->stride * read->of->size;
#if defined(__GNUC__)
    if (run + AHEAD < of->runs)
        __builtin_prefetch(read->data + (run + AHEAD) * bytes);
#endif
    return read->data + run * bytes;
}

static int remember(PyObject *object, const tensor *read, Py_ssize_t i, void *context) {
    (void)object;
    sample of;
    char *copy;
    int fitting = sample_at(context, i, read, &of, &copy);
    if (fitting != 1)
        return fitting;
    int64_t bytes = of.length * read->of->size, sampled = of.length * of.runs;
    if (!of.length || !of.runs)
        return 1;
    for (int64_t run = 0; run < of.runs; run++)
        memcpy(copy + run * bytes, run_at(read, &of, run), (size_t)bytes);
    summary found;
    read->of->add_squares(copy, sampled, &found);
    double norm = sqrt(found.squares);
    if (!is_plain(read->of, norm)) {
        read->of->summarise(copy, sampled, &found);
        norm = norm_of(read->of, copy, sampled, &found);
    }
    return write_sample(context, i, read->numel, &of, norm, NAN);
}

static int change(PyObject *object, const tensor *read, Py_ssize_t i, void *context) {
    (void)object;
    sample of;
    char *copy;
    int fitting = sample_at(context, i, read, &of, &copy);
    if (fitting != 1)
        return fitting;
    int64_t bytes = of.length * read->of->size;
    difference found = {0};
    if (!of.length || !of.runs)
        return 1;
    for (int64_t run = 0; run < of.runs; run++)
        read->of->compare(run_at(read, &of, run), copy + run * bytes, of.length, &found);
    if (!is_plain(read->of, sqrt(found.squares))) {
        found.squares = 0;
        for (int64_t run = 0; run < of.runs; run++)
            found.squares += read->of->squared_change(run_at(read, &of, run),
                                                      copy + run * bytes, of.length);
    }
    double alike = (double)found.alike / (double)(of.length * of.runs);
    return write_sample(context, i, read->numel, &of, sqrt(found.squares), alike);
}

static PyObject *for_each_sample(PyObject *args, use *function) {
    request asked;
    PyObject *area, *tensors;
    if (!PyArg_ParseTuple(args, "OO!O!O!L", &area, &PyList_Type, &asked.columns, &PyList_Type,
                          &tensors, &PyList_Type, &asked.samples, &asked.place) ||
        open_cells(area, &asked.in) < 0)
        return NULL;
    PyObject *left = for_each(tensors, function, &asked);
    close_cells(&asked.in);
    return left;
}

PyObject *py_remember(PyObject *self, PyObject *args) {
    (void)self;
    return for_each_sample(args, remember);
}

PyObject *py_change(PyObject *self, PyObject *args) {
    (void)self;
    return for_each_sample(args, change);
}
