/*
 * Where whole records of PostgreSQL's WAL end, for whoever hands WAL on (engine/postgres/standby/window.py).
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
#include <string.h>

enum { PAGE = 8192, SHORT_HEADER = 24, LONG_HEADER = 40, RECORD_HEADER = 24, CRC_OFFSET = 20 };
enum { FIRST_IS_CONTRECORD = 1, FIRST_IS_OVERWRITE_CONTRECORD = 8 };
enum { RMGR_XLOG = 0, XLOG_SWITCH = 0x40, XLOG_PARAMETER_CHANGE = 0x60, INFO_MASK = 0xF0 };
enum { BLOCK_ID_DATA_SHORT = 255, PARAMETERS = 5 };
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

struct walk {
    uint64_t end;  /* behind the last whole record */
    uint64_t prev; /* where that one begins; 0: not known */
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
    found = take(w, c, c->left, NULL);
    if (found != HERE)
        return found;
    if (ar_crc32c(c->crc, header, CRC_OFFSET) != u32(header + CRC_OFFSET))
        return FOREIGN;
    if (changes) {
        walk->changed = true;
        memcpy(walk->parameters, parameters, sizeof parameters);
    }
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

PyDoc_STRVAR(walk_doc, "walk(window, base, at, prev, segment_bytes, begins, /)\n--\n\n"
             "Whole records of WAL from the position `at` on in `window`, whole pages of which the first is at `base`.\n\n"
             "`prev` is where the record before `at` begins (0: not known); with `begins`, `at` is at a page that may\n"
             "begin with the rest of a record. Gives (end of the last whole record, where that one begins, whether\n"
             "more bytes are needed to go on, the five settings of the last change of parameters or None).");

static PyObject *
walk(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer buf;
    unsigned long long base, at, prev, segment;
    int begins;
    if (!PyArg_ParseTuple(args, "y*KKKKp:walk", &buf, &base, &at, &prev, &segment, &begins))
        return NULL;
    struct window w = {.bytes = buf.buf, .base = base, .end = base + (uint64_t)buf.len, .segment = segment};
    struct walk found = {.end = at, .prev = prev};
    if (base % PAGE || buf.len % PAGE || at < base || segment == 0 || segment % PAGE) {
        PyBuffer_Release(&buf);
        PyErr_SetString(PyExc_ValueError, "a window of WAL has whole pages, and is walked from within");
        return NULL;
    }
    walk_records(&w, &found, begins);
    PyBuffer_Release(&buf);
    PyObject *settings = Py_NewRef(Py_None);
    if (found.changed) {
        const uint32_t *p = found.parameters;
        Py_SETREF(settings, Py_BuildValue("(IIIII)", p[0], p[1], p[2], p[3], p[4]));
        if (settings == NULL)
            return NULL;
    }
    return Py_BuildValue("(KKNN)", (unsigned long long)found.end, (unsigned long long)found.prev,
                         PyBool_FromLong(found.why == BEYOND), settings);
}

static PyMethodDef methods[] = {
    {"walk", walk, METH_VARARGS, walk_doc},
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
