/* Reading PAGE records in place, and putting the changes of one page together.
 *
 * Records are given as they lie in their batch, as a buffer and an offset. The layouts are those of log/layout.py; all
 * integers are little-endian, as is every machine this is built for. Nothing is trusted: whatever would reach beyond its
 * record or its page raises MalformedError. The GIL is held, as calls take microseconds; but not by the walk over a
 * whole batch.
 */
#ifndef AURORA_RECORDS_H
#define AURORA_RECORDS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "records are little-endian and are read in place"
#endif

enum { HEADER_BYTES = 32, IMAGE_LENGTH_BYTES = 4, RANGE_BYTES = 4, PAGE_BYTES_MAX = 32768 };
enum { KIND_PAGE = 1, KIND_MAX = 13, FLAG_FULL = 1, RECORD_ALIGN = 8 };

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

/* Bytes of a page that are known. */
typedef struct {
    Span *items; /* kept from page to page */
    size_t count, capacity;
} Spans;

/* Several changes of a page as one. While it is no image, only the bytes within `spans` mean anything. */
typedef struct {
    uint8_t page[PAGE_BYTES_MAX];
    size_t page_bytes;
    bool image;
    Spans spans;
} Merge;

extern PyObject *malformed_error;

/* Whoever calls another function here has called this first: it finds MalformedError. */
bool records_ready(void);
bool malformed(const char *format, ...); /* raises it */

bool read_header(const Py_buffer *buf, Py_ssize_t at, RecordHeader *header);
/* `heads` begins with `count` pairs (offset, length), then come the bytes of all of them; notes in `spans` what they
 * cover, unless that is NULL. */
bool apply_ranges(const uint8_t *heads, size_t nbytes, unsigned count, uint8_t *page, size_t page_bytes, Spans *spans);
/* Applies the PAGE record at `at`; `*image` becomes true if it was one. */
bool apply_record(const Py_buffer *buf, Py_ssize_t at, uint8_t *page, size_t page_bytes, Spans *spans, bool *image);

bool check_page_bytes(Py_ssize_t page_bytes); /* raises ValueError */
void merge_begin(Merge *merge, size_t page_bytes, bool base_is_zeros);
bool merge_change(Merge *merge, PyObject *change); /* a tuple (lsn, batch, offset) */
bool merge_cut(Merge *merge, size_t from);         /* a truncation: zeros from there on */
size_t merge_image_bytes(const Merge *merge);      /* without trailing zeros */
size_t merge_delta_bytes(Merge *merge);            /* of the encoded delta; joins the spans */
void merge_write_delta(const Merge *merge, uint8_t *to); /* after `merge_delta_bytes` */

#endif
