/* Preloaded by fuzz.py: what the compiler calls on each basic block of an extension that was built with
   -fsanitize-coverage=trace-pc. The ways from block to block are counted in memory that forked processes share. */

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { WAYS = 1 << 16 };

unsigned char *fuzz_ways;

__attribute__((constructor)) static void
share(void)
{
    fuzz_ways = mmap(NULL, WAYS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (fuzz_ways == MAP_FAILED) {
        abort();
    }
}

void
__sanitizer_cov_trace_pc(void)
{
    static __thread uintptr_t before;
    uintptr_t here = (uintptr_t)__builtin_return_address(0);
    here ^= here >> 16;
    unsigned char *way = &fuzz_ways[(here ^ before) % WAYS];
    *way |= 1;
    before = here >> 1;
}
