/* A shim between a program and libc: counts the calls that change files, open something or read something,
 * and at one of them kills the process or lets the call fail (see support/shim.py).
 *
 *     cc -shared -fPIC -O1 -o shim.so shim.c -ldl;  LD_PRELOAD=shim.so program
 *
 * Nothing happens before shim_arm().  Nothing is ever synced: the test kills processes, not machines.
 * Calls that libc makes by itself are not seen; the test compares with what strace sees.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <unistd.h>

enum { CHANGE = 1, OPEN = 2, READ = 4 };               /* what a call does */
enum { KILL = -1, TORN = -2, SHORT = -3 };             /* faults; an errno is one too */
enum { MOST = 1 << 16 };

static int armed, fault;
static long count, wanted;
static const char *names[MOST];
static pid_t owner;

/* From now on count calls of these `classes`; at number `number` (from 1; 0: none) comes the `what`. */
void shim_arm(int classes, long number, int what) {
    count = 0, wanted = number, fault = what, owner = getpid(), armed = classes;
}

/* Count no more; how many there were. */
long shim_disarm(void) {
    armed = 0;
    return count;
}

/* Which call was number `number`. */
const char *shim_name(long number) { return number > 0 && number <= count && number <= MOST ? names[number - 1] : ""; }

/* 0: go on; else the fault. */
static int at(int classes, const char *name) {
    if (!(armed & classes) || getpid() != owner) return 0;
    if (count < MOST) names[count] = name;
    if (++count != wanted) return 0;
    if (fault == KILL) kill(owner, SIGKILL);
    if (fault > 0) errno = fault;
    return fault;
}

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))
#define WRAP(type, failed, classes, name, params, args)                  \
    type name params {                                                   \
        static typeof(&name) real;                                       \
        if (!real) real = REAL(name);                                    \
        return at(classes, #name) > 0 ? failed : real args;              \
    }
#define CHANGES(name, params, args) WRAP(int, -1, CHANGE, name, params, args)

CHANGES(rename, (const char *a, const char *b), (a, b))
CHANGES(renameat, (int d, const char *a, int e, const char *b), (d, a, e, b))
CHANGES(renameat2, (int d, const char *a, int e, const char *b, unsigned f), (d, a, e, b, f))
CHANGES(unlink, (const char *a), (a))
CHANGES(unlinkat, (int d, const char *a, int f), (d, a, f))
CHANGES(rmdir, (const char *a), (a))
CHANGES(mkdir, (const char *a, mode_t m), (a, m))
CHANGES(mkdirat, (int d, const char *a, mode_t m), (d, a, m))
CHANGES(link, (const char *a, const char *b), (a, b))
CHANGES(linkat, (int d, const char *a, int e, const char *b, int f), (d, a, e, b, f))
CHANGES(symlink, (const char *a, const char *b), (a, b))
CHANGES(symlinkat, (const char *a, int d, const char *b), (a, d, b))
CHANGES(mknod, (const char *a, mode_t m, dev_t r), (a, m, r))
CHANGES(mknodat, (int d, const char *a, mode_t m, dev_t r), (d, a, m, r))
CHANGES(mkfifo, (const char *a, mode_t m), (a, m))
CHANGES(mkfifoat, (int d, const char *a, mode_t m), (d, a, m))
CHANGES(chmod, (const char *a, mode_t m), (a, m))
CHANGES(fchmod, (int d, mode_t m), (d, m))
CHANGES(fchmodat, (int d, const char *a, mode_t m, int f), (d, a, m, f))
CHANGES(chown, (const char *a, uid_t u, gid_t g), (a, u, g))
CHANGES(lchown, (const char *a, uid_t u, gid_t g), (a, u, g))
CHANGES(fchown, (int d, uid_t u, gid_t g), (d, u, g))
CHANGES(fchownat, (int d, const char *a, uid_t u, gid_t g, int f), (d, a, u, g, f))
CHANGES(ftruncate, (int d, off_t n), (d, n))
CHANGES(ftruncate64, (int d, off64_t n), (d, n))
CHANGES(truncate, (const char *a, off_t n), (a, n))
CHANGES(truncate64, (const char *a, off64_t n), (a, n))
CHANGES(fallocate, (int d, int m, off_t o, off_t n), (d, m, o, n))
CHANGES(fallocate64, (int d, int m, off64_t o, off64_t n), (d, m, o, n))
CHANGES(utimensat, (int d, const char *a, const struct timespec t[2], int f), (d, a, t, f))
CHANGES(futimens, (int d, const struct timespec t[2]), (d, t))

int setxattr(const char *, const char *, const void *, size_t, int);
int lsetxattr(const char *, const char *, const void *, size_t, int);
int fsetxattr(int, const char *, const void *, size_t, int);
int removexattr(const char *, const char *);
int lremovexattr(const char *, const char *);
int fremovexattr(int, const char *);
CHANGES(setxattr, (const char *a, const char *n, const void *v, size_t s, int f), (a, n, v, s, f))
CHANGES(lsetxattr, (const char *a, const char *n, const void *v, size_t s, int f), (a, n, v, s, f))
CHANGES(fsetxattr, (int d, const char *n, const void *v, size_t s, int f), (d, n, v, s, f))
CHANGES(removexattr, (const char *a, const char *n), (a, n))
CHANGES(lremovexattr, (const char *a, const char *n), (a, n))
CHANGES(fremovexattr, (int d, const char *n), (d, n))

int mount(const char *, const char *, const char *, unsigned long, const void *);
int umount2(const char *, int);
CHANGES(mount, (const char *a, const char *b, const char *t, unsigned long f, const void *v), (a, b, t, f, v))
CHANGES(umount2, (const char *a, int f), (a, f))

#define SYNCS(name) int name(int fd) { return (void)fd, at(CHANGE, #name) > 0 ? -1 : 0; }
SYNCS(fsync)
SYNCS(fdatasync)
SYNCS(syncfs)

/* Calls that may do a part: `call` does `part` of the bytes. */
#define PARTLY(type, name, params, size, call)                           \
    type name params {                                                   \
        static typeof(&name) real;                                       \
        if (!real) real = REAL(name);                                    \
        size_t part = size;                                              \
        int what = at(CHANGE, #name);                                    \
        if (what > 0) return -1;                                         \
        if (what < 0) part -= part / 2;                                  \
        type done = real call;                                           \
        if (what == TORN) kill(getpid(), SIGKILL);                       \
        return done;                                                     \
    }
PARTLY(ssize_t, write, (int fd, const void *b, size_t n), n, (fd, b, part))
PARTLY(ssize_t, pwrite, (int fd, const void *b, size_t n, off_t o), n, (fd, b, part, o))
PARTLY(ssize_t, pwrite64, (int fd, const void *b, size_t n, off64_t o), n, (fd, b, part, o))
PARTLY(ssize_t, copy_file_range, (int s, off64_t *p, int t, off64_t *q, size_t n, unsigned f), n, (s, p, t, q, part, f))
ssize_t sendfile64(int, int, off64_t *, size_t);
PARTLY(ssize_t, sendfile64, (int t, int s, off64_t *o, size_t n), n, (t, s, o, part))

WRAP(ssize_t, -1, READ, read, (int fd, void *b, size_t n), (fd, b, n))
WRAP(ssize_t, -1, READ, pread, (int fd, void *b, size_t n, off_t o), (fd, b, n, o))
WRAP(ssize_t, -1, READ, pread64, (int fd, void *b, size_t n, off64_t o), (fd, b, n, o))
WRAP(struct dirent64 *, NULL, READ, readdir64, (DIR *d), (d))
WRAP(ssize_t, -1, READ, readlink, (const char *a, char *b, size_t n), (a, b, n))
WRAP(ssize_t, -1, READ, readlinkat, (int d, const char *a, char *b, size_t n), (d, a, b, n))
WRAP(DIR *, NULL, OPEN, opendir, (const char *a), (a))
WRAP(int, -1, OPEN, dup, (int d), (d))
WRAP(int, -1, OPEN, socket, (int a, int b, int c), (a, b, c))
WRAP(int, -1, OPEN, socketpair, (int a, int b, int c, int d[2]), (a, b, c, d))
WRAP(int, -1, OPEN, pipe2, (int d[2], int f), (d, f))

/* A disk that had no space for a call says so too. */
#define ROOM(name, params, args)                                   \
    int name params {                                                    \
        static typeof(&name) real;                                       \
        if (!real) real = REAL(name);                                    \
        int result = real args;                                          \
        if (armed && fault == ENOSPC && wanted && count >= wanted) st->f_bavail = st->f_favail = 0; \
        return result;                                                   \
    }
ROOM(statvfs64, (const char *path, struct statvfs64 *st), (path, st))
ROOM(fstatvfs64, (int fd, struct statvfs64 *st), (fd, st))

#define OPENS(name, params, last, args)                                  \
    int name params {                                                    \
        static typeof(&name) real;                                       \
        if (!real) real = REAL(name);                                    \
        mode_t mode = 0;                                                 \
        if (flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) {            \
            va_list list;                                                \
            va_start(list, last);                                        \
            mode = va_arg(list, mode_t);                                 \
            va_end(list);                                                \
        }                                                                \
        int writes = flags & (O_WRONLY | O_RDWR | O_CREAT);              \
        return at(writes ? OPEN | CHANGE : OPEN, #name) > 0 ? -1 : real args; \
    }
OPENS(open, (const char *path, int flags, ...), flags, (path, flags, mode))
OPENS(open64, (const char *path, int flags, ...), flags, (path, flags, mode))
OPENS(openat, (int d, const char *path, int flags, ...), flags, (d, path, flags, mode))
OPENS(openat64, (int d, const char *path, int flags, ...), flags, (d, path, flags, mode))

/* fcntl(2) opens with F_DUPFD, ioctl(2) changes with FICLONE; all else goes through. */
#define THROUGH(name, type, opens, classes)                              \
    int name(int fd, type command, ...) {                                \
        static typeof(&name) real;                                       \
        if (!real) real = REAL(name);                                    \
        va_list list;                                                    \
        va_start(list, command);                                         \
        void *argument = va_arg(list, void *);                           \
        va_end(list);                                                    \
        return opens && at(classes, #name) > 0 ? -1 : real(fd, command, argument); \
    }
int ioctl(int, unsigned long, ...);
int fcntl64(int, int, ...);
THROUGH(fcntl, int, (command == F_DUPFD || command == F_DUPFD_CLOEXEC), OPEN)
THROUGH(fcntl64, int, (command == F_DUPFD || command == F_DUPFD_CLOEXEC), OPEN)
THROUGH(ioctl, unsigned long, command == 0x40049409, CHANGE)
