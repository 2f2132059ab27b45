/* The inner loops of storage nodes over PAGE records, for Python: finding those of a batch, and putting them together. */
#include "records.h"

#include <string.h>

static Merge merging; /* one at a time; the GIL guards it */

/* ---- one record */

PyDoc_STRVAR(apply_at_doc, "apply_at(buf, at, page, /)\n--\n\n"
             "Applies the PAGE record at offset `at` of `buf` to the bytearray `page`; whether it was an image.\n\n"
             "Raises MalformedError; the page may then have changed in part.");

static PyObject *
apply_at(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer buf;
    Py_ssize_t at;
    PyObject *page;
    if (!PyArg_ParseTuple(args, "y*nO!:apply_at", &buf, &at, &PyByteArray_Type, &page))
        return NULL;
    bool image = false;
    bool done = apply_record(&buf, at, (uint8_t *)PyByteArray_AS_STRING(page), (size_t)PyByteArray_GET_SIZE(page),
                             NULL, &image);
    PyBuffer_Release(&buf);
    return done ? PyBool_FromLong(image) : NULL;
}

PyDoc_STRVAR(apply_delta_doc, "apply_delta(delta, page, /)\n--\n\n"
             "Applies a merged delta to the bytearray `page`. Raises MalformedError.");

static PyObject *
apply_delta(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer delta;
    PyObject *page;
    if (!PyArg_ParseTuple(args, "y*O!:apply_delta", &delta, &PyByteArray_Type, &page))
        return NULL;
    uint16_t count;
    bool done;
    if (delta.len < (Py_ssize_t)sizeof count) {
        done = malformed("a delta of %zd bytes is cut short", delta.len);
    } else {
        memcpy(&count, delta.buf, sizeof count);
        done = apply_ranges((const uint8_t *)delta.buf + sizeof count, (size_t)delta.len - sizeof count, count,
                            (uint8_t *)PyByteArray_AS_STRING(page), (size_t)PyByteArray_GET_SIZE(page), NULL);
    }
    PyBuffer_Release(&delta);
    if (!done)
        return NULL;
    Py_RETURN_NONE;
}

/* ---- merging */

/* A truncation cut the page at `zero_from[number]`: what lies beyond is zeros. */
static bool
cut_here(PyObject *zero_from, Py_ssize_t number)
{
    if (zero_from == NULL)
        return true;
    size_t cut = PyLong_AsSize_t(PySequence_Fast_GET_ITEM(zero_from, number));
    if (cut == (size_t)-1 && PyErr_Occurred())
        return false;
    return merge_cut(&merging, cut);
}

static PyObject *
merged_data(void)
{
    if (merging.image)
        return PyBytes_FromStringAndSize((const char *)merging.page, (Py_ssize_t)merge_image_bytes(&merging));
    PyObject *delta = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)merge_delta_bytes(&merging));
    if (delta != NULL)
        merge_write_delta(&merging, (uint8_t *)PyBytes_AS_STRING(delta));
    return delta;
}

PyDoc_STRVAR(merge_doc, "merge(changes, page_size, base_is_zeros, zero_from=None, /)\n--\n\n"
             "All changes of a page, (lsn, batch, offset) in LSN order, as one: (is_image, data).\n\n"
             "An image comes without its trailing zeros. `base_is_zeros`: nothing was there before, so the result is an\n"
             "image. `zero_from[i]` (page_size: no cut) is where a truncation cut the page after change i; entry 0 stands\n"
             "before the first change. Raises MalformedError.");

static PyObject *
merge(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *changes, *zero_from = Py_None, *data = NULL;
    Py_ssize_t page_bytes;
    int base_is_zeros;
    if (!PyArg_ParseTuple(args, "Onp|O:merge", &changes, &page_bytes, &base_is_zeros, &zero_from)
        || !check_page_bytes(page_bytes))
        return NULL;
    changes = PySequence_Fast(changes, "changes are a sequence");
    if (changes == NULL)
        return NULL;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(changes);
    zero_from = zero_from == Py_None ? NULL : PySequence_Fast(zero_from, "zero_from is a sequence");
    if (PyErr_Occurred())
        goto out;
    if (zero_from != NULL && PySequence_Fast_GET_SIZE(zero_from) != count + 1) {
        PyErr_Format(PyExc_ValueError, "%zd changes need %zd entries of zero_from", count, count + 1);
        goto out;
    }
    merge_begin(&merging, (size_t)page_bytes, base_is_zeros);
    if (!cut_here(zero_from, 0))
        goto out;
    for (Py_ssize_t i = 0; i < count; i++)
        if (!merge_change(&merging, PySequence_Fast_GET_ITEM(changes, i)) || !cut_here(zero_from, i + 1))
            goto out;
    data = merged_data();
out:
    Py_DECREF(changes);
    Py_XDECREF(zero_from);
    return data == NULL ? NULL : Py_BuildValue("(NN)", PyBool_FromLong(merging.image), data);
}

/* ---- scanning a batch */

static PyObject *
page_number_key(const RecordHeader *header)
{
    if (header->file_id <= UINT32_MAX)
        return PyLong_FromUnsignedLongLong(header->file_id << 32 | header->page);
    PyObject *parts = Py_BuildValue("(KII)", (unsigned long long)header->file_id, 32u, header->page), *key = NULL;
    if (parts == NULL)
        return NULL;
    PyObject *shifted = PyNumber_Lshift(PyTuple_GET_ITEM(parts, 0), PyTuple_GET_ITEM(parts, 1));
    if (shifted != NULL)
        key = PyNumber_Or(shifted, PyTuple_GET_ITEM(parts, 2));
    Py_XDECREF(shifted);
    Py_DECREF(parts);
    return key;
}

static bool
note_page(PyObject *pages, const RecordHeader *header, PyObject *batch, Py_ssize_t at)
{
    PyObject *key = page_number_key(header);
    if (key == NULL)
        return false;
    PyObject *change = Py_BuildValue("(KOn)", (unsigned long long)header->lsn, batch, at);
    PyObject *known = change == NULL ? NULL : PyDict_GetItemWithError(pages, key);
    bool done = false;
    if (known != NULL) {
        done = PyList_Append(known, change) == 0;
    } else if (!PyErr_Occurred()) {
        PyObject *first = PyList_New(1);
        if (first != NULL) {
            PyList_SET_ITEM(first, 0, Py_NewRef(change));
            done = PyDict_SetItem(pages, key, first) == 0;
            Py_DECREF(first);
        }
    }
    Py_XDECREF(change);
    Py_DECREF(key);
    return done;
}

static bool
note_other(PyObject *others, const RecordHeader *header, Py_ssize_t at)
{
    PyObject *item = Py_BuildValue("(IKKnI)", (unsigned)header->kind, (unsigned long long)header->lsn,
                                   (unsigned long long)header->file_id, at, header->length);
    bool done = item != NULL && PyList_Append(others, item) == 0;
    Py_XDECREF(item);
    return done;
}

PyDoc_STRVAR(scan_doc, "scan(batch, at, pages, /)\n--\n\n"
             "Notes the PAGE records of `batch` from offset `at` on in the dict `pages`: file_id << 32 | page number ->\n"
             "list of (lsn, batch, offset). Gives the others as a list of (type, lsn, file_id, offset, length).\n\n"
             "Raises MalformedError.");

static PyObject *
scan(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *batch, *pages;
    Py_ssize_t at;
    Py_buffer buf;
    if (!PyArg_ParseTuple(args, "OnO!:scan", &batch, &at, &PyDict_Type, &pages))
        return NULL;
    if (PyObject_GetBuffer(batch, &buf, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *others = PyList_New(0);
    bool done = others != NULL;
    while (done && at < buf.len) {
        RecordHeader header = {0};
        done = read_header(&buf, at, &header)
            && (header.kind == KIND_PAGE ? note_page(pages, &header, batch, at) : note_other(others, &header, at));
        at += header.length;
    }
    PyBuffer_Release(&buf);
    if (!done)
        Py_CLEAR(others);
    return others;
}

/* ---- checking a batch */

/* How many sound records there are from `at` on, which is moved behind them; `*low` is the LSN of the last one. */
static Py_ssize_t
sound_records(const Py_buffer *buf, Py_ssize_t *at, uint32_t group, uint64_t *low)
{
    Py_ssize_t count = 0;
    for (RecordHeader header; buf->len - *at >= HEADER_BYTES; count++) {
        memcpy(&header, (const uint8_t *)buf->buf + *at, HEADER_BYTES);
        if (header.length < HEADER_BYTES || header.length % RECORD_ALIGN || header.length > (size_t)(buf->len - *at)
            || header.kind < 1 || header.kind > KIND_MAX || header.group != group || header.lsn < header.length
            || header.lsn - header.length < *low)
            break;
        *low = header.lsn;
        *at += header.length;
    }
    return count;
}

PyDoc_STRVAR(walk_doc, "walk(batch, at, group, start_lsn, /)\n--\n\n"
             "Walks the headers of the records from offset `at` on: lengths, types, group, LSNs that ascend from\n"
             "`start_lsn`. (how many are sound, where they end, the LSN of the last). Without the GIL.");

static PyObject *
walk(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer buf;
    Py_ssize_t at, count;
    unsigned int group;
    unsigned long long start_lsn;
    if (!PyArg_ParseTuple(args, "y*nIK:walk", &buf, &at, &group, &start_lsn))
        return NULL;
    if (at < 0 || at > buf.len) {
        PyBuffer_Release(&buf);
        malformed("records begin beyond their batch");
        return NULL;
    }
    uint64_t low = start_lsn;
    Py_BEGIN_ALLOW_THREADS
    count = sound_records(&buf, &at, group, &low);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&buf);
    return Py_BuildValue("(nnK)", count, at, (unsigned long long)low);
}

static PyMethodDef methods[] = {
    {"apply_at", apply_at, METH_VARARGS, apply_at_doc},
    {"apply_delta", apply_delta, METH_VARARGS, apply_delta_doc},
    {"merge", merge, METH_VARARGS, merge_doc},
    {"scan", scan, METH_VARARGS, scan_doc},
    {"walk", walk, METH_VARARGS, walk_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "aurora_ray.log._pages",
    .m_doc = "Inner loops over PAGE records.",
    .m_size = -1,
    .m_methods = methods,
};

PyMODINIT_FUNC
PyInit__pages(void)
{
    return records_ready() ? PyModule_Create(&definition) : NULL;
}
