/* The inner loops of storage nodes: finding the records of a batch, and putting the changes of a page together.
 *
 * Everything here works on PAGE records still inside their batch, given as a buffer and an offset. The layouts are those
 * of log/layout.py; all integers are little-endian, as is every machine this is built for. Nothing is trusted: whatever
 * would reach beyond its record or its page raises MalformedError. The GIL is held throughout; calls take microseconds.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "records are little-endian and are read in place"
#endif

enum { HEADER_BYTES = 32, IMAGE_LENGTH_BYTES = 4, RANGE_BYTES = 4, PAGE_BYTES_MAX = 32768 };
enum { KIND_PAGE = 1, FLAG_FULL = 1 };

typedef struct {
    uint32_t length;
    uint8_t kind;
    uint8_t flags;
    uint16_t count;
    uint64_t lsn;
    uint64_t file_id;
    uint32_t group;
    uint32_t page;
} RecordHeader;

_Static_assert(sizeof(RecordHeader) == HEADER_BYTES, "as in log/layout.py");

typedef struct {
    uint32_t start, stop;
} Span;

typedef struct {
    Span *items;
    size_t count, capacity;
} Spans;

static PyObject *malformed_error;
static Spans spans_of_merge; /* kept between calls; the GIL guards it */
static uint8_t scratch[PAGE_BYTES_MAX];

static bool
malformed(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    PyErr_FormatV(malformed_error, format, arguments);
    va_end(arguments);
    return false;
}

/* ---- one record */

static bool
read_header(const Py_buffer *buf, Py_ssize_t at, RecordHeader *header)
{
    if (at < 0 || at > buf->len - HEADER_BYTES)
        return malformed("a record begins beyond its batch");
    memcpy(header, (const uint8_t *)buf->buf + at, HEADER_BYTES);
    if (header->length < HEADER_BYTES || header->length > (size_t)(buf->len - at))
        return malformed("a record of %u bytes does not fit its batch", header->length);
    return true;
}

static bool
add_span(Spans *spans, uint32_t start, uint32_t stop)
{
    if (spans->count == spans->capacity) {
        size_t capacity = spans->capacity ? 2 * spans->capacity : 256;
        Span *items = PyMem_RawRealloc(spans->items, capacity * sizeof(Span));
        if (items == NULL) {
            PyErr_NoMemory();
            return false;
        }
        spans->items = items;
        spans->capacity = capacity;
    }
    spans->items[spans->count++] = (Span){start, stop};
    return true;
}

/* `heads` begins with `count` pairs (offset, length), then come the bytes of all of them; notes in `spans` what they cover. */
static bool
apply_ranges(const uint8_t *heads, size_t nbytes, unsigned count, uint8_t *page, size_t page_bytes, Spans *spans)
{
    if ((size_t)count * RANGE_BYTES > nbytes)
        return malformed("a page record of %u ranges is cut short", count);
    const uint8_t *data = heads + (size_t)count * RANGE_BYTES, *end = heads + nbytes;
    for (unsigned i = 0; i < count; i++) {
        uint16_t range[2];
        memcpy(range, heads + (size_t)i * RANGE_BYTES, RANGE_BYTES);
        uint32_t start = range[0], stop = start + range[1];
        if (stop > page_bytes || range[1] > end - data)
            return malformed("a page record's ranges do not fit a page of %zu bytes", page_bytes);
        memcpy(page + start, data, range[1]);
        data += range[1];
        if (spans != NULL && !add_span(spans, start, stop))
            return false;
    }
    return true;
}

static bool
apply_image(const uint8_t *body, size_t nbytes, uint8_t *page, size_t page_bytes)
{
    uint32_t image_bytes;
    if (nbytes < IMAGE_LENGTH_BYTES)
        return malformed("a page image is cut short");
    memcpy(&image_bytes, body, IMAGE_LENGTH_BYTES);
    if (image_bytes > page_bytes || image_bytes > nbytes - IMAGE_LENGTH_BYTES)
        return malformed("image of %u bytes for a page of %zu", image_bytes, page_bytes);
    memcpy(page, body + IMAGE_LENGTH_BYTES, image_bytes);
    memset(page + image_bytes, 0, page_bytes - image_bytes);
    return true;
}

/* Applies the PAGE record at `at`; `*image` becomes true if it was one. */
static bool
apply_record(const Py_buffer *buf, Py_ssize_t at, uint8_t *page, size_t page_bytes, Spans *spans, bool *image)
{
    RecordHeader header;
    if (!read_header(buf, at, &header))
        return false;
    const uint8_t *body = (const uint8_t *)buf->buf + at + HEADER_BYTES;
    size_t nbytes = header.length - HEADER_BYTES;
    if (!(header.flags & FLAG_FULL))
        return apply_ranges(body, nbytes, header.count, page, page_bytes, spans);
    *image = true;
    return apply_image(body, nbytes, page, page_bytes);
}

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

static int
by_start(const void *left, const void *right)
{
    const Span *a = left, *b = right;
    if (a->start != b->start)
        return a->start < b->start ? -1 : 1;
    return a->stop < b->stop ? -1 : a->stop > b->stop;
}

/* The union of the spans as a delta, ranges ascending and apart.
 *
 * A gap between two ranges shorter than a range's own head would be cheaper to keep only if its bytes were known. They
 * are not (the base is elsewhere), so only ranges that touch are joined.
 */
static PyObject *
encode_delta(const uint8_t *page, Spans *spans)
{
    size_t count = 0, data_bytes = 0;
    if (spans->count > 0) {
        qsort(spans->items, spans->count, sizeof(Span), by_start);
        for (size_t i = 1; i < spans->count; i++) {
            Span *last = &spans->items[count], next = spans->items[i];
            if (next.start > last->stop)
                spans->items[++count] = next;
            else if (next.stop > last->stop)
                last->stop = next.stop;
        }
        count++;
    }
    for (size_t i = 0; i < count; i++)
        data_bytes += spans->items[i].stop - spans->items[i].start;
    PyObject *delta = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(2 + count * RANGE_BYTES + data_bytes));
    if (delta == NULL)
        return NULL;
    uint8_t *head = (uint8_t *)PyBytes_AS_STRING(delta);
    uint16_t number = (uint16_t)count; /* at most one range for every second byte of a page */
    memcpy(head, &number, sizeof number);
    head += sizeof number;
    uint8_t *data = head + count * RANGE_BYTES;
    for (size_t i = 0; i < count; i++, head += RANGE_BYTES) {
        Span span = spans->items[i];
        uint16_t range[2] = {(uint16_t)span.start, (uint16_t)(span.stop - span.start)};
        memcpy(head, range, RANGE_BYTES);
        memcpy(data, page + span.start, range[1]);
        data += range[1];
    }
    return delta;
}

/* A truncation cut the page at `zero_from[number]`: what lies beyond is zeros. */
static bool
cut_here(PyObject *zero_from, Py_ssize_t number, size_t page_bytes)
{
    if (zero_from == NULL)
        return true;
    size_t cut = PyLong_AsSize_t(PySequence_Fast_GET_ITEM(zero_from, number));
    if (cut == (size_t)-1 && PyErr_Occurred())
        return false;
    if (cut >= page_bytes)
        return true;
    memset(scratch + cut, 0, page_bytes - cut);
    return add_span(&spans_of_merge, (uint32_t)cut, (uint32_t)page_bytes);
}

static bool
merge_change(PyObject *change, size_t page_bytes, bool *image)
{
    if (!PyTuple_Check(change) || PyTuple_GET_SIZE(change) != 3) {
        PyErr_SetString(PyExc_TypeError, "a change is a tuple (lsn, batch, offset)");
        return false;
    }
    Py_ssize_t at = PyLong_AsSsize_t(PyTuple_GET_ITEM(change, 2));
    if (at == -1 && PyErr_Occurred())
        return false;
    Py_buffer buf;
    if (PyObject_GetBuffer(PyTuple_GET_ITEM(change, 1), &buf, PyBUF_SIMPLE) < 0)
        return false;
    bool done = apply_record(&buf, at, scratch, page_bytes, &spans_of_merge, image);
    PyBuffer_Release(&buf);
    return done;
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
    if (!PyArg_ParseTuple(args, "Onp|O:merge", &changes, &page_bytes, &base_is_zeros, &zero_from))
        return NULL;
    if (page_bytes <= 0 || page_bytes > PAGE_BYTES_MAX)
        return PyErr_Format(PyExc_ValueError, "pages of %zd bytes are not supported", page_bytes);
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
    bool image = base_is_zeros;
    spans_of_merge.count = 0;
    if (image)
        memset(scratch, 0, (size_t)page_bytes);
    if (!cut_here(zero_from, 0, (size_t)page_bytes))
        goto out;
    for (Py_ssize_t i = 0; i < count; i++)
        if (!merge_change(PySequence_Fast_GET_ITEM(changes, i), (size_t)page_bytes, &image)
            || !cut_here(zero_from, i + 1, (size_t)page_bytes))
            goto out;
    if (image) {
        Py_ssize_t used = page_bytes;
        while (used > 0 && scratch[used - 1] == 0)
            used--;
        data = PyBytes_FromStringAndSize((const char *)scratch, used);
    } else {
        data = encode_delta(scratch, &spans_of_merge);
    }
out:
    Py_DECREF(changes);
    Py_XDECREF(zero_from);
    return data == NULL ? NULL : Py_BuildValue("(NN)", PyBool_FromLong(image), data);
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

static PyMethodDef methods[] = {
    {"apply_at", apply_at, METH_VARARGS, apply_at_doc},
    {"apply_delta", apply_delta, METH_VARARGS, apply_delta_doc},
    {"merge", merge, METH_VARARGS, merge_doc},
    {"scan", scan, METH_VARARGS, scan_doc},
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
    PyObject *errors = PyImport_ImportModule("aurora_ray.errors");
    if (errors == NULL)
        return NULL;
    malformed_error = PyObject_GetAttrString(errors, "MalformedError");
    Py_DECREF(errors);
    return malformed_error == NULL ? NULL : PyModule_Create(&definition);
}
