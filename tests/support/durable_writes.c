/* Preloaded into a process that is to be killed: counts everything by which it changes files below a folder, and at the
 * n-th such call kills the process, tears the write in two and then kills, or says what a full or read-only disk says.
 *
 * Built by durable_writes.py; `begin` is called through ctypes once the process is ready. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { RECORD = 0, KILL = 1, TEAR = 2, FAIL_ONCE = 3, FAIL_ON = 4 };
enum { ANY = 0, NEEDS_ROOM = 1 };

static char root[4096], except[256];
static size_t root_length;
static long at, count;
static int what = RECORD, error_number, log_descriptor = -1, begun;

/* Count below a folder, except where a path has something in it. */
void begin(const char *folder, const char *not_in, long n, int mode, int error, int log) {
    root_length = strlen(folder);
    memcpy(root, folder, root_length + 1);
    snprintf(except, sizeof except, "%s", not_in);
    at = n, what = mode, error_number = error, log_descriptor = log, count = 0, begun = 1;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int below(const char *path) {
    if (!begun || !path || strncmp(path, root, root_length) != 0) return 0;
    return !except[0] || !strstr(path + root_length, except);
}

static int behind(int descriptor, char *path, size_t size) {
    char link[64];
    if (!begun) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, size - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

/* Whether the call may go on: 1; 0: it fails, errno is set; -1: it is the one to be torn.
 * SQLite's shared memory is no durable state: it is not counted, but a disk that is full has no room for it either. */
static int counted(const char *call, const char *path, int kind) {
    size_t length_of_path = strlen(path);
    if (length_of_path > 4 && strcmp(path + length_of_path - 4, "-shm") == 0) {
        if (what != FAIL_ON || count < at || kind != NEEDS_ROOM) return 1;
        errno = error_number;
        return 0;
    }
    count++;
    if (what == RECORD && log_descriptor >= 0) {
        char line[4400];
        int length = snprintf(line, sizeof line, "%s %s\n", call, path + root_length);
        syscall(SYS_write, log_descriptor, line, (size_t)length);
    }
    if (count == at && what == KILL) die();
    if (count == at && what == TEAR) return -1;
    int fails = (what == FAIL_ONCE && count == at) || (what == FAIL_ON && count >= at);
    if (fails && (kind == NEEDS_ROOM || error_number != ENOSPC)) {
        errno = error_number;
        return 0;
    }
    return 1;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define ON_PATH(name, shown, kind, path, declared, passed)                          \
    int name declared {                                                             \
        REAL(name);                                                                 \
        if (below(path)) {                                                          \
            int go = counted(shown, path, kind);                                    \
            if (go == 0) return -1;                                                 \
            if (go < 0) die();                                                      \
        }                                                                           \
        return real passed;                                                         \
    }

ON_PATH(rename, "rename", ANY, to, (const char *from, const char *to), (from, to))
ON_PATH(renameat, "rename", ANY, to, (int a, const char *from, int b, const char *to), (a, from, b, to))
ON_PATH(link, "link", ANY, to, (const char *from, const char *to), (from, to))
ON_PATH(linkat, "link", ANY, to, (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags))
ON_PATH(unlink, "unlink", ANY, path, (const char *path), (path))
ON_PATH(unlinkat, "unlink", ANY, path, (int a, const char *path, int flags), (a, path, flags))
ON_PATH(rmdir, "rmdir", ANY, path, (const char *path), (path))
ON_PATH(chmod, "chmod", ANY, path, (const char *path, mode_t mode), (path, mode))
ON_PATH(truncate, "truncate", ANY, path, (const char *path, off_t length), (path, length))

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    struct stat found;
    if (below(path) && stat(path, &found) != 0) {
        int go = counted("mkdir", path, NEEDS_ROOM);
        if (go == 0) return -1;
        if (go < 0) die();
    }
    return real(path, mode);
}

#define ON_DESCRIPTOR(name, shown, kind, declared, passed)                          \
    int name declared {                                                             \
        REAL(name);                                                                 \
        char path[4096];                                                            \
        if (behind(descriptor, path, sizeof path)) {                                \
            int go = counted(shown, path, kind);                                    \
            if (go == 0) return -1;                                                 \
            if (go < 0) die();                                                      \
        }                                                                           \
        return real passed;                                                         \
    }

ON_DESCRIPTOR(fsync, "fsync", ANY, (int descriptor), (descriptor))
ON_DESCRIPTOR(fdatasync, "fsync", ANY, (int descriptor), (descriptor))
ON_DESCRIPTOR(ftruncate, "truncate", ANY, (int descriptor, off_t length), (descriptor, length))
ON_DESCRIPTOR(ftruncate64, "truncate", ANY, (int descriptor, off64_t length), (descriptor, length))
ON_DESCRIPTOR(fallocate, "allocate", NEEDS_ROOM, (int descriptor, int mode, off_t offset, off_t length),
              (descriptor, mode, offset, length))

/* These return the error instead of setting errno. */
#define ALLOCATING(name, type)                                                      \
    int name(int descriptor, type offset, type length) {                            \
        REAL(name);                                                                 \
        char path[4096];                                                            \
        if (behind(descriptor, path, sizeof path)) {                                \
            int go = counted("allocate", path, NEEDS_ROOM);                         \
            if (go == 0) return errno;                                              \
            if (go < 0) die();                                                      \
        }                                                                           \
        return real(descriptor, offset, length);                                    \
    }

ALLOCATING(posix_fallocate, off_t)
ALLOCATING(posix_fallocate64, off64_t)

#define WRITING(name, declared, whole, half)                                        \
    ssize_t name declared {                                                         \
        REAL(name);                                                                 \
        char path[4096];                                                            \
        if (behind(descriptor, path, sizeof path)) {                                \
            int go = counted("write", path, NEEDS_ROOM);                            \
            if (go == 0) return -1;                                                 \
            if (go < 0) {                                                           \
                real half;                                                          \
                die();                                                              \
            }                                                                       \
        }                                                                           \
        return real whole;                                                          \
    }

WRITING(write, (int descriptor, const void *buffer, size_t size), (descriptor, buffer, size),
        (descriptor, buffer, size / 2))
WRITING(pwrite, (int descriptor, const void *buffer, size_t size, off_t offset), (descriptor, buffer, size, offset),
        (descriptor, buffer, size / 2, offset))
WRITING(pwrite64, (int descriptor, const void *buffer, size_t size, off64_t offset),
        (descriptor, buffer, size, offset), (descriptor, buffer, size / 2, offset))

/* Opening changes files where it makes or empties one. */
#define OPENING(name, before, path)                                                 \
    {                                                                               \
        REAL(name);                                                                 \
        mode_t mode = 0;                                                            \
        if (flags & (O_CREAT | O_TMPFILE)) {                                        \
            va_list rest;                                                           \
            va_start(rest, flags);                                                  \
            mode = va_arg(rest, mode_t);                                            \
            va_end(rest);                                                           \
        }                                                                           \
        struct stat found;                                                          \
        if (below(path) && (flags & (O_CREAT | O_TRUNC))) {                         \
            int there = stat(path, &found) == 0;                                    \
            if (there ? (flags & O_TRUNC) != 0 && found.st_size > 0 : (flags & O_CREAT) != 0) { \
                int go = counted("open", path, NEEDS_ROOM);                         \
                if (go == 0) return -1;                                             \
                if (go < 0) die();                                                  \
            }                                                                       \
        }                                                                           \
        return real(before path, flags, mode);                                      \
    }
#define NOTHING
#define FOLDER folder,

int open(const char *path, int flags, ...) OPENING(open, NOTHING, path)
int open64(const char *path, int flags, ...) OPENING(open64, NOTHING, path)
int openat(int folder, const char *path, int flags, ...) OPENING(openat, FOLDER, path)
int openat64(int folder, const char *path, int flags, ...) OPENING(openat64, FOLDER, path)
