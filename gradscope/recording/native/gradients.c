/* The gradients of parameters, but for those that were measured before and did not change since. */

#include "kernels.h"
#include <string.h>

/* What tells whether a gradient is still the one that was measured. An identity alone may be that of
 * another tensor at the same place, and a version does not count what is written through `.data` or
 * by an extension; all but contrived changes touch the block that has the largest element. */
typedef struct {
    uint64_t grad, version;
    int64_t block;
    uint64_t sum;
} mark;

typedef struct {
    PyObject *area, *columns, *others;
    long long wanted;
} request;

static uint64_t checksum_of(const tensor *read, int64_t block) {
    int64_t from = block * BLOCK, size = read->numel - from < BLOCK ? read->numel - from : BLOCK;
    return size > 0 ? checksum(read->data + from * read->of->size, size * read->of->size) : 0;
}

static int is_measured(const mark *before, PyObject *grad, uint64_t version, const tensor *read) {
    return before->grad == (uint64_t)(uintptr_t)grad && before->version == version &&
           before->sum == checksum_of(read, before->block);
}

/* 1 where the gradient was measured, now or before; 0 where it must be converted; -1 on errors. */
static int measure_gradient(const request *asked, Py_ssize_t i, PyObject *grad, mark *kept) {
    int64_t column, block;
    tensor read;
    if (integer_at(asked->columns, i, &column) < 0)
        return -1;
    if (!column || !locate(grad, &read))
        return 0;
    PyObject *number = PyObject_GetAttr(grad, names.version);
    uint64_t version = number ? PyLong_AsUnsignedLongLong(number) : 0;
    Py_XDECREF(number);
    if (PyErr_Occurred())
        return -1;
    if (is_measured(kept, grad, version, &read))
        return 1;
    if (measure(&read, asked->area, column, asked->wanted, &block) < 0)
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

/* Room for a mark of each of n gradients; where there is another, nothing was measured yet. */
static int make_room(PyObject *marks, Py_ssize_t n) {
    Py_ssize_t bytes = n * (Py_ssize_t)sizeof(mark);
    if (PyByteArray_Size(marks) == bytes)
        return 0;
    if (PyByteArray_Resize(marks, bytes) < 0)
        return -1;
    memset(PyByteArray_AsString(marks), 0, (size_t)bytes);
    return 0;
}

/* The mark of a gradient; NULL where other threads took the room away meanwhile. */
static char *mark_at(PyObject *marks, Py_ssize_t i) {
    Py_ssize_t size = (Py_ssize_t)sizeof(mark);
    return (i + 1) * size <= PyByteArray_Size(marks) ? PyByteArray_AsString(marks) + i * size : NULL;
}

/* As `measure_gradient`; also 1 where a parameter has no gradient. */
static int visit(const request *asked, Py_ssize_t i, PyObject *parameter, PyObject *marks) {
    int done = is_among(asked->others, parameter);
    if (done != 0)
        return done;
    PyObject *grad = PyObject_GetAttr(parameter, names.grad); /* ours, until it is measured */
    char *place = mark_at(marks, i);
    mark kept = {0};
    if (!grad)
        return -1;
    if (place)
        memcpy(&kept, place, sizeof kept);
    done = grad == Py_None ? 1 : measure_gradient(asked, i, grad, &kept);
    Py_DECREF(grad);
    if (done == 1 && (place = mark_at(marks, i)))
        memcpy(place, &kept, sizeof kept);
    return done;
}

PyObject *py_measure_gradients(PyObject *self, PyObject *args) {
    (void)self;
    request asked;
    PyObject *parameters, *marks;
    if (!PyArg_ParseTuple(args, "OO!O!O!O!L:measure_gradients", &asked.area, &PyList_Type,
                          &asked.columns, &PyList_Type, &parameters, &PySet_Type, &asked.others,
                          &PyByteArray_Type, &marks, &asked.wanted) ||
        make_room(marks, PyList_Size(parameters)) < 0)
        return NULL;
    PyObject *left = PyList_New(0);
    for (Py_ssize_t i = 0; left && i < PyList_Size(parameters); i++) {
        PyObject *parameter = PyList_GetItem(parameters, i), *index = NULL;
        Py_INCREF(parameter); /* other threads may change the list while a gradient is read */
        int done = visit(&asked, i, parameter, marks);
        if (done == 0 && (!(index = PyLong_FromSsize_t(i)) || PyList_Append(left, index) < 0))
            done = -1;
        Py_XDECREF(index);
        Py_DECREF(parameter);
        if (done < 0)
            Py_CLEAR(left);
    }
    return left;
}
