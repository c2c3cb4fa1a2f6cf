/* A disk that fails when asked to. Preloaded into a program (LD_PRELOAD), it stands before the calls that
 * write and sync files.
 *
 * FAULTS_BELOW    the directory whose files are affected
 * FAULTS_CONTROL  a file with one rule a line; without the file nothing fails:
 *
 *     CALLS ERROR TIMES PART AFTER
 *     CALLS  sync (fdatasync, fsync) or write (write, pwrite, writev, fallocate, growing ftruncate, …)
 *     ERROR  EIO or ENOSPC
 *     TIMES  once or always
 *     PART   what the file's path must contain, or * for any
 *     AFTER  keep, or lose: of a file whose sync fails, what was written since its last good sync is
 *            replaced by zeros, as when the kernel drops dirty pages that it could not write and the
 *            machine then stops. Only files of a path with `.journal` are kept track of.
 *
 * When a rule has been used there is a file `<control>.fired`; a rule for once is used up by renaming the
 * control file to it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define TRACKED_PART ".journal"

enum calls { SYNC, WRITE };

struct rule {
    int error;
    int once;
    int lose;
};

/* What was written to a file and not synced yet. */
struct range {
    dev_t dev;
    ino_t ino;
    off_t start;
    off_t length;
    uint64_t time;
};

#define RANGES_MAX 65536
static struct range ranges[RANGES_MAX];
static size_t range_count;
static uint64_t now;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* The path of a descriptor below the directory; 0 for every other descriptor. */
static int path_of(int fd, char *path)
{
    static const char *below;
    if (!below && !(below = getenv("FAULTS_BELOW")))
        return 0;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return strncmp(path, below, strlen(below)) == 0;
}

/* Whether a rule says that this call fails. */
static int is_failing(enum calls calls, const char *path, struct rule *rule)
{
    static const char *control;
    if (!control && !(control = getenv("FAULTS_CONTROL")))
        return 0;
    if (access(control, R_OK) != 0)
        return 0;
    FILE *file = fopen(control, "re");
    if (!file)
        return 0;
    char fired[PATH_MAX], which[16], error[16], times[16], part[128], after[16];
    snprintf(fired, sizeof fired, "%s.fired", control);
    int found = 0;
    while (!found && fscanf(file, "%15s %15s %15s %127s %15s", which, error, times, part, after) == 5) {
        if (strcmp(which, calls == SYNC ? "sync" : "write") != 0)
            continue;
        if (strcmp(part, "*") != 0 && !strstr(path, part))
            continue;
        rule->error = strcmp(error, "ENOSPC") == 0 ? ENOSPC : EIO;
        rule->once = strcmp(times, "once") == 0;
        rule->lose = strcmp(after, "lose") == 0;
        found = 1;
    }
    fclose(file);
    if (!found)
        return 0;
    if (rule->once) /* of several threads one gets it */
        return rename(control, fired) == 0;
    int copy = open(fired, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (copy >= 0)
        close(copy);
    return 1;
}

/* Whether a write to the descriptor fails now. */
static int is_write_failing(int fd, char *path, int *below)
{
    struct rule rule;
    *below = path_of(fd, path);
    if (!*below || !is_failing(WRITE, path, &rule))
        return 0;
    errno = rule.error;
    return 1;
}

static void forget(size_t index)
{
    ranges[index] = ranges[--range_count];
}

/* Notes what was written. */
static void note(int fd, const char *path, off_t start, ssize_t length)
{
    struct stat stat;
    if (length <= 0 || !strstr(path, TRACKED_PART) || fstat(fd, &stat) != 0)
        return;
    pthread_mutex_lock(&lock);
    if (range_count < RANGES_MAX)
        ranges[range_count++] = (struct range){stat.st_dev, stat.st_ino, start, length, now++};
    pthread_mutex_unlock(&lock);
}

static void note_written(int fd, const char *path, ssize_t length)
{
    if (length > 0)
        note(fd, path, lseek(fd, 0, SEEK_CUR) - length, length);
}

/* Replaces by zeros what was written since the last good sync. */
static void lose(int fd)
{
    static const char zeros[65536];
    struct stat stat;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    /* A descriptor of its own: on one that appends, offsets are ignored. */
    int own = open(link, O_WRONLY | O_CLOEXEC);
    if (own < 0 || fstat(fd, &stat) != 0)
        return;
    pthread_mutex_lock(&lock);
    for (size_t index = range_count; index-- > 0;) {
        struct range range = ranges[index];
        if (range.dev != stat.st_dev || range.ino != stat.st_ino)
            continue;
        while (range.length > 0) {
            size_t length = range.length < (off_t)sizeof zeros ? (size_t)range.length : sizeof zeros;
            ssize_t written = REAL(pwrite)(own, zeros, length, range.start);
            if (written <= 0)
                break;
            range.start += written;
            range.length -= written;
        }
        forget(index);
    }
    pthread_mutex_unlock(&lock);
    close(own);
}

static int synced(int fd, int (*sync)(int))
{
    char path[PATH_MAX];
    struct rule rule;
    if (!path_of(fd, path))
        return sync(fd);
    if (is_failing(SYNC, path, &rule)) {
        if (rule.lose)
            lose(fd);
        errno = rule.error;
        return -1;
    }
    pthread_mutex_lock(&lock);
    uint64_t start = now;
    pthread_mutex_unlock(&lock);
    int result = sync(fd);
    struct stat stat;
    if (result == 0 && fstat(fd, &stat) == 0) {
        pthread_mutex_lock(&lock);
        for (size_t index = range_count; index-- > 0;)
            if (ranges[index].dev == stat.st_dev && ranges[index].ino == stat.st_ino &&
                ranges[index].time < start)
                forget(index);
        pthread_mutex_unlock(&lock);
    }
    return result;
}

int fdatasync(int fd)
{
    return synced(fd, REAL(fdatasync));
}

int fsync(int fd)
{
    return synced(fd, REAL(fsync));
}

ssize_t write(int fd, const void *bytes, size_t length)
{
    char path[PATH_MAX];
    int below;
    if (is_write_failing(fd, path, &below))
        return -1;
    ssize_t written = REAL(write)(fd, bytes, length);
    if (below)
        note_written(fd, path, written);
    return written;
}

ssize_t writev(int fd, const struct iovec *vectors, int count)
{
    char path[PATH_MAX];
    int below;
    if (is_write_failing(fd, path, &below))
        return -1;
    ssize_t written = REAL(writev)(fd, vectors, count);
    if (below)
        note_written(fd, path, written);
    return written;
}

#define AT_OFFSET(name, parameters, arguments, offset)                                                        \
    ssize_t name parameters                                                                                   \
    {                                                                                                         \
        char path[PATH_MAX];                                                                                  \
        int below;                                                                                            \
        if (is_write_failing(fd, path, &below))                                                               \
            return -1;                                                                                        \
        ssize_t written = REAL(name) arguments;                                                               \
        if (below)                                                                                            \
            note(fd, path, offset, written);                                                                  \
        return written;                                                                                       \
    }

AT_OFFSET(pwrite, (int fd, const void *bytes, size_t length, off_t start), (fd, bytes, length, start), start)
AT_OFFSET(pwrite64, (int fd, const void *bytes, size_t length, off64_t start), (fd, bytes, length, start),
          start)
AT_OFFSET(pwritev, (int fd, const struct iovec *vectors, int count, off_t start),
          (fd, vectors, count, start), start)
AT_OFFSET(pwritev64, (int fd, const struct iovec *vectors, int count, off64_t start),
          (fd, vectors, count, start), start)

#define SIZING(name, parameters, arguments, is_growing, failed)                                               \
    int name parameters                                                                                       \
    {                                                                                                         \
        char path[PATH_MAX];                                                                                  \
        int below;                                                                                            \
        struct stat stat;                                                                                     \
        if (fstat(fd, &stat) == 0 && (is_growing) && is_write_failing(fd, path, &below))                      \
            return failed;                                                                                    \
        return REAL(name) arguments;                                                                          \
    }

SIZING(ftruncate, (int fd, off_t length), (fd, length), length > stat.st_size, -1)
SIZING(ftruncate64, (int fd, off64_t length), (fd, length), length > stat.st_size, -1)
SIZING(fallocate, (int fd, int mode, off_t start, off_t length), (fd, mode, start, length), 1, -1)
SIZING(fallocate64, (int fd, int mode, off64_t start, off64_t length), (fd, mode, start, length), 1, -1)
SIZING(posix_fallocate, (int fd, off_t start, off_t length), (fd, start, length), 1, errno)
SIZING(posix_fallocate64, (int fd, off64_t start, off64_t length), (fd, start, length), 1, errno)
