/* The thread pool: run_in_executor() without concurrent.futures. This header is what module.c sees. */

#ifndef FASTLOOP_POOL_POOL_H
#define FASTLOOP_POOL_POOL_H

#include "pool/jobs.h"

/* Adds run_in_executor() to the Loop type; -1 with an exception. */
int pool_exec(State *state);

#endif
