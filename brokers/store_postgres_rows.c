/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Rows of the ledger as structs. A job's spec is made by encoding its columns as a Submit again:
 * so there is one way from bytes to a spec, and deadlines follow the append time by one rule.
 */

#include <string.h>

#include "base/assert.h"
#include "brokers/store_postgres.h"

/* Columns of STORE_ROW_COLUMNS. */
enum row_column {
    ROW_ID,
    ROW_SEQ,
    ROW_ACCEPTED_AT,
    ROW_RECEIVED_AT,
    ROW_STATE,
    ROW_TOKEN,
    ROW_FENCE,
    ROW_ATTEMPT_COUNT,
    ROW_USER_FAILURES,
    ROW_OOM_FAILURES,
    ROW_LOST_FAILURES,
    ROW_DUE_AT,
    ROW_ROUND,
    ROW_RANK,
    ROW_SLOT_COUNT,
    ROW_TENANT,
    ROW_MODEL,
    ROW_DEPLOYMENT,
    ROW_ENVIRONMENT,
    ROW_POOL,
    ROW_INPUT_BLOB,
    ROW_INPUT_SIZE,
    ROW_INPUT_DIGEST,
    ROW_MAX_ATTEMPTS,
    ROW_INITIAL_DELAY_MS,
    ROW_MAX_DELAY_MS,
    ROW_QUEUE_LIMIT_MS,
    ROW_RUN_LIMIT_MS,
    ROW_TOTAL_LIMIT_MS,
    ROW_WEBHOOK_URL,
    ROW_IDEMPOTENCY_KEY,
    ROW_GATEWAY,
    ROW_TRACE,
    ROW_KEY_PREFIX,
    ROW_REPLAYED_AT,
    ROW_INPUT_TYPE,
    ROW_ROUTE,
    ROW_STREAM,
    ROW_TAGS,
    ROW_INPUT,
};

enum final_column {
    FINAL_ID,
    FINAL_ROUND,
    FINAL_TENANT,
    FINAL_MODEL,
    FINAL_DEPLOYMENT,
    FINAL_ENVIRONMENT,
    FINAL_STATE,
    FINAL_ERROR_CLASS,
    FINAL_ERROR_MESSAGE,
    FINAL_OUTPUT,
    FINAL_OUTPUT_BLOB,
    FINAL_OUTPUT_SIZE,
    FINAL_WEBHOOK_URL,
    FINAL_ACCEPTED_AT,
    FINAL_STATE_AT,
    FINAL_TRACE,
    FINAL_ATTEMPT_COUNT,
    FINAL_GATEWAY,
    FINAL_OUTPUT_TYPE,
    FINAL_HTTP_STATUS,
    FINAL_SYNC,
};

static struct message_submit read_submit(const struct pg_answer *answer, size_t at, size_t row)
{
    enum job_rank rank = (enum job_rank)pg_i64(answer, at, row, ROW_RANK);

    return (struct message_submit){
        .id = pg_id(answer, at, row, ROW_ID),
        .tenant = pg_text(answer, at, row, ROW_TENANT),
        .model = pg_text(answer, at, row, ROW_MODEL),
        .deployment = pg_text(answer, at, row, ROW_DEPLOYMENT),
        .environment = pg_text(answer, at, row, ROW_ENVIRONMENT),
        .pool = pg_text(answer, at, row, ROW_POOL),
        .priority = rank == JOB_RANK_SYNC ? 0 : (uint64_t)rank - JOB_RANK_PRIORITY_0,
        .sync = rank == JOB_RANK_SYNC,
        .input = pg_bytes(answer, at, row, ROW_INPUT),
        .input_blob = pg_text(answer, at, row, ROW_INPUT_BLOB),
        .input_size = pg_u64(answer, at, row, ROW_INPUT_SIZE),
        .input_digest = pg_bytes(answer, at, row, ROW_INPUT_DIGEST),
        .max_attempts = pg_u64(answer, at, row, ROW_MAX_ATTEMPTS),
        .initial_delay_ms = pg_u64(answer, at, row, ROW_INITIAL_DELAY_MS),
        .max_delay_ms = pg_u64(answer, at, row, ROW_MAX_DELAY_MS),
        .queue_limit_ms = pg_u64(answer, at, row, ROW_QUEUE_LIMIT_MS),
        .run_limit_ms = pg_u64(answer, at, row, ROW_RUN_LIMIT_MS),
        .total_limit_ms = pg_u64(answer, at, row, ROW_TOTAL_LIMIT_MS),
        .webhook_url = pg_text(answer, at, row, ROW_WEBHOOK_URL),
        .idempotency_key = pg_text(answer, at, row, ROW_IDEMPOTENCY_KEY),
        .gateway = pg_text(answer, at, row, ROW_GATEWAY),
        .trace = pg_text(answer, at, row, ROW_TRACE),
        .received_us = pg_time_us(answer, at, row, ROW_RECEIVED_AT),
        .slot_count = pg_u64(answer, at, row, ROW_SLOT_COUNT),
        .key_prefix = pg_text(answer, at, row, ROW_KEY_PREFIX),
        .tags = pg_text(answer, at, row, ROW_TAGS),
        .input_type = pg_text(answer, at, row, ROW_INPUT_TYPE),
        .route = pg_text(answer, at, row, ROW_ROUTE),
        .stream = pg_bool(answer, at, row, ROW_STREAM),
    };
}

int store_read_row(struct store *store, const struct pg_answer *answer, size_t at, size_t row,
                   struct ledger_row *ret_row, struct err *err)
{
    struct message_submit submit = read_submit(answer, at, row);
    uint64_t accepted_us = pg_time_us(answer, at, row, ROW_ACCEPTED_AT);
    bool replayed = !pg_is_null(answer, at, row, ROW_REPLAYED_AT);
    struct job_spec *spec;
    int r;

    buf_clear(&store->record);
    r = message_encode(MESSAGE_SUBMIT, &submit, &store->record, err);
    if (r == 0)
        r = job_spec_new(store->decoder, store->record.bytes, store->record.size,
                         pg_u64(answer, at, row, ROW_SEQ),
                         replayed ? pg_time_us(answer, at, row, ROW_REPLAYED_AT) : accepted_us,
                         &spec, err);
    if (r < 0)
        return err_wrap(err, "row of a job");
    spec->accepted_us = accepted_us;
    spec->round = (uint32_t)pg_u64(answer, at, row, ROW_ROUND);
    *ret_row = (struct ledger_row){
        .spec = spec,
        .state = (enum job_state)pg_i64(answer, at, row, ROW_STATE),
        .token = pg_u64(answer, at, row, ROW_TOKEN),
        .fence = pg_u64(answer, at, row, ROW_FENCE),
        .attempt_count = (uint32_t)pg_u64(answer, at, row, ROW_ATTEMPT_COUNT),
        .user_failures = (uint32_t)pg_u64(answer, at, row, ROW_USER_FAILURES),
        .oom_failures = (uint32_t)pg_u64(answer, at, row, ROW_OOM_FAILURES),
        .lost_failures = (uint32_t)pg_u64(answer, at, row, ROW_LOST_FAILURES),
        .due_us = pg_time_us(answer, at, row, ROW_DUE_AT),
    };
    return 0;
}

int store_read_rows(struct store *store, const struct pg_answer *answer, size_t at,
                    struct ledger_row **ret_rows, struct err *err)
{
    size_t count = pg_row_count(answer, at);
    struct ledger_row *rows = xcalloc(count + 1, sizeof(*rows));

    for (size_t i = 0; i < count; i++) {
        int r = store_read_row(store, answer, at, i, &rows[i], err);

        if (r < 0) {
            while (i-- > 0)
                job_spec_unref(&rows[i].spec);
            mem_free(&rows);
            return r;
        }
    }
    *ret_rows = rows;
    return 0;
}

void store_read_final(const struct pg_answer *answer, size_t at, size_t row,
                      struct ledger_final *ret_final)
{
    *ret_final = (struct ledger_final){
        .completed =
            {
                .id = pg_id(answer, at, row, FINAL_ID),
                .round = pg_u64(answer, at, row, FINAL_ROUND),
                .tenant = pg_text(answer, at, row, FINAL_TENANT),
                .model = pg_text(answer, at, row, FINAL_MODEL),
                .deployment = pg_text(answer, at, row, FINAL_DEPLOYMENT),
                .environment = pg_text(answer, at, row, FINAL_ENVIRONMENT),
                .state = pg_u64(answer, at, row, FINAL_STATE),
                .error_class = pg_u64(answer, at, row, FINAL_ERROR_CLASS),
                .error_message = pg_text(answer, at, row, FINAL_ERROR_MESSAGE),
                .output = pg_bytes(answer, at, row, FINAL_OUTPUT),
                .output_blob = pg_text(answer, at, row, FINAL_OUTPUT_BLOB),
                .output_size = pg_u64(answer, at, row, FINAL_OUTPUT_SIZE),
                .webhook_url = pg_text(answer, at, row, FINAL_WEBHOOK_URL),
                .accepted_us = pg_time_us(answer, at, row, FINAL_ACCEPTED_AT),
                .finished_us = pg_time_us(answer, at, row, FINAL_STATE_AT),
                .trace = pg_text(answer, at, row, FINAL_TRACE),
                .attempts = pg_u64(answer, at, row, FINAL_ATTEMPT_COUNT),
                .output_type = pg_text(answer, at, row, FINAL_OUTPUT_TYPE),
                .http_status = pg_u64(answer, at, row, FINAL_HTTP_STATUS),
            },
        .gateway = pg_text(answer, at, row, FINAL_GATEWAY),
        .sync = pg_bool(answer, at, row, FINAL_SYNC),
    };
}
