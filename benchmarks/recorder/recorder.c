/* The recorder: preloaded into a program, it writes down every call of malloc and its family.

       thread 1 ──► chunk ─┐  when full            NAME.buffers   a header, then the chunks that are
       thread 2 ──► chunk ─┴──────────► NAME.chunks               being filled: shared memory, which
                                                                  outlives the process, however it ends
   Nothing is done when the process ends: what is not yet in NAME.chunks is in NAME.buffers.

   Order.  Every event takes the next number: a free before the call, an allocation after it, so that
   memory which passes from one to the other does so in the order of the numbers.  A realloc takes
   two, one for the release and one for the acquisition.

   An *image* is a process from its start, fork or exec on; each has files of its own.  Its state is
   wiped by the kernel when the process forks (MADV_WIPEONFORK), so a child begins anew at its first
   event, without handlers, and never sees its parent's chunks (MADV_DONTFORK).  No descriptor stays
   open, since programs close and reuse what they did not open themselves.

   A chunk is CHUNK bytes: used, first, last, next, then words of 8 bytes.  A record is one of

       operation:4 step:8 address:52                  step: from the number of the record above
       operation:4 step:8 address:52, alignment:8 size:56            allocations, realloc's end
       ORIGIN:4 thread:60, number, ticks              the first of a chunk; step counts from here
       TIME:4 ticks:60                                since the last ORIGIN
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
#define ALONE __libc_single_threaded
#else
#define ALONE 0
#endif

#define EXPORT __attribute__((visibility("default")))
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

/* Bytes of a chunk, and the format of the files; benchmarks/recorder/raw.py knows both. */
#define CHUNK 65536
#define MAGIC 0x3152434552424d4dL /* "MMBRECR1" */
/* Events, of all threads, that share a reading of the clock: it costs as much as all the rest. */
#define CLOCK_EVERY 8
#define VARIABLE "MALLOC_BENCH_RECORDING"

/* Operations: benchmarks.events, plus one. */
enum { MALLOC = 1, FREE, REALLOC, CALLOC, ALIGNED, THREAD_END = 8, BEGIN };
#define ORIGIN (uint64_t)10
#define TIME (uint64_t)11

#define WORDS ((CHUNK - 4 * 8) / 8)
/* The most words that one call writes: two records, each with an ORIGIN. */
#define RESERVE 16
/* How often destructors are called while there are values (PTHREAD_DESTRUCTOR_ITERATIONS). */
#define ROUNDS 4
#define NONE ((uint64_t)1 << 63)
#define ADDRESS (((uint64_t)1 << 52) - 1)
#define SIZE (((uint64_t)1 << 56) - 1)
#define TICKS (((uint64_t)1 << 60) - 1)

struct chunk {
    uint64_t used; /* words; stored after the record is whole */
    uint64_t first, last; /* numbers; filled when the chunk is written */
    struct chunk *next; /* in the list of chunks without a thread */
    uint64_t words[WORDS];
};

/* What the image is; all zero in the child of a fork. */
struct image {
    uint64_t id; /* 0: not begun */
    int beginning;
    int lock; /* of the buffers file and the list of spare chunks */
    struct chunk *spare;
    uint64_t buffers, chunks; /* slots used in the two files */
    uint64_t threads;
    char path[4096]; /* without the suffix */
    size_t length;
    uint64_t number __attribute__((aligned(64))); /* of the next event */
};

/* What a thread knows. */
struct thread {
    uint64_t image; /* in which the rest is valid */
    uint64_t named; /* the image in which thread is valid */
    uint64_t thread;
    struct chunk *chunk;
    uint64_t number; /* of its last record; NONE: an ORIGIN comes first */
    uint64_t ticks; /* of its last ORIGIN */
    int rounds; /* of destructors seen */
    int busy; /* inside of the recorder, or of the allocator */
};

static struct image not_begun;
static struct image *image = &not_begun;
static uint64_t images; /* begun in this process and its ancestors */
static int off; /* nothing is to be recorded */
static pthread_key_t key;
static int has_key;
static __thread struct thread self __attribute__((tls_model("initial-exec"))) = {.image = NONE};

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

/* --- The allocator that was there before, and what dlsym needs to find it ---------------------- */

static char bootstrap[1 << 15] __attribute__((aligned(16)));
static size_t bootstrapped;

/* Memory for dlsym's own use, zeroed; never given back. */
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
    return (const char *)p >= bootstrap && (const char *)p < bootstrap + sizeof bootstrap;
}

/* Find the real functions; false while that is under way further up the stack. */
static int resolve(void)
{
    if (self.busy)
        return 0;
    self.busy = 1;
    real.free = dlsym(RTLD_NEXT, "free");
    real.calloc = dlsym(RTLD_NEXT, "calloc");
    real.realloc = dlsym(RTLD_NEXT, "realloc");
    real.posix_memalign = dlsym(RTLD_NEXT, "posix_memalign");
    real.aligned_alloc = dlsym(RTLD_NEXT, "aligned_alloc");
    real.memalign = dlsym(RTLD_NEXT, "memalign");
    real.valloc = dlsym(RTLD_NEXT, "valloc");
    real.pvalloc = dlsym(RTLD_NEXT, "pvalloc");
    __atomic_store_n(&real.malloc, dlsym(RTLD_NEXT, "malloc"), __ATOMIC_RELEASE);
    self.busy = 0;
    return 1;
}

#define RESOLVED (!UNLIKELY(!__atomic_load_n(&real.malloc, __ATOMIC_ACQUIRE)) || resolve())

/* --- Files ------------------------------------------------------------------------------------- */

static uint64_t nanoseconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* A steady clock in units of its own, as cheap as the machine has one. */
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

/* The steady clock beside the system's, ns: two such pairs tell how long a tick is. */
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

/* Open the image's file with this suffix; -1 on failure. */
static int open_file(const char *suffix, int flags)
{
    char path[sizeof image->path + 16];
    memcpy(path, image->path, image->length);
    strcpy(path + image->length, suffix);
    return open(path, flags | O_CLOEXEC, 0600);
}

/* The content of a file in /proc/self, at most ``room`` bytes; its length. */
static size_t slurp(const char *path, char *out, size_t room)
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

/* Begin an image: make its files, and write down what it is.  False: nothing can be recorded. */
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
    static char header[CHUNK];
    uint64_t *words = (uint64_t *)header;
    char *text = header + 8 * 8;
    words[0] = MAGIC;
    words[1] = getpid();
    words[2] = getppid();
    words[3] = nanoseconds(CLOCK_REALTIME);
    words[4] = ticks();
    ssize_t program = readlink("/proc/self/exe", text, 4096);
    words[5] = program < 0 ? 0 : program;
    words[6] = slurp("/proc/self/cmdline", text + words[5], header + CHUNK - text - words[5]);
    ssize_t written = pwrite(fd, header, CHUNK, 0);
    close(fd);
    if (written != CHUNK)
        return 0;
    if (!has_key) {
        void thread_end(void *);
        has_key = pthread_key_create(&key, thread_end) == 0;
    }
    image->buffers = 1;
    __atomic_store_n(&image->id, ++images, __ATOMIC_RELEASE);
    return 1;
}

/* A chunk for this thread: a spare one, or a new one in the buffers file; NULL on failure. */
static struct chunk *take_chunk(void)
{
    lock();
    struct chunk *chunk = image->spare;
    if (chunk) {
        image->spare = chunk->next;
    } else {
        int fd = open_file(".buffers", O_RDWR);
        off_t at = (off_t)image->buffers * CHUNK;
        /* Allocated, not only enlarged: on a full disk a touch would end the program. */
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
    }
    unlock();
    return chunk;
}

/* Make this thread ready to record in the image that the process is now; false: it cannot. */
static __attribute__((noinline)) int attach(void)
{
    int saved = errno, ready = 0;
    if (!environ)
        return 0; /* too early: the C library is not initialised */
    if (image == &not_begun) {
        void *p = mmap(NULL, sizeof *image, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED || madvise(p, sizeof *image, MADV_WIPEONFORK)) {
            off = 1;
            goto done;
        }
        image = p;
    }
    if (!__atomic_load_n(&image->id, __ATOMIC_ACQUIRE)) {
        if (__atomic_exchange_n(&image->beginning, 1, __ATOMIC_ACQ_REL))
            goto done;
        if (!begin_image()) {
            off = 1;
            goto done;
        }
    }
    if (self.named != image->id) {
        self.named = image->id;
        self.thread = __atomic_fetch_add(&image->threads, 1, __ATOMIC_RELAXED);
        self.rounds = 0;
        if (has_key)
            pthread_setspecific(key, &self);
    }
    self.chunk = take_chunk();
    self.number = NONE;
    if (self.chunk) {
        self.image = image->id;
        ready = 1;
    }
done:
    errno = saved;
    return ready;
}

/* Append this thread's chunk to the chunks file, and begin it anew. */
static __attribute__((noinline)) void flush(struct chunk *chunk)
{
    int saved = errno;
    off_t at = (off_t)__atomic_fetch_add(&image->chunks, 1, __ATOMIC_RELAXED) * CHUNK;
    chunk->first = chunk->words[1];
    chunk->last = self.number;
    int fd = open_file(".chunks", O_WRONLY | O_CREAT);
    if (fd >= 0) {
        char *from = (char *)chunk;
        for (ssize_t n, done = 0; done < CHUNK; done += n) {
            n = pwrite(fd, from + done, CHUNK - done, at + done);
            if (n <= 0 && errno != EINTR)
                break; /* the numbers that are missing will tell */
            n = n < 0 ? 0 : n;
        }
        close(fd);
    }
    __atomic_store_n(&chunk->used, 0, __ATOMIC_RELEASE);
    self.number = NONE;
    errno = saved;
}

/* --- Records ----------------------------------------------------------------------------------- */

/* The next number.  A locked instruction waits for all stores before it: not while alone. */
static inline uint64_t next_number(void)
{
    if (ALONE)
        return image->number++;
    return __atomic_fetch_add(&image->number, 1, __ATOMIC_RELAXED);
}

/* Append a record of one word, or of two when there is a ``second``. */
static inline void put(uint64_t operation, const void *p, int has_second, uint64_t second)
{
    struct chunk *chunk = self.chunk;
    uint64_t number = next_number();
    uint64_t step = number - self.number;
    uint64_t *words = chunk->words + chunk->used;
    if (UNLIKELY(step > 255)) {
        self.ticks = ticks();
        *words++ = ORIGIN << 60 | self.thread;
        *words++ = number;
        *words++ = self.ticks;
        step = 0;
    } else if (number % CLOCK_EVERY == 0) {
        uint64_t passed = ticks() - self.ticks;
        if (passed <= TICKS)
            *words++ = TIME << 60 | passed;
    }
    self.number = number;
    *words++ = operation << 60 | step << 52 | ((uint64_t)(uintptr_t)p & ADDRESS);
    if (has_second)
        *words++ = second;
    __atomic_store_n(&chunk->used, words - chunk->words, __ATOMIC_RELEASE);
}

/* Room for what one call records; false: nothing is recorded. */
static inline int ready(void)
{
    if (UNLIKELY(self.image != image->id) && !attach())
        return 0;
    if (UNLIKELY(self.chunk->used > WORDS - RESERVE))
        flush(self.chunk);
    return 1;
}

static inline void allocated(uint64_t operation, const void *p, uint64_t size, uint64_t alignment)
{
    if (ready())
        put(operation, p, 1, (size > SIZE ? SIZE : size) | alignment << 56);
}

/* The call is over.  What a thread still does after its end gets a chunk for that call only. */
static inline void leave(void)
{
    if (UNLIKELY(self.rounds == ROUNDS) && self.image == image->id) {
        lock();
        self.chunk->next = image->spare;
        image->spare = self.chunk;
        self.image = NONE;
        unlock();
    }
    self.busy = 0;
}

/* A thread ends: when the destructors of all others have had their turns, so has it. */
void thread_end(void *value)
{
    if (self.busy || off)
        return;
    if (++self.rounds < ROUNDS) {
        pthread_setspecific(key, value);
        return;
    }
    self.busy = 1;
    if (self.named == image->id && ready())
        put(THREAD_END, NULL, 0, 0);
    leave();
}

/* --- What the program calls -------------------------------------------------------------------- */

EXPORT void *malloc(size_t size)
{
    if (!RESOLVED)
        return bootstrap_alloc(size);
    if (UNLIKELY(self.busy | off))
        return real.malloc(size);
    self.busy = 1;
    void *p = real.malloc(size);
    allocated(MALLOC, p, size, 0);
    leave();
    return p;
}

EXPORT void free(void *p)
{
    if (UNLIKELY(is_bootstrap(p)) || !RESOLVED)
        return;
    /* The C library ends a thread with free(NULL), which is nothing that the thread did. */
    if (UNLIKELY(self.busy | off) || (!p && UNLIKELY(self.rounds == ROUNDS))) {
        real.free(p);
        return;
    }
    self.busy = 1;
    if (ready())
        put(FREE, p, 0, 0);
    real.free(p);
    leave();
}

EXPORT void *calloc(size_t n, size_t size)
{
    if (!RESOLVED)
        return bootstrap_alloc(n * size);
    if (UNLIKELY(self.busy | off))
        return real.calloc(n, size);
    self.busy = 1;
    void *p = real.calloc(n, size);
    allocated(CALLOC, p, n * size, 0);
    leave();
    return p;
}

EXPORT void *realloc(void *old, size_t size)
{
    if (UNLIKELY(is_bootstrap(old)) || !RESOLVED) {
        void *p = malloc(size);
        size_t had = old ? *(size_t *)((char *)old - 16) : 0;
        if (p && old)
            memcpy(p, old, had < size ? had : size);
        return p;
    }
    if (UNLIKELY(self.busy | off))
        return real.realloc(old, size);
    self.busy = 1;
    int begun = old && ready();
    if (begun)
        put(BEGIN, old, 0, 0);
    void *p = real.realloc(old, size);
    if (begun)
        put(REALLOC, p, 1, size > SIZE ? SIZE : size); /* in the same chunk */
    else if (!old)
        allocated(REALLOC, p, size, 0);
    leave();
    return p;
}

/* log2 of an alignment, rounded up as the C library does. */
static uint64_t log2_of(size_t alignment)
{
    return alignment < 2 ? 0 : 64 - __builtin_clzll((unsigned long long)alignment - 1);
}

EXPORT int posix_memalign(void **out, size_t alignment, size_t size)
{
    if (!RESOLVED)
        return ENOMEM;
    if (UNLIKELY(self.busy | off))
        return real.posix_memalign(out, alignment, size);
    self.busy = 1;
    int error = real.posix_memalign(out, alignment, size);
    allocated(ALIGNED, error ? NULL : *out, size, log2_of(alignment));
    leave();
    return error;
}

static inline void *aligned(void *(*function)(size_t, size_t), size_t alignment, size_t size)
{
    if (UNLIKELY(self.busy | off))
        return function(alignment, size);
    self.busy = 1;
    void *p = function(alignment, size);
    allocated(ALIGNED, p, size, log2_of(alignment));
    leave();
    return p;
}

EXPORT void *aligned_alloc(size_t alignment, size_t size)
{
    return RESOLVED ? aligned(real.aligned_alloc, alignment, size) : NULL;
}

EXPORT void *memalign(size_t alignment, size_t size)
{
    return RESOLVED ? aligned(real.memalign, alignment, size) : NULL;
}

static inline void *paged(void *(*function)(size_t), size_t size)
{
    if (UNLIKELY(self.busy | off))
        return function(size);
    self.busy = 1;
    void *p = function(size);
    allocated(ALIGNED, p, size, log2_of(sysconf(_SC_PAGESIZE)));
    leave();
    return p;
}

EXPORT void *valloc(size_t size)
{
    return RESOLVED ? paged(real.valloc, size) : NULL;
}

EXPORT void *pvalloc(size_t size)
{
    return RESOLVED ? paged(real.pvalloc, size) : NULL;
}
