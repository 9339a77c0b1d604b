/* How a loop with nothing to do waits.

   First by spinning for a moment, if short jobs are under way in other threads, or these call it again and again
   (base/spin.h), then in the poll.

   libuv counts in whole milliseconds and rounds down. A far deadline is left to a uv_timer (the time-out of the poll: no
   system call of its own) that ends a little early; the last stretch is timed by a timerfd, in nanoseconds, and set by a
   lead earlier (base/lead.h). Where the system has no timerfd the uv_timer rounds up: late by up to a millisecond, never
   early. */

#include "sched/sleep.h"

#include <errno.h>
#include <math.h>
#include <unistd.h>

#include "base/lowfds.h"
#include "base/uvpoll.h"
#include "sched/loop.h"

#if HAVE_TIMERFD
#include <sys/timerfd.h>
#endif

static const uint64_t NS_PER_MS = 1000000;
static const uint64_t NS_PER_S = 1000000000;
/* Deadlines nearer than this are timed by the timerfd alone. */
static const uint64_t PRECISE_NS = 3000000;
/* Nearer than this, without a lead: the thread may hardly have gone to sleep. */
static const uint64_t LEAD_WAIT_NS = 200000;
/* The standard loop never waits longer than a day at once. */
static const double MAX_WAIT_S = 86400.0;

static void
on_coarse_timer(uv_timer_t *timer)
{
    /* Up to 1.44, libuv runs timers before it polls, and would then wait without one: a thread that was off the processor
       for as long finds this one due. */
    uv_stop(timer->loop);
    LoopObject *loop = timer->data;
    if (loop != NULL) {
        loop_enter(loop);
    }
}

static void
on_closed(uv_handle_t *handle)
{
    PyMem_RawFree(handle);
}

#if HAVE_TIMERFD

static void
on_precise_timer(uv_poll_t *poll, int Py_UNUSED(status), int Py_UNUSED(events))
{
    /* Needs no thread state; if nothing else takes it back in this poll, sleep_until_event() does. */
    LoopObject *loop = poll->data;
    if (loop == NULL) {
        return;
    }
    uint64_t expirations;
    ssize_t size = read(loop->timer_fd, &expirations, sizeof(expirations));
    if (size > 0 || errno == EAGAIN) {
        loop->precise_deadline_ns = 0;
    }
    loop->precise_expired = true;
}

static int
open_precise(LoopObject *loop, uv_loop_t *uv)
{
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    fd = fd < 0 ? -errno : lowfds_leave(fd);
    if (fd < 0) {
        return fd;
    }
    int err = uvpoll_open(uv, fd, on_precise_timer, loop, &loop->precise_poll);
    if (err < 0) {
        close(fd);
        return err;
    }
    loop->timer_fd = fd;
    return 0;
}

static void
close_precise(LoopObject *loop)
{
    if (loop->precise_poll != NULL) {
        uvpoll_close(&loop->precise_poll);
        close(loop->timer_fd);
        loop->timer_fd = -1;
        loop->precise_deadline_ns = 0;
    }
}

/* Arms the timerfd; false when it cannot be. */
static bool
arm_precise(LoopObject *loop, uint64_t deadline_ns)
{
    if (loop->precise_poll == NULL) {
        if (open_precise(loop, loop->uv) < 0) {
            return false;
        }
    }
    if (loop->precise_deadline_ns == deadline_ns) {
        return true;
    }
    struct itimerspec spec = {
        .it_value = {.tv_sec = (time_t)(deadline_ns / NS_PER_S), .tv_nsec = (long)(deadline_ns % NS_PER_S)},
    };
    if (timerfd_settime(loop->timer_fd, TFD_TIMER_ABSTIME, &spec, NULL) < 0) {
        return false;
    }
    loop->precise_deadline_ns = deadline_ns;
    return true;
}

#else

static void
close_precise(LoopObject *Py_UNUSED(loop))
{
}

static bool
arm_precise(LoopObject *Py_UNUSED(loop), uint64_t Py_UNUSED(deadline_ns))
{
    return false;
}

#endif

int
sleep_open(LoopObject *loop, uv_loop_t *uv)
{
    loop->coarse_timer = PyMem_RawMalloc(sizeof(uv_timer_t));
    if (loop->coarse_timer == NULL) {
        return UV_ENOMEM;
    }
    int err = uv_timer_init(uv, loop->coarse_timer);
    if (err < 0) {
        PyMem_RawFree(loop->coarse_timer);
        loop->coarse_timer = NULL;
        return err;
    }
    loop->coarse_timer->data = loop;
    return 0;
}

void
sleep_close(LoopObject *loop)
{
    if (loop->coarse_timer != NULL) {
        loop->coarse_timer->data = NULL;
        uv_close((uv_handle_t *)loop->coarse_timer, on_closed);
        loop->coarse_timer = NULL;
    }
    close_precise(loop);
}

int
sleep_fork(LoopObject *loop)
{
    /* The timerfd is shared with the parent: leave its setting alone. The next wait opens a new one. */
    close_precise(loop);
    return 0;
}

static void
arm_coarse(LoopObject *loop, uint64_t milliseconds)
{
    uv_update_time(loop->uv);
    (void)uv_timer_start(loop->coarse_timer, on_coarse_timer, milliseconds, 0);
}

/* Does the timerfd get a lead for such a wait? A time() that is not the system's tells nothing about it. */
static inline bool
has_lead(LoopObject *loop, uint64_t wait_ns)
{
    return wait_ns > LEAD_WAIT_NS && wait_ns <= PRECISE_NS && loop->may_spin && loop->native_time;
}

/* Arms what ends the poll `wait_ns` from now. */
static void
arm(LoopObject *loop, uint64_t now, uint64_t wait_ns)
{
    if (wait_ns > PRECISE_NS) {
        /* One millisecond for libuv's truncation, one for the scheduler of the system. */
        arm_coarse(loop, HAVE_TIMERFD ? wait_ns / NS_PER_MS - 2 : wait_ns / NS_PER_MS + 1);
    } else if (!arm_precise(loop, now + wait_ns - (has_lead(loop, wait_ns) ? loop->lead.ns : 0))) {
        arm_coarse(loop, wait_ns / NS_PER_MS + 1);
    }
}

/* After a poll for which the timerfd had a lead: stays until the deadline, unless there is something else to do. */
static void
spend_lead(LoopObject *loop, uint64_t deadline_ns)
{
    uint64_t woken_ns = compat_monotonic_ns();
    uint64_t expired_ns = deadline_ns - loop->lead.ns;
    if (UNLIKELY(woken_ns < expired_ns)) {
        return;
    }
    for (uint64_t now = woken_ns; now < deadline_ns && loop->released != NULL && loop->inbox.waiting == BLOCKED;) {
        compat_pause();
        now = compat_monotonic_ns();
    }
    lead_note(&loop->lead, woken_ns - expired_ns);
}

/* Nanoseconds until the earliest timer: 0 when it is due, UINT64_MAX without one; false with an exception. */
static bool
time_to_wait(LoopObject *loop, uint64_t now, uint64_t *wait_ns)
{
    *wait_ns = UINT64_MAX;
    double when;
    if (!timers_earliest(&loop->timers, &when)) {
        return true;
    }
    double seconds = (double)now / 1e9;
    if (!loop->native_time) {
        seconds = loop_time(loop);
        if (seconds == -1.0 && PyErr_Occurred()) {
            return false;
        }
        /* Whatever that did. */
        if (!timers_earliest(&loop->timers, &when)) {
            return true;
        }
    }
    double wait = when - seconds;
    if (wait <= 0.0) {
        *wait_ns = 0;
    } else {
        /* Rounded up: the poll must not end before the timer is due. */
        *wait_ns = (uint64_t)ceil(fmin(wait, MAX_WAIT_S) * 1e9);
    }
    return true;
}

/* What to spin for before blocking: the outcome of a short job, or a call that may come as soon as the last one; or NULL. */
static Spin *
spin_of(LoopObject *loop)
{
    if (loop->jobs_under_way > 0) {
        return loop->job_ns < SPIN_JOB_MAX_NS ? &loop->job_spin : NULL;
    }
    return UNLIKELY(loop->called_soon) ? &loop->call_spin : NULL;
}

/* Without the thread state: is the loop woken while it spins? From here on it is BLOCKED, or has been woken. */
static bool
spin_until_woken(LoopObject *loop, Spin *spin, uint64_t budget_ns)
{
    uint64_t start = compat_monotonic_ns();
    bool woken = spin_until(&loop->inbox.waiting, WOKEN, budget_ns);
    spin_note(spin, woken && compat_monotonic_ns() - start < SPIN_MAX_NS);
    int spinning = SPINNING;
    if (!woken && atomic_compare_exchange_strong(&loop->inbox.waiting, &spinning, BLOCKED)) {
        return false;
    }
    if (!HAVE_FREE_THREADING) {
        /* Who woke us still holds the GIL: waiting for that would be as expensive as to have blocked here. */
        (void)spin_until(&loop->state->attached, 0, SPIN_RELEASE_NS);
    }
    return true;
}

int
sleep_until_event(LoopObject *loop, uint64_t *clock)
{
    uint64_t now = *clock, wait_ns;
    /* Other threads run meanwhile, and a replaced time() right away. */
    loop_leave_task(loop);
    if (loop_trim(loop, now)) {
        now = *clock = compat_monotonic_ns();
    }
    if (!time_to_wait(loop, now, &wait_ns)) {
        return -1;
    }
    /* Either may have scheduled something, or a signal handler that ran in it. */
    if (wait_ns == 0 || loop->ready.count > 0 || loop->stopping || loop->watchers_changed || loop->has_found) {
        loop_poll_now(loop);
        *clock = compat_monotonic_ns();
        return 1;
    }
    Spin *spin = spin_of(loop);
    bool may_spin = spin != NULL && loop->may_spin && wait_ns >= spin->max_ns;
    uint64_t spin_ns = may_spin ? spin_budget(spin, now) : 0;
    /* See inbox.h for the order. */
    loop->inbox.waiting = spin_ns > 0 ? SPINNING : BLOCKED;
    if (inbox_has_records(&loop->inbox) || loop->stopping || loop->has_late_wakeups) {
        loop->inbox.waiting = NOT_WAITING;
        loop_poll_now(loop);
        *clock = compat_monotonic_ns();
        return 1;
    }
    loop_release(loop);
    if (spin_ns > 0 && spin_until_woken(loop, spin, spin_ns)) {
        loop_enter(loop);
        *clock = loop->last_release_ns = compat_monotonic_ns();
        /* As if there had been work from the start. */
        return 0;
    }
    bool timed = wait_ns != UINT64_MAX;
    if (timed) {
        arm(loop, now, wait_ns);
    }
    loop->precise_expired = false;
    loop_poll(loop, UV_RUN_ONCE);
    if (loop->precise_expired && timed && has_lead(loop, wait_ns)) {
        spend_lead(loop, now + wait_ns);
    }
    bool called = loop->inbox.waiting == WOKEN;
    loop_enter(loop);
    *clock = loop->last_release_ns = compat_monotonic_ns();
    loop->called_soon = called && loop->last_release_ns - now < SPIN_CALL_SOON_NS;
    if (timed && uv_is_active((uv_handle_t *)loop->coarse_timer)) {
        uv_timer_stop(loop->coarse_timer);
    }
    return 1;
}
