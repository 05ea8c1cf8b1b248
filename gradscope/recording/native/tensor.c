/* Where a tensor lies in memory, by DLPack's exchange API. */

#include "kernels.h"

/* Version 1 of it, as far as it is used here:
 * https://github.com/dmlc/dlpack/blob/main/include/dlpack/dlpack.h */
typedef struct {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    const int64_t *shape, *strides;
    uint64_t byte_offset;
} dl_tensor;

typedef struct {
    struct {
        uint32_t major, minor;
    } version;
    void *previous;
    void (*unused[3])(void);
    int (*view)(PyObject *, dl_tensor *); /* borrows: valid until control returns to the owner */
} dl_exchange;

enum { DL_CPU = 1, DL_FLOAT = 2, DL_BFLOAT = 4, MOST_DIMENSIONS = 64 };

/* What `know_tensors` was given; owned. */
static PyObject *plain_types[2], *exchange_capsule;
static const dl_exchange *exchange; /* in the capsule */

static void keep(PyObject **place, PyObject *object) {
    PyObject *before = *place;
    Py_INCREF(object);
    *place = object;
    Py_XDECREF(before);
}

int know_tensors(PyObject *tensor_type, PyObject *parameter_type, PyObject *capsule) {
    const dl_exchange *found = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    if (!found)
        return -1;
    if (found->version.major != 1 || !found->view) {
        PyErr_Format(PyExc_ImportError, "torch has version %u of DLPack's exchange, 1 is known",
                     found->version.major);
        return -1;
    }
    keep(&plain_types[0], tensor_type);
    keep(&plain_types[1], parameter_type);
    keep(&exchange_capsule, capsule);
    exchange = found;
    return 0;
}

static const element *element_of(const dl_tensor *seen) {
    if (seen->dtype.lanes != 1)
        return NULL;
    if (seen->dtype.code == DL_FLOAT && seen->dtype.bits == 32)
        return &FLOAT32;
    if (seen->dtype.code == DL_FLOAT && seen->dtype.bits == 64)
        return &FLOAT64;
    if (seen->dtype.code == DL_BFLOAT && seen->dtype.bits == 16)
        return &BFLOAT16;
    return NULL;
}

/* In the order of torch, which sees to it that this does not overflow. */
static int64_t numel_of(const dl_tensor *seen) {
    int64_t numel = 1;
    for (int i = 0; i < seen->ndim; i++)
        numel *= seen->shape[i];
    return numel;
}

static int is_contiguous(const dl_tensor *seen) {
    int64_t expected = 1;
    for (int i = seen->ndim - 1; i >= 0; i--) {
        if (seen->shape[i] != 1 && seen->strides[i] != expected)
            return 0;
        expected *= seen->shape[i];
    }
    return 1;
}

/* Whether the elements lie side by side in some order of the dimensions, as in channels_last. */
static int is_dense(const dl_tensor *seen) {
    uint64_t found = 0; /* one bit a dimension */
    int64_t expected = 1;
    for (int i = 0; i < seen->ndim; i++) {
        int next = 0;
        while (next < seen->ndim &&
               (found >> next & 1 || (seen->shape[next] != 1 && seen->strides[next] != expected)))
            next++;
        if (next == seen->ndim)
            return 0;
        found |= (uint64_t)1 << next;
        expected *= seen->shape[next];
    }
    return 1;
}

int locate(PyObject *object, tensor *found) {
    PyObject *type = (PyObject *)Py_TYPE(object);
    dl_tensor seen;
    if (!exchange || (type != plain_types[0] && type != plain_types[1]))
        return 0;
    if (exchange->view(object, &seen) != 0) { /* sparse, or without memory as in torch.func */
        PyErr_Clear();
        return 0;
    }
    if (seen.device.type != DL_CPU || seen.ndim > MOST_DIMENSIONS || !(found->of = element_of(&seen)))
        return 0;
    found->numel = numel_of(&seen);
    found->contiguous = !found->numel || is_contiguous(&seen);
    if (!found->contiguous && !is_dense(&seen))
        return 0;
    found->data = found->numel ? (char *)seen.data + seen.byte_offset : NULL;
    found->ndim = seen.ndim;
    found->shape = seen.shape;
    return 1;
}

PyObject *for_each(PyObject *tensors, use *function, void *context) {
    PyObject *left = PyList_New(0);
    for (Py_ssize_t i = 0; left && i < PyList_Size(tensors); i++) {
        PyObject *object = PyList_GetItem(tensors, i), *index = NULL;
        tensor read;
        Py_INCREF(object); /* other threads may change the list while a tensor is read */
        int done = locate(object, &read) ? function(object, &read, i, context) : 0;
        if (done == 0 && (!(index = PyLong_FromSsize_t(i)) || PyList_Append(left, index) < 0))
            done = -1;
        Py_XDECREF(index);
        Py_DECREF(object);
        if (done < 0)
            Py_CLEAR(left);
    }
    return left;
}
