/* The statistics of tensors, one pass each. */

#include "kernels.h"
#include "reduce.h"
#include <math.h>

/* From this many bytes on, other threads of Python may run meanwhile: some ten microseconds. */
enum { LONG_READ = 1 << 20 };

/* So many statistics do without a look at single elements. */
enum { NORM_AND_NONFINITE = 2 };

/* The norm; `found` is filled as far as `wanted` needs it. */
static double take(const tensor *read, int64_t wanted, summary *found) {
    double norm = 0;
    if (wanted <= NORM_AND_NONFINITE) {
        *found = reduce(read->of, read->data, read->numel, read->of->add_squares);
        norm = sqrt(found->squares);
    }
    if (is_plain(read->of, norm))
        return norm;
    *found = reduce(read->of, read->data, read->numel, read->of->summarise);
    return norm_of(read->of, read->data, read->numel, found);
}

int measure(const tensor *read, PyObject *area, int64_t column, int64_t wanted, int64_t *block) {
    summary found = {0};
    double norm = 0, numel = (double)read->numel;
    if (wanted < 0 || wanted > MOST_WANTED) {
        PyErr_SetString(PyExc_ValueError, "there are no so many statistics");
        return -1;
    }
    if (read->numel) {
        int long_read = read->numel * read->of->size > LONG_READ;
        PyThreadState *waiting = long_read ? PyEval_SaveThread() : NULL;
        norm = take(read, wanted, &found);
        if (waiting)
            PyEval_RestoreThread(waiting);
    }
    float values[MOST_WANTED] = {(float)norm, (float)(numel ? (double)found.nonfinite / numel : 0),
                                 (float)found.largest,
                                 (float)(numel ? (double)found.zeros / numel : NAN), (float)norm};
    *block = found.block;
    if (write_cells(area, column, 0, values, wanted) < 0)
        return -1;
    return write_numel(area, column, read->numel);
}

int give_to(PyObject *otherwise, PyObject *tensor) {
    PyObject *answer = PyObject_CallFunctionObjArgs(otherwise, tensor, NULL);
    Py_XDECREF(answer);
    return answer ? 0 : -1;
}

typedef struct {
    PyObject *area, *columns;
    long long wanted;
} request;

static int measure_one(const tensor *read, Py_ssize_t i, void *context) {
    const request *asked = context;
    int64_t column, block;
    if (integer_at(asked->columns, i, &column) < 0 ||
        measure(read, asked->area, column, asked->wanted, &block) < 0)
        return -1;
    return 1;
}

PyObject *py_measure(PyObject *self, PyObject *args) {
    (void)self;
    request asked;
    PyObject *tensors;
    if (!PyArg_ParseTuple(args, "OO!O!L:measure", &asked.area, &PyList_Type, &asked.columns,
                          &PyList_Type, &tensors, &asked.wanted))
        return NULL;
    return for_each(tensors, measure_one, &asked);
}
