/* What a worker does with a job, and how the outcome reaches the job's future in the thread of its loop. */

#ifndef FASTLOOP_POOL_OUTCOME_H
#define FASTLOOP_POOL_OUTCOME_H

#include "pool/jobs.h"

/* Runs the job unless its future was cancelled, and sends the outcome to the loop, which has yet to be woken. Leaves no
   exception set and does not drop the references. */
void job_run(Job *job);

#endif
