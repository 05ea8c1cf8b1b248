/* Units that never gave but zero. */

#include "kernels.h"
#include <string.h>

/* Mark the units along a dimension that are not zero everywhere; how many are marked by nobody. */
static int64_t mark_active(const tensor *read, int dim, char *active) {
    int64_t units = read->shape[dim], inner = 1, dead = 0;
    for (int i = dim + 1; i < read->ndim; i++)
        inner *= read->shape[i];
    int64_t outer = read->numel / (units * inner), bytes = inner * read->of->size;
    for (int64_t unit = 0; unit < units; unit++) {
        const char *first = read->data + unit * bytes;
        for (int64_t i = 0; i < outer && !active[unit]; i++)
            active[unit] = (char)read->of->any_nonzero(first + i * units * bytes, inner);
        dead += !active[unit];
    }
    return dead;
}

PyObject *py_dead_units(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *area, *active, *convert, *object;
    long long column, place, dim;
    tensor read;
    cells in;
    if (!PyArg_ParseTuple(args, "OLLLO!OO:dead_units", &area, &column, &place, &dim,
                          &PyByteArray_Type, &active, &convert, &object))
        return NULL;
    if (!locate(object, &read) || !read.contiguous)
        return PyObject_CallFunctionObjArgs(convert, object, NULL);
    if (dim < 0 || dim >= read.ndim) {
        PyErr_SetString(PyExc_IndexError, "no such dimension");
        return NULL;
    }
    if (!read.numel)
        Py_RETURN_NONE;
    Py_ssize_t units = (Py_ssize_t)read.shape[dim];
    if (PyByteArray_Size(active) != units) { /* first use, or another width: nothing known */
        if (PyByteArray_Resize(active, units) < 0)
            return NULL;
        memset(PyByteArray_AsString(active), 0, (size_t)units);
    }
    int64_t dead = mark_active(&read, (int)dim, PyByteArray_AsString(active));
    float share = (float)((double)dead / (double)units);
    if (open_cells(area, &in) < 0)
        return NULL;
    int done = write_cells(&in, column, place, &share, 1);
    close_cells(&in);
    if (done < 0)
        return NULL;
    Py_RETURN_NONE;
}
