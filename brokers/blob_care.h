/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Which blob has outlived its job. Pure: what is known about it comes in, a verdict comes out.
 *
 *                      job's row             no row, day not over   no row, day over
 *     input            SUCCEEDED for         stays: it may be on    goes, once it was
 *                      input_keep            its way to the ledger  not written lately
 *     output           final for             stays                  goes, likewise
 *                      output_keep, nothing
 *                      left to deliver
 *
 * The input of a job that failed stays as long as its row does: a replay needs it. A missing row is
 * never a reason by itself (PROTOCOL 26): a day is over when its partitions were dropped and every
 * shard has read its intake far beyond it.
 *
 * Thread: any.   Tests: tests/unit/test_blob_care.c; its driver is broker_blobs.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "brokers/blob.h"
#include "schema/job.h"

struct blob_care_rules {
    double input_keep_s, output_keep_s;
    double fresh_s; /* written so lately: somebody may be about to need it */
};

struct blob_care_facts {
    bool day_over;
    bool has_row;
    enum job_state state; /* these three: of the row */
    double age_s;         /* since it entered that state */
    bool delivery_open;
};

/* False when the key is none of a job's; then it is not ours to judge. */
bool blob_care_read_key(const char *key, struct wire_id *ret_job, bool *ret_is_input);

bool blob_care_is_over(const struct blob_care_rules *rules, const struct blob_care_facts *facts,
                       bool is_input, uint64_t modified_us, uint64_t now_us);
