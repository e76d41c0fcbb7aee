// LD_PRELOAD: chosen system calls fail as network disks and full disks do.
//
// FAULT_CALL: name of a call below; FAULT_PATH: substring of the path (of the file behind a
// descriptor, too), FAULT_NOT: substring that excludes; FAULT_ERRNO: the error's number;
// FAULT_TIMES: how many calls fail, all without it. Read anew at each call, so a process can set
// them for itself.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int failed_times;

static int fails(const char *call, const char *path) {
    const char *wanted = getenv("FAULT_CALL"), *part = getenv("FAULT_PATH");
    if (!wanted || strcmp(wanted, call) || !path || (part && !strstr(path, part))) return 0;
    const char *excluded = getenv("FAULT_NOT"), *times = getenv("FAULT_TIMES");
    if (excluded && strstr(path, excluded)) return 0;
    if (times && __sync_fetch_and_add(&failed_times, 1) >= atoi(times)) return 0;
    errno = atoi(getenv("FAULT_ERRNO"));
    return 1;
}

static int descriptor_fails(const char *call, int fd) {
    if (!getenv("FAULT_CALL")) return 0;
    char name[64], path[4096];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(call, path);
}

#define REAL(name, result, ...) result (*real)(__VA_ARGS__) = dlsym(RTLD_NEXT, #name)
#define MODE                                                                  \
    va_list list;                                                             \
    va_start(list, flags);                                                    \
    int mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(list, int) : 0;       \
    va_end(list)
// "create" is an open that may write, "open" one that only reads.
#define OPENS(path, flags) fails(((flags) & O_ACCMODE) == O_RDONLY ? "open" : "create", path)

#define OPEN(name)                                                            \
    int name(const char *path, int flags, ...) {                              \
        MODE;                                                                 \
        if (OPENS(path, flags)) return -1;                                    \
        REAL(name, int, const char *, int, ...);                              \
        return real(path, flags, mode);                                       \
    }
#define OPENAT(name)                                                          \
    int name(int folder, const char *path, int flags, ...) {                  \
        MODE;                                                                 \
        if (OPENS(path, flags)) return -1;                                    \
        REAL(name, int, int, const char *, int, ...);                         \
        return real(folder, path, flags, mode);                               \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

#define ON_DESCRIPTOR(call, name, result, parameters, arguments, ...)         \
    result name parameters {                                                  \
        if (descriptor_fails(call, fd)) return -1;                            \
        REAL(name, result, __VA_ARGS__);                                      \
        return real arguments;                                                \
    }
ON_DESCRIPTOR("read", read, ssize_t, (int fd, void *b, size_t n), (fd, b, n), int, void *, size_t)
ON_DESCRIPTOR("read", pread64, ssize_t, (int fd, void *b, size_t n, off64_t o), (fd, b, n, o), int, void *, size_t, off64_t)
ON_DESCRIPTOR("write", write, ssize_t, (int fd, const void *b, size_t n), (fd, b, n), int, const void *, size_t)
ON_DESCRIPTOR("write", writev, ssize_t, (int fd, const struct iovec *v, int n), (fd, v, n), int, const struct iovec *, int)
ON_DESCRIPTOR("flock", flock, int, (int fd, int o), (fd, o), int, int)
ON_DESCRIPTOR("write", sendfile64, ssize_t, (int fd, int in, off64_t *o, size_t n), (fd, in, o, n), int, int, off64_t *, size_t)
ON_DESCRIPTOR("write", sendfile, ssize_t, (int fd, int in, off_t *o, size_t n), (fd, in, o, n), int, int, off_t *, size_t)

int fsync(int fd) {
    struct stat status;
    int is_folder = !fstat(fd, &status) && S_ISDIR(status.st_mode);
    if (descriptor_fails(is_folder ? "fsync_folder" : "fsync", fd)) return -1;
    REAL(fsync, int, int);
    return real(fd);
}

#define ON_PATH(call, name, result, failure, parameters, arguments, ...)      \
    result name parameters {                                                  \
        if (fails(call, path)) return failure;                                \
        REAL(name, result, __VA_ARGS__);                                      \
        return real arguments;                                                \
    }
ON_PATH("rename", rename, int, -1, (const char *from, const char *path), (from, path), const char *, const char *)
ON_PATH("link", link, int, -1, (const char *from, const char *path), (from, path), const char *, const char *)
ON_PATH("link", linkat, int, -1, (int a, const char *from, int b, const char *path, int f), (a, from, b, path, f), int, const char *, int, const char *, int)
ON_PATH("unlink", unlink, int, -1, (const char *path), (path), const char *)
ON_PATH("unlink", unlinkat, int, -1, (int folder, const char *path, int f), (folder, path, f), int, const char *, int)
ON_PATH("mkdir", mkdir, int, -1, (const char *path, mode_t m), (path, m), const char *, mode_t)
ON_PATH("chmod", chmod, int, -1, (const char *path, mode_t m), (path, m), const char *, mode_t)
ON_PATH("list", opendir, DIR *, NULL, (const char *path), (path), const char *)
ON_PATH("stat", stat, int, -1, (const char *path, struct stat *s), (path, s), const char *, struct stat *)
ON_PATH("stat", stat64, int, -1, (const char *path, struct stat64 *s), (path, s), const char *, struct stat64 *)
ON_PATH("stat", fstatat, int, -1, (int folder, const char *path, struct stat *s, int f), (folder, path, s, f), int, const char *, struct stat *, int)
ON_PATH("stat", fstatat64, int, -1, (int folder, const char *path, struct stat64 *s, int f), (folder, path, s, f), int, const char *, struct stat64 *, int)
