/*
 * The region: the memory that the engine's processes (producers of redo) and the volume driver (its consumer) share,
 * and the calls that work on it.
 *
 *   region.c     attach, the lock, waiting, the table of files and of their chunks
 *   requests.c   asking the driver
 *   log.c        the ring: appending redo records
 *   files.c      what a truncate means to the log, and where extents are placed; making absent pages present
 *   writes.c     what a write means to the log
 *   names.c      what a create, a rename, an unlink means to the log
 *   places.c     which path is a file of the mount; descriptors.c: which descriptor
 *   intercept*.c the libc functions that lead here; README.md, beside this folder, says what happens on other ways
 *   driver.c     the consumer's side, called by Python through ctypes; driver_pages.c is its part about local files,
 *                exchange.c the one that gives the volume to a mount that had none to write to
 *
 * Rules that everything keeps:
 *   - One robust lock guards every change: the local file and the log change together under it, so log order is the
 *     order in which the local tree changed. A process that dies inside poisons the region; nobody goes on with it.
 *   - Readers of pages take no lock. They check presence bits, read, and check the file's eviction counter again.
 *   - Whoever waits (for durability, ring space, a page) waits without the lock and notices when the driver is gone.
 */
#ifndef AURORA_H
#define AURORA_H

#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#define AR_EXPORT __attribute__((visibility("default")))
#define AR_MAGIC UINT64_C(0x314e4f4947455241) /* "AREGION1" */
#define AR_PAGE_BYTES_MAX 16384
#define AR_EXTENT_PAGES 64 /* pages in a chunk; a chunk is an extent, the unit of placement and of eviction */
#define AR_NO_GROUP UINT32_MAX
#define AR_UNKNOWN (UINT32_MAX - 1) /* it was mounted, and where it lies was not asked yet */
#define AR_GROUPS_MAX 16384 /* 128 TiB of 10 GiB groups are 13,108 */
#define AR_REQUESTS 256
#define AR_PATTERN_BYTES 4096
#define AR_PIECE_PAGES 16 /* a write is logged in pieces of so many pages */
#define AR_BEHIND_BYTES (1u << 20) /* of the log that are not durable, beside which a process writes on that need not */
#define AR_WAIT_MS 200    /* how often a waiter looks whether the driver still lives */

/* ---- redo records; the layout is documented in aurora_ray/log/layout.py */

enum {
    REC_PAGE = 1,
    REC_CREATE,
    REC_UNLINK,
    REC_RENAME,
    REC_TRUNCATE,
    REC_SIZE,
    REC_MKDIR,
    REC_RMDIR,
    REC_SYMLINK,
    REC_LINK,
    REC_CHMOD,
    REC_EXTENT,
    REC_DROP
};
enum { REC_FLAG = 1 }; /* PAGE: a full image. TRUNCATE, DROP: a copy for a group other than 0 */

struct record {
    uint32_t length;
    uint8_t type;
    uint8_t flags;
    uint16_t count;
    uint64_t lsn;
    uint64_t file_id;
    uint32_t group;
    uint32_t page;
};
_Static_assert(sizeof(struct record) == 32, "record header");

struct batch {
    uint32_t magic;
    uint32_t crc;
    uint16_t version;
    uint16_t flags;
    uint32_t group;
    uint8_t volume[16];
    uint64_t epoch;
    uint64_t prev_lsn;
    uint64_t flush_start;
    uint64_t flush_end;
    uint64_t time_us;
    uint64_t vdl;
    uint32_t record_count;
    uint32_t payload_bytes;
    uint32_t ngroups;
    uint32_t reserved;
};
_Static_assert(sizeof(struct batch) == 96, "batch header");
#define AR_BATCH_MAGIC 0x31425241u

/* ---- the region */

enum { STATE_RUNNING = 0, STATE_FENCED, STATE_POISONED, STATE_CLOSED };
enum { MODE_VOLUME = 0, MODE_PRIVATE, MODE_SETTLING }; /* where redo goes, see exchange.c */

struct chunk {
    _Atomic uint64_t present;  /* a bit a page: the local file holds it */
    _Atomic uint64_t last_lsn; /* of its newest record: evictable when durable */
    _Atomic uint64_t evicted_at; /* VDL of its last eviction: what was read as of an earlier LSN comes too late */
    _Atomic uint64_t owed;     /* a bit a page: the volume does not have it as it is here; see exchange.c */
    _Atomic uint32_t group;    /* protection group, AR_NO_GROUP before its first page write, or AR_UNKNOWN */
    _Atomic uint32_t used;     /* AR_TOUCHED since the evictor's hand last passed; above that, its heat */
};
_Static_assert(sizeof(struct chunk) == 40, "chunk");

#define AR_TOUCHED 1u
#define AR_HEAT_MAX 3u

static inline bool ar_placed(const struct chunk *c) { return c->group < AR_UNKNOWN; }

#define AR_LEAF_CHUNKS 64
#define AR_INNER_LINKS 512
union node { /* of a file's radix tree from chunk numbers to chunks */
    struct chunk chunks[AR_LEAF_CHUNKS];
    _Atomic uint32_t links[AR_INNER_LINKS];
};
_Static_assert(sizeof(union node) == 2560, "node");

struct slot { /* a file */
    _Atomic uint64_t ino; /* of the local file: how an open descriptor finds its slot */
    uint64_t file_id;
    _Atomic uint64_t born; /* when the local file was made, in ns; with ino it tells files apart; 0: not known yet */
    _Atomic uint64_t size;
    _Atomic uint64_t last_lsn;  /* of its newest record: what fsync waits for */
    _Atomic uint64_t tree;      /* root node << 32 | height; both change at once */
    uint64_t drop_lsn;          /* LSN just before its DROP: absent pages are read as of then */
    _Atomic uint32_t evictions; /* readers look whether it moved under them */
    _Atomic uint32_t next;      /* slot + 1 of the next one in the hash chain */
    uint32_t mounted_extents;   /* extents it had when mounted; their groups are loaded on demand */
    _Atomic uint32_t dropped, pinned; /* pinned: memory-mapped, never evicted */
    _Atomic uint32_t ordered;         /* synced without waiting: readers wait until it is durable */
    _Atomic uint32_t generation;      /* counts the files that had this slot; a descriptor remembers its file's */
    _Atomic uint32_t lost_generation; /* the newest of them that left it with absent pages */
    uint32_t older, newer;            /* slot + 1: the queue of dropped files; 0: none */
};

/* The state is the futex word: one of these, and above it the process that has the request, from the first moment on. */
enum { REQUEST_FREE = 0, REQUEST_FILLING, REQUEST_POSTED, REQUEST_TAKEN, REQUEST_DONE, REQUEST_STATES = 7 };
#define AR_PID_SHIFT 3
static inline uint32_t ar_request_state(uint32_t word) { return word & REQUEST_STATES; }
static inline uint32_t ar_request_word(uint32_t word, uint32_t state) { return (word & ~REQUEST_STATES) | state; }
enum { WANT_PAGES = 1, WANT_PREFETCH, WANT_EXTENTS, WANT_GROUP };

struct request {
    _Atomic uint32_t state;
    uint32_t want;
    uint32_t slot;
    uint32_t first; /* page, or chunk for WANT_EXTENTS */
    uint32_t count;
    int32_t pid;
    int32_t fd;
    int32_t error; /* errno of the answer */
};
_Static_assert(sizeof(struct request) == 32, "request");

struct counters {
    _Atomic uint64_t records, record_bytes, page_full, page_delta, page_same;
    _Atomic uint64_t syncs, sync_waits, misses, bells, space_waits, evicted_pages;
};

struct region {
    uint64_t magic;
    uint64_t region_bytes;
    uint32_t page_bytes;
    uint32_t nslots, nbuckets, nnodes;
    uint64_t buckets_offset, slots_offset, nodes_offset, ring_offset;
    uint64_t ring_bytes; /* a power of two */
    uint64_t base_lsn;   /* the LSN of ring position 0 */

    pthread_mutex_t lock;
    uint32_t slots_used, nodes_used, nodes_free; /* nodes_free: first of a list through links[0] */
    uint32_t oldest_dropped, newest_dropped, ndropped;
    _Atomic uint32_t chains_turn; /* odd while a slot goes from one hash chain to another */
    _Atomic uint32_t ngroups;
    uint64_t next_file_id;
    _Atomic uint32_t mode;
    uint32_t exchanged; /* ever: absent pages may lie in local files */
    _Atomic uint32_t settle_wanted; /* somebody waits for the guard */
    _Atomic uint32_t guarded; /* slot + 1 of the file of which a part waits in MODE_SETTLING; 0: none */
    uint32_t guarded_from, guarded_end;

    _Alignas(64) _Atomic uint64_t tail; /* ring positions: end of the last whole record */
    _Atomic uint64_t wanted;            /* highest position that someone waits for */
    _Atomic uint64_t ordered;           /* highest position that a sync ordered without waiting for it */
    _Atomic uint64_t arrivals;          /* commits that ever began to wait for what was ordered */
    _Atomic uint64_t bell_at;           /* the arrival that rings the bell; UINT64_MAX: none does */
    _Alignas(64) _Atomic uint64_t head; /* below it the driver has taken everything; ring space is free */
    _Atomic uint64_t durable;
    _Atomic uint32_t taken; /* flushes taken so far, modulo 2^32 */
    _Atomic uint32_t durable_turn, durable_waiters;
    _Atomic uint32_t space_turn, space_waiters;
    _Alignas(64) _Atomic uint32_t bell_rung;
    _Atomic uint32_t state;
    _Atomic uint32_t attached; /* processes that ever came: none means the library was not loaded */
    _Atomic uint64_t present_pages;
    uint64_t bell_bytes; /* unsent redo that rings the bell though nobody waits */
    struct counters counters;
    struct request requests[AR_REQUESTS];
    uint32_t group_free[AR_GROUPS_MAX]; /* extents left in each protection group */
    char volatile_patterns[AR_PATTERN_BYTES]; /* NUL-separated; see ar_is_volatile */
};

/* This process's view. */
extern struct region *ar_region;
extern int ar_bell_fd; /* eventfd that wakes the driver */
extern int ar_life_fd; /* read end of a pipe whose other end lives and dies with the driver; -1 in the driver */

/* driver.c */
int ar_lock_for_driver(void); /* 0; EBUSY: ask again later; EIO: the region is poisoned, nothing may be changed */

/* region.c */
void ar_attach(struct region *region);
void ar_lock(void);
void ar_unlock(void);
void ar_check_state(void);
#define AR_ANYBODY UINT32_MAX
void ar_wait(_Atomic uint32_t *word, uint32_t seen, _Atomic uint32_t *waiters, uint32_t mask);
void ar_wake(_Atomic uint32_t *word, uint32_t mask);
void ar_ring_bell(void);
_Noreturn void ar_die(const char *why);
struct slot *ar_slot(uint32_t index);
uint32_t ar_slot_index(const struct slot *slot);
struct slot *ar_find(uint64_t ino);
struct slot *ar_find_opened(uint64_t ino);
struct slot *ar_slot_if(uint32_t index, uint32_t generation);
extern struct slot ar_lost; /* stands for a file that is gone and was never here as a whole: nothing of it can be read */
bool ar_has_room_for_file(void);
void ar_dropped(struct slot *slot);
void ar_count_absent(const struct slot *slot, uint64_t pages);
struct slot *ar_add(uint64_t ino, uint64_t file_id, uint64_t size, uint32_t mounted_extents);
struct chunk *ar_chunk(struct slot *slot, uint32_t number);
struct chunk *ar_chunk_make(struct slot *slot, uint32_t number);
bool ar_present(struct slot *slot, uint32_t page);
bool ar_all_present(struct slot *slot);
void ar_set_present(struct slot *slot, uint32_t first, uint32_t end);
void ar_forget_dropped(void);

/* requests.c */
void ar_reclaim_requests(struct region *region);
char ar_process_state(uint32_t id);
int ar_request(uint32_t want, const struct slot *slot, uint32_t first, uint32_t count, int fd, bool wait);

/* log.c */
#define AR_PAGE_RECORD_BYTES_MAX (AR_PAGE_BYTES_MAX + 64)
void ar_lock_with_space(size_t bytes);
void ar_reserve(size_t bytes);
bool ar_has_space(size_t bytes);
uint64_t ar_append(struct record head, const void *body, size_t body_bytes);
void ar_append_page(struct slot *slot, struct chunk *chunk, uint32_t page, const uint8_t *image, const uint8_t *old,
                    size_t from, size_t to);
void ar_wait_durable(uint64_t lsn);
void ar_sleep_until_settled(void);
void ar_stay_near(void);
void ar_order(uint64_t lsn);
void ar_wait_ordered(void);
uint64_t ar_tail_lsn(void);

/* exchange.c */
void ar_owe(struct slot *slot, uint32_t first, uint32_t end);
void ar_wait_settled(int fd, const struct slot *slot, const uint8_t *data, size_t bytes, uint64_t offset);

/* writes.c: all return as the libc call does, with errno */
ssize_t ar_write_at(int fd, struct slot *slot, const void *data, size_t bytes, off_t offset);
ssize_t ar_write_end(int fd, struct slot *slot, const void *data, size_t bytes, off_t *end);
int ar_capture(int fd, struct slot *slot, uint64_t offset);

/* files.c: the same */
int ar_lock_placed(struct slot *slot, uint32_t first, uint32_t end);
void ar_grow(struct slot *slot, uint64_t size);
void ar_shrink(struct slot *slot, uint64_t size);
void ar_log_size(struct slot *slot, uint64_t size);
bool ar_place_chunk(struct slot *slot, uint32_t number);
int ar_need(int fd, struct slot *slot, uint64_t offset, size_t bytes);
bool ar_is_volatile(const char *path);
void ar_prefetch(int fd, struct slot *slot, uint64_t offset, uint64_t bytes);
int ar_truncate(int fd, struct slot *slot, uint64_t size);
int ar_extend(int fd, struct slot *slot, uint64_t offset, uint64_t bytes);
uint32_t ar_pages_of(uint64_t bytes);
void ar_know_extents(struct slot *slot, uint32_t first, uint32_t end);
void ar_for_other_groups(struct slot *slot, uint32_t first, void (*copy)(struct slot *, uint32_t, uint64_t),
                         uint64_t argument);

/* places.c: a place is a name in a directory that is held open, so that nobody can put another one in its way. */
struct place {
    int dir;          /* O_PATH descriptor of the directory */
    const char *name; /* in it; slashes at its end, which the kernel cares for, are kept */
    char text[4096];  /* what name points into */
};
const char *ar_local_path(const struct place *at, char out[4096]);
const char *ar_path_of(int fd, char out[4096]);
bool ar_same_file(struct slot *slot, const struct statx *st);
int ar_look(int dir, const char *name, int flags, struct statx *st);
uint64_t ar_born(const struct statx *st);

/* names.c: the same */
void ar_log_name(int type, uint64_t file_id, uint32_t mode, const char *first, const char *second);
int ar_create(const struct place *at, int flags, mode_t mode);
struct slot *ar_import(int fd, const char *local);
int ar_unlink(const struct place *at);
int ar_rename(const struct place *from, const struct place *to, unsigned flags, const char *hidden);
int ar_link(int seen, const struct place *to);
int ar_mkdir(const struct place *at, mode_t mode);
int ar_rmdir(const struct place *at);
int ar_symlink(const char *target, const struct place *at);
int ar_chmod(int fd, mode_t mode, int (*change)(void *), void *argument);

/* The libc's own functions: files.c changes the local tree through them. */
#include "libc_calls.h"
#endif
