/* Clocks that a test sets. Preloaded into a program (LD_PRELOAD), it adds to what the program reads.
 *
 * CLOCK_FILE  a file of 16 bytes: two numbers of 64 bits in the machine's order, in nanoseconds. The first is
 *             added to the wall clock, the second to the steady ones. They may change while the program runs;
 *             to the program this is a machine that was asleep, or a wall clock that somebody has set.
 *
 * Waits with a point in time of the steady clock as their end reach the kernel in its own time again. Waits
 * that have begun are not ended: they last as long as they were meant to before.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

enum { WALL, STEADY };

static const volatile int64_t *shifts;
static int (*real_clock_gettime)(clockid_t, struct timespec *);
static long (*real_syscall)(long, ...);
static int (*real_clock_nanosleep)(clockid_t, int, const struct timespec *, struct timespec *);

__attribute__((constructor)) static void begin(void)
{
    real_clock_gettime = (__typeof__(real_clock_gettime))dlsym(RTLD_NEXT, "clock_gettime");
    real_syscall = (__typeof__(real_syscall))dlsym(RTLD_NEXT, "syscall");
    real_clock_nanosleep = (__typeof__(real_clock_nanosleep))dlsym(RTLD_NEXT, "clock_nanosleep");
    const char *path = getenv("CLOCK_FILE");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *map = mmap(NULL, 2 * sizeof *shifts, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (map != MAP_FAILED)
        shifts = map;
}

static int64_t shift_of(clockid_t clock)
{
    if (!shifts)
        return 0;
    switch (clock) {
    case CLOCK_REALTIME:
    case CLOCK_REALTIME_COARSE:
    case CLOCK_TAI:
        return shifts[WALL];
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_COARSE:
    case CLOCK_MONOTONIC_RAW:
    case CLOCK_BOOTTIME:
        return shifts[STEADY];
    default:
        return 0;
    }
}

static void add(struct timespec *time, int64_t shift)
{
    int64_t nanoseconds = time->tv_nsec + shift % SECOND;
    time->tv_sec += shift / SECOND;
    if (nanoseconds >= SECOND) {
        nanoseconds -= SECOND;
        time->tv_sec++;
    } else if (nanoseconds < 0) {
        nanoseconds += SECOND;
        time->tv_sec--;
    }
    time->tv_nsec = nanoseconds;
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
    /* Before the constructor has run, the loader's own threads may ask. */
    if (!real_clock_gettime)
        return (int)syscall(SYS_clock_gettime, clock, time);
    int result = real_clock_gettime(clock, time);
    if (result == 0)
        add(time, shift_of(clock));
    return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone)
{
    (void)zone;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}

long syscall(long number, ...)
{
    long arguments[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        arguments[i] = va_arg(list, long);
    va_end(list);
    if (!real_syscall)
        real_syscall = (__typeof__(real_syscall))dlsym(RTLD_NEXT, "syscall");
    const struct timespec *end = (const struct timespec *)arguments[3];
    struct timespec own;
    if (number == SYS_futex && end && (arguments[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET) {
        int is_wall = (arguments[1] & FUTEX_CLOCK_REALTIME) != 0;
        own = *end;
        add(&own, -shift_of(is_wall ? CLOCK_REALTIME : CLOCK_MONOTONIC));
        arguments[3] = (long)&own;
    }
    return real_syscall(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4],
                        arguments[5]);
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *time, struct timespec *left)
{
    struct timespec own = *time;
    if (flags & TIMER_ABSTIME)
        add(&own, -shift_of(clock));
    return real_clock_nanosleep(clock, flags, &own, left);
}
