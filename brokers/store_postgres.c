/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The ledger in Postgres: takeovers and loads.
 *
 * Happy path of a takeover: raise the epoch, which waits for the old owner's open flush; name the
 * session after shard and epoch; read the newest flush row, the jobs that run or wait for a retry,
 * the lanes, and what is not published yet. Nobody else can write the shard's rows from the raise
 * on, so these reads need no transaction of their own.
 *
 * Failures: the old owner holds its lock for more than a second (its host may be gone): its
 * sessions are terminated and the raise is tried again. A lost connection: everything here only
 * reads, or raises once more, so it is asked again.
 *
 * Lanes are found by leaps from one (pool, rank, tenant) to the next in the index, so their cost
 * is the number of lanes, not of waiting jobs.
 */

#include <inttypes.h>
#include <string.h>

#include "base/assert.h"
#include "base/loop.h"
#include "brokers/fault.h"
#include "brokers/store_postgres.h"
#include "schema/job_id.h"

PG_STATEMENT(store_patience, "SELECT set_config('lock_timeout', '1000', true)");
PG_STATEMENT(store_name, "SELECT set_config('application_name', $1, false)");
PG_STATEMENT(store_terminate,
             "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
             "WHERE pid <> pg_backend_pid() AND CASE WHEN starts_with(application_name, $1) "
             "THEN substr(application_name, length($1) + 1)::bigint <= $2 ELSE false END");

PG_STATEMENT(takeover_add, "INSERT INTO shard (id) VALUES ($1) ON CONFLICT DO NOTHING");
PG_STATEMENT(takeover_raise,
             "UPDATE shard SET epoch = greatest(epoch + 1, extract(epoch FROM now())::bigint - "
             "1735689600), owner = $2, taken_at = now() WHERE id = $1 RETURNING epoch");
PG_STATEMENT(takeover_flush, "SELECT intake_floor, outcome_floor, published_epoch, "
                             "published_number, command_floor FROM flush WHERE shard = $1 "
                             "ORDER BY epoch DESC, number DESC LIMIT 1");
PG_STATEMENT(takeover_rows, "SELECT" STORE_ROW_COLUMNS
                            "FROM job j WHERE j.shard = $1 AND (j.state = 2 OR (j.state = 1 AND "
                            "j.attempt_count > 0)) ORDER BY j.seq");
PG_STATEMENT(
    takeover_lanes,
    "WITH RECURSIVE lane AS ("
    "(SELECT pool, rank, tenant FROM job WHERE shard = $1 AND state = 1 AND attempt_count = 0 "
    "ORDER BY pool, rank, tenant LIMIT 1) UNION ALL "
    "SELECT next.* FROM lane CROSS JOIN LATERAL (SELECT j.pool, j.rank, j.tenant FROM job j "
    "WHERE j.shard = $1 AND j.state = 1 AND j.attempt_count = 0 "
    "AND (j.pool, j.rank, j.tenant) > (lane.pool, lane.rank, lane.tenant) "
    "ORDER BY j.pool, j.rank, j.tenant LIMIT 1) next) SELECT pool, rank, tenant FROM lane");
PG_STATEMENT(
    takeover_finals,
    "SELECT" STORE_FINAL_COLUMNS
    "FROM (SELECT published_epoch, published_number FROM flush WHERE shard = $1 "
    "ORDER BY epoch DESC, number DESC LIMIT 1) newest "
    "JOIN flush f ON f.shard = $1 AND (f.epoch, f.number) > "
    "(newest.published_epoch, newest.published_number) CROSS JOIN LATERAL unnest(f.final_ids) AS u "
    "(id) "
    "JOIN job j ON j.id = u.id LEFT JOIN job_result r ON r.job_id = j.id AND r.round = j.round "
    "WHERE j.state NOT IN (1, 2) ORDER BY f.epoch, f.number");

PG_STATEMENT(load_lane, "SELECT" STORE_ROW_COLUMNS
                        "FROM job j WHERE j.shard = $1 AND j.pool = $2 AND j.rank = $3 AND "
                        "j.tenant = $4 AND j.seq > $5 AND j.state = 1 AND j.attempt_count = 0 "
                        "ORDER BY j.seq LIMIT $6");
/* The order of job_deadline. Entries of rows that wait no more lie behind the cursor after one
 * reading, also while an old snapshot keeps them in the index. */
PG_STATEMENT(load_due,
             "SELECT" STORE_ROW_COLUMNS_BUT_INPUT
             ", NULL::bytea FROM job j WHERE j.shard = $1 AND j.state = 1 AND "
             "j.attempt_count = 0 AND (least(j.start_deadline_at, j.total_deadline_at), "
             "j.seq) > ($2, $3) AND least(j.start_deadline_at, j.total_deadline_at) <= $4 "
             "ORDER BY least(j.start_deadline_at, j.total_deadline_at), j.seq LIMIT $5");
PG_STATEMENT(load_ids, "SELECT" STORE_ROW_COLUMNS
                       "FROM job j WHERE j.id = ANY ($1) AND j.id BETWEEN $2 AND $3");

enum store_query_type { QUERY_LANE, QUERY_DUE, QUERY_IDS };

/* A question for rows, until it is answered. */
struct store_query {
    struct store_query *next;
    struct store *store;
    enum store_query_type type;
    uint32_t shard, limit;
    struct ledger_lane lane;
    struct ledger_due due;
    struct wire_id *ids;
    size_t id_count;
    store_rows_fn *done; /* of a lane and of ids */
    store_due_fn *due_done;
    void *opaque;
};

/* ---- sessions ---- */

static void session_prefix(uint32_t shard, char to[64])
{
    (void)snprintf(to, 64, "headrace shard=%u epoch=", shard);
}

void store_send(struct store *store, struct pg_batch **batch_p, pg_done_fn *done, void *opaque)
{
    struct err err;
    int r = pg_send(store->pg, batch_p, 0, done, opaque, &err);

    /* Flushes are at most FLUSH_BYTES_MAX, and there are fewer callers than slots. */
    assert(r == 0);
}

void store_add_patience(struct pg_batch *batch)
{
    pg_add(batch, &store_patience);
}

void store_terminate_others(struct store *store, uint32_t shard, uint32_t epoch, pg_done_fn *done)
{
    struct pg_batch *batch = pg_batch_new();
    char prefix[64];

    session_prefix(shard, prefix);
    pg_add(batch, &store_terminate);
    pg_bind_c(batch, prefix);
    pg_bind_i64(batch, epoch);
    store_send(store, &batch, done, store);
}

/* So that a successor can end this session; also the sessions to come have this name. */
static void session_name(struct store *store, uint32_t shard, uint32_t epoch)
{
    struct pg_batch *batch = pg_batch_new();
    char name[64];
    size_t size;

    session_prefix(shard, name);
    size = strlen(name);
    (void)snprintf(name + size, sizeof(name) - size, "%u", epoch);
    pg_set_application(store->pg, name);
    pg_add(batch, &store_name);
    pg_bind_c(batch, name);
    store_send(store, &batch, NULL, NULL);
}

/* ---- takeover ---- */

static void takeover_raise_ask(struct store *store);
static void takeover_read_ask(struct store *store);

static void takeover_forget(struct store *store)
{
    struct ledger_takeover *found = &store->takeover.found;

    for (size_t i = 0; i < found->row_count; i++)
        job_spec_unref(&found->rows[i].spec);
    mem_free(&found->rows);
    mem_free(&found->lanes);
    mem_free(&found->unpublished);
    *found = (struct ledger_takeover){0};
    if (store->takeover.answer.result != NULL)
        pg_answer_done(&store->takeover.answer);
}

static void takeover_answer(struct store *store, struct ledger_takeover *found, struct err *err)
{
    store_takeover_fn *done = TAKE(store->takeover.done);

    done(store->takeover.opaque, found, err);
}

/* Again after a pause, or the end of it. */
static void takeover_failed(struct store *store, const struct err *why)
{
    struct err err = *why;

    if (store_connection_lost(&err) || err.code == ERR_TIMEOUT || err.code == ERR_CONFLICT)
        loop_timer_start(store->takeover_pause, STORE_PAUSE_MS, 0);
    else
        takeover_answer(store, NULL, &err);
}

static void on_takeover_pause(void *opaque)
{
    struct store *store = opaque;

    if (store->takeover.epoch == 0)
        takeover_raise_ask(store);
    else
        takeover_read_ask(store);
}

static int lanes_read(const struct pg_answer *answer, size_t at, struct ledger_takeover *found,
                      struct err *err)
{
    found->lane_count = pg_row_count(answer, at);
    found->lanes = xcalloc(found->lane_count + 1, sizeof(*found->lanes));
    for (size_t i = 0; i < found->lane_count; i++) {
        struct ledger_lane *lane = &found->lanes[i];
        struct wire_text pool = pg_text(answer, at, i, 0), tenant = pg_text(answer, at, i, 2);

        if (pool.size >= sizeof(lane->pool) || tenant.size >= sizeof(lane->tenant))
            return err_set(err, ERR_RANGE, "pool or tenant of a waiting job is over %zu bytes",
                           sizeof(lane->pool) - 1);
        mem_copy_text(lane->pool, pool.size == 0 ? "" : pool.text);
        mem_copy_text(lane->tenant, tenant.size == 0 ? "" : tenant.text);
        lane->rank = (enum job_rank)pg_i64(answer, at, i, 1);
        lane->after_seq = -1;
    }
    return 0;
}

static int takeover_read(struct store *store, struct err *err)
{
    const struct pg_answer *answer = &store->takeover.answer;
    struct ledger_takeover *found = &store->takeover.found;
    int r;

    found->shard = store->takeover.shard;
    found->epoch = store->takeover.epoch;
    found->intake_floor = found->outcome_floor = -1;
    if (pg_row_count(answer, 0) == 1) {
        found->intake_floor = pg_i64(answer, 0, 0, 0);
        found->outcome_floor = pg_i64(answer, 0, 0, 1);
        found->published_epoch = (uint32_t)pg_u64(answer, 0, 0, 2);
        found->published_number = pg_u64(answer, 0, 0, 3);
        found->command_floor = pg_u64(answer, 0, 0, 4);
    }
    r = lanes_read(answer, 2, found, err);
    if (r < 0)
        return r;
    found->unpublished_count = pg_row_count(answer, 3);
    found->unpublished = xcalloc(found->unpublished_count + 1, sizeof(*found->unpublished));
    for (size_t i = 0; i < found->unpublished_count; i++)
        store_read_final(answer, 3, i, &found->unpublished[i]);
    r = store_read_rows(store, answer, 1, &found->rows, err); /* last: its specs are given away */
    if (r == 0)
        found->row_count = pg_row_count(answer, 1);
    return r;
}

static void on_takeover_read(void *opaque, const struct pg_answer *answer)
{
    struct store *store = opaque;
    struct err err = {0};

    if (answer->err.code != ERR_OK) {
        takeover_failed(store, &answer->err);
        return;
    }
    pg_answer_take(answer, &store->takeover.answer);
    if (takeover_read(store, &err) < 0) {
        takeover_forget(store);
        takeover_answer(store, NULL, &err);
        return;
    }
    takeover_answer(store, &store->takeover.found, &err);
}

static void takeover_read_ask(struct store *store)
{
    static const struct pg_statement *const statements[] = {&takeover_flush, &takeover_rows,
                                                            &takeover_lanes, &takeover_finals};
    struct pg_batch *batch = pg_batch_new();

    for (size_t i = 0; i < COUNT_OF(statements); i++) {
        pg_add(batch, statements[i]);
        pg_bind_i16(batch, (int64_t)store->takeover.shard);
    }
    store_send(store, &batch, on_takeover_read, store);
}

static void on_takeover_terminated(void *opaque, const struct pg_answer *answer)
{
    struct store *store = opaque;

    if (answer->err.code == ERR_OK)
        takeover_raise_ask(store);
    else
        takeover_failed(store, &answer->err);
}

static void on_takeover_raised(void *opaque, const struct pg_answer *answer)
{
    struct store *store = opaque;

    if (strcmp(answer->sqlstate, STORE_NO_PATIENCE) == 0) {
        store_terminate_others(store, store->takeover.shard, UINT32_MAX, on_takeover_terminated);
        return;
    }
    if (answer->err.code != ERR_OK) {
        takeover_failed(store, &answer->err);
        return;
    }
    store->takeover.epoch = (uint32_t)pg_u64(answer, 2, 0, 0);
    fault_point(FAULT_broker_epoch_raised);
    session_name(store, store->takeover.shard, store->takeover.epoch);
    takeover_read_ask(store);
}

static void takeover_raise_ask(struct store *store)
{
    struct pg_batch *batch = pg_batch_new();

    store_add_patience(batch);
    pg_add(batch, &takeover_add);
    pg_bind_i16(batch, (int64_t)store->takeover.shard);
    pg_add(batch, &takeover_raise);
    pg_bind_i16(batch, (int64_t)store->takeover.shard);
    pg_bind_c(batch, store->application);
    store_send(store, &batch, on_takeover_raised, store);
}

void store_takeover(struct store *store, uint32_t shard, store_takeover_fn *done, void *opaque)
{
    assert(store->takeover.done == NULL);
    assert(shard < JOB_SHARD_COUNT_MAX);
    takeover_forget(store);
    store->takeover.shard = shard;
    store->takeover.epoch = 0;
    store->takeover.done = done;
    store->takeover.opaque = opaque;
    takeover_raise_ask(store);
}

/* ---- loads and lookups ---- */

static void query_ask(struct store_query *query);

static void query_free(struct store_query **query_p)
{
    struct store_query *query = TAKE(*query_p);
    struct store_query **link = &query->store->queries;

    while (*link != query)
        link = &(*link)->next;
    *link = query->next;
    mem_free(&query->ids);
    mem_free(&query);
}

static void on_query(void *opaque, const struct pg_answer *answer)
{
    struct store_query *query = opaque, asked = *query;
    OWNED(mem_free) struct ledger_row *rows = NULL;
    struct err err = answer->err;
    size_t row_count = 0;
    bool complete;

    if (store_connection_lost(&answer->err)) {
        query_ask(query);
        return;
    }
    if (err.code == ERR_OK && store_read_rows(query->store, answer, 0, &rows, &err) == 0)
        row_count = pg_row_count(answer, 0);
    complete = asked.type != QUERY_IDS && err.code == ERR_OK && row_count < asked.limit;
    query_free(&query);
    if (asked.type == QUERY_DUE)
        asked.due_done(asked.opaque, &asked.due, rows, row_count, complete, &err);
    else
        asked.done(asked.opaque, asked.type == QUERY_LANE ? &asked.lane : NULL, rows, row_count,
                   complete, &err);
}

static void bind_lane(struct pg_batch *batch, const struct store_query *query)
{
    pg_add(batch, &load_lane);
    pg_bind_i16(batch, (int64_t)query->shard);
    pg_bind_c(batch, query->lane.pool);
    pg_bind_i16(batch, (int64_t)query->lane.rank);
    pg_bind_c(batch, query->lane.tenant);
    pg_bind_i64(batch, query->lane.after_seq);
    pg_bind_i64(batch, (int64_t)query->limit);
}

static void bind_due(struct pg_batch *batch, const struct store_query *query)
{
    pg_add(batch, &load_due);
    pg_bind_i16(batch, (int64_t)query->shard);
    pg_bind_time(batch, query->due.after_us == 0 ? 1 : query->due.after_us); /* 0 is NULL there */
    pg_bind_i64(batch, query->due.after_seq);
    pg_bind_time(batch, query->due.upto_us);
    pg_bind_i64(batch, (int64_t)query->limit);
}

static void bind_ids(struct pg_batch *batch, const struct store_query *query)
{
    struct wire_id lowest, highest;

    memset(&lowest, 0xff, sizeof(lowest));
    memset(&highest, 0, sizeof(highest));
    pg_add(batch, &load_ids);
    pg_bind_array(batch, PG_ID, query->id_count);
    for (size_t i = 0; i < query->id_count; i++) {
        const struct wire_id *id = &query->ids[i];

        pg_bind_id(batch, id);
        if (memcmp(id, &lowest, sizeof(lowest)) < 0)
            lowest = *id;
        if (memcmp(id, &highest, sizeof(highest)) > 0)
            highest = *id;
    }
    pg_bind_id(batch, &lowest);
    pg_bind_id(batch, &highest);
}

static void query_ask(struct store_query *query)
{
    struct pg_batch *batch = pg_batch_new();

    if (query->type == QUERY_LANE)
        bind_lane(batch, query);
    else if (query->type == QUERY_DUE)
        bind_due(batch, query);
    else
        bind_ids(batch, query);
    store_send(query->store, &batch, on_query, query);
}

static struct store_query *query_new(struct store *store, enum store_query_type type, void *opaque)
{
    struct store_query *query = xcalloc(1, sizeof(*query));

    query->store = store;
    query->type = type;
    query->opaque = opaque;
    query->next = store->queries;
    store->queries = query;
    return query;
}

void store_load(struct store *store, uint32_t shard, const struct ledger_lane *lane, uint32_t limit,
                store_rows_fn *done, void *opaque)
{
    struct store_query *query = query_new(store, QUERY_LANE, opaque);

    query->done = done;
    query->shard = shard;
    query->lane = *lane;
    query->limit = limit;
    query_ask(query);
}

void store_due(struct store *store, uint32_t shard, const struct ledger_due *due, uint32_t limit,
               store_due_fn *done, void *opaque)
{
    struct store_query *query = query_new(store, QUERY_DUE, opaque);

    query->due_done = done;
    query->shard = shard;
    query->due = *due;
    query->limit = limit;
    query_ask(query);
}

void store_lookup(struct store *store, const struct wire_id *ids, size_t id_count,
                  store_rows_fn *done, void *opaque)
{
    struct store_query *query = query_new(store, QUERY_IDS, opaque);

    query->done = done;
    query->ids = xcalloc(id_count + 1, sizeof(*ids));
    if (id_count > 0)
        memcpy(query->ids, ids, id_count * sizeof(*ids));
    query->id_count = id_count;
    query_ask(query);
}

/* ---- open and close ---- */

int store_open(struct loop *loop, const struct store_options *options, struct store **ret_store,
               struct err *err)
{
    OWNED(store_close) struct store *store = xcalloc(1, sizeof(*store));
    const struct pg_options pg_options = {
        .url = options->url,
        .application = options->application,
        .connect_timeout_ms = options->connect_timeout_ms,
        .statement_timeout_ms = options->statement_timeout_ms,
        /* Plans are made once, without looking at values: to fold arrays of a thousand items into
         * every plan costs more than carrying it out. The planner then thinks that an array has ten
         * items and that an index of a young partition is not worth it; so the plans that are right
         * for ten rows of an empty table and wrong for a thousand are switched off. */
        .settings = "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off "
                    "-c jit=off -c work_mem=64MB -c plan_cache_mode=force_generic_plan",
    };
    int r;

    store->loop = loop;
    store->application = xstrdup(options->application == NULL ? "" : options->application);
    store->decoder = wire_decoder_new();
    buf_init(&store->record, 1u << 20);
    buf_init(&store->text, 1u << 20);
    store->takeover_pause = loop_timer_new(loop, on_takeover_pause, store);
    store->flush_pause = loop_timer_new(loop, store_on_flush_pause, store);
    r = pg_open(loop, &pg_options, &store->pg, err);
    if (r < 0)
        return r;
    *ret_store = TAKE(store);
    return 0;
}

void store_close(struct store **store_p)
{
    struct store *store = TAKE(*store_p);

    if (store == NULL)
        return;
    pg_close(&store->pg);
    loop_timer_free(&store->takeover_pause);
    loop_timer_free(&store->flush_pause);
    takeover_forget(store);
    store_flush_done(store);
    while (store->queries != NULL) {
        struct store_query *query = store->queries;

        query_free(&query);
    }
    wire_decoder_free(&store->decoder);
    buf_done(&store->record);
    buf_done(&store->text);
    mem_free(&store->application);
    mem_free(&store);
}

bool store_connected(const struct store *store)
{
    return pg_connected(store->pg);
}
