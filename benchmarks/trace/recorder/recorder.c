/* The recorder: a library preloaded into a program; it records every call of malloc and its family.

       thread 1 ──► chunk ─┐  when full            NAME.buffers   a header, then the chunks that are
       thread 2 ──► chunk ─┴──────────► NAME.chunks               being filled: shared memory, which
                                                                  survives any end of the process
   Nothing needs to be done at exit: a record that is not yet in NAME.chunks is in NAME.buffers.

   The program must not notice.  A full chunk is written only if the limits allow it (RLIMIT_FSIZE);
   if it cannot be written (chroot, full disk, no descriptor left), or no system call may be made
   (after the program installed a seccomp filter), it is marked FULL and left in NAME.buffers, which is
   mapped in advance: the recording process (benchmarks/trace/recorder/run.py) moves it to NAME.drained.
   If that is too slow, records are lost, which the missing numbers show.

   Order.  Every event takes the next sequence number: a free before the call, an allocation after it.
   So if memory passes from a free to an allocation, their numbers are in that order.  A realloc takes
   two numbers, one for the release and one for the acquisition.

   An *image* is a process since its start, fork or exec; each image has separate files.  The kernel
   wipes the state of the image and its threads in the child of a fork (MADV_WIPEONFORK), so a child
   starts a new image at its first event, without fork handlers, and never sees its parent's chunks
   (MADV_DONTFORK).  No descriptor stays open, since programs close and reuse descriptors that they
   did not open themselves.

   A chunk is CHUNK bytes: first and last number, then words of 8 bytes, zero after the last one
   written.  The first word of a record is written last, so that a visible record is complete.  A
   record is one of

       operation:4 step:8 address:52                  step: increment from the last record's number
       operation:4 step:8 address:52, alignment:8 size:56            allocations, realloc's end
       SHORT + operation:4 step:4 address / 16:44 size:12            the same, if all of it fits
       OTHER:4 step:8 0:16 parameter:32 kind:4, value malloc_trim, mallopt, sbrk
       ORIGIN:4 thread:60, number, ticks              first in a chunk; base of the next step
       TIME:4 ticks:60                                since the last ORIGIN

   Cost.  Half of the cost is the bytes written, half the instructions.  So the common record is one
   word, and a call makes a single test: has the thread reached its stop?  Only at a stop is there
   more to do: read the clock, flush a full chunk, or set up a new image or thread.
*/

#define _GNU_SOURCE
#include <alloca.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

#if __has_include(<sys/single_threaded.h>)
#include <sys/single_threaded.h>
#define SINGLE_THREADED __libc_single_threaded
#else
#define SINGLE_THREADED 0
#endif

#define EXPORT __attribute__((visibility("default")))
#define RARE __attribute__((noinline, cold))
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

/* Bytes of a chunk and of a header, and the format's magic; the same as in
   benchmarks/trace/recorder/raw.py. */
#define CHUNK 131072
#define HEADER 65536
#define MAGIC 0x3352434552424d4dL /* "MMBRECR3" */
/* The header's words that change: number of images that could not be recorded, and from STATES on a
   state for each slot of the file; the same as in raw.py.  FULL: to be drained; FREE: for any thread. */
#define UNRECORDED 7
#define SLOTS 1024
#define STATES (HEADER / 8 - SLOTS)
enum { USED, FULL, FREE_SLOT };
/* Chunks made with an image, and before a seccomp filter. */
#define RESERVED 3
#define FILTERED 64
/* CLOCK_WORDS: words that a thread writes per reading of the clock, which costs as much as all the
   rest.  SLOW: with more ticks than this per word, events are rare enough to read it at each one. */
#define CLOCK_WORDS 32
#define SLOW 2048
#define VARIABLE "MALLOC_BENCH_RECORDING"

/* Operations: benchmarks.events.events, plus one; SHORT is added to MALLOC, REALLOC or CALLOC. */
enum { MALLOC = 1, FREE, REALLOC, CALLOC, ALIGNED, OTHER, THREAD_END = 8, BEGIN, ORIGIN, TIME, SHORT = 11 };
/* Kinds of OTHER. */
enum { TRIM, MALLOPT, SBRK };

#define WORDS (CHUNK / 8 - 2)
/* Upper bound on the words written by one call: two records, each with an ORIGIN. */
#define RESERVE 16
/* Rounds of destructor calls at a thread's end (PTHREAD_DESTRUCTOR_ITERATIONS). */
#define ROUNDS 4
#define NONE ((uint64_t)1 << 63)
#define ADDRESS (((uint64_t)1 << 52) - 1)
#define SIZE (((uint64_t)1 << 56) - 1)
#define TICKS (((uint64_t)1 << 60) - 1)

struct chunk {
    uint64_t first, last; /* sequence numbers; set when the chunk is written to NAME.chunks */
    uint64_t words[WORDS];
};

/* State of a recording thread: it has an image and a chunk.  All zero in the child of a fork. */
struct thread {
    uint64_t *at; /* address of its next word; NULL: not ready */
    uint64_t *stop; /* at this address a call must prepare(); NULL: not ready, or inside a call */
    uint64_t number; /* of its last record; NONE: the next record needs an ORIGIN */
    uint64_t id;
    struct chunk *chunk;
    uint64_t ticks; /* of its last ORIGIN */
    uint64_t clock, *clocked; /* last reading of the clock: ticks, and value of ``at`` then */
    struct thread *next; /* in the list of states that no thread uses; they keep their chunks */
} __attribute__((aligned(64)));

/* Thread states allocated at a time. */
#define THREADS 32

/* State of the image; all zero in the child of a fork. */
struct image {
    uint64_t id; /* 0: not begun */
    int beginning;
    int lock; /* protects the buffers file, spare, fresh and left */
    struct thread *spare, *fresh;
    int left; /* number of fresh states, which have no chunk yet */
    uint64_t buffers, chunks; /* slots used in the two files */
    struct chunk *slots[SLOTS]; /* chunks of the buffers file that may become FULL */
    int alone; /* nothing drains */
    uint64_t threads;
    char path[4096]; /* without the suffix */
    size_t length;
    uint64_t number __attribute__((aligned(64))); /* of the next event */
};

static struct image not_begun;
static struct image *image = &not_begun;
static uint64_t images; /* number begun in this process and its ancestors */
static int off; /* recording is disabled */
static int quiet; /* the program filters system calls: none may be made */
static uint64_t stopped; /* time since the program forbade reading the clock; 0 if it did not */
static volatile uint64_t *header; /* of this image, or of the last one before it that was recorded */
static char directory[4096], library[4096]; /* of the recording; of this library */
static pthread_key_t key;
static int has_key;

#define OWN static __thread __attribute__((tls_model("initial-exec")))
static struct thread no_thread;
OWN struct thread *self = &no_thread;
OWN int busy; /* inside prepare() */
OWN int rounds; /* destructor rounds seen */
OWN uint64_t named, name; /* the image in which this thread has a number, and the number */

static struct {
    void *(*malloc)(size_t);
    void (*free)(void *);
    void *(*calloc)(size_t, size_t);
    void *(*realloc)(void *, size_t);
    int (*posix_memalign)(void **, size_t, size_t);
    void *(*aligned_alloc)(size_t, size_t);
    void *(*memalign)(size_t, size_t);
    void *(*valloc)(size_t);
    void *(*pvalloc)(size_t);
    int (*malloc_trim)(size_t);
    int (*mallopt)(int, int);
    void *(*sbrk)(intptr_t);
    int (*brk)(void *);
    long (*syscall)(long, long, long, long, long, long, long);
    int (*prctl)(int, long, long, long, long);
    int (*execve)(const char *, char *const[], char *const[]);
    int (*execvpe)(const char *, char *const[], char *const[]);
    int (*fexecve)(int, char *const[], char *const[]);
    int (*execveat)(int, const char *, char *const[], char *const[], int);
    int (*system)(const char *);
    FILE *(*popen)(const char *, const char *);
    int (*posix_spawn)(
        pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *,
        char *const[], char *const[]);
    int (*posix_spawnp)(
        pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *,
        char *const[], char *const[]);
} real;

/* --- The real allocator, and memory for dlsym while it is looked up ---------------------------- */

static char bootstrap[1 << 15] __attribute__((aligned(16)));
static size_t bootstrapped;

/* Return zeroed memory for dlsym's use; it is never freed.  NULL on failure. */
static void *bootstrap_alloc(size_t size)
{
    size_t whole = ((size + 15) & ~(size_t)15) + 16;
    if (size > sizeof bootstrap)
        return NULL;
    size_t at = __atomic_fetch_add(&bootstrapped, whole, __ATOMIC_RELAXED);
    if (at + whole > sizeof bootstrap)
        return NULL;
    *(size_t *)(bootstrap + at) = size;
    return bootstrap + at + 16;
}

static int is_bootstrap(const void *p)
{
    return (uintptr_t)p - (uintptr_t)bootstrap < sizeof bootstrap;
}

static void resolve(void)
{
    real.free = dlsym(RTLD_NEXT, "free");
    real.calloc = dlsym(RTLD_NEXT, "calloc");
    real.realloc = dlsym(RTLD_NEXT, "realloc");
    real.posix_memalign = dlsym(RTLD_NEXT, "posix_memalign");
    real.aligned_alloc = dlsym(RTLD_NEXT, "aligned_alloc");
    real.memalign = dlsym(RTLD_NEXT, "memalign");
    real.valloc = dlsym(RTLD_NEXT, "valloc");
    real.pvalloc = dlsym(RTLD_NEXT, "pvalloc");
    real.malloc_trim = dlsym(RTLD_NEXT, "malloc_trim");
    real.mallopt = dlsym(RTLD_NEXT, "mallopt");
    real.sbrk = dlsym(RTLD_NEXT, "sbrk");
    real.brk = dlsym(RTLD_NEXT, "brk");
    real.syscall = dlsym(RTLD_NEXT, "syscall");
    real.prctl = dlsym(RTLD_NEXT, "prctl");
    real.execve = dlsym(RTLD_NEXT, "execve");
    real.execvpe = dlsym(RTLD_NEXT, "execvpe");
    real.fexecve = dlsym(RTLD_NEXT, "fexecve");
    real.execveat = dlsym(RTLD_NEXT, "execveat");
    real.system = dlsym(RTLD_NEXT, "system");
    real.popen = dlsym(RTLD_NEXT, "popen");
    real.posix_spawn = dlsym(RTLD_NEXT, "posix_spawn");
    real.posix_spawnp = dlsym(RTLD_NEXT, "posix_spawnp");
    __atomic_store_n(&real.malloc, dlsym(RTLD_NEXT, "malloc"), __ATOMIC_RELEASE);
}

/* Return true if the real functions are known; false also while an outer call looks them up. */
static inline int resolved(void)
{
    return __atomic_load_n(&real.malloc, __ATOMIC_ACQUIRE) != NULL;
}

/* Earlier stores reach memory before later ones, even if the process is killed in between. */
#define IN_ORDER __atomic_signal_fence(__ATOMIC_SEQ_CST)

/* --- Files ------------------------------------------------------------------------------------- */

static uint64_t nanoseconds(clockid_t clock)
{
    struct timespec t;
    if (stopped)
        real.syscall(SYS_clock_gettime, clock, (long)&t, 0, 0, 0, 0);
    else
        clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Ticks to wait for the recording process to drain a chunk: some tenths of a second. */
#if defined(__aarch64__)
#define PATIENCE (1 << 24)
#else
#define PATIENCE (1 << 30)
#endif

/* Read the cheapest monotonic clock of the machine; its unit varies. */
static inline uint64_t ticks(void)
{
    if (__builtin_expect(stopped != 0, 0))
        return __atomic_add_fetch(&stopped, 1, __ATOMIC_RELAXED); /* so that waiting ends */
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t t;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(t));
    return t;
#else
    return nanoseconds(CLOCK_MONOTONIC);
#endif
}

/* Read the recorder's clock and CLOCK_MONOTONIC, ns; two such pairs yield the length of a tick. */
EXPORT void recorder_clocks(uint64_t pair[2])
{
    pair[0] = ticks();
    pair[1] = nanoseconds(CLOCK_MONOTONIC);
}

static void lock(void)
{
    while (__atomic_exchange_n(&image->lock, 1, __ATOMIC_ACQUIRE))
        ;
}

static void unlock(void)
{
    __atomic_store_n(&image->lock, 0, __ATOMIC_RELEASE);
}

/* Open the image's file with this suffix; return -1 on failure. */
static int open_file(const char *suffix, int flags)
{
    char path[sizeof image->path + 16];
    memcpy(path, image->path, image->length);
    strcpy(path + image->length, suffix);
    return open(path, flags | O_CLOEXEC, 0600);
}

/* Read at most ``room`` bytes of a file into ``out``; return their number. */
static size_t read_file(const char *path, char *out, size_t room)
{
    size_t n = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    for (ssize_t got; n < room && (got = read(fd, out + n, room - n)) > 0;)
        n += got;
    close(fd);
    return n;
}

/* Return true if a file may grow to ``size`` bytes; to try it anyway would raise SIGXFSZ. */
static int may_grow(off_t size)
{
    struct rlimit limit;
    return getrlimit(RLIMIT_FSIZE, &limit) || limit.rlim_cur == RLIM_INFINITY
        || (rlim_t)size <= limit.rlim_cur;
}

/* Map ``count`` new chunks in the open buffers file; return the first, NULL on failure. */
static struct chunk *map_chunks(int fd, int count)
{
    off_t at = (off_t)image->buffers * CHUNK;
    size_t size = (size_t)count * CHUNK;
    /* Allocate blocks, not just a larger size: with a full disk a write to the mapping would raise
       SIGBUS. */
    if (!may_grow(at + size) || posix_fallocate(fd, at, size))
        return NULL;
    struct chunk *chunks = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, at);
    if (chunks == MAP_FAILED)
        return NULL;
    madvise(chunks, size, MADV_DONTFORK);
    for (int i = 0; i < count; i++, image->buffers++)
        if (image->buffers < SLOTS)
            image->slots[image->buffers] = chunks + i;
    return chunks;
}

/* Map ``count`` chunks for later. */
static void reserve(int fd, int count)
{
    uint64_t first = image->buffers;
    if (map_chunks(fd, count))
        for (uint64_t i = first; i < image->buffers && i < SLOTS; i++)
            __atomic_store_n(header + STATES + i, FREE_SLOT, __ATOMIC_RELEASE);
}

/* Count an image that cannot be recorded, in the header of the one that it comes from. */
static void count_unrecorded(void)
{
    if (header)
        __atomic_fetch_add(header + UNRECORDED, 1, __ATOMIC_RELAXED);
}

/* Begin an image: create its buffers file and write the header.  Return false on failure. */
static int begin_image(void)
{
    int fd = -1, length;
    if (!*directory) {
        const char *given = getenv(VARIABLE);
        Dl_info place;
        if (!given || strlen(given) >= sizeof directory)
            return 0;
        strcpy(directory, given);
        if (dladdr(&images, &place) && strlen(place.dli_fname) < sizeof library)
            strcpy(library, place.dli_fname);
    }
    if (quiet) {
        count_unrecorded();
        return 0;
    }
    for (int i = 0; fd < 0; i++) {
        length = snprintf(
            image->path, sizeof image->path, "%s/%d-%d", directory, (int)getpid(), i);
        if (length >= (int)sizeof image->path)
            return 0;
        image->length = length;
        fd = open_file(".buffers", O_RDWR | O_CREAT | O_EXCL);
        if (fd < 0 && errno != EEXIST) {
            count_unrecorded();
            return 0;
        }
    }
    uint64_t *words = MAP_FAILED;
    if (may_grow(HEADER) && posix_fallocate(fd, 0, HEADER) == 0)
        words = mmap(NULL, HEADER, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (words == MAP_FAILED) {
        close(fd); /* the empty file shows that this image was not recorded */
        return 0;
    }
    char *text = (char *)(words + UNRECORDED + 1);
    words[1] = getpid();
    words[2] = getppid();
    words[3] = nanoseconds(CLOCK_REALTIME);
    words[4] = ticks();
    ssize_t program = readlink("/proc/self/exe", text, 4096);
    words[5] = program < 0 ? 0 : program;
    words[6] = read_file(
        "/proc/self/cmdline", text + words[5], (char *)(words + STATES) - text - words[5]);
    IN_ORDER;
    words[0] = MAGIC;
    header = words;
    image->buffers = 1;
    reserve(fd, RESERVED);
    close(fd);
    if (!has_key) {
        void thread_end(void *);
        has_key = pthread_key_create(&key, thread_end) == 0;
    }
    __atomic_store_n(&image->id, ++images, __ATOMIC_RELEASE);
    return 1;
}

/* Map memory that is zeroed in the child of a fork; return NULL on failure. */
static void *wiped(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED || madvise(p, size, MADV_WIPEONFORK) ? NULL : p;
}

/* Return the state of slot ``i`` of the buffers file. */
static volatile uint64_t *state_of(uint64_t i)
{
    return header + STATES + i;
}

static int change_state(uint64_t slot, uint64_t from, uint64_t to)
{
    return __atomic_compare_exchange_n(
        state_of(slot), &from, to, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

/* Return an empty chunk that was made in advance or drained; NULL if there is none. */
static struct chunk *free_chunk(void)
{
    for (uint64_t i = 1; i < image->buffers && i < SLOTS; i++)
        if (*state_of(i) == FREE_SLOT && change_state(i, FREE_SLOT, USED))
            return image->slots[i];
    return NULL;
}

/* Return a chunk, free or new; NULL on failure. */
static struct chunk *make_chunk(void)
{
    struct chunk *chunk = free_chunk();
    if (chunk || quiet)
        return chunk;
    int fd = open_file(".buffers", O_RDWR);
    if (fd < 0)
        return NULL;
    chunk = map_chunks(fd, 1);
    close(fd);
    return chunk;
}

/* Return a state with a chunk for this thread, spare or new; NULL on failure. */
static struct thread *take(void)
{
    lock();
    struct thread *taken = image->spare;
    if (taken) {
        image->spare = taken->next;
    } else {
        if (!image->left && !quiet && (image->fresh = wiped(THREADS * sizeof *taken)))
            image->left = THREADS;
        struct chunk *chunk = image->left ? make_chunk() : NULL;
        if (chunk) {
            taken = image->fresh + --image->left;
            taken->chunk = chunk;
            taken->at = chunk->words;
        }
    }
    unlock();
    return taken;
}

/* Take the next sequence number.  A locked instruction waits for all earlier stores, so a
   single-threaded process avoids it. */
static inline uint64_t next_number(void)
{
    if (SINGLE_THREADED)
        return image->number++;
    return __atomic_fetch_add(&image->number, 1, __ATOMIC_RELAXED);
}

/* Make this thread ready to record in the current image; return false on failure. */
static int attach(void)
{
    if (!environ && !*directory)
        return 0; /* too early: the C library is not initialised */
    if (image == &not_begun && !quiet) {
        struct image *p = wiped(sizeof *image);
        if (!p) {
            off = 1;
            return 0;
        }
        image = p;
    }
    if (!__atomic_load_n(&image->id, __ATOMIC_ACQUIRE)) {
        if (__atomic_exchange_n(&image->beginning, 1, __ATOMIC_ACQ_REL))
            return 0;
        if (!begin_image()) {
            off = 1;
            return 0;
        }
    }
    if (named != image->id) {
        named = image->id;
        name = __atomic_fetch_add(&image->threads, 1, __ATOMIC_RELAXED);
        rounds = 0;
        if (has_key)
            pthread_setspecific(key, &self);
    }
    struct thread *taken = take();
    if (!taken) {
        next_number(); /* a number without a record marks the loss */
        return 0;
    }
    taken->id = name;
    taken->number = NONE;
    self = taken;
    return 1;
}

/* Append a chunk to the chunks file; return false on failure. */
static int write_chunk(const struct chunk *chunk)
{
    off_t at = (off_t)__atomic_fetch_add(&image->chunks, 1, __ATOMIC_RELAXED) * CHUNK;
    ssize_t n, done = 0;
    int fd = quiet || !may_grow(at + CHUNK) ? -1 : open_file(".chunks", O_WRONLY | O_CREAT);
    if (fd < 0)
        return 0;
    for (; done < CHUNK; done += n) {
        n = pwrite(fd, (const char *)chunk + done, CHUNK - done, at + done);
        if (n == 0 || (n < 0 && errno != EINTR))
            break;
        n = n < 0 ? 0 : n;
    }
    close(fd);
    return done >= CHUNK;
}

/* Leave a full chunk to the recording process; return another, or NULL after waiting in vain. */
static struct chunk *hand_over(struct chunk *chunk)
{
    uint64_t slot = 1, begin = ticks();
    while (slot < image->buffers && slot < SLOTS && image->slots[slot] != chunk)
        slot++;
    if (slot >= image->buffers || slot >= SLOTS)
        return NULL;
    __atomic_store_n(state_of(slot), FULL, __ATOMIC_RELEASE);
    do {
        struct chunk *other = free_chunk();
        if (other)
            return other;
        if (!quiet)
            sched_yield();
    } while (!image->alone && ticks() - begin < PATIENCE);
    image->alone = 1;
    /* Take the chunk back, unless it has just been drained. */
    return change_state(slot, FULL, USED) ? NULL : free_chunk();
}

/* Write this thread's chunk, or exchange it for an empty one. */
static void flush(struct thread *me)
{
    struct chunk *chunk = me->chunk, *other = NULL;
    chunk->first = chunk->words[1];
    chunk->last = me->number;
    if (!write_chunk(chunk) && (other = hand_over(chunk))) {
        me->chunk = other;
    } else { /* written; or lost, which the missing numbers show */
        IN_ORDER;
        chunk->words[0] = 0; /* from here on the chunk is empty */
        IN_ORDER;
        memset(chunk->words, 0, (char *)me->at - (char *)chunk->words);
    }
    me->at = me->chunk->words;
    me->number = NONE;
}

/* --- Records ----------------------------------------------------------------------------------- */

/* Append a record of any form; ``second`` is the second word of an allocation's record. */
static RARE void put_any(
    struct thread *me, uint64_t operation, const void *p, int allocation, uint64_t second,
    uint64_t number)
{
    uint64_t step = number - me->number;
    if (step > 255) {
        me->ticks = me->clock = ticks();
        me->at[1] = number;
        me->at[2] = me->ticks;
        IN_ORDER;
        me->at[0] = (uint64_t)ORIGIN << 60 | me->id;
        me->at += 3;
        step = 0;
    }
    me->number = number;
    if (allocation)
        me->at[1] = second;
    IN_ORDER;
    me->at[0] = operation << 60 | step << 52 | ((uintptr_t)p & ADDRESS);
    me->at += 1 + allocation;
}

/* Append the record of a release. */
static inline void put(struct thread *me, uint64_t operation, const void *p)
{
    uint64_t number = next_number(), step = number - me->number;
    if (UNLIKELY(step > 255)) {
        put_any(me, operation, p, 0, 0, number);
        return;
    }
    me->number = number;
    *me->at++ = operation << 60 | step << 52 | ((uintptr_t)p & ADDRESS);
}

/* Append the record of an allocation without alignment. */
static inline void put_allocation(
    struct thread *me, uint64_t operation, const void *p, uint64_t size)
{
    uint64_t number = next_number(), step = number - me->number, address = (uintptr_t)p;
    if (UNLIKELY(step >> 4 | size >> 12 | address >> 48 | (address & 15))) {
        put_any(me, operation, p, 1, size > SIZE ? SIZE : size, number);
        return;
    }
    me->number = number;
    *me->at++ = (SHORT + operation) << 60 | step << 56 | address << 8 | size;
}

/* Record the time and set the next stop. */
static void read_clock(struct thread *me)
{
    uint64_t now = ticks(), passed = now - me->ticks;
    int slow = now - me->clock > (uint64_t)(me->at - me->clocked) * SLOW;
    if (passed <= TICKS)
        *me->at++ = (uint64_t)TIME << 60 | passed;
    me->clock = now;
    me->clocked = me->at;
    me->stop = me->at + (slow ? 1 : CLOCK_WORDS);
}

/* Handle a call at a stop, or inside another call.  Return the next stop, to be passed to leave(),
   with room in the chunk for the call's records; NULL: do not record this call. */
static RARE uint64_t *prepare(void)
{
    if (busy || off || (self->at && !self->stop && rounds < ROUNDS))
        return NULL;
    int saved = errno;
    busy = 1;
    if (!resolved())
        resolve();
    if (!self->at && !attach()) {
        busy = 0;
        errno = saved;
        return NULL;
    }
    struct thread *me = self;
    uint64_t *last = me->chunk->words + WORDS - RESERVE;
    if (me->at > last) {
        flush(me);
        last = me->chunk->words + WORDS - RESERVE;
    }
    if (me->number == NONE) {
        me->clocked = me->at;
        me->stop = me->at + CLOCK_WORDS;
    } else {
        read_clock(me);
    }
    uint64_t *stop = me->stop < last ? me->stop : last + 1;
    me->stop = NULL;
    busy = rounds == ROUNDS; /* for a thread that has ended, only this shows that it is in a call */
    errno = saved;
    return stop;
}

/* Begin a call; return the same as prepare(). */
static inline uint64_t *enter(void)
{
    struct thread *me = self;
    uint64_t *stop = me->stop;
    if (UNLIKELY(me->at >= stop))
        return prepare();
    me->stop = NULL;
    return stop;
}

/* End a call.  A thread that has ended returns its state and chunk after each further call. */
static inline void leave(uint64_t *stop)
{
    struct thread *me = self;
    if (UNLIKELY(rounds == ROUNDS)) {
        self = &no_thread;
        lock();
        me->next = image->spare;
        image->spare = me;
        unlock();
        busy = 0;
    } else {
        me->stop = stop;
    }
}

/* Destructor at a thread's end: record the end in the last round, after other destructors' frees. */
void thread_end(void *value)
{
    if (busy || off)
        return;
    if (rounds + 1 < ROUNDS) {
        rounds++;
        pthread_setspecific(key, value);
        return;
    }
    uint64_t *stop = named == image->id ? enter() : NULL;
    if (!stop)
        return;
    rounds = ROUNDS;
    put(self, THREAD_END, NULL);
    leave(stop);
}

/* --- The exported functions -------------------------------------------------------------------- */

static RARE void *malloc_at_stop(size_t size)
{
    uint64_t *stop = prepare();
    if (!stop)
        return resolved() ? real.malloc(size) : bootstrap_alloc(size);
    void *p = real.malloc(size);
    put_allocation(self, MALLOC, p, size);
    leave(stop);
    return p;
}

EXPORT void *malloc(size_t size)
{
    struct thread *me = self;
    uint64_t *stop = me->stop;
    if (UNLIKELY(me->at >= stop))
        return malloc_at_stop(size);
    me->stop = NULL;
    void *p = real.malloc(size);
    put_allocation(me, MALLOC, p, size);
    me->stop = stop;
    return p;
}

static RARE void free_at_stop(void *p)
{
    uint64_t *stop = prepare();
    if (!stop) {
        if (resolved())
            real.free(p);
        return;
    }
    /* The C library calls free(NULL) at a thread's end; that is not the program's call. */
    if (p || rounds < ROUNDS)
        put(self, FREE, p);
    real.free(p);
    leave(stop);
}

EXPORT void free(void *p)
{
    struct thread *me = self;
    uint64_t *stop = me->stop;
    if (UNLIKELY(is_bootstrap(p)))
        return;
    if (UNLIKELY(me->at >= stop)) {
        free_at_stop(p);
        return;
    }
    me->stop = NULL;
    put(me, FREE, p);
    real.free(p);
    me->stop = stop;
}

EXPORT void *calloc(size_t n, size_t size)
{
    uint64_t *stop = enter();
    if (UNLIKELY(!stop))
        return resolved() ? real.calloc(n, size) : bootstrap_alloc(n * size);
    void *p = real.calloc(n, size);
    put_allocation(self, CALLOC, p, n * size);
    leave(stop);
    return p;
}

/* Move a block of the bootstrap memory to the real allocator. */
static RARE void *bootstrap_realloc(void *old, size_t size)
{
    void *p = malloc(size);
    size_t had = old ? *(size_t *)((char *)old - 16) : 0;
    if (p && old)
        memcpy(p, old, had < size ? had : size);
    return p;
}

EXPORT void *realloc(void *old, size_t size)
{
    if (UNLIKELY(is_bootstrap(old)))
        return bootstrap_realloc(old, size);
    uint64_t *stop = enter();
    if (UNLIKELY(!stop))
        return resolved() ? real.realloc(old, size) : bootstrap_realloc(old, size);
    if (old)
        put(self, BEGIN, old);
    void *p = real.realloc(old, size);
    put_allocation(self, REALLOC, p, size); /* in the same chunk */
    leave(stop);
    return p;
}

/* Return log2 of an alignment, rounded up as the C library does. */
static uint64_t log2_of(size_t alignment)
{
    return alignment < 2 ? 0 : 64 - __builtin_clzll((unsigned long long)alignment - 1);
}

static inline void put_aligned(const void *p, size_t size, uint64_t alignment)
{
    put_any(self, ALIGNED, p, 1, (size > SIZE ? SIZE : size) | alignment << 56, next_number());
}

EXPORT int posix_memalign(void **out, size_t alignment, size_t size)
{
    uint64_t *stop = enter();
    if (UNLIKELY(!stop))
        return resolved() ? real.posix_memalign(out, alignment, size) : ENOMEM;
    int error = real.posix_memalign(out, alignment, size);
    put_aligned(error ? NULL : *out, size, log2_of(alignment));
    leave(stop);
    return error;
}

static inline void *aligned(
    void *(*const *function)(size_t, size_t), size_t alignment, size_t size)
{
    uint64_t *stop = enter();
    if (UNLIKELY(!stop))
        return resolved() ? (*function)(alignment, size) : NULL;
    void *p = (*function)(alignment, size);
    put_aligned(p, size, log2_of(alignment));
    leave(stop);
    return p;
}

EXPORT void *aligned_alloc(size_t alignment, size_t size)
{
    return aligned(&real.aligned_alloc, alignment, size);
}

EXPORT void *memalign(size_t alignment, size_t size)
{
    return aligned(&real.memalign, alignment, size);
}

static inline void *paged(void *(*const *function)(size_t), size_t size)
{
    uint64_t *stop = enter();
    if (UNLIKELY(!stop))
        return resolved() ? (*function)(size) : NULL;
    void *p = (*function)(size);
    put_aligned(p, size, log2_of(sysconf(_SC_PAGESIZE)));
    leave(stop);
    return p;
}

EXPORT void *valloc(size_t size)
{
    return paged(&real.valloc, size);
}

EXPORT void *pvalloc(size_t size)
{
    return paged(&real.pvalloc, size);
}

/* --- Other calls that change memory -------------------------------------------------------------- */

/* Record a call that has returned. */
static void put_other(uint64_t *stop, uint64_t kind, int parameter, uint64_t value)
{
    uint64_t packed = (uint64_t)(uint32_t)parameter << 4 | kind;
    put_any(self, OTHER, (void *)packed, 1, value, next_number());
    leave(stop);
}

EXPORT int malloc_trim(size_t pad)
{
    uint64_t *stop = enter();
    if (!real.malloc_trim)
        resolve();
    int result = real.malloc_trim ? real.malloc_trim(pad) : 0;
    if (stop)
        put_other(stop, TRIM, 0, pad);
    return result;
}

EXPORT int mallopt(int parameter, int value)
{
    uint64_t *stop = enter();
    if (!real.mallopt)
        resolve();
    int result = real.mallopt ? real.mallopt(parameter, value) : 0;
    if (stop)
        put_other(stop, MALLOPT, parameter, (int64_t)value);
    return result;
}

/* The program's own; the C library's malloc calls an internal function, other allocators are inside
   a call. */
EXPORT void *sbrk(intptr_t increment)
{
    uint64_t *stop = increment ? enter() : NULL;
    if (!real.sbrk)
        resolve();
    void *result = real.sbrk(increment);
    if (stop && result != (void *)-1)
        put_other(stop, SBRK, 0, increment);
    else if (stop)
        leave(stop);
    return result;
}

EXPORT int brk(void *end)
{
    uint64_t *stop = enter();
    if (!real.brk)
        resolve();
    char *before = real.sbrk(0);
    int result = real.brk(end);
    if (stop && result == 0 && end != before)
        put_other(stop, SBRK, 0, (char *)end - before);
    else if (stop)
        leave(stop);
    return result;
}

/* --- Filters of system calls --------------------------------------------------------------------- */

/* Prepare for a life without system calls: make chunks and states, and hide from what is executed. */
static void keep_quiet(void)
{
    if (quiet)
        return;
    uint64_t *stop = enter();
    if (stop) {
        int fd = open_file(".buffers", O_RDWR);
        lock();
        if (fd >= 0)
            reserve(fd, FILTERED);
        if (!image->left && (image->fresh = wiped(THREADS * sizeof(struct thread))))
            image->left = THREADS;
        unlock();
        if (fd >= 0)
            close(fd);
        leave(stop);
    }
    quiet = 1;
    unsetenv(VARIABLE);
}

/* Make a call that forbids system calls, reading the clock (as the strict mode of seccomp does, at
   the thread's next turn), or both. */
static long forbid(int calls, int clock, long n, const long a[6])
{
    int quiet_before = quiet;
    uint64_t stopped_before = stopped;
    if (calls)
        keep_quiet();
    if (clock && !stopped)
        stopped = ticks();
    long result = real.syscall(n, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (result == -1) {
        quiet = quiet_before;
        stopped = stopped_before;
    }
    return result;
}

EXPORT int recorder_prctl(int option, long a, long b, long c, long d) __asm__("prctl");
EXPORT int recorder_prctl(int option, long a, long b, long c, long d)
{
    if (!real.prctl)
        resolve();
    int calls = option == PR_SET_SECCOMP;
    int clock = (calls && a == SECCOMP_MODE_STRICT) || (option == PR_SET_TSC && a == PR_TSC_SIGSEGV);
    if (!calls && !clock)
        return real.prctl(option, a, b, c, d);
    return forbid(calls, clock, SYS_prctl, (const long[6]){option, a, b, c, d});
}

EXPORT long recorder_syscall(long n, long a, long b, long c, long d, long e, long f)
    __asm__("syscall");
EXPORT long recorder_syscall(long n, long a, long b, long c, long d, long e, long f)
{
    if (!real.syscall)
        resolve();
    if (n == SYS_prctl)
        return recorder_prctl(a, b, c, d, e);
    if (n == SYS_seccomp && (a == SECCOMP_SET_MODE_STRICT || a == SECCOMP_SET_MODE_FILTER))
        return forbid(1, a == SECCOMP_SET_MODE_STRICT, n, (const long[6]){a, b, c, d, e, f});
    return real.syscall(n, a, b, c, d, e, f);
}

/* --- Executing programs -------------------------------------------------------------------------- */

/* Return the value of a variable in an environment, or NULL. */
static const char *value_of(char *const env[], const char *name)
{
    size_t n = strlen(name);
    for (; env && *env; env++)
        if (!strncmp(*env, name, n) && (*env)[n] == '=')
            return *env + n + 1;
    return NULL;
}

static size_t entries(char *const list[])
{
    size_t n = 0;
    while (list && list[n])
        n++;
    return n;
}

/* Return ``env`` with what the recorder needs, if that is missing, so that the program executed is
   recorded even if its environment was cleared.  If it cannot be, count it, and return ``env`` without
   the recorder.  ``out``: room for two more entries; ``text``: room for them. */
static char *const *recorded(char *const env[], char **out, char *text)
{
    const char *preload = value_of(env, "LD_PRELOAD"), *to = value_of(env, VARIABLE);
    int has = preload && strstr(preload, library), possible = !quiet;
    if (!*directory || !*library)
        return env; /* nothing has been recorded yet, or ever will */
    if (possible && access(library, R_OK)) /* as after a chroot: the loader would complain */
        possible = 0;
    if (possible && has && to)
        return env;
    if (!possible)
        count_unrecorded();
    size_t n = 0;
    for (; env && *env; env++)
        if ((possible || strncmp(*env, VARIABLE "=", sizeof VARIABLE))
            && (has || !possible || strncmp(*env, "LD_PRELOAD=", 11)))
            out[n++] = *env;
    if (possible && !to) {
        out[n++] = text;
        text += sprintf(text, VARIABLE "=%s", directory) + 1;
    }
    if (possible && !has) {
        out[n++] = text;
        sprintf(text, "LD_PRELOAD=%s%s%s", library, preload ? ":" : "", preload ? preload : "");
    }
    out[n] = NULL;
    return out;
}

static size_t text_size(char *const env[])
{
    const char *preload = value_of(env, "LD_PRELOAD");
    return sizeof directory + sizeof library + (preload ? strlen(preload) : 0) + 100;
}

#define RECORDED(env) \
    recorded(env, alloca((entries(env) + 3) * sizeof(char *)), alloca(text_size(env)))
#define RESOLVED(function) \
    if (!resolved()) \
        resolve(); \
    if (!real.function) { \
        errno = ENOSYS; \
        return -1; \
    }

EXPORT int execve(const char *path, char *const argv[], char *const env[])
{
    RESOLVED(execve)
    return real.execve(path, argv, RECORDED(env));
}

EXPORT int execvpe(const char *file, char *const argv[], char *const env[])
{
    RESOLVED(execvpe)
    return real.execvpe(file, argv, RECORDED(env));
}

EXPORT int fexecve(int fd, char *const argv[], char *const env[])
{
    RESOLVED(fexecve)
    return real.fexecve(fd, argv, RECORDED(env));
}

EXPORT int execveat(int at, const char *path, char *const argv[], char *const env[], int flags)
{
    RESOLVED(execveat)
    return real.execveat(at, path, argv, RECORDED(env), flags);
}

EXPORT int execv(const char *path, char *const argv[])
{
    return execve(path, argv, environ);
}

EXPORT int execvp(const char *file, char *const argv[])
{
    return execvpe(file, argv, environ);
}

/* Define ``argv``, and ``last``, which points behind it to what follows the NULL. */
#define LISTED(first) \
    va_list list; \
    size_t n = 1; \
    va_start(list, first); \
    while (va_arg(list, char *)) \
        n++; \
    va_end(list); \
    char *argv[n + 1]; \
    va_start(list, first); \
    argv[0] = (char *)first; \
    for (size_t i = 1; i <= n; i++) \
        argv[i] = va_arg(list, char *);

EXPORT int execl(const char *path, const char *first, ...)
{
    LISTED(first)
    va_end(list);
    return execve(path, argv, environ);
}

EXPORT int execlp(const char *file, const char *first, ...)
{
    LISTED(first)
    va_end(list);
    return execvpe(file, argv, environ);
}

EXPORT int execle(const char *path, const char *first, ...)
{
    LISTED(first)
    char *const *env = va_arg(list, char *const *);
    va_end(list);
    return execve(path, argv, env);
}

/* Count what system or popen starts if the environment was cleared: they call exec internally. */
static void count_shell(void)
{
    const char *preload = value_of(environ, "LD_PRELOAD");
    if (*directory && !(preload && strstr(preload, library) && value_of(environ, VARIABLE)))
        count_unrecorded();
}

EXPORT int system(const char *command)
{
    RESOLVED(system)
    if (command)
        count_shell();
    return real.system(command);
}

EXPORT FILE *popen(const char *command, const char *type)
{
    if (!resolved())
        resolve();
    count_shell();
    return real.popen(command, type);
}

EXPORT int posix_spawn(
    pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
    const posix_spawnattr_t *attributes, char *const argv[], char *const env[])
{
    RESOLVED(posix_spawn)
    return real.posix_spawn(pid, path, actions, attributes, argv, RECORDED(env));
}

EXPORT int posix_spawnp(
    pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
    const posix_spawnattr_t *attributes, char *const argv[], char *const env[])
{
    RESOLVED(posix_spawnp)
    return real.posix_spawnp(pid, file, actions, attributes, argv, RECORDED(env));
}
