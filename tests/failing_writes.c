/* Preloaded into a process, fails the N-th call that changes a file below a folder, and tells of every such call.
 *
 * Only regular files below the folder count, never pipes or sockets. A FULL disk stays full: from the N-th call on
 * nothing that takes room succeeds, and half of the N-th write still fits; renames and syncs of what is there go well
 * after it. A disk that fails ONCE fails the N-th call, whatever it is, and no other.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, FULL, ONCE };
enum { FITS, HALF, FAILS };

static char folder[PATH_MAX];
static atomic_long counted;
static long chosen;
static int mode = OFF, told = -1;

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* Begin to count: the calls on the folder `where`, or below it, are told to the file descriptor `to`, and number `n` fails (0: none does). */
void fail_at(const char *where, long n, int how, int to)
{
    snprintf(folder, sizeof folder, "%s", where);
    chosen = n;
    told = to;
    mode = n ? how : OFF;
    counted = 0;
}

long calls_counted(void) { return counted; }

static int is_below(const char *path)
{
    size_t length = strlen(folder);
    return length && strncmp(path, folder, length) == 0 && (path[length] == 0 || path[length] == '/');
}

/* What becomes of a call on `path`. `room`: does it take any? */
static int fate(const char *call, const char *path, int room)
{
    if (!is_below(path))
        return FITS;
    long number = ++counted;
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%s %s\n", call, path[strlen(folder)] ? path + strlen(folder) + 1 : ".");
    if (told >= 0)
        syscall(SYS_write, told, line, (size_t)length);
    int found = mode == ONCE && number == chosen                                 ? FAILS
                : mode == FULL && number == chosen                               ? HALF
                : mode == FULL && number > chosen && room                        ? FAILS
                                                                                 : FITS;
    errno = found == FITS ? errno : mode == ONCE ? EIO : ENOSPC;
    return found;
}

static int fate_of_open_file(const char *call, int fd, int room)
{
    char link[64], path[PATH_MAX];
    struct stat about;
    if (!*folder || fstat(fd, &about) || !(S_ISREG(about.st_mode) || S_ISDIR(about.st_mode)))
        return FITS;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return FITS;
    path[length] = 0;
    return fate(call, path, room);
}

static int fate_of_path(const char *call, int from, const char *path, int room)
{
    char whole[PATH_MAX * 2], link[64];
    if (!*folder)
        return FITS;
    if (path[0] == '/')
        return fate(call, path, room);
    snprintf(link, sizeof link, "/proc/self/fd/%d", from);
    ssize_t length = from == AT_FDCWD ? (getcwd(whole, PATH_MAX) ? (ssize_t)strlen(whole) : -1) : readlink(link, whole, PATH_MAX);
    if (length < 0)
        return FITS;
    snprintf(whole + length, sizeof whole - length, "/%s", path);
    return fate(call, whole, room);
}

/* ---------------------------------------------------------------- writes: half of one may fit */

#define WRITE(call, parameters, arguments)                                \
    ssize_t call parameters                                               \
    {                                                                     \
        REAL(call);                                                       \
        int found = fate_of_open_file(#call, fd, 1);                      \
        if (found == FAILS || (found == HALF && size < 2))                \
            return -1;                                                    \
        size = found == HALF ? size / 2 : size;                           \
        return real arguments;                                            \
    }

WRITE(write, (int fd, const void *bytes, size_t size), (fd, bytes, size))
WRITE(pwrite, (int fd, const void *bytes, size_t size, off_t at), (fd, bytes, size, at))
WRITE(pwrite64, (int fd, const void *bytes, size_t size, off64_t at), (fd, bytes, size, at))

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    REAL(writev);
    int found = fate_of_open_file("writev", fd, 1);
    return found == FAILS || (found == HALF && count < 2) ? -1 : real(fd, parts, found == HALF ? count / 2 : count);
}

size_t fwrite(const void *bytes, size_t size, size_t count, FILE *file)
{
    REAL(fwrite);
    int found = fate_of_open_file("fwrite", fileno(file), 1);
    return found == FITS ? real(bytes, size, count, file) : found == HALF ? real(bytes, size, count / 2, file) : 0;
}

/* What a stream still holds is written when it is flushed or closed; after a failure it is lost. */
#define FLUSH(call)                                                                                                \
    int call(FILE *file)                                                                                           \
    {                                                                                                              \
        REAL(call);                                                                                                \
        int found = file && __fpending(file) ? fate_of_open_file(#call, fileno(file), 1) : FITS, why = errno;      \
        if (found != FITS)                                                                                         \
            __fpurge(file);                                                                                        \
        int done = real(file);                                                                                     \
        errno = found != FITS ? why : errno;                                                                       \
        return found != FITS ? EOF : done;                                                                         \
    }

FLUSH(fflush)
FLUSH(fclose)

/* ---------------------------------------------------------------- calls that happen or do not */

#define WHOLE(call, judged, parameters, arguments) \
    int call parameters                            \
    {                                              \
        REAL(call);                                \
        return judged ? -1 : real arguments;       \
    }

#define GROWS(fd, size) ({ struct stat about; !fstat(fd, &about) && size > about.st_size; })

WHOLE(ftruncate, fate_of_open_file("ftruncate", fd, GROWS(fd, size)), (int fd, off_t size), (fd, size))
WHOLE(ftruncate64, fate_of_open_file("ftruncate", fd, GROWS(fd, size)), (int fd, off64_t size), (fd, size))
WHOLE(truncate, fate_of_path("truncate", AT_FDCWD, path, 0), (const char *path, off_t size), (path, size))
WHOLE(truncate64, fate_of_path("truncate", AT_FDCWD, path, 0), (const char *path, off64_t size), (path, size))
WHOLE(fsync, fate_of_open_file("fsync", fd, 0), (int fd), (fd))
WHOLE(fdatasync, fate_of_open_file("fsync", fd, 0), (int fd), (fd))
WHOLE(rename, fate_of_path("rename", AT_FDCWD, to, 0), (const char *from, const char *to), (from, to))
WHOLE(renameat, fate_of_path("rename", there, to, 0), (int here, const char *from, int there, const char *to), (here, from, there, to))
WHOLE(mkdir, fate_of_path("mkdir", AT_FDCWD, path, 1), (const char *path, mode_t rights), (path, rights))
WHOLE(link, fate_of_path("link", AT_FDCWD, to, 1), (const char *from, const char *to), (from, to))
WHOLE(symlink, fate_of_path("link", AT_FDCWD, to, 1), (const char *from, const char *to), (from, to))

/* To open a file that is not there makes one, which takes room. */
#define OPEN(call)                                                                                                  \
    int call(const char *path, int flags, ...)                                                                      \
    {                                                                                                               \
        REAL(call);                                                                                                 \
        va_list more;                                                                                               \
        va_start(more, flags);                                                                                      \
        mode_t rights = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;                                   \
        va_end(more);                                                                                               \
        return flags & O_CREAT && access(path, F_OK) && fate_of_path("create", AT_FDCWD, path, 1) ? -1              \
                                                                                                  : real(path, flags, rights); \
    }

OPEN(open)
OPEN(open64)

#define FOPEN(call)                                                                                                         \
    FILE *call(const char *path, const char *how)                                                                           \
    {                                                                                                                       \
        REAL(call);                                                                                                         \
        return *how != 'r' && access(path, F_OK) && fate_of_path("create", AT_FDCWD, path, 1) ? NULL : real(path, how); \
    }

FOPEN(fopen)
FOPEN(fopen64)
