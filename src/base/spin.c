/* The arithmetic of an adaptive spin. */

#include "base/spin.h"

enum {
    MIN_NS = 2000,
    MISSES_MAX = 3,
    OFF_NS = 100000000,
    LOOKS_PER_CLOCK = 16,
};

void
spin_init(Spin *spin, uint32_t max_ns)
{
    *spin = (Spin){.max_ns = max_ns};
}

uint64_t
spin_budget(Spin *spin, uint64_t now)
{
    if (LIKELY(spin->budget_ns > 0)) {
        return spin->budget_ns;
    }
    if (now < spin->off_until_ns) {
        return 0;
    }
    if (compat_usable_cpus() < 2) {
        spin->off_until_ns = now + OFF_NS;
        return 0;
    }
    spin->budget_ns = spin->max_ns;
    return spin->budget_ns;
}

void
spin_note(Spin *spin, bool hit)
{
    if (hit) {
        spin->misses = 0;
        spin->budget_ns = spin->budget_ns * 2 > spin->max_ns ? spin->max_ns : spin->budget_ns * 2;
    } else if (++spin->misses < MISSES_MAX) {
        spin->budget_ns = spin->budget_ns / 2 < MIN_NS ? MIN_NS : spin->budget_ns / 2;
    } else {
        spin->misses = 0;
        spin->budget_ns = 0;
        spin->off_until_ns = compat_monotonic_ns() + OFF_NS;
    }
}

static inline bool
spin_between(const _Atomic int *word, int least, int most, uint64_t budget_ns)
{
    uint64_t start = compat_monotonic_ns();
    do {
        for (int i = 0; i < LOOKS_PER_CLOCK; i++) {
            int found = atomic_load_explicit(word, memory_order_acquire);
            if (found >= least && found <= most) {
                return true;
            }
            compat_pause();
        }
    } while (compat_monotonic_ns() - start < budget_ns);
    return false;
}

bool
spin_until(const _Atomic int *word, int value, uint64_t budget_ns)
{
    return spin_between(word, value, value, budget_ns);
}

bool
spin_until_at_least(const _Atomic int *word, int value, uint64_t budget_ns)
{
    return spin_between(word, value, INT_MAX, budget_ns);
}
