/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the files of the training routes share.
 *
 *   gateway_training.c            projects, archives of workspaces
 *   gateway_training_submit.c     a job is made, or made again
 *   gateway_training_jobs.c       jobs: one, many, stop, priority, what they wait for
 *   gateway_training_logs.c       their lines and figures
 *   gateway_training_files.c      their checkpoints
 *
 * A path names a project by id or name, or by `-`: whichever the job belongs to.
 *
 * Thread: the loop's.   Tests: tests/stack/test_training_api.py
 */

#include "brokers/pg.h"
#include "producers/gateway.h"

#define TRAINING_BODY_MAX (256u << 10)

/* The columns of headrace_v1.training_jobs that training_job_json_at() reads. */
#define TRAINING_JOB_COLUMNS                                                                       \
    "job_id, project_id, project, name, status, error_message, priority, created_at, status_at, "  \
    "accelerator, gpu_count, cpu_count, memory_bytes, node_count, created_by, started_at, "        \
    "ended_at, cause, exit_code, signal, retries, preemptions, placements, checkpoint_sync, "      \
    "queue_position, outlook, checkpoints, archive_digest"
#define TRAINING_JOB_COLUMN_COUNT 28

/* Of one row, whose columns of the job begin at `column`; the caller's. */
struct json_t *training_job_json_at(const struct pg_answer *answer, size_t at, size_t row,
                                    size_t column);

/* Binds $1 tenant, $2 job, $3 project of the path for a statement that ends in TRAINING_OF_PATH.
 * ERR_MALFORMED: the path has no job id. */
#define TRAINING_OF_PATH                                                                           \
    " tenant = $1 AND job_id = $2 AND ($3 = '-' OR $3 IN (project_id, project))"
int training_bind_path(struct pg_batch *batch, const struct pg_statement *statement,
                       struct call *call, struct err *err) MUST_CHECK;

/* Ends the call with {"training_job": …} of a job, 404 when there is none. */
void training_job_show(struct call *call, const struct wire_id *job);

void training_fail_missing(struct call **call_p); /* 404: no such job */

/* For blob_file_call's: ends the call with the bytes, or says what cannot be read. */
void training_answer_blob(struct call *call, int fd, uint64_t size, const struct err *err,
                          const char *what);
