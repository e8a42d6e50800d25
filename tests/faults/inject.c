// Preloaded into a Python (LD_PRELOAD): counts the libc calls on what lies below some directories, and lets the N-th
// fail. Nothing is counted before faults_arm(). Each thread can step aside with faults_pause().
//
// What a call is about is told by its path, or by its descriptor: one that was opened below the directories is
// remembered until it is closed. A relative path without a descriptor counts as being elsewhere.
#define _GNU_SOURCE
#define _LARGEFILE64_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { NONE = 0, SHORT = -1, KILL = -2 };                 // else an errno
enum { ONCE, AFTERWARDS, SAME_ON, ALL_ON };               // see faults_arm
enum { MOST_FDS = 65536, MOST_DIRECTORIES = 8 };

static char directories[MOST_DIRECTORIES][PATH_MAX];
static int number_of_directories;
static unsigned char below_fd[MOST_FDS];
static int armed, act, how, log_fd = -1;
static long at, seen;
static char hit_name[32];
static __thread int paused;

// Watch what lies below this directory too.
void faults_watch(const char *directory) {
    snprintf(directories[number_of_directories++], PATH_MAX, "%s", directory);
}

// From now on count, and let call number `n` (from 1) fail: `what` is an errno, SHORT (half of a read or write), KILL,
// or NONE. `mode`: ONCE; AFTERWARDS: once, and the call is made before it fails; SAME_ON: each later call of the same
// function fails too; ALL_ON: all later calls. Each call is a line in `log`, a failing one with a "!" before it.
void faults_arm(long n, int what, int mode, int log) {
    at = n, act = what, how = mode, log_fd = log, seen = 0, hit_name[0] = 0;
    armed = 1;
}

long faults_disarm(void) {
    armed = 0;
    return seen;
}

void faults_pause(int yes) { paused += yes ? 1 : -1; }

static int is_below(int fd, const char *path) {
    if (path == NULL || path[0] == 0)
        return fd >= 0 && fd < MOST_FDS && below_fd[fd];
    if (path[0] != '/')
        return fd >= 0 && fd < MOST_FDS && below_fd[fd];
    for (int i = 0; i < number_of_directories; i++) {
        size_t length = strlen(directories[i]);
        if (strncmp(path, directories[i], length) == 0 && (path[length] == '/' || path[length] == 0))
            return 1;
    }
    return 0;
}

static void track(int fd, int below) {
    if (fd >= 0 && fd < MOST_FDS)
        below_fd[fd] = (unsigned char)below;
}

static void note(const char *name, int fd, const char *path, int failing) {
    char line[2 * PATH_MAX], link[64], of_fd[PATH_MAX] = "";
    if (log_fd < 0)
        return;
    if (path == NULL || path[0] != '/') {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        long length = syscall(SYS_readlink, link, of_fd, sizeof of_fd - 1);
        of_fd[length > 0 ? length : 0] = 0;
    }
    int length = snprintf(line, sizeof line, "%s%s %s%s%s\n", failing ? "! " : "", name, of_fd,
                          of_fd[0] && path ? "/" : "", path ? path : "");
    syscall(SYS_write, log_fd, line, (size_t)length);
}

// What is to become of a call: NONE, SHORT, or the errno with which it fails. KILL does not return.
static int decided(const char *name, int fd, const char *path) {
    if (!armed || paused || !is_below(fd, path))
        return NONE;
    long number = __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
    int failing = number == at || (number > at && at > 0 && how == ALL_ON) ||
                  (number > at && at > 0 && how == SAME_ON && strcmp(name, hit_name) == 0);
    if (number == at)
        snprintf(hit_name, sizeof hit_name, "%s", name);
    failing = failing && act != NONE;
    note(name, fd, path, failing);
    if (!failing)
        return NONE;
    if (act == KILL) {
        syscall(SYS_kill, getpid(), SIGKILL);
        for (;;)
            pause();
    }
    return act;
}

#define REAL(name) __extension__({                              \
        static __typeof__(&name) real_##name;                   \
        if (real_##name == NULL)                                \
            real_##name = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
        real_##name;                                            \
    })

// The body of a wrapper: fail before the call, or make it, and fail after it.
#define CALL(failed, name, fd, path, ...)                       \
    int fault = decided(#name, fd, path);                       \
    if (fault > 0 && how != AFTERWARDS) {                       \
        errno = fault;                                          \
        return failed;                                          \
    }                                                           \
    __auto_type result = REAL(name)(__VA_ARGS__);               \
    if (fault > 0) {                                            \
        errno = fault;                                          \
        return failed;                                          \
    }

#define WRAP(type, name, parameters, fd, path, ...)             \
    type name parameters {                                      \
        CALL(-1, name, fd, path, __VA_ARGS__)                   \
        return result;                                          \
    }

// ---- by which descriptors come and go

#define OPEN(name, parameters, fd, path, ...)                   \
    int name parameters {                                       \
        mode_t mode = 0;                                        \
        if (flags & (O_CREAT | O_TMPFILE)) {                    \
            va_list more;                                       \
            va_start(more, flags);                              \
            mode = va_arg(more, mode_t);                        \
            va_end(more);                                       \
        }                                                       \
        int below = is_below(fd, path);                         \
        int fault = decided(#name, fd, path);                   \
        if (fault > 0 && how != AFTERWARDS) {                   \
            errno = fault;                                      \
            return -1;                                          \
        }                                                       \
        int result = REAL(name)(__VA_ARGS__, mode);             \
        if (fault > 0) {                                        \
            if (result >= 0)                                    \
                syscall(SYS_close, result);                     \
            errno = fault;                                      \
            return -1;                                          \
        }                                                       \
        track(result, below);                                   \
        return result;                                          \
    }

OPEN(open, (const char *path, int flags, ...), -1, path, path, flags)
OPEN(open64, (const char *path, int flags, ...), -1, path, path, flags)
OPEN(openat, (int fd, const char *path, int flags, ...), fd, path, fd, path, flags)
OPEN(openat64, (int fd, const char *path, int flags, ...), fd, path, fd, path, flags)

// As the kernel: the descriptor is gone, whatever the call says.
int close(int fd) {
    int fault = decided("close", fd, NULL);
    track(fd, 0);
    int result = REAL(close)(fd);
    if (fault > 0) {
        errno = fault;
        return -1;
    }
    return result;
}

static int dup_or_lock(int (*real)(int, int, ...), int fd, int command, void *argument) {
    int duplicates = command == F_DUPFD || command == F_DUPFD_CLOEXEC;
    int locks = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW;
    int fault = duplicates || locks ? decided("fcntl", fd, NULL) : NONE;
    if (fault > 0) {
        errno = fault;
        return -1;
    }
    int result = real(fd, command, argument);
    if (duplicates)
        track(result, is_below(fd, NULL));
    return result;
}

#define FCNTL(name)                                             \
    int name(int fd, int command, ...) {                        \
        va_list more;                                           \
        va_start(more, command);                                \
        void *argument = va_arg(more, void *);                  \
        va_end(more);                                           \
        return dup_or_lock(REAL(name), fd, command, argument);  \
    }

FCNTL(fcntl)
FCNTL(fcntl64)

int dup2(int fd, int to) {
    int result = REAL(dup2)(fd, to);
    track(result, is_below(fd, NULL));
    return result;
}

DIR *opendir(const char *path) {
    int below = is_below(-1, path);
    CALL(NULL, opendir, -1, path, path)
    if (result != NULL)
        track(dirfd(result), below);
    return result;
}

DIR *fdopendir(int fd) {
    CALL(NULL, fdopendir, fd, NULL, fd)
    return result;
}

int closedir(DIR *directory) {
    track(dirfd(directory), 0);
    return REAL(closedir)(directory);
}

struct dirent64 *readdir64(DIR *directory) {
    CALL(NULL, readdir64, dirfd(directory), NULL, directory)
    return result;
}

struct dirent *readdir(DIR *directory) {
    CALL(NULL, readdir, dirfd(directory), NULL, directory)
    return result;
}

// ---- reading and writing, which may be short

#define TRANSFER(name, parameters, fd, ...)                     \
    ssize_t name parameters {                                   \
        int fault = decided(#name, fd, NULL);                   \
        if (fault == SHORT)                                     \
            size = size / 2 + size % 2;                         \
        if (fault > 0 && how != AFTERWARDS) {                   \
            errno = fault;                                      \
            return -1;                                          \
        }                                                       \
        ssize_t result = REAL(name)(__VA_ARGS__);               \
        if (fault > 0) {                                        \
            errno = fault;                                      \
            return -1;                                          \
        }                                                       \
        return result;                                          \
    }

TRANSFER(read, (int fd, void *data, size_t size), fd, fd, data, size)
TRANSFER(write, (int fd, const void *data, size_t size), fd, fd, data, size)
TRANSFER(pread64, (int fd, void *data, size_t size, off64_t from), fd, fd, data, size, from)
TRANSFER(pwrite64, (int fd, const void *data, size_t size, off64_t from), fd, fd, data, size, from)
TRANSFER(sendfile64, (int to, int fd, off64_t *from, size_t size), to, to, fd, from, size)
TRANSFER(copy_file_range, (int fd, off64_t *from, int to, off64_t *into, size_t size, unsigned flags), to, fd, from,
         to, into, size, flags)

// ---- asking

WRAP(int, stat64, (const char *path, struct stat64 *found), -1, path, path, found)
WRAP(int, lstat64, (const char *path, struct stat64 *found), -1, path, path, found)
WRAP(int, fstat64, (int fd, struct stat64 *found), fd, NULL, fd, found)
WRAP(int, fstatat64, (int fd, const char *path, struct stat64 *found, int flags), fd, path, fd, path, found, flags)
WRAP(int, statx, (int fd, const char *path, int flags, unsigned mask, struct statx *found), fd, path, fd, path, flags,
     mask, found)
WRAP(int, statvfs64, (const char *path, struct statvfs64 *found), -1, path, path, found)
WRAP(int, fstatvfs64, (int fd, struct statvfs64 *found), fd, NULL, fd, found)
WRAP(int, access, (const char *path, int mode), -1, path, path, mode)
WRAP(int, faccessat, (int fd, const char *path, int mode, int flags), fd, path, fd, path, mode, flags)
WRAP(ssize_t, readlink, (const char *path, char *into, size_t size), -1, path, path, into, size)
WRAP(ssize_t, readlinkat, (int fd, const char *path, char *into, size_t size), fd, path, fd, path, into, size)
WRAP(ssize_t, listxattr, (const char *path, char *into, size_t size), -1, path, path, into, size)
WRAP(ssize_t, llistxattr, (const char *path, char *into, size_t size), -1, path, path, into, size)
WRAP(ssize_t, flistxattr, (int fd, char *into, size_t size), fd, NULL, fd, into, size)

// ---- changing

WRAP(int, mkdir, (const char *path, mode_t mode), -1, path, path, mode)
WRAP(int, mkdirat, (int fd, const char *path, mode_t mode), fd, path, fd, path, mode)
WRAP(int, rmdir, (const char *path), -1, path, path)
WRAP(int, unlink, (const char *path), -1, path, path)
WRAP(int, unlinkat, (int fd, const char *path, int flags), fd, path, fd, path, flags)
WRAP(int, rename, (const char *path, const char *to), -1, is_below(-1, path) ? path : to, path, to)
WRAP(int, renameat, (int fd, const char *path, int to_fd, const char *to), is_below(fd, path) ? fd : to_fd,
     is_below(fd, path) ? path : to, fd, path, to_fd, to)
WRAP(int, link, (const char *path, const char *to), -1, is_below(-1, path) ? path : to, path, to)
WRAP(int, linkat, (int fd, const char *path, int to_fd, const char *to, int flags),
     is_below(fd, path) ? fd : to_fd, is_below(fd, path) ? path : to, fd, path, to_fd, to, flags)
WRAP(int, symlink, (const char *target, const char *path), -1, path, target, path)
WRAP(int, symlinkat, (const char *target, int fd, const char *path), fd, path, target, fd, path)
WRAP(int, chmod, (const char *path, mode_t mode), -1, path, path, mode)
WRAP(int, fchmod, (int fd, mode_t mode), fd, NULL, fd, mode)
WRAP(int, fchmodat, (int fd, const char *path, mode_t mode, int flags), fd, path, fd, path, mode, flags)
WRAP(int, fchown, (int fd, uid_t uid, gid_t gid), fd, NULL, fd, uid, gid)
WRAP(int, utimensat, (int fd, const char *path, const struct timespec times[2], int flags), fd, path, fd, path, times,
     flags)
WRAP(int, futimens, (int fd, const struct timespec times[2]), fd, NULL, fd, times)
WRAP(int, ftruncate64, (int fd, off64_t size), fd, NULL, fd, size)
WRAP(int, truncate64, (const char *path, off64_t size), -1, path, path, size)
WRAP(int, fsync, (int fd), fd, NULL, fd)
WRAP(int, fdatasync, (int fd), fd, NULL, fd)
WRAP(int, flock, (int fd, int operation), fd, NULL, fd, operation)
