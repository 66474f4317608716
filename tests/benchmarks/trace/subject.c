/* The program recorded by the recorder's tests; its first argument selects a test case. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Marker sizes by which the tests find the relevant events. */
#define BEFORE_MAIN 55555
#define START 77777
#define STOP 88888

#define THREADS 4
#define BLOCKS 64
#define ROUNDS 150000

static void *volatile kept;

static void mark(size_t size)
{
    kept = malloc(size);
    free(kept);
}

__attribute__((constructor)) static void before_main(void)
{
    mark(BEFORE_MAIN);
}

/* Call every function once or twice. */
static void calls(void)
{
    void *a = malloc(100), *b = calloc(4, 25), *c = NULL;
    a = realloc(a, 300);
    a = realloc(a, 2000);
    kept = realloc(NULL, 50);
    free(b);
    free(NULL);
    kept = realloc(kept, 0);
    if (posix_memalign(&c, 64, 640))
        abort();
    free(c);
    free(kept = aligned_alloc(128, 256));
    free(kept = memalign(4096, 10));
    free(kept = valloc(20));
    free(kept = pvalloc(30));
    free(kept = malloc(SIZE_MAX / 2));
    free(kept = calloc(SIZE_MAX / 2, 4));
    if (malloc_usable_size(a) < 2000)
        abort();
    free(a);
}

static void *slots[BLOCKS];
static pthread_mutex_t locks[BLOCKS];

/* Threads that resize and replace each other's blocks. */
static void *exchange(void *seed)
{
    uint64_t x = (uintptr_t)seed * 2654435761u + 1;
    for (int i = 0; i < ROUNDS; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        int k = (x >> 33) % BLOCKS;
        size_t size = 24 + (x >> 40) % 3 * 32;
        pthread_mutex_lock(&locks[k]);
        void *p = slots[k];
        slots[k] = NULL;
        pthread_mutex_unlock(&locks[k]);
        if (x >> 63) {
            p = realloc(p, size);
        } else {
            free(p);
            p = malloc(size);
        }
        pthread_mutex_lock(&locks[k]);
        void *other = slots[k];
        slots[k] = p;
        pthread_mutex_unlock(&locks[k]);
        free(other);
    }
    return NULL;
}

static void threads(void)
{
    pthread_t all[THREADS];
    for (int i = 0; i < BLOCKS; i++)
        pthread_mutex_init(&locks[i], NULL);
    for (int i = 0; i < THREADS; i++)
        pthread_create(&all[i], NULL, exchange, (void *)(uintptr_t)i);
    for (int i = 0; i < THREADS; i++)
        pthread_join(all[i], NULL);
}

/* Last actions of a thread; the C library frees strerror's buffer after them. */
static void *once(void *_)
{
    mark(STOP);
    strerror(9999);
    return NULL;
}

static void churn(long n)
{
    for (long i = 0; i < n; i++)
        mark(16 + i % 100);
}

/* Kill the process at any system call but these and ``more``. */
static void filter(int more, int by_syscall)
{
    const int allowed[] = {SYS_write, SYS_exit_group, SYS_brk, SYS_wait4, more,
                           SYS_rt_sigprocmask, SYS_set_robust_list};
    enum { N = sizeof allowed / sizeof *allowed };
    struct sock_filter code[N + 3] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))};
    for (int i = 0; i < N; i++)
        code[i + 1] =
            (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], N - i, 0);
    code[N + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    code[N + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {N + 3, code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (by_syscall ? syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)
                   : prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        exit(9);
}

/* Make the recorder's life hard; return false for another case. */
static int restrict_by(const char *what)
{
    struct rlimit none = {0, 0};
    if (!strcmp(what, "fsize"))
        setrlimit(RLIMIT_FSIZE, &none);
    else if (!strcmp(what, "nofile"))
        setrlimit(RLIMIT_NOFILE, &none);
    else if (!strcmp(what, "chroot"))
        return !chroot("/proc/self/fdinfo") && !chdir("/");
    else if (!strcmp(what, "prctl") || !strcmp(what, "syscall"))
        filter(SYS_write, !strcmp(what, "syscall"));
    else if (!strcmp(what, "strict"))
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
    else if (!strcmp(what, "strict_syscall"))
        syscall(SYS_seccomp, SECCOMP_SET_MODE_STRICT, 0, NULL);
    else if (!strcmp(what, "no_clock"))
        prctl(PR_SET_TSC, PR_TSC_SIGSEGV);
    else
        return 0;
    return 1;
}

/* Execute ``path churn n`` with an environment that holds nothing of the recorder. */
static void execute(const char *how, char *path, char *n)
{
    char *argv[] = {path, "churn", n, NULL}, *env[] = {"A=1", NULL};
    pid_t pid;
    if (!strcmp(how, "posix_spawn") && !posix_spawn(&pid, path, NULL, NULL, argv, env))
        waitpid(pid, NULL, 0), exit(0);
    if (!strcmp(how, "posix_spawnp") && !posix_spawnp(&pid, path, NULL, NULL, argv, env))
        waitpid(pid, NULL, 0), exit(0);
    if (!strcmp(how, "execve"))
        execve(path, argv, env);
    if (!strcmp(how, "execve_nothing"))
        execve(path, argv, NULL);
    if (!strcmp(how, "execvpe"))
        execvpe(path, argv, env);
    if (!strcmp(how, "execle"))
        execle(path, path, "churn", n, (char *)NULL, env);
    if (!strcmp(how, "fexecve"))
        fexecve(open(path, O_RDONLY), argv, env);
    clearenv();
    if (!strcmp(how, "system"))
        exit(system("true"));
    if (!strcmp(how, "popen"))
        exit(pclose(popen("true", "r")));
    if (!strcmp(how, "execl"))
        execl(path, path, "churn", n, (char *)NULL);
    if (!strcmp(how, "execlp"))
        execlp(path, path, "churn", n, (char *)NULL);
    if (!strcmp(how, "execv"))
        execv(path, argv);
    if (!strcmp(how, "execvp"))
        execvp(path, argv);
    if (!strcmp(how, "fork") && !fork())
        churn(atol(n)), _exit(0);
    wait(NULL);
}

int main(int count, char **arguments)
{
    const char *what = count > 1 ? arguments[1] : "";
    long n = count > 2 ? atol(arguments[2]) : 0;
    mark(START);
    if (!strcmp(what, "calls"))
        calls();
    if (!strcmp(what, "threads"))
        threads();
    if (!strcmp(what, "churn"))
        churn(n);
    if (!strcmp(what, "sizes"))
        for (long i = n - 2; i < n + 2; i++) {
            mark(i);
            free(calloc(1, i));
            free(realloc(malloc(1), i));
        }
    if (!strcmp(what, "many"))
        for (long i = 0; i < n; i++) {
            pthread_t thread;
            pthread_create(&thread, NULL, once, NULL);
            pthread_join(thread, NULL);
        }
    if (!strcmp(what, "fork")) {
        void *inherited = malloc(123);
        churn(5);
        if (fork() == 0) {
            free(inherited);
            churn(n);
            _exit(0);
        }
        wait(NULL);
        free(inherited);
    }
    if (!strcmp(what, "vfork")) {
        if (vfork() == 0) {
            execl(arguments[0], arguments[0], "churn", arguments[2], (char *)NULL);
            _exit(1);
        }
        wait(NULL);
    }
    if (!strcmp(what, "exec"))
        execl(arguments[0], arguments[0], "churn", arguments[2], (char *)NULL);
    if (!strcmp(what, "orphan")) {
        if (fork())
            return 0;
        usleep(200000);
        churn(n);
    }
    if (!strcmp(what, "close")) {
        for (int i = 0; i < 100; i++)
            close(i);
        churn(n);
    }
    if (restrict_by(what)) {
        churn(n);
        if (!strncmp(what, "strict", 6))
            syscall(SYS_exit, 0); /* the strict mode forbids exit_group */
    }
    if (!strcmp(what, "others")) {
        mallopt(M_MMAP_THRESHOLD, 1 << 20);
        mallopt(M_ARENA_MAX, 1);
        sbrk(0);
        sbrk(8192);
        brk((char *)sbrk(0) - 4096);
        sbrk((intptr_t)1 << 60);
        malloc_trim(100);
    }
    if (!strcmp(what, "environment"))
        execute(arguments[3], arguments[0], arguments[2]);
    if (!strcmp(what, "children")) {
        filter(strcmp(arguments[3], "fork") ? SYS_execve : SYS_clone, 0);
        if (!strcmp(arguments[3], "execve"))
            execute("execve", "/nonesuch", "1");
        else if (!fork())
            churn(n), _exit(0);
        wait(NULL);
    }
    if (!strcmp(what, "sleep")) {
        churn(20);
        usleep(50000);
        churn(20);
    }
    if (!strcmp(what, "forever"))
        for (long i = 1;; i++) {
            churn(n);
            if (write(1, "x", 1) < 0)
                return 1;
        }
    mark(STOP);
    if (count > 3 && strcmp(what, "environment") && strcmp(what, "children")) {
        if (!strcmp(arguments[3], "_exit"))
            _exit(7);
        if (!strcmp(arguments[3], "pthread_exit"))
            pthread_exit(NULL);
        raise(atoi(arguments[3]));
    }
    return 0;
}
