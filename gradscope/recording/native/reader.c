/* Reader(area, column, wanted, convert): measures the tensor that it is called with. */

#include "kernels.h"

PyObject *reader_type;

PyObject *make(PyTypeObject *type) {
    return ((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
}

void unmake(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object); /* its objects own a type that was made at run time */
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    PyObject *area, *convert;
    long long column, wanted;
    if (!PyArg_ParseTuple(args, "OLLO:Reader", &area, &column, &wanted, &convert))
        return NULL;
    reader *self = (reader *)make(type);
    if (!self)
        return NULL;
    Py_INCREF(area);
    Py_INCREF(convert);
    self->area = area;
    self->convert = convert;
    self->column = column;
    self->wanted = wanted;
    return (PyObject *)self;
}

static void reader_dealloc(PyObject *object) {
    reader *self = (reader *)object;
    Py_XDECREF(self->area);
    Py_XDECREF(self->convert);
    unmake(object);
}

static PyObject *reader_call(PyObject *object, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    reader *self = (reader *)object;
    PyObject *given;
    tensor read;
    int64_t block;
    if (!PyArg_UnpackTuple(args, "Reader", 1, 1, &given))
        return NULL;
    int done = locate(given, &read) ? measure(&read, self->area, self->column, self->wanted, &block)
                                    : give_to(self->convert, given);
    if (done < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyType_Slot slots[] = {{Py_tp_new, reader_new},
                              {Py_tp_dealloc, reader_dealloc},
                              {Py_tp_call, reader_call},
                              {0, NULL}};

PyType_Spec reader_spec = {.name = MODULE ".Reader",
                           .basicsize = sizeof(reader),
                           .flags = Py_TPFLAGS_DEFAULT,
                           .slots = slots};
