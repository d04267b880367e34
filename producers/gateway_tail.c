/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Jobs as they end, in the order in which the ledger made them final: what `headrace tail` shows.
 *
 * The source are the rows of `flush`, of which each names the ids that it made final. A place in it
 * is a flush of each shard; whoever asks gets what came behind his places, and new ones. Nothing is
 * held for him here, nothing scans, and nothing is missed between two questions. Who begins gets
 * places only.
 */

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "brokers/pg.h"
#include "producers/gateway.h"
#include "producers/gateway_tags.h"
#include "schema/job.h"

#define PLACES_MAX JOB_SHARD_COUNT_MAX
#define CURSOR_SIZE_MAX (PLACES_MAX * 32)

/* Five flushes of a shard have 5,000 jobs at most. */
PG_STATEMENT(
    tail_events,
    "WITH place AS MATERIALIZED (SELECT s.id::integer AS shard, c.epoch, c.number FROM shard s "
    "LEFT JOIN "
    "unnest($2::integer[], $3::bigint[], $4::bigint[]) AS c (shard, epoch, number) ON c.shard = "
    "s.id), "
    "news AS MATERIALIZED (SELECT p.shard, f.epoch, f.number, f.at, f.final_ids FROM place p CROSS "
    "JOIN "
    "LATERAL (SELECT x.epoch, x.number, x.at, x.final_ids FROM flush x WHERE x.shard = p.shard AND "
    "(x.epoch, x.number) > (p.epoch, p.number) ORDER BY x.epoch, x.number LIMIT 5) f), "
    "ended AS MATERIALIZED (SELECT n.shard, n.epoch, n.number, n.at, e.id FROM news n CROSS JOIN "
    "LATERAL unnest(n.final_ids) AS e (id) LIMIT 100000) "
    "SELECT NULL::uuid, p.shard, coalesce(n.epoch, p.epoch, f.epoch, 0), coalesce(n.number, "
    "p.number, "
    "f.number, 0), 0, NULL, NULL, NULL, 0, 0, NULL::timestamptz, NULL::timestamptz, NULL, NULL, "
    "NULL "
    "FROM place p LEFT JOIN LATERAL (SELECT w.epoch, w.number FROM news w WHERE w.shard = p.shard "
    "ORDER BY "
    "w.epoch DESC, w.number DESC LIMIT 1) n ON true LEFT JOIN LATERAL (SELECT x.epoch, x.number "
    "FROM flush "
    "x WHERE p.epoch IS NULL AND x.shard = p.shard ORDER BY x.epoch DESC, x.number DESC LIMIT 1) f "
    "ON true "
    "UNION ALL (SELECT j.id, n.shard, n.epoch, n.number, j.state, coalesce(m.name, j.model), "
    "j.deployment, "
    "j.environment, j.attempt_count, j.round, j.accepted_at, j.state_at, nullif(error_class_name("
    "j.error_class), ''), left(j.error_message, 1000), (SELECT string_agg(t.tag, ',' ORDER BY "
    "t.tag) FROM "
    "job_tag t WHERE t.job_id = j.id) FROM ended n "
    "JOIN job "
    "j ON j.id = n.id LEFT JOIN model m ON m.id = j.model WHERE j.tenant = $1 AND ($5 IN (j.model, "
    "m.name)) "
    "IS NOT FALSE AND ($6 = 0 OR j.state = $6) AND ($7::text IS NULL OR EXISTS (SELECT FROM "
    "job_tag t WHERE "
    "t.job_id = j.id AND t.tag = $7)) ORDER BY n.at, n.shard, n.epoch, n.number, j.state_at, "
    "j.id)");

struct tail_places {
    int64_t shards[PLACES_MAX], epochs[PLACES_MAX], numbers[PLACES_MAX];
    size_t count;
};

/* "shard:epoch:number,…"; what a cursor of an earlier answer says. */
static int read_cursor(const char *text, struct tail_places *ret_places, struct err *err)
{
    const char *last = strrchr(text, ',');

    ret_places->count = 0;
    if (strspn(text, "0123456789:,") != strlen(text) || (last != NULL && last[1] == '\0'))
        return err_set(err, ERR_MALFORMED, "cursor is none of an earlier answer");
    while (*text != '\0') {
        long long shard, epoch, number;
        int size = 0;

        if (sscanf(text, "%4lld:%10lld:%18lld%n", &shard, &epoch, &number, &size) != 3 ||
            (text[size] != '\0' && text[size] != ',') || shard < 0 || shard >= PLACES_MAX ||
            epoch < 0 || number < 0 || ret_places->count >= PLACES_MAX)
            return err_set(err, ERR_MALFORMED, "cursor is none of an earlier answer");
        ret_places->shards[ret_places->count] = shard;
        ret_places->epochs[ret_places->count] = epoch;
        ret_places->numbers[ret_places->count++] = number;
        text += text[size] == ',' ? size + 1 : size;
    }
    return 0;
}

static json_t *event_json(const struct pg_answer *answer, size_t row)
{
    struct wire_id id = pg_id(answer, 0, row, 0);
    char text[JOB_ID_TEXT_SIZE];

    job_id_format(&id, text);
    return json_pack("{s:s, s:s, s:o, s:o, s:o, s:I, s:I, s:o, s:o, s:o, s:o, s:o}", "request_id",
                     text, "status", job_state_name((enum job_state)pg_i64(answer, 0, row, 4)),
                     "model_name", json_of_text(answer, 0, row, 5), "deployment_id",
                     json_of_text(answer, 0, row, 6), "environment",
                     json_of_text(answer, 0, row, 7), "attempts",
                     (json_int_t)pg_i64(answer, 0, row, 8), "round",
                     (json_int_t)pg_i64(answer, 0, row, 9), "accepted_at",
                     json_of_time(answer, 0, row, 10), "ended_at", json_of_time(answer, 0, row, 11),
                     "error_class", json_of_text(answer, 0, row, 12), "error_message",
                     json_of_text(answer, 0, row, 13), "tags", json_of_text(answer, 0, row, 14));
}

static void on_tail(void *opaque, const struct pg_answer *answer)
{
    OWNED(buf_done) struct buf cursor = BUF_WITH_LIMIT(CURSOR_SIZE_MAX);
    struct call *call = opaque;
    json_t *events, *body;

    if (!call_take_answer(&call, answer))
        return;
    events = json_array();
    for (size_t row = 0; row < pg_row_count(answer, 0); row++) {
        if (pg_is_null(answer, 0, row, 0))
            buf_printf(&cursor, "%s%lld:%lld:%lld", cursor.size > 0 ? "," : "",
                       (long long)pg_i64(answer, 0, row, 1), (long long)pg_i64(answer, 0, row, 2),
                       (long long)pg_i64(answer, 0, row, 3));
        else
            (void)json_array_append_new(events, event_json(answer, row));
    }
    body = json_pack("{s:o, s:s}", "events", events, "cursor", buf_text(&cursor));
    call_answer_json(&call, 200, &body);
}

/* 0: all. */
static int read_state(const char *text, enum job_state *ret_state, struct err *err)
{
    *ret_state = (enum job_state)0;
    if (text == NULL)
        return 0;
    for (enum job_state state = JOB_SUCCEEDED; state <= JOB_CANCELED; state++) {
        if (strcmp(job_state_name(state), text) == 0) {
            *ret_state = state;
            return 0;
        }
    }
    return err_set(err, ERR_RANGE,
                   "status is '%.40s'; it must be SUCCEEDED, FAILED, EXPIRED or CANCELED", text);
}

static void bind_places(struct pg_batch *batch, const struct tail_places *places)
{
    pg_bind_array(batch, PG_I32, places->count);
    for (size_t i = 0; i < places->count; i++)
        pg_bind_i32(batch, places->shards[i]);
    pg_bind_array(batch, PG_I64, places->count);
    for (size_t i = 0; i < places->count; i++)
        pg_bind_i64(batch, places->epochs[i]);
    pg_bind_array(batch, PG_I64, places->count);
    for (size_t i = 0; i < places->count; i++)
        pg_bind_i64(batch, places->numbers[i]);
}

void tail_begin(struct call *call)
{
    const char *cursor = http_target_query(&call->target, "cursor");
    const char *model = http_target_query(&call->target, "model");
    const char *tag = http_target_query(&call->target, "tag");
    OWNED(mem_free) struct tail_places *places = xcalloc(1, sizeof(*places));
    enum job_state state = JOB_QUEUED;
    struct pg_batch *batch;
    const char *tenant;
    struct err err;
    int r = call_whose(call, &tenant, &err);

    if (r == 0 && cursor != NULL)
        r = read_cursor(cursor, places, &err);
    if (r == 0 && model != NULL)
        r = name_check("model", model, &err);
    if (r == 0 && tag != NULL)
        r = tag_check(tag, strlen(tag), &err);
    if (r == 0)
        r = read_state(http_target_query(&call->target, "status"), &state, &err);
    if (r < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &tail_events);
    pg_bind_c(batch, tenant);
    bind_places(batch, places);
    pg_bind_c(batch, model);
    pg_bind_i32(batch, (int64_t)state);
    pg_bind_c(batch, tag);
    call_query(call, &batch, on_tail);
}
