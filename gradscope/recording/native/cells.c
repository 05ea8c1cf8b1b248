/* Where the numbers go. Every place is checked: an address in a wrong one would break the training. */

#include "kernels.h"
#include <string.h>

int open_cells(PyObject *area, cells *found) {
    tensor matrix;
    found->owner = PyObject_GetAttr(area, names.cells);
    found->numel = found->owner ? PyObject_GetAttr(area, names.numel) : NULL;
    if (!found->numel) {
        close_cells(found);
        return -1;
    }
    if (!locate(found->owner, &matrix) || matrix.of != &FLOAT32 || !matrix.contiguous ||
        matrix.ndim != 2) {
        PyErr_SetString(PyExc_TypeError, "the cells are no dense float32 matrix in main memory");
        close_cells(found);
        return -1;
    }
    found->first = matrix.data;
    found->columns = matrix.shape[0];
    found->places = matrix.shape[1];
    return 0;
}

void close_cells(cells *in) {
    Py_XDECREF(in->owner);
    Py_XDECREF(in->numel);
}

int write_cells(const cells *in, int64_t column, int64_t place, const float *values, int64_t n) {
    if (column < 0 || column >= in->columns || place < 0 || place > in->places - n) {
        PyErr_Format(PyExc_IndexError, "no cells %lld to %lld of column %lld", (long long)place,
                     (long long)place + n - 1, (long long)column);
        return -1;
    }
    memcpy(in->first + (column * in->places + place) * FLOAT32.size, values,
           (size_t)(n * FLOAT32.size));
    return 0;
}

int write_numel(const cells *in, int64_t column, int64_t numel) {
    PyObject *number = PyLong_FromLongLong(numel);
    return number ? PyList_SetItem(in->numel, (Py_ssize_t)column, number) : -1; /* takes it */
}

int as_integer(PyObject *object, int64_t *found) {
    *found = object ? PyLong_AsLongLong(object) : -1;
    return *found == -1 && PyErr_Occurred() ? -1 : 0;
}
