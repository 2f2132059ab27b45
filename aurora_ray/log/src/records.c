#include "records.h"

#include <stdlib.h>
#include <string.h>

PyObject *malformed_error;

bool
records_ready(void)
{
    PyObject *errors = PyImport_ImportModule("aurora_ray.errors");
    if (errors == NULL)
        return false;
    malformed_error = PyObject_GetAttrString(errors, "MalformedError");
    Py_DECREF(errors);
    return malformed_error != NULL;
}

bool
malformed(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    PyErr_FormatV(malformed_error, format, arguments);
    va_end(arguments);
    return false;
}

/* ---- one record */

bool
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

bool
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

bool
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

/* ---- merging */

bool
check_page_bytes(Py_ssize_t page_bytes)
{
    if (page_bytes > 0 && page_bytes <= PAGE_BYTES_MAX)
        return true;
    PyErr_Format(PyExc_ValueError, "pages of %zd bytes are not supported", page_bytes);
    return false;
}

void
merge_begin(Merge *merge, size_t page_bytes, bool base_is_zeros)
{
    merge->page_bytes = page_bytes;
    merge->image = base_is_zeros;
    merge->spans.count = 0;
    if (base_is_zeros)
        memset(merge->page, 0, page_bytes);
}

bool
merge_change(Merge *merge, PyObject *change)
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
    bool done = apply_record(&buf, at, merge->page, merge->page_bytes, &merge->spans, &merge->image);
    PyBuffer_Release(&buf);
    return done;
}

bool
merge_cut(Merge *merge, size_t from)
{
    if (from >= merge->page_bytes)
        return true;
    memset(merge->page + from, 0, merge->page_bytes - from);
    return add_span(&merge->spans, (uint32_t)from, (uint32_t)merge->page_bytes);
}

size_t
merge_image_bytes(const Merge *merge)
{
    size_t used = merge->page_bytes;
    while (used > 0 && merge->page[used - 1] == 0)
        used--;
    return used;
}

static int
by_start(const void *left, const void *right)
{
    const Span *a = left, *b = right;
    if (a->start != b->start)
        return a->start < b->start ? -1 : 1;
    return a->stop < b->stop ? -1 : a->stop > b->stop;
}

/* Makes the spans ascend and lie apart.
 *
 * A gap between two spans shorter than a range's own head would be cheaper to keep only if its bytes were known. They
 * are not (the base is elsewhere), so only spans that touch are joined.
 */
static void
join_spans(Spans *spans)
{
    size_t last = 0;
    if (spans->count < 2)
        return;
    qsort(spans->items, spans->count, sizeof(Span), by_start);
    for (size_t i = 1; i < spans->count; i++) {
        Span *to = &spans->items[last], next = spans->items[i];
        if (next.start > to->stop)
            spans->items[++last] = next;
        else if (next.stop > to->stop)
            to->stop = next.stop;
    }
    spans->count = last + 1;
}

size_t
merge_delta_bytes(Merge *merge)
{
    join_spans(&merge->spans);
    size_t nbytes = sizeof(uint16_t) + merge->spans.count * RANGE_BYTES;
    for (size_t i = 0; i < merge->spans.count; i++)
        nbytes += merge->spans.items[i].stop - merge->spans.items[i].start;
    return nbytes;
}

void
merge_write_delta(const Merge *merge, uint8_t *to)
{
    uint16_t count = (uint16_t)merge->spans.count; /* at most one range for every second byte of a page */
    memcpy(to, &count, sizeof count);
    uint8_t *head = to + sizeof count, *data = head + (size_t)count * RANGE_BYTES;
    for (size_t i = 0; i < count; i++, head += RANGE_BYTES) {
        Span span = merge->spans.items[i];
        uint16_t range[2] = {(uint16_t)span.start, (uint16_t)(span.stop - span.start)};
        memcpy(head, range, RANGE_BYTES);
        memcpy(data, merge->page + span.start, range[1]);
        data += range[1];
    }
}
