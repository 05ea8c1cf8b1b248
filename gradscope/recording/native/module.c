/* The table of what Python sees. */

#include "kernels.h"
#include "threads.h"

struct names names;

static int intern_names(void) {
    const struct {
        PyObject **place;
        const char *text;
    } all[] = {{&names.cells, "cells"}, {&names.numel, "numel"}, {&names.version, "_version"}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!(*all[i].place = PyUnicode_InternFromString(all[i].text)))
            return -1;
    return 0;
}

static PyObject *py_configure(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *tensor_type, *parameter_type, *capsule;
    int calls;
    if (!PyArg_ParseTuple(args, "O!O!Oi:configure", &PyType_Type, &tensor_type, &PyType_Type,
                          &parameter_type, &capsule, &calls))
        return NULL;
    if (calls != CALLS) {
        PyErr_SetString(PyExc_ImportError, "they were compiled for another version of gradscope");
        return NULL;
    }
    if (know_tensors(tensor_type, parameter_type, capsule) < 0)
        return NULL;
    find_threads();
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"configure", py_configure, METH_VARARGS,
     "configure(Tensor, Parameter, exchange, calls)\n\n"
     "The types that can be read, the capsule with DLPack's exchange API, and how the caller calls."},
    {"measure", py_measure, METH_VARARGS,
     "measure(area, columns, tensors, wanted, marks=...)\n\n"
     "Write the first `wanted` of norm, share of NaN and Inf, largest magnitude, share of zeros,\n"
     "norm of each tensor to the cells of its column, and how many numbers it has, but of those that\n"
     "the bytearray `marks` shows as measured, which it brings up to date; returns the indices of\n"
     "tensors that must be converted or have column 0."},
    {"measure_one", (PyCFunction)(void (*)(void))py_measure_one, METH_FASTCALL,
     "measure_one(area, column, wanted, convert, tensor)\n\n"
     "The same of one tensor, or call `convert` with it where it must be converted."},
    {"remember", py_remember, METH_VARARGS,
     "remember(area, columns, tensors, samples, place)\n\n"
     "Copy the runs of each tensor and write its norm, scaled up from them; returns as `measure`."},
    {"change", py_change, METH_VARARGS,
     "change(area, columns, tensors, samples, place)\n\n"
     "Write the norm of the change since `remember`, scaled up alike; returns as `measure`."},
    {"dead_units", py_dead_units, METH_VARARGS,
     "dead_units(area, column, place, dim, window, active, convert, tensor)\n\n"
     "Mark in the bytearray `active` which units along a dimension are not zero everywhere; write\n"
     "the share of those not marked in this window of calls nor in the one before. Calls `convert` as `measure_one` does."},
    {NULL, NULL, 0, NULL}};

static int execute(PyObject *module) {
    (void)module;
    return intern_names();
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT,
                                        .m_name = "gradscope.recording._kernels",
                                        .m_doc = "Statistics of tensors in main memory.",
                                        .m_methods = methods,
                                        .m_slots = slots};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&definition); }
