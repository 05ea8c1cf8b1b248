/* Which tensors were measured and did not change since. */

#include "kernels.h"
#include <string.h>

/* What tells whether a tensor is still the one that was measured. An identity alone may be that of
 * another tensor at the same place, and a version does not count what is written through `.data` or
 * by an extension; most changes touch the block that has the largest element. For the others the
 * recorder takes gradients again from time to time, whatever their marks say. */
typedef struct {
    uint64_t object, version;
    int64_t block;
    uint64_t sum;
} mark;

static uint64_t checksum_of(const tensor *read, int64_t block) {
    int64_t from = block * BLOCK, size = read->numel - from < BLOCK ? read->numel - from : BLOCK;
    return size > 0 ? checksum(read->data + from * read->of->size, size * read->of->size) : 0;
}

/* The mark of a column, in the bytearray's memory; NULL where there is none. */
static char *mark_at(PyObject *marks, int64_t column) {
    int64_t size = (int64_t)sizeof(mark), known = PyByteArray_Size(marks) / size;
    return column >= 0 && column < known ? PyByteArray_AsString(marks) + column * size : NULL;
}

int is_measured(PyObject *marks, int64_t column, PyObject *object, uint64_t version,
                const tensor *read) {
    const char *place = mark_at(marks, column);
    mark before;
    if (!place)
        return 0;
    memcpy(&before, place, sizeof before);
    if (before.object != (uint64_t)(uintptr_t)object || before.version != version)
        return 0;
    if (before.sum == checksum_of(read, before.block))
        return 1;
    PyByteArray_AsString(marks)[0] = 1; /* column 0 is nobody's: tells that there was such a write */
    return 0;
}

int mark_measured(PyObject *marks, int64_t column, PyObject *object, uint64_t version,
                  const tensor *read, int64_t block) {
    mark now = {(uint64_t)(uintptr_t)object, version, block, checksum_of(read, block)};
    Py_ssize_t size = PyByteArray_Size(marks);
    if (!mark_at(marks, column)) { /* twice the room, for the columns that follow */
        Py_ssize_t grown = 2 * (Py_ssize_t)(column + 1) * (Py_ssize_t)sizeof now;
        if (PyByteArray_Resize(marks, grown) < 0)
            return -1;
        memset(PyByteArray_AsString(marks) + size, 0, (size_t)(grown - size));
    }
    memcpy(mark_at(marks, column), &now, sizeof now);
    return 0;
}
