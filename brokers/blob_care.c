/* SPDX-License-Identifier: Apache-2.0 */

#include "brokers/blob_care.h"

#include <string.h>

#include "schema/job_id.h"

#define DAY_SIZE 10 /* 2026-01-31 */

bool blob_care_read_key(const char *key, struct wire_id *ret_job, bool *ret_is_input)
{
    char id[JOB_ID_TEXT_SIZE], again[BLOB_KEY_SIZE];
    const char *name = key + strlen("jobs/") + DAY_SIZE + 1;
    struct err bad;

    if (strncmp(key, "jobs/", 5) != 0 || strlen(key) < strlen("jobs/") + DAY_SIZE + 1 + sizeof(id))
        return false;
    memcpy(id, name, sizeof(id) - 1);
    id[sizeof(id) - 1] = '\0';
    if (job_id_parse(id, ret_job, &bad) < 0)
        return false;
    blob_key_input(ret_job, again); /* day and id belong together */
    if (strncmp(key, again, strlen(again) - strlen("input")) != 0)
        return false;
    name += sizeof(id);
    *ret_is_input = strcmp(name, "input") == 0;
    return *ret_is_input || (strlen(name) == 16 && strspn(name, "0123456789abcdef") == 16);
}

bool blob_care_is_over(const struct blob_care_rules *rules, const struct blob_care_facts *facts,
                       bool is_input, uint64_t modified_us, uint64_t now_us)
{
    if (!facts->has_row)
        return facts->day_over && modified_us < now_us &&
               (double)(now_us - modified_us) / 1e6 > rules->fresh_s;
    if (!job_state_final(facts->state))
        return false;
    if (is_input)
        return facts->state == JOB_SUCCEEDED && facts->age_s > rules->input_keep_s;
    return facts->age_s > rules->output_keep_s && !facts->delivery_open;
}
