/* The table of what Python sees. */

#include "kernels.h"
#include "threads.h"

struct names names;

static int intern_names(void) {
    const struct {
        PyObject **place;
        const char *text;
    } all[] = {{&names.also, "also"},
               {&names.backward_hooks, "_backward_hooks"},
               {&names.calls, "calls"},
               {&names.cells, "cells"},
               {&names.grad, "grad"},
               {&names.grad_fn, "grad_fn"},
               {&names.hooks, "hooks"},
               {&names.numel, "numel"},
               {&names.outputs, "outputs"},
               {&names.read, "read"},
               {&names.read_gradient, "read_gradient"},
               {&names.register_hook_dict, "_register_hook_dict"},
               {&names.version, "_version"}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!(*all[i].place = PyUnicode_InternFromString(all[i].text)))
            return -1;
    return 0;
}

static PyObject *py_configure(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *tensor_type, *parameter_type, *capsule;
    if (!PyArg_ParseTuple(args, "O!O!O:configure", &PyType_Type, &tensor_type, &PyType_Type,
                          &parameter_type, &capsule) ||
        know_tensors(tensor_type, parameter_type, capsule) < 0)
        return NULL;
    find_threads();
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"configure", py_configure, METH_VARARGS,
     "configure(Tensor, Parameter, exchange)\n\n"
     "The types that can be read, and the capsule with DLPack's exchange API."},
    {"measure", py_measure, METH_VARARGS,
     "measure(area, columns, tensors, wanted)\n\n"
     "Write the first `wanted` of norm, share of NaN and Inf, largest magnitude, share of zeros,\n"
     "norm of each tensor to the cells of its column, and how many numbers it has; returns the\n"
     "indices of tensors that must be converted."},
    {"measure_gradients", py_measure_gradients, METH_VARARGS,
     "measure_gradients(area, columns, parameters, others, marks, wanted)\n\n"
     "The same for the gradients of parameters, but of those whose identity is in the set `others`,\n"
     "and of those that the bytearray `marks` shows as measured, which it brings up to date; also\n"
     "returns the indices of those without a column."},
    {"remember", py_remember, METH_VARARGS,
     "remember(area, columns, tensors, samples, place)\n\n"
     "Copy the runs of each tensor and write its norm, scaled up from them; returns as `measure`."},
    {"change", py_change, METH_VARARGS,
     "change(area, columns, tensors, samples, place)\n\n"
     "Write the norm of the change since `remember`, scaled up alike; returns as `measure`."},
    {"dead_units", py_dead_units, METH_VARARGS,
     "dead_units(area, column, place, dim, active, convert, tensor)\n\n"
     "Mark in the bytearray `active` which units along a dimension are not zero everywhere; write\n"
     "the share of those never marked. Calls `convert` as a Reader does."},
    {NULL, NULL, 0, NULL}};

static int add_types(PyObject *module) {
    PyObject *hook_type = PyType_FromSpec(&hook_spec);
    reader_type = PyType_FromSpec(&reader_spec);
    int done = hook_type && reader_type && PyModule_AddObjectRef(module, "Reader", reader_type) == 0 &&
               PyModule_AddObjectRef(module, "ForwardHook", hook_type) == 0;
    Py_XDECREF(hook_type); /* the module has its own */
    return done ? 0 : -1;
}

static int execute(PyObject *module) {
    return intern_names() < 0 ? -1 : add_types(module);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT,
                                        .m_name = MODULE,
                                        .m_doc = "Statistics of tensors in main memory.",
                                        .m_methods = methods,
                                        .m_slots = slots};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&definition); }
