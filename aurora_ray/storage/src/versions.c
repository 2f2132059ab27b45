/* The inner loop of coalescing: from the changes of many pages to their versions, ready to be stored.
 *
 * Does for the pages that need no look at what is stored what storage/pages/coalesce.py does for any page; the others are left
 * to it. Keys and values are those of storage/disk/keys.py, what is known of chains that of storage/segment/chains.py.
 */
#include "../../log/src/crc32c.h"
#include "../../log/src/records.h"

#include <endian.h>
#include <string.h>

enum { KEY_BYTES = 20, CRC_BYTES = 4, KIND_IMAGE = 1, KIND_DELTA = 2, IMAGE_HEAD_BYTES = 1, DELTA_HEAD_BYTES = 8 };
enum { RANGE_PAGES = 1024, CHAIN_BYTES_BITS = 16 };

typedef struct {
    uint8_t kind, zero;
    uint16_t deltas;
    uint32_t delta_bytes;
} DeltaHead;

_Static_assert(sizeof(DeltaHead) == DELTA_HEAD_BYTES, "as in storage/disk/keys.py");

typedef struct {
    PyObject *changes; /* dict: page's number key -> list of changes */
    uint64_t file_id, end_lsn;
    uint32_t *known; /* a chain for each page of the range; 0: not known */
    uint32_t assumed, deltas_max;
    Py_ssize_t page_bytes;
    PyObject *versions, *images, *left;
} Run;

static Merge merging; /* one at a time; the GIL guards it */

/* Appends (key, value), a reference to which it takes; what is behind the value's CRC has been filled in. */
static bool
append_version(Run *run, uint32_t page, PyObject *value)
{
    uint8_t key[KEY_BYTES];
    uint64_t file_id = htobe64(run->file_id), lsn = htobe64(run->end_lsn);
    uint32_t number = htobe32(page);
    memcpy(key, &file_id, 8);
    memcpy(key + 8, &number, 4);
    memcpy(key + 12, &lsn, 8);
    uint8_t *bytes = (uint8_t *)PyBytes_AS_STRING(value);
    uint32_t crc = ar_crc32c(ar_crc32c(0, key, KEY_BYTES), bytes + CRC_BYTES, (size_t)PyBytes_GET_SIZE(value) - CRC_BYTES);
    memcpy(bytes, &crc, CRC_BYTES);
    PyObject *pair = Py_BuildValue("(y#N)", (const char *)key, (Py_ssize_t)KEY_BYTES, value);
    bool done = pair != NULL && PyList_Append(run->versions, pair) == 0;
    Py_XDECREF(pair);
    return done;
}

static bool
put_image(Run *run, uint32_t page, PyObject *number)
{
    size_t nbytes = merge_image_bytes(&merging);
    PyObject *value = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(CRC_BYTES + IMAGE_HEAD_BYTES + nbytes));
    if (value == NULL)
        return false;
    uint8_t *bytes = (uint8_t *)PyBytes_AS_STRING(value);
    bytes[CRC_BYTES] = KIND_IMAGE;
    memcpy(bytes + CRC_BYTES + IMAGE_HEAD_BYTES, merging.page, nbytes);
    run->known[page % RANGE_PAGES] = 1u << CHAIN_BYTES_BITS;
    return append_version(run, page, value) && PyList_Append(run->images, number) == 0;
}

static bool
put_delta(Run *run, uint32_t page, PyObject *number, uint32_t base)
{
    size_t nbytes = merge_delta_bytes(&merging);
    uint32_t deltas = base >> CHAIN_BYTES_BITS; /* the base is packed with one more, which is now this one */
    size_t delta_bytes = (base & ((1u << CHAIN_BYTES_BITS) - 1)) + nbytes;
    if (deltas >= run->deltas_max || delta_bytes >= merging.page_bytes)
        return PyList_Append(run->left, number) == 0;
    PyObject *value = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(CRC_BYTES + DELTA_HEAD_BYTES + nbytes));
    if (value == NULL)
        return false;
    uint8_t *bytes = (uint8_t *)PyBytes_AS_STRING(value);
    DeltaHead head = {KIND_DELTA, 0, (uint16_t)deltas, (uint32_t)delta_bytes};
    memcpy(bytes + CRC_BYTES, &head, DELTA_HEAD_BYTES);
    merge_write_delta(&merging, bytes + CRC_BYTES + DELTA_HEAD_BYTES);
    run->known[page % RANGE_PAGES] = (deltas + 1) << CHAIN_BYTES_BITS | (uint32_t)delta_bytes;
    return append_version(run, page, value);
}

static bool
one_page(Run *run, PyObject *number)
{
    uint32_t page = (uint32_t)PyLong_AsUnsignedLongMask(number); /* the lower half of the number is the page */
    if (PyErr_Occurred())
        return false;
    PyObject *changes = PyDict_GetItemWithError(run->changes, number);
    if (changes == NULL || !PyList_Check(changes)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "a page has a list of changes");
        return false;
    }
    uint32_t base = run->known[page % RANGE_PAGES];
    if (base == 0)
        base = run->assumed;
    if (base == 0)
        return PyList_Append(run->left, number) == 0;
    merge_begin(&merging, (size_t)run->page_bytes, false);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(changes); i++) {
        if (merge_change(&merging, PyList_GET_ITEM(changes, i)))
            continue;
        if (!PyErr_ExceptionMatches(malformed_error))
            return false;
        PyErr_Clear();
        return PyList_Append(run->left, number) == 0;
    }
    return merging.image ? put_image(run, page, number) : put_delta(run, page, number, base);
}

PyDoc_STRVAR(versions_of_doc,
             "versions_of(changes, numbers, file_id, end_lsn, page_size, known, assumed, deltas_max, /)\n--\n\n"
             "Versions at `end_lsn` of the pages `numbers` (file_id << 32 | page, all of one range of 1,024 pages), whose\n"
             "`changes` are a dict from such a number to a list of (lsn, batch, offset).\n\n"
             "`known`: the packed chains of the range, brought up to date; where one is 0, `assumed` stands for it. Gives\n"
             "(versions, images, left): pairs (key, value), the pages whose version is an image, and those that were not\n"
             "done: their chain is not known or long enough for an image, or a change of theirs is malformed.");

static PyObject *
versions_of(PyObject *Py_UNUSED(module), PyObject *args)
{
    Run run = {0};
    PyObject *numbers, *result = NULL;
    Py_buffer known;
    unsigned long long file_id, end_lsn;
    if (!PyArg_ParseTuple(args, "O!O!KKnw*II:versions_of", &PyDict_Type, &run.changes, &PyList_Type, &numbers, &file_id,
                          &end_lsn, &run.page_bytes, &known, &run.assumed, &run.deltas_max))
        return NULL;
    run.file_id = file_id;
    run.end_lsn = end_lsn;
    run.known = known.buf;
    run.versions = PyList_New(0);
    run.images = PyList_New(0);
    run.left = PyList_New(0);
    bool done = run.versions != NULL && run.images != NULL && run.left != NULL && check_page_bytes(run.page_bytes);
    if (done && known.len != RANGE_PAGES * (Py_ssize_t)sizeof(uint32_t)) {
        PyErr_Format(PyExc_ValueError, "%zd bytes of chains for %d pages", known.len, RANGE_PAGES);
        done = false;
    }
    for (Py_ssize_t i = 0; done && i < PyList_GET_SIZE(numbers); i++)
        done = one_page(&run, PyList_GET_ITEM(numbers, i));
    if (done)
        result = PyTuple_Pack(3, run.versions, run.images, run.left);
    Py_XDECREF(run.versions);
    Py_XDECREF(run.images);
    Py_XDECREF(run.left);
    PyBuffer_Release(&known);
    return result;
}

static PyMethodDef methods[] = {
    {"versions_of", versions_of, METH_VARARGS, versions_of_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "aurora_ray.storage._versions",
    .m_doc = "The inner loop of coalescing.",
    .m_size = -1,
    .m_methods = methods,
};

PyMODINIT_FUNC
PyInit__versions(void)
{
    return records_ready() ? PyModule_Create(&definition) : NULL;
}
