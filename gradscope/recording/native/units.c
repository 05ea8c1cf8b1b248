/* Units that gave nothing but zero for a while. */

#include "kernels.h"
#include <limits.h>
#include <string.h>

/* What is known of a unit: whether it was active in this window of calls, and in the one before. */
enum { NOW = 1, BEFORE = 2 };

/* Begin a window where the last one is over; the byte behind the units counts its calls. */
static void count_call(char *active, Py_ssize_t units, int window) {
    unsigned char *calls = (unsigned char *)active + units;
    if (*calls < window) {
        *calls += 1;
        return;
    }
    for (Py_ssize_t unit = 0; unit < units; unit++)
        active[unit] = active[unit] & NOW ? BEFORE : 0;
    *calls = 1;
}

/* Mark the units along a dimension that are not zero everywhere; how many have no mark at all. */
static int64_t mark_active(const tensor *read, int dim, char *active) {
    int64_t units = read->shape[dim], inner = 1, dead = 0;
    for (int i = dim + 1; i < read->ndim; i++)
        inner *= read->shape[i];
    int64_t outer = read->numel / (units * inner), bytes = inner * read->of->size;
    for (int64_t unit = 0; unit < units; unit++) {
        const char *first = read->data + unit * bytes;
        for (int64_t i = 0; i < outer && !(active[unit] & NOW); i++)
            if (read->of->any_nonzero(first + i * units * bytes, inner))
                active[unit] |= NOW;
        dead += !active[unit];
    }
    return dead;
}

PyObject *py_dead_units(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *area, *active, *convert, *object;
    long long column, place, dim, window;
    tensor read;
    cells in;
    if (!PyArg_ParseTuple(args, "OLLLLO!OO:dead_units", &area, &column, &place, &dim,
                          &window, &PyByteArray_Type, &active, &convert, &object))
        return NULL;
    if (!locate(object, &read) || !read.contiguous)
        return PyObject_CallFunctionObjArgs(convert, object, NULL);
    if (dim < 0 || dim >= read.ndim) {
        PyErr_SetString(PyExc_IndexError, "no such dimension");
        return NULL;
    }
    if (window < 1 || window > UCHAR_MAX) {
        PyErr_SetString(PyExc_IndexError, "no such window");
        return NULL;
    }
    if (!read.numel)
        Py_RETURN_NONE;
    Py_ssize_t units = (Py_ssize_t)read.shape[dim];
    if (PyByteArray_Size(active) != units + 1) { /* first use, or another width: nothing known */
        if (PyByteArray_Resize(active, units + 1) < 0)
            return NULL;
        memset(PyByteArray_AsString(active), 0, (size_t)units + 1);
    }
    count_call(PyByteArray_AsString(active), units, (int)window);
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
