/* The recorder: a library preloaded into a program; it records every call of malloc and its family.

       thread 1 ──► chunk ─┐  when full            NAME.buffers   a header, then the chunks that are
       thread 2 ──► chunk ─┴──────────► NAME.chunks               being filled: shared memory, which
                                                                  survives any end of the process
   Nothing needs to be done at exit: a record that is not yet in NAME.chunks is in NAME.buffers.

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
       ORIGIN:4 thread:60, number, ticks              first in a chunk; base of the next step
       TIME:4 ticks:60                                since the last ORIGIN

   Cost.  Half of the cost is the bytes written, half the instructions.  So the common record is one
   word, and a call makes a single test: has the thread reached its stop?  Only at a stop is there
   more to do: read the clock, flush a full chunk, or set up a new image or thread.
*/

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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
#define MAGIC 0x3252434552424d4dL /* "MMBRECR2" */
/* CLOCK_WORDS: words that a thread writes per reading of the clock, which costs as much as all the
   rest.  SLOW: with more ticks than this per word, events are rare enough to read it at each one. */
#define CLOCK_WORDS 32
#define SLOW 2048
#define VARIABLE "MALLOC_BENCH_RECORDING"

/* Operations: benchmarks.events.events, plus one; SHORT is added to MALLOC, REALLOC or CALLOC. */
enum { MALLOC = 1, FREE, REALLOC, CALLOC, ALIGNED, THREAD_END = 8, BEGIN, ORIGIN, TIME, SHORT = 11 };

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
    uint64_t threads;
    char path[4096]; /* without the suffix */
    size_t length;
    uint64_t number __attribute__((aligned(64))); /* of the next event */
};

static struct image not_begun;
static struct image *image = &not_begun;
static uint64_t images; /* number begun in this process and its ancestors */
static int off; /* recording is disabled */
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
    __atomic_store_n(&real.malloc, dlsym(RTLD_NEXT, "malloc"), __ATOMIC_RELEASE);
}

/* Return true if the real functions are known; false also while an outer call looks them up. */
static inline int resolved(void)
{
    return __atomic_load_n(&real.malloc, __ATOMIC_ACQUIRE) != NULL;
}

/* --- Files ------------------------------------------------------------------------------------- */

static uint64_t nanoseconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Read the cheapest monotonic clock of the machine; its unit varies. */
static inline uint64_t ticks(void)
{
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

/* Begin an image: create its buffers file and write the header.  Return false on failure. */
static int begin_image(void)
{
    const char *directory = getenv(VARIABLE);
    int fd = -1, length;
    if (!directory)
        return 0;
    for (int i = 0; fd < 0; i++) {
        length = snprintf(
            image->path, sizeof image->path, "%s/%d-%d", directory, (int)getpid(), i);
        if (length >= (int)sizeof image->path)
            return 0;
        image->length = length;
        fd = open_file(".buffers", O_RDWR | O_CREAT | O_EXCL);
        if (fd < 0 && errno != EEXIST)
            return 0;
    }
    static char header[HEADER];
    uint64_t *words = (uint64_t *)header;
    char *text = header + 8 * 8;
    words[0] = MAGIC;
    words[1] = getpid();
    words[2] = getppid();
    words[3] = nanoseconds(CLOCK_REALTIME);
    words[4] = ticks();
    ssize_t program = readlink("/proc/self/exe", text, 4096);
    words[5] = program < 0 ? 0 : program;
    words[6] = read_file("/proc/self/cmdline", text + words[5], header + HEADER - text - words[5]);
    ssize_t written = pwrite(fd, header, HEADER, 0);
    close(fd);
    if (written != HEADER)
        return 0;
    if (!has_key) {
        void thread_end(void *);
        has_key = pthread_key_create(&key, thread_end) == 0;
    }
    image->buffers = 1;
    __atomic_store_n(&image->id, ++images, __ATOMIC_RELEASE);
    return 1;
}

/* Map memory that is zeroed in the child of a fork; return NULL on failure. */
static void *wiped(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED || madvise(p, size, MADV_WIPEONFORK) ? NULL : p;
}

/* Map a new chunk in the buffers file; return NULL on failure. */
static struct chunk *make_chunk(void)
{
    struct chunk *chunk = NULL;
    int fd = open_file(".buffers", O_RDWR);
    off_t at = (off_t)image->buffers * CHUNK;
    /* Allocate blocks, not just a larger size: with a full disk a write to the mapping would raise
       SIGBUS. */
    if (fd >= 0 && posix_fallocate(fd, at, CHUNK) == 0) {
        void *p = mmap(NULL, CHUNK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, at);
        if (p != MAP_FAILED) {
            madvise(p, CHUNK, MADV_DONTFORK);
            image->buffers++;
            chunk = p;
        }
    }
    if (fd >= 0)
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
        if (!image->left && (image->fresh = wiped(THREADS * sizeof *taken)))
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
    if (!environ)
        return 0; /* too early: the C library is not initialised */
    if (image == &not_begun) {
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

/* Earlier stores reach memory before later ones, even if the process is killed in between. */
#define IN_ORDER __atomic_signal_fence(__ATOMIC_SEQ_CST)

/* Append this thread's chunk to the chunks file, then empty it. */
static void flush(struct thread *me)
{
    struct chunk *chunk = me->chunk;
    off_t at = (off_t)__atomic_fetch_add(&image->chunks, 1, __ATOMIC_RELAXED) * CHUNK;
    chunk->first = chunk->words[1];
    chunk->last = me->number;
    int fd = open_file(".chunks", O_WRONLY | O_CREAT);
    if (fd >= 0) {
        char *from = (char *)chunk;
        for (ssize_t n, done = 0; done < CHUNK; done += n) {
            n = pwrite(fd, from + done, CHUNK - done, at + done);
            if (n <= 0 && errno != EINTR)
                break; /* the missing numbers show the loss */
            n = n < 0 ? 0 : n;
        }
        close(fd);
    }
    IN_ORDER;
    chunk->words[0] = 0; /* from here on the chunk is empty */
    IN_ORDER;
    memset(chunk->words, 0, (char *)me->at - (char *)chunk->words);
    me->at = chunk->words;
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
    if (me->at > last)
        flush(me);
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
