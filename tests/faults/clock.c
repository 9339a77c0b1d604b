/* Stands in front of clock_gettime() (LD_PRELOAD) and adds what the test has set by clock_step(): a wall clock that is
 * put right, and a machine that was asleep. The kernel's own clock goes on: a time for it is put back. With clock_delay()
 * each call takes a while, as where other processes get the processor wherever it is read. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/timerfd.h>
#include <time.h>

static long long steps[2]; /* seconds, of the wall clock and of the monotonic one */
static long delay_ns;

void
clock_step(int monotonic, long long seconds)
{
    __atomic_add_fetch(&steps[monotonic], seconds, __ATOMIC_SEQ_CST);
}

void
clock_delay(long nanoseconds)
{
    __atomic_store_n(&delay_ns, nanoseconds, __ATOMIC_SEQ_CST);
}

int
clock_gettime(clockid_t clock, struct timespec *result)
{
    struct timespec delay = {.tv_nsec = __atomic_load_n(&delay_ns, __ATOMIC_SEQ_CST)};
    if (delay.tv_nsec > 0) {
        nanosleep(&delay, NULL);
    }
    static int (*real)(clockid_t, struct timespec *);
    if (real == NULL) {
        real = (__typeof__(real))dlsym(RTLD_NEXT, "clock_gettime");
    }
    int status = real(clock, result);
    if (status == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        result->tv_sec += __atomic_load_n(&steps[0], __ATOMIC_SEQ_CST);
    }
    if (status == 0 && (clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_COARSE)) {
        result->tv_sec += __atomic_load_n(&steps[1], __ATOMIC_SEQ_CST);
    }
    return status;
}

int
timerfd_settime(int fd, int flags, const struct itimerspec *wanted, struct itimerspec *before)
{
    struct itimerspec real = *wanted;
    if (flags & TFD_TIMER_ABSTIME) {
        real.it_value.tv_sec -= __atomic_load_n(&steps[1], __ATOMIC_SEQ_CST);
    }
    return ((__typeof__(&timerfd_settime))dlsym(RTLD_NEXT, "timerfd_settime"))(fd, flags, &real, before);
}
