/*
 * Where whole records of PostgreSQL's WAL end, for whoever hands WAL on (engine/postgres/standby/window.py), and which
 * blocks they change, for whoever brings these ahead of a recovery (engine/postgres/foresight.py).
 *
 * WAL is a sequence of pages of 8 KiB with headers; records follow each other at multiples of 8 bytes and go on behind the
 * header of the next page (access/xlogrecord.h, access/xlog_internal.h; the same from 13 to 18). A page may be written
 * while records on it are still being put in, so a record counts when its CRC says that all of it is there.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../../log/src/crc32c.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE = 8192, SHORT_HEADER = 24, LONG_HEADER = 40, RECORD_HEADER = 24, CRC_OFFSET = 20 };
enum { FIRST_IS_CONTRECORD = 1, FIRST_IS_OVERWRITE_CONTRECORD = 8 };
enum { RMGR_XLOG = 0, XLOG_SWITCH = 0x40, XLOG_PARAMETER_CHANGE = 0x60, INFO_MASK = 0xF0 };
enum { RMGR_DBASE = 4, XLOG_DBASE_CREATE_FILE_COPY = 0x00 }; /* up to 14, XLOG_DBASE_CREATE */
enum { BLOCK_ID_DATA_SHORT = 255, BLOCK_ID_MAX = 32, PARAMETERS = 5 };
enum { BLOCK_FORK_MASK = 0x0F, BLOCK_HAS_IMAGE = 0x10, BLOCK_WILL_INIT = 0x40, BLOCK_SAME_REL = 0x80 };
enum { BLOCK_HEADER = 4, BLOCK_RELATION = 12, BLOCK_NUMBER = 4 };
#define BLOCK_HEADERS_MAX ((BLOCK_ID_MAX + 1) * (BLOCK_HEADER + BLOCK_RELATION + BLOCK_NUMBER))
#define RECORD_BYTES_MAX (1020u << 20) /* XLogRecordMaxSize */

/* What a look into the window meets. */
enum outcome { HERE, BEYOND, FOREIGN, OVERWRITTEN };

struct window {
    const uint8_t *bytes;
    uint64_t base, end; /* positions in the WAL; both at pages */
    uint64_t segment;   /* bytes */
};

/* Where in a record one is: the next byte's position, and how many bytes of the record are left. */
struct cursor {
    uint64_t at;
    uint32_t left;
    uint32_t crc;
};

static uint16_t u16(const uint8_t *p) { uint16_t v; memcpy(&v, p, sizeof v); return v; }
static uint32_t u32(const uint8_t *p) { uint32_t v; memcpy(&v, p, sizeof v); return v; }
static uint64_t u64(const uint8_t *p) { uint64_t v; memcpy(&v, p, sizeof v); return v; }

static const uint8_t *
look(const struct window *w, uint64_t at)
{
    return w->bytes + (at - w->base);
}

static unsigned
header_bytes(const struct window *w, uint64_t page)
{
    return page % w->segment == 0 ? LONG_HEADER : SHORT_HEADER;
}

/* Whether the page at this position is there, and is that page and not what a segment held before it was used again. */
static enum outcome
page_at(const struct window *w, uint64_t page)
{
    if (page < w->base || page + PAGE > w->end)
        return BEYOND;
    const uint8_t *header = look(w, page);
    return u16(header) != 0 && u64(header + 8) == page ? HERE : FOREIGN;
}

/* Goes over the header of the page at the cursor, in the middle of a record. */
static enum outcome
turn_page(const struct window *w, struct cursor *c)
{
    enum outcome found = page_at(w, c->at);
    if (found != HERE)
        return found;
    const uint8_t *header = look(w, c->at);
    uint16_t info = u16(header + 2);
    if (info & FIRST_IS_OVERWRITE_CONTRECORD)
        return OVERWRITTEN;
    if (!(info & FIRST_IS_CONTRECORD) || u32(header + 16) != c->left)
        return FOREIGN;
    c->at += header_bytes(w, c->at);
    return HERE;
}

/* The next `n` bytes of a record: into `copy` if given, else into the CRC. */
static enum outcome
take(const struct window *w, struct cursor *c, uint32_t n, uint8_t *copy)
{
    while (n > 0) {
        if (c->at % PAGE == 0) {
            enum outcome found = turn_page(w, c);
            if (found != HERE)
                return found;
        }
        uint32_t room = PAGE - c->at % PAGE, step = n < room ? n : room;
        if (copy != NULL) {
            memcpy(copy, look(w, c->at), step);
            copy += step;
        } else {
            c->crc = ar_crc32c(c->crc, look(w, c->at), step);
        }
        c->at += step;
        c->left -= step;
        n -= step;
    }
    return HERE;
}

static uint64_t aligned(uint64_t at) { return (at + 7) & ~UINT64_C(7); }

/* The five settings that a change of parameters carries, if this record is one. */
static bool
read_parameters(const struct window *w, struct cursor c, const uint8_t *header, uint32_t parameters[PARAMETERS])
{
    uint8_t body[2 + sizeof(uint32_t) * PARAMETERS];
    if (header[17] != RMGR_XLOG || (header[16] & INFO_MASK) != XLOG_PARAMETER_CHANGE || c.left < sizeof body)
        return false;
    if (take(w, &c, sizeof body, body) != HERE || body[0] != BLOCK_ID_DATA_SHORT)
        return false;
    memcpy(parameters, body + 2, sizeof(uint32_t) * PARAMETERS);
    return true;
}

struct block {
    uint32_t tablespace, database, relation, fork, number;
};

struct blocks {
    struct block *all;
    size_t n, room;
    bool failed; /* there was no memory for one */
};

static void
add_block(struct blocks *blocks, struct block block)
{
    if (blocks->n == blocks->room) {
        size_t room = blocks->room ? 2 * blocks->room : 1024;
        struct block *more = realloc(blocks->all, room * sizeof *more);
        if (more == NULL) {
            blocks->failed = true;
            return;
        }
        blocks->all = more;
        blocks->room = room;
    }
    blocks->all[blocks->n++] = block;
}

/*
 * The blocks that a record reads before it changes them. Of a record with an image of a block, those from there on are
 * left out: how long the image's header is depends on the version.
 */
static void
read_blocks(const struct window *w, struct cursor c, struct blocks *blocks)
{
    uint8_t body[BLOCK_HEADERS_MAX];
    uint32_t n = c.left < sizeof body ? c.left : sizeof body, at = 0;
    struct block block = {0};
    if (take(w, &c, n, body) != HERE)
        return;
    while (at + BLOCK_HEADER + BLOCK_NUMBER <= n && body[at] <= BLOCK_ID_MAX) {
        uint8_t flags = body[at + 1];
        uint32_t relation = flags & BLOCK_SAME_REL ? 0 : BLOCK_RELATION;
        if (flags & BLOCK_HAS_IMAGE || at + BLOCK_HEADER + relation + BLOCK_NUMBER > n)
            return;
        at += BLOCK_HEADER;
        if (relation)
            memcpy(&block, body + at, BLOCK_RELATION);
        block.fork = flags & BLOCK_FORK_MASK;
        block.number = u32(body + at + relation);
        at += relation + BLOCK_NUMBER;
        if (!(flags & BLOCK_WILL_INIT))
            add_block(blocks, block);
    }
}

static int
compare_blocks(const void *one, const void *other)
{
    const uint32_t *a = one, *b = other;
    for (size_t i = 0; i < sizeof(struct block) / sizeof *a; i++)
        if (a[i] != b[i])
            return a[i] < b[i] ? -1 : 1;
    return 0;
}

/* In order, each once. */
static void
sort_blocks(struct blocks *blocks)
{
    size_t kept = 0;
    if (blocks->n > 0)
        qsort(blocks->all, blocks->n, sizeof *blocks->all, compare_blocks);
    for (size_t i = 0; i < blocks->n; i++)
        if (i == 0 || compare_blocks(&blocks->all[kept - 1], &blocks->all[i]) != 0)
            blocks->all[kept++] = blocks->all[i];
    blocks->n = kept;
}

struct walk {
    struct blocks *blocks; /* NULL: nobody asks */
    uint64_t end;  /* behind the last whole record */
    uint64_t prev; /* where that one begins; 0: not known */
    uint64_t copies; /* where the last record begins that copies files of a database; 0: none does */
    enum outcome why;
    bool changed; /* `parameters` are those of the last record that changes them */
    uint32_t parameters[PARAMETERS];
};

/* One record from `start` on, or what is left of one that began earlier (`rest` bytes). */
static enum outcome
step(const struct window *w, struct walk *walk, uint64_t start, uint32_t rest, struct cursor *c)
{
    *c = (struct cursor){.at = start, .left = rest};
    if (rest > 0)
        return take(w, c, rest, NULL);
    uint32_t parameters[PARAMETERS];
    uint8_t header[RECORD_HEADER];
    c->left = u32(look(w, start));
    if (c->left < RECORD_HEADER || c->left > RECORD_BYTES_MAX)
        return FOREIGN;
    enum outcome found = take(w, c, RECORD_HEADER, header);
    if (found != HERE)
        return found;
    if (walk->prev != 0 && u64(header + 8) != walk->prev)
        return FOREIGN;
    bool changes = read_parameters(w, *c, header, parameters);
    struct cursor body = *c;
    found = take(w, c, c->left, NULL);
    if (found != HERE)
        return found;
    if (ar_crc32c(c->crc, header, CRC_OFFSET) != u32(header + CRC_OFFSET))
        return FOREIGN;
    if (walk->blocks != NULL)
        read_blocks(w, body, walk->blocks);
    if (changes) {
        walk->changed = true;
        memcpy(walk->parameters, parameters, sizeof parameters);
    }
    if (header[17] == RMGR_DBASE && (header[16] & INFO_MASK) == XLOG_DBASE_CREATE_FILE_COPY)
        walk->copies = start;
    if (header[17] == RMGR_XLOG && (header[16] & INFO_MASK) == XLOG_SWITCH && c->at % w->segment != 0)
        c->at += w->segment - c->at % w->segment; /* the rest of the segment is empty */
    return HERE;
}

static void
walk_records(const struct window *w, struct walk *walk, bool begins)
{
    uint64_t at = walk->end;
    for (;;) {
        uint64_t start = at;
        uint32_t rest = 0;
        if ((walk->why = page_at(w, start - start % PAGE)) != HERE)
            return;
        if (start % PAGE == 0) {
            const uint8_t *header = look(w, start);
            if (u16(header + 2) & FIRST_IS_CONTRECORD) {
                if (!begins) {
                    walk->why = FOREIGN;
                    return;
                }
                rest = u32(header + 16);
            }
            start += header_bytes(w, start);
        }
        begins = false;
        struct cursor c;
        walk->why = step(w, walk, start, rest, &c);
        if (walk->why == OVERWRITTEN) { /* a recovery went on behind a record of which the rest was never written */
            at = c.at;
            walk->prev = 0;
            continue;
        }
        if (walk->why != HERE)
            return;
        at = aligned(c.at);
        if (rest > 0) { /* nothing tells that it is whole but the record behind it */
            walk->prev = 0;
            continue;
        }
        walk->end = at;
        walk->prev = start;
    }
}

/* What both calls are given; false with an exception. `buf` is to be released then as well, if it has an owner. */
static bool
read_window(PyObject *args, const char *format, Py_buffer *buf, struct window *w, struct walk *walk, int *begins)
{
    unsigned long long base, at, prev, segment;
    if (!PyArg_ParseTuple(args, format, buf, &base, &at, &prev, &segment, begins))
        return false;
    *w = (struct window){.bytes = buf->buf, .base = base, .end = base + (uint64_t)buf->len, .segment = segment};
    *walk = (struct walk){.end = at, .prev = prev};
    if (base % PAGE == 0 && buf->len % PAGE == 0 && at >= base && segment != 0 && segment % PAGE == 0)
        return true;
    PyBuffer_Release(buf);
    PyErr_SetString(PyExc_ValueError, "a window of WAL has whole pages, and is walked from within");
    return false;
}

PyDoc_STRVAR(walk_doc, "walk(window, base, at, prev, segment_bytes, begins, /)\n--\n\n"
             "Whole records of WAL from the position `at` on in `window`, whole pages of which the first is at `base`.\n\n"
             "`prev` is where the record before `at` begins (0: not known); with `begins`, `at` is at a page that may\n"
             "begin with the rest of a record. Gives (end of the last whole record, where that one begins, whether\n"
             "more bytes are needed to go on, the five settings of the last change of parameters or None, where the last\n"
             "record begins whose replay copies the files of a database, or 0).");

static PyObject *
walk(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer buf;
    struct window w;
    struct walk found;
    int begins;
    if (!read_window(args, "y*KKKKp:walk", &buf, &w, &found, &begins))
        return NULL;
    walk_records(&w, &found, begins);
    PyBuffer_Release(&buf);
    PyObject *settings = Py_NewRef(Py_None);
    if (found.changed) {
        const uint32_t *p = found.parameters;
        Py_SETREF(settings, Py_BuildValue("(IIIII)", p[0], p[1], p[2], p[3], p[4]));
        if (settings == NULL)
            return NULL;
    }
    return Py_BuildValue("(KKNNK)", (unsigned long long)found.end, (unsigned long long)found.prev,
                         PyBool_FromLong(found.why == BEYOND), settings, (unsigned long long)found.copies);
}

PyDoc_STRVAR(blocks_doc, "blocks(window, base, at, prev, segment_bytes, begins, /)\n--\n\n"
             "As `walk`. Gives (end of the last whole record, where that one begins, whether more bytes are needed to go\n"
             "on, the blocks that these records read, in order and each once: for each five u32 of this machine, which\n"
             "are tablespace, database, relation, fork and number).");

static PyObject *
blocks(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer buf;
    struct window w;
    struct walk found;
    struct blocks read = {0};
    int begins;
    if (!read_window(args, "y*KKKKp:blocks", &buf, &w, &found, &begins))
        return NULL;
    found.blocks = &read;
    walk_records(&w, &found, begins);
    PyBuffer_Release(&buf);
    sort_blocks(&read);
    PyObject *result = NULL;
    if (read.failed)
        PyErr_NoMemory();
    else
        result = Py_BuildValue("(KKNy#)", (unsigned long long)found.end, (unsigned long long)found.prev,
                               PyBool_FromLong(found.why == BEYOND), read.n ? (const char *)read.all : "",
                               (Py_ssize_t)(read.n * sizeof *read.all));
    free(read.all);
    return result;
}

static PyMethodDef methods[] = {
    {"walk", walk, METH_VARARGS, walk_doc},
    {"blocks", blocks, METH_VARARGS, blocks_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "aurora_ray.engine._wal",
    .m_doc = "Whole records of PostgreSQL's WAL.",
    .m_size = -1,
    .m_methods = methods,
};

PyMODINIT_FUNC
PyInit__wal(void)
{
    return PyModule_Create(&definition);
}
