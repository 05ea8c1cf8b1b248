/* The statistics of tensors, one pass each. */

#include "kernels.h"
#include "reduce.h"
#include <math.h>

/* From this many bytes on, other threads of Python may run meanwhile: some ten microseconds. */
enum { LONG_READ = 1 << 20 };

enum { MOST_WANTED = 5 };

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

/* Write the first `wanted` of the statistics in the order of gradscope's RAW to the cells of a column;
 * `block` is where the largest element is. */
static int measure(const tensor *read, const cells *in, int64_t column, int64_t wanted,
                   int64_t *block) {
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
    if (write_cells(in, column, 0, values, wanted) < 0)
        return -1;
    return write_numel(in, column, read->numel);
}

/* Called for each output and each gradient at one, so its arguments are not packed into a tuple. */
PyObject *py_measure_one(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t column, wanted, block;
    tensor read;
    cells in;
    if (given != 5) {
        PyErr_Format(PyExc_TypeError, "measure_one takes 5 arguments, not %zd", given);
        return NULL;
    }
    PyObject *area = args[0], *convert = args[3], *object = args[4];
    if (as_integer(args[1], &column) < 0 || as_integer(args[2], &wanted) < 0)
        return NULL;
    if (!locate(object, &read))
        return PyObject_CallFunctionObjArgs(convert, object, NULL);
    if (open_cells(area, &in) < 0)
        return NULL;
    int done = measure(&read, &in, column, wanted, &block);
    close_cells(&in);
    if (done < 0)
        return NULL;
    Py_RETURN_NONE;
}

typedef struct {
    cells in;
    PyObject *columns, *marks; /* marks: NULL without */
    long long wanted;
} request;

static int measure_next(PyObject *object, const tensor *read, Py_ssize_t i, void *context) {
    const request *asked = context;
    int64_t column, block;
    uint64_t version = 0;
    if (as_integer(PyList_GetItem(asked->columns, i), &column) < 0)
        return -1;
    if (!column)
        return 0;
    if (asked->marks) {
        PyObject *number = PyObject_GetAttr(object, names.version);
        version = number ? PyLong_AsUnsignedLongLong(number) : 0;
        Py_XDECREF(number);
        if (PyErr_Occurred())
            return -1;
        if (is_measured(asked->marks, column, object, version, read))
            return 1;
    }
    if (measure(read, &asked->in, column, asked->wanted, &block) < 0)
        return -1;
    if (asked->marks && mark_measured(asked->marks, column, object, version, read, block) < 0)
        return -1;
    return 1;
}

PyObject *py_measure(PyObject *self, PyObject *args) {
    (void)self;
    request asked = {.marks = NULL};
    PyObject *area, *tensors;
    if (!PyArg_ParseTuple(args, "OO!O!L|O!:measure", &area, &PyList_Type, &asked.columns, &PyList_Type,
                          &tensors, &asked.wanted, &PyByteArray_Type, &asked.marks) ||
        open_cells(area, &asked.in) < 0)
        return NULL;
    PyObject *left = for_each(tensors, measure_next, &asked);
    close_cells(&asked.in);
    return left;
}
