/* What the parts of the module share on Python's side. Built against the stable interface of
 * Python 3.11 and without torch's headers, so that one build serves every later version of both.
 *
 * Arguments are borrowed from the caller, for the length of the call, unless it is said otherwise.
 * A function that answers with an int sets an exception where it answers -1. */

#ifndef KERNELS_H
#define KERNELS_H

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "arithmetic.h"

/* What Python's side calls and how: one more with every change of it, in kernels.py too. */
#define CALLS 3

/* module.c: names of attributes, owned by the module for good. */
extern struct names {
    PyObject *cells, *numel, *version;
} names;

/* tensor.c: where a tensor lies. */
typedef struct {
    const element *of;
    char *data;           /* the tensor's; NULL without elements */
    int64_t numel;
    int contiguous, ndim; /* else dense in another order of the dimensions */
    const int64_t *shape; /* the tensor's: read it before other Python code runs */
} tensor;

/* Is given Tensor, Parameter and the capsule with DLPack's exchange API, and holds on to them. */
int know_tensors(PyObject *tensor_type, PyObject *parameter_type, PyObject *capsule);

/* 1 where an object is a dense tensor in main memory with elements that can be read, 0 where it must
 * be converted; never fails. What is found stays the tensor's. */
int locate(PyObject *object, tensor *found);

/* Answers 1, or 0 where the tensor does not fit, or -1. */
typedef int use(PyObject *object, const tensor *read, Py_ssize_t index, void *context);

/* Call a function for every tensor of a list that can be read. A new list of the indices of those
 * left, because they must be converted or do not fit. */
PyObject *for_each(PyObject *tensors, use *function, void *context);

/* cells.c: gradscope's Area, whose `cells` are float32, shape (columns, places), and whose list `numel`
 * has for each column how many numbers its tensor has. */
typedef struct {
    PyObject *owner, *numel; /* owned */
    char *first;             /* the owner's */
    int64_t columns, places;
} cells;

/* Unless it failed, `close_cells` must follow, and soon: when the area grows meanwhile, in another
 * thread, what is written is lost with the cells that it left. */
int open_cells(PyObject *area, cells *found);
void close_cells(cells *in);

int write_cells(const cells *in, int64_t column, int64_t place, const float *values, int64_t n);
int write_numel(const cells *in, int64_t column, int64_t numel);

/* A whole number; of NULL the error that is set already. */
int as_integer(PyObject *object, int64_t *found);

/* marks.c: which tensors were measured and did not change since; a bytearray, empty at first. */

/* 1 where the mark of a column shows a tensor with this version as measured, else 0. */
int is_measured(PyObject *marks, int64_t column, PyObject *object, uint64_t version,
                const tensor *read);

/* Mark it so; `block` has its largest element. */
int mark_measured(PyObject *marks, int64_t column, PyObject *object, uint64_t version,
                  const tensor *read, int64_t block);

PyObject *py_measure(PyObject *self, PyObject *args); /* measure.c */
PyObject *py_measure_one(PyObject *self, PyObject *const *args, Py_ssize_t given);
PyObject *py_remember(PyObject *self, PyObject *args); /* samples.c */
PyObject *py_change(PyObject *self, PyObject *args);
PyObject *py_dead_units(PyObject *self, PyObject *args); /* units.c */

#endif
