/* ForwardHook(modules, usual, hooks, key, otherwise): takes what a module gave, where its call gave
 * one plain tensor in an earlier step and now gives one with a history. Anything else goes to
 * `otherwise`, which also says by example what is done here.
 *
 * modules: id of a module -> what is known of it
 * usual: (function, what it returns within a plain forward pass), ...
 * hooks: class of a tensor's dictionary of hooks
 * key: stands for this hook among those of a tensor that it took */

#include "kernels.h"
#include <stddef.h>
#include <structmember.h>

typedef struct {
    PyObject_HEAD
    PyObject *modules, *usual, *hooks, *key, *otherwise; /* owned */
    char active; /* whether it may do anything itself */
} hook;

static PyObject *hook_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    PyObject *modules, *usual, *hooks, *key, *otherwise;
    if (!PyArg_ParseTuple(args, "O!O!OOO:ForwardHook", &PyDict_Type, &modules, &PyTuple_Type, &usual,
                          &hooks, &key, &otherwise))
        return NULL;
    hook *self = (hook *)make(type);
    if (!self)
        return NULL;
    Py_INCREF(modules);
    Py_INCREF(usual);
    Py_INCREF(hooks);
    Py_INCREF(key);
    Py_INCREF(otherwise);
    self->modules = modules;
    self->usual = usual;
    self->hooks = hooks;
    self->key = key;
    self->otherwise = otherwise;
    self->active = 0;
    return (PyObject *)self;
}

static void hook_dealloc(PyObject *object) {
    hook *self = (hook *)object;
    Py_XDECREF(self->modules);
    Py_XDECREF(self->usual);
    Py_XDECREF(self->hooks);
    Py_XDECREF(self->key);
    Py_XDECREF(self->otherwise);
    unmake(object);
}

/* 1 within a plain forward pass, 0 without, -1 on errors. */
static int is_usual(PyObject *usual) {
    int same = 1;
    for (Py_ssize_t i = 0; i < PyTuple_Size(usual) && same == 1; i++) {
        PyObject *function, *expected; /* the tuple's */
        if (!PyArg_ParseTuple(PyTuple_GetItem(usual, i), "OO", &function, &expected))
            return -1;
        PyObject *found = PyObject_CallNoArgs(function);
        same = found ? PyObject_RichCompareBool(found, expected, Py_EQ) : -1;
        Py_XDECREF(found);
    }
    return same;
}

/* The hooks for a tensor of this output, a new reference: those of an earlier step, if that step's
 * graph is gone and nobody else added to them. */
static PyObject *hooks_for(hook *self, PyObject *output) {
    PyObject *hooks = PyObject_GetAttr(output, names.hooks);
    if (!hooks || (hooks != Py_None && Py_REFCNT(hooks) == 2 && PyDict_Size(hooks) == 1))
        return hooks; /* the output owns it, and so do we */
    Py_DECREF(hooks);
    hooks = PyObject_CallNoArgs(self->hooks);
    PyObject *read = hooks ? PyObject_GetAttr(output, names.read_gradient) : NULL;
    if (!read || PyObject_SetItem(hooks, self->key, read) < 0 ||
        PyObject_SetAttr(output, names.hooks, hooks) < 0)
        Py_CLEAR(hooks);
    Py_XDECREF(read);
    return hooks;
}

/* Have the gradient read: what Tensor.register_hook does, without a handle to remove it with. */
static int await_gradient(hook *self, PyObject *tensor, PyObject *node, PyObject *output) {
    PyObject *hooks = hooks_for(self, output), *done = NULL;
    if (hooks && PyObject_SetAttr(tensor, names.backward_hooks, hooks) == 0)
        done = PyObject_CallMethodObjArgs(node, names.register_hook_dict, tensor, NULL);
    Py_XDECREF(hooks);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

static int note_call(PyObject *known, PyObject *calls) {
    PyObject *one = PyLong_FromLong(1), *next = one ? PyNumber_Add(calls, one) : NULL;
    int done = next ? PyObject_SetAttr(known, names.calls, next) : -1;
    Py_XDECREF(one);
    Py_XDECREF(next);
    return done;
}

static int take_also(PyObject *output, PyObject *tensor) {
    PyObject *also = PyObject_GetAttr(output, names.also);
    Py_ssize_t n = also ? PyTuple_Size(also) : -1;
    int done = n < 0 ? -1 : 0;
    for (Py_ssize_t i = 0; i < n && done == 0; i++)
        done = give_to(PyTuple_GetItem(also, i), tensor);
    Py_XDECREF(also);
    return done;
}

/* An item of a dictionary, a new reference; NULL where there is none or on errors. */
static PyObject *item_of(PyObject *dictionary, PyObject *key) {
    PyObject *item = PyDict_GetItemWithError(dictionary, key);
    Py_XINCREF(item);
    return item;
}

/* Take a tensor as an output; answers as `take`. */
static int take_as(hook *self, PyObject *output, PyObject *known, PyObject *calls, PyObject *object,
                   PyObject *node) {
    PyObject *read = PyObject_GetAttr(output, names.read);
    tensor found;
    int64_t block;
    int taken = 0;
    if (read && (PyObject *)Py_TYPE(read) == reader_type && locate(object, &found)) {
        const reader *of = (reader *)read;
        taken = note_call(known, calls) == 0 &&
                measure(&found, of->area, of->column, of->wanted, &block) == 0 &&
                take_also(output, object) == 0 && await_gradient(self, object, node, output) == 0;
    }
    Py_XDECREF(read);
    return taken;
}

/* 1 where the output was taken; 0 where it is not as expected, and nothing was changed; -1 on
 * errors. */
static int take(hook *self, PyObject *module, PyObject *object) {
    enum { ID, KNOWN, NODE, AWAITED, CALLS, OUTPUTS, OUTPUT, OWNED };
    PyObject *own[OWNED] = {NULL};
    int taken = 0;
    if (!is_plain_tensor(object))
        return 0;
    if (!(own[ID] = PyLong_FromVoidPtr(module)) ||
        !(own[KNOWN] = item_of(self->modules, own[ID])) ||
        !(own[NODE] = PyObject_GetAttr(object, names.grad_fn)) || own[NODE] == Py_None ||
        !(own[AWAITED] = PyObject_GetAttr(object, names.backward_hooks)) ||
        !(own[CALLS] = PyObject_GetAttr(own[KNOWN], names.calls)) || is_usual(self->usual) != 1)
        goto done;
    if (own[AWAITED] != Py_None) { /* taken where a module within this one returned it, or a user's */
        taken = PyMapping_HasKey(own[AWAITED], self->key) && note_call(own[KNOWN], own[CALLS]) == 0;
        goto done;
    }
    if (!(own[OUTPUTS] = PyObject_GetAttr(own[KNOWN], names.outputs)) ||
        !(own[OUTPUT] = item_of(own[OUTPUTS], own[CALLS]))) /* index 0 */
        goto done;
    taken = take_as(self, own[OUTPUT], own[KNOWN], own[CALLS], object, own[NODE]);
done:
    for (int i = 0; i < OWNED; i++)
        Py_XDECREF(own[i]);
    return PyErr_Occurred() ? -1 : taken;
}

static PyObject *hook_call(PyObject *object, PyObject *args, PyObject *kwargs) {
    hook *self = (hook *)object;
    PyObject *module, *inputs, *output;
    if (!PyArg_UnpackTuple(args, "ForwardHook", 3, 3, &module, &inputs, &output))
        return NULL;
    int taken = self->active ? take(self, module, output) : 0;
    if (taken == 0)
        return PyObject_Call(self->otherwise, args, kwargs);
    if (taken < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyMemberDef members[] = {
    {"active", T_BOOL, offsetof(hook, active), 0, "Whether it may do anything itself."},
    {NULL, 0, 0, 0, NULL}};

static PyType_Slot slots[] = {{Py_tp_new, hook_new},
                              {Py_tp_dealloc, hook_dealloc},
                              {Py_tp_call, hook_call},
                              {Py_tp_members, members},
                              {0, NULL}};

PyType_Spec hook_spec = {.name = MODULE ".ForwardHook",
                         .basicsize = sizeof(hook),
                         .flags = Py_TPFLAGS_DEFAULT,
                         .slots = slots};
