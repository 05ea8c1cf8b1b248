/* Where the numbers go. Every place is checked: an address in a wrong one would break the training. */

#include "kernels.h"
#include <string.h>

int write_cells(PyObject *area, int64_t column, int64_t place, const float *values, int64_t n) {
    PyObject *cells = PyObject_GetAttr(area, names.cells);
    tensor found;
    if (!cells)
        return -1;
    int matrix = locate(cells, &found) && found.of == &FLOAT32 && found.contiguous && found.ndim == 2;
    int inside = matrix && column >= 0 && column < found.shape[0] && place >= 0 && n >= 0 &&
                 place <= found.shape[1] - n;
    if (inside && n)
        memcpy(found.data + (column * found.shape[1] + place) * FLOAT32.size, values,
               (size_t)(n * FLOAT32.size));
    Py_DECREF(cells);
    if (!matrix)
        PyErr_SetString(PyExc_TypeError, "the cells are no dense float32 matrix in main memory");
    else if (!inside)
        PyErr_Format(PyExc_IndexError, "no cell %lld of column %lld", (long long)(place + n - 1),
                     (long long)column);
    return inside ? 0 : -1;
}

int write_numel(PyObject *area, int64_t column, int64_t numel) {
    PyObject *list = PyObject_GetAttr(area, names.numel);
    PyObject *number = list ? PyLong_FromLongLong(numel) : NULL;
    int done = number ? PyList_SetItem(list, (Py_ssize_t)column, number) : -1; /* takes the number */
    Py_XDECREF(list);
    return done;
}

int integer_at(PyObject *list, Py_ssize_t i, int64_t *found) {
    PyObject *item = PyList_GetItem(list, i); /* the list's */
    *found = item ? PyLong_AsLongLong(item) : -1;
    return *found == -1 && PyErr_Occurred() ? -1 : 0;
}
