/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A store on a server of its own, an empty ledger, and what the tests of the store say and hear.
 * For tests/stack/test_store*.c only.
 */

#include <stdio.h>

#include "base/loop.h"
#include "brokers/store.h"
#include "migrations/migrate.h"
#include "schema/job_id.h"
#include "tests/stack/postgres_test.h"

#define PATIENCE_MS 20000
#define SHARD 3
#define ACCEPTED_US 1767312000000000u /* 2026-01-02 */
#define T(text) ((struct wire_text){(text), sizeof(text) - 1})
#define B(text) ((struct wire_bytes){(const uint8_t *)(text), sizeof(text) - 1})

/* ---- a world ---- */

struct world {
    struct loop *loop;
    struct store *store;
    struct wire_decoder *decoder;
    struct pg_session *session; /* looks, locks and kills */
    uint32_t epoch;
    /* answers */
    bool done;
    int err_code;
    struct ledger_takeover *takeover;
    enum flush_verdict verdict;
    size_t refused_index;
    char why[256];
    bool applied[FLUSH_JOBS_MAX];
    struct ledger_row rows[100];
    size_t row_count;
    bool complete;
};

LOOKER void script(struct world *world, const char *sql)
{
    looker_script(world->session, sql);
}

LOOKER void expect(struct world *world, const char *sql, const char *wanted)
{
    looker_expect(world->session, sql, wanted);
}

LOOKER struct store *open_store(struct world *world)
{
    const struct store_options options = {.url = looker_url(),
                                          .application = "test_store",
                                          .statement_timeout_ms = 10000,
                                          .connect_timeout_ms = 2000};
    struct store *store;
    struct err err = {0};

    assert_int_equal(store_open(world->loop, &options, &store, &err), 0);
    return store;
}

LOOKER int group_setup(void **state)
{
    struct err err = {0};

    (void)state;
    if (migrate_run(looker_url(), MIGRATE_APPLY, NULL, NULL, &err) < 0)
        fail_msg("%s", err.text);
    return 0;
}

LOOKER int setup(void **state)
{
    struct world *world = xcalloc(1, sizeof(*world));
    struct err err = {0};

    world->session = looker_open();
    script(world, "TRUNCATE shard, flush, job, job_input, job_result, attempt, queue_delta, "
                  "job_hour, hour_mark");
    assert_int_equal(loop_open(&world->loop, &err), 0);
    world->decoder = wire_decoder_new();
    world->store = open_store(world);
    *state = world;
    return 0;
}

LOOKER void rows_drop(struct world *world)
{
    for (size_t i = 0; i < world->row_count; i++)
        job_spec_unref(&world->rows[i].spec);
    world->row_count = 0;
}

LOOKER int teardown(void **state)
{
    struct world *world = *state;

    rows_drop(world);
    store_close(&world->store);
    pg_session_close(&world->session);
    wire_decoder_free(&world->decoder);
    loop_close(&world->loop);
    mem_free(&world);
    return 0;
}

LOOKER void hear(struct world *world)
{
    assert_true(loop_run_until(world->loop, &world->done, PATIENCE_MS));
}

/* Turns of the loop in which the answer must not come. */
LOOKER void hear_nothing(struct world *world, uint32_t for_ms)
{
    assert_false(loop_run_until(world->loop, &world->done, for_ms));
}

LOOKER void on_takeover(void *opaque, struct ledger_takeover *takeover, struct err *err)
{
    struct world *world = opaque;

    world->done = true;
    world->err_code = err->code;
    world->takeover = takeover;
    if (err->code != ERR_OK)
        (void)fprintf(stderr, "takeover: %s\n", err->text);
}

LOOKER void take_over(struct world *world)
{
    world->done = false;
    store_takeover(world->store, SHARD, on_takeover, world);
    hear(world);
    assert_int_equal(world->err_code, 0);
    assert_int_equal(world->takeover->shard, SHARD);
    world->epoch = world->takeover->epoch;
}

LOOKER void on_flush(void *opaque, const struct flush_result *result)
{
    struct world *world = opaque;

    world->done = true;
    world->verdict = result->verdict;
    world->refused_index = result->refused_index;
    mem_copy_text(world->why, result->refused_why == NULL ? "" : result->refused_why);
    for (size_t i = 0; result->applied != NULL && i < FLUSH_JOBS_MAX; i++)
        world->applied[i] = false;
}

/* The number of jobs is known to the asker only. */
struct flush_ask {
    struct world *world;
    size_t job_count;
};

LOOKER void on_flush_applied(void *opaque, const struct flush_result *result)
{
    struct flush_ask *ask = opaque;

    on_flush(ask->world, result);
    for (size_t i = 0; result->applied != NULL && i < ask->job_count; i++)
        ask->world->applied[i] = result->applied[i];
}

LOOKER void on_rows(void *opaque, const struct ledger_lane *lane, struct ledger_row *rows,
                    size_t row_count, bool complete, struct err *err)
{
    struct world *world = opaque;

    (void)lane;
    rows_drop(world);
    world->done = true;
    world->err_code = err->code;
    world->complete = complete;
    assert_true(row_count <= COUNT_OF(world->rows));
    for (size_t i = 0; i < row_count; i++)
        world->rows[i] = rows[i];
    world->row_count = row_count;
}

LOOKER void on_due(void *opaque, const struct ledger_due *due, struct ledger_row *rows,
                   size_t row_count, bool complete, struct err *err)
{
    (void)due;
    on_rows(opaque, NULL, rows, row_count, complete, err);
}

/* ---- jobs and flushes ---- */

LOOKER struct wire_id id_of(uint32_t n)
{
    const uint8_t entropy[JOB_ID_RANDOM_SIZE] = {
        0, 0, 0, 0, (uint8_t)(n >> 24), (uint8_t)(n >> 16), (uint8_t)(n >> 8), (uint8_t)n};

    return job_id_make(SHARD, ACCEPTED_US / 1000 + n, entropy);
}

LOOKER const uint8_t digest[32] = {1, 2, 3};

LOOKER struct job_spec *spec_of(struct world *world, uint32_t n, const char *tenant, bool sync)
{
    struct message_submit submit = {
        .id = id_of(n),
        .tenant = WIRE_TEXT_OF(tenant),
        .model = T("minilm"),
        .deployment = T("d1"),
        .environment = T("production"),
        .pool = T("pool-d1"),
        .priority = sync ? 0 : 1,
        .sync = sync,
        .input = B("{\"input\":\"x\"}"),
        .input_size = 13,
        .input_digest = {digest, sizeof(digest)},
        .max_attempts = 3,
        .initial_delay_ms = 1000,
        .max_delay_ms = 5000,
        .queue_limit_ms = 600000,
        .run_limit_ms = 60000,
        .total_limit_ms = 900000,
        .webhook_url = T("https://example.org/hook"),
        .idempotency_key = T("key-1"),
        .gateway = T("g1"),
        .trace = T("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        .received_us = ACCEPTED_US - 5,
        .slot_count = 2,
        .key_prefix = T("hr_abc"),
        .input_type = T("image/png"),
        .route = T("POST /v1/x?y=%20"),
        .stream = true,
    };
    struct buf buf = BUF_WITH_LIMIT(100000);
    struct job_spec *spec = NULL;
    struct err err = {0};

    if (message_encode(MESSAGE_SUBMIT, &submit, &buf, &err) < 0 ||
        job_spec_new(world->decoder, buf.bytes, buf.size, n, ACCEPTED_US + n, &spec, &err) < 0)
        fail_msg("%s", err.text);
    buf_done(&buf);
    return spec;
}

/* A job as it enters the ledger. */
LOOKER struct flush_job job_of(const struct job_spec *spec, enum job_state state)
{
    struct flush_job job = {
        .spec = spec, .action = FLUSH_INSERT, .state = state, .state_us = ACCEPTED_US + 1000};

    if (state == JOB_SUCCEEDED) {
        job.output = B("{\"data\":[1]}");
        job.output_size = 12;
        job.output_type = T("text/plain");
        job.http_status = 201;
    }
    return job;
}

LOOKER void send_flush(struct world *world, const struct flush *flush, struct flush_ask *ask)
{
    *ask = (struct flush_ask){world, flush->job_count};
    world->done = false;
    store_flush(world->store, flush, on_flush_applied, ask);
}

LOOKER struct flush flush_of(struct world *world, uint64_t number, const struct flush_job *jobs,
                             size_t job_count)
{
    return (struct flush){.shard = SHARD,
                          .epoch = world->epoch,
                          .number = number,
                          .intake_floor = 10 + (int64_t)number,
                          .outcome_floor = 20 + (int64_t)number,
                          .floor_us = ACCEPTED_US,
                          .jobs = jobs,
                          .job_count = job_count};
}

LOOKER void flush_now(struct world *world, uint64_t number, const struct flush_job *jobs,
                      size_t job_count)
{
    struct flush flush = flush_of(world, number, jobs, job_count);
    struct flush_ask ask;

    send_flush(world, &flush, &ask);
    hear(world);
}
