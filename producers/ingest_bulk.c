/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Which bulk jobs are ours, and what is next for each.
 *
 * A bulk job is claimed by an UPDATE that raises its epoch, and kept by renewing its lease. Who
 * cannot renew drops it: what is still out there is of no harm, since each write names the epoch
 * and each line has but one id. Drained, we give the lease back, and others need not wait for it.
 */

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "producers/bulk_unpack.h"
#include "producers/ingest.h"

#define CHUNK_LINES 1000 /* about */
#define CHUNKS_LOADED_MAX 64
#define COLLECTING_MAX 3
#define INPUT_TRIES 5                            /* claims of a bulk job whose input is not there */
#define CHUNKS_AHEAD_MAX (2 * CHUNKS_LOADED_MAX) /* what is beyond was never sent by anybody */

PG_STATEMENT(bulk_claim,
             "SELECT id, epoch, tenant, key_prefix, endpoint, input_blob, input_size, expires_at, "
             "status, in_progress_at IS NOT NULL, targets::text, skip_bad, input_file_id, "
             "coalesce(input_url, '') FROM bulk_claim($1, $2 * interval '1 ms', $3)");
PG_STATEMENT(bulk_renew,
             "UPDATE bulk SET leased_until = now() + $2 * interval '1 ms' WHERE owner = $1 AND id "
             "= ANY($3) AND leased_until < 'infinity' RETURNING id, epoch, status");
/* Pools where online work waits for longer than its row is delayed. */
PG_STATEMENT(bulk_busy_pools,
             "SELECT pool FROM queue_delta WHERE rank < $1 GROUP BY pool HAVING sum(waiting - "
             "delayed) > 0 LIMIT 10000");
PG_STATEMENT(bulk_release, "UPDATE bulk SET leased_until = '-infinity' WHERE owner = $1 AND "
                           "leased_until < 'infinity'");
PG_STATEMENT(bulk_load,
             "SELECT c.number, c.start, c.size, c.first_line, "
             "array_to_string(c.only_lines, ','), c.bad::text FROM bulk_chunk c WHERE c.bulk_id = "
             "$1 AND NOT c.done AND c.number > $2 ORDER BY c.number LIMIT $3");
PG_STATEMENT(bulk_forget_chunks,
             "DELETE FROM bulk_chunk c USING bulk b WHERE c.bulk_id = b.id AND b.id = $1 AND "
             "b.epoch = $2 AND b.in_progress_at IS NULL");
/* What is written stays; what is not cannot be told apart any more, and has failed. */
PG_STATEMENT(
    bulk_lost,
    "UPDATE bulk SET status = 'failed', failed_at = now(), failed = total - completed, "
    "errors = jsonb_build_object('object', 'list', 'data', jsonb_build_array("
    "jsonb_build_object('code', $3::text, 'line', nullif($4::bigint, 0), 'param', NULL, 'message', "
    "$5::text || ': lines that were not written have failed'))), leased_until = "
    "'infinity' WHERE id = $1 AND epoch = $2 AND status IN ('in_progress', 'finalizing', "
    "'cancelling')");
PG_STATEMENT(bulk_over, "SELECT bulk_finish($1, $2, $3, $4, $5)");

/* ---- life ---- */

static void bulk_free(struct bulk **bulk_p)
{
    struct bulk *bulk = TAKE(*bulk_p);
    struct ingest *ingest = bulk->ingest;
    struct chunk *chunk;

    LIST_REMOVE(bulk, link);
    ingest->bulk_count--;
    metric_set(metrics_of(ingest->metrics, INGEST_METRIC_ingest_bulk_jobs), ingest->bulk_count);
    while ((chunk = TAILQ_FIRST(&bulk->chunks)) != NULL)
        chunk_free(&chunk);
    bulk_scan_end(&bulk->scan);
    bulk_fetch_free(&bulk->fetch);
    loop_timer_free(&bulk->step);
    if (bulk->fd >= 0)
        (void)close(bulk->fd);
    free(bulk->targets);
    free(bulk);
}

void bulk_pin(struct bulk *bulk)
{
    bulk->pin_count++;
}

bool bulk_unpin(struct bulk *bulk)
{
    assert(bulk->pin_count > 0);
    bulk->pin_count--;
    if (!bulk->dead)
        return true;
    if (bulk->pin_count == 0)
        bulk_free(&bulk);
    return false;
}

void bulk_drop(struct bulk *bulk)
{
    if (bulk->dead)
        return;
    bulk->dead = true;
    loop_timer_stop(bulk->step);
    bulk->pin_count++; /* what stops here must not free it in here */
    bulk_fetch_stop(bulk);
    if (--bulk->pin_count == 0)
        bulk_free(&bulk);
}

bool bulk_query(struct bulk *bulk, struct pg_batch **batch_p, pg_done_fn *done, void *opaque)
{
    struct err err;
    bool sent = pg_connected(bulk->ingest->pg) &&
                pg_send(bulk->ingest->pg, batch_p, INGEST_QUERY_MS, done, opaque, &err) == 0;

    pg_batch_free(batch_p);
    if (sent)
        bulk_pin(bulk);
    else
        bulk_go_on(bulk, INGEST_RETRY_MS);
    return sent;
}

void bulk_go_on(struct bulk *bulk, uint64_t in_ms)
{
    uint64_t at_ms = loop_now_ms(bulk->ingest->loop) + in_ms;

    if (bulk->dead || (loop_timer_is_running(bulk->step) && bulk->step_ms <= at_ms))
        return;
    bulk->step_ms = at_ms;
    loop_timer_start(bulk->step, in_ms, 0);
}

void bulk_key(const struct bulk *bulk, uint32_t chunk, int part, char to[BLOB_KEY_SIZE])
{
    blob_key_bulk(&bulk->id, chunk, part == PART_ERROR, to);
}

/* ---- chunks that are next ---- */

/* "3,17,204" */
static void chunk_read_only(struct chunk *chunk, const char *text)
{
    size_t room = 1;

    for (const char *c = text; *c != '\0'; c++)
        room += *c == ',';
    chunk->only = xcalloc(room, sizeof(*chunk->only));
    for (const char *c = text; *c != '\0'; c++) {
        if (chunk->only_count == 0 || *c == ',')
            chunk->only_count++;
        if (*c >= '0' && *c <= '9')
            chunk->only[chunk->only_count - 1] = 10 * chunk->only[chunk->only_count - 1] +
                                                 (uint64_t)(*c - '0');
    }
}

static void on_chunks(void *opaque, const struct pg_answer *answer)
{
    struct bulk *bulk = opaque;
    size_t count;

    if (!bulk_unpin(bulk))
        return;
    bulk->loading = false;
    if (answer->err.code != ERR_OK) {
        bulk_go_on(bulk, INGEST_RETRY_MS);
        return;
    }
    count = pg_row_count(answer, 0);
    bulk->all_loaded = count < CHUNKS_LOADED_MAX;
    for (size_t i = 0; i < count; i++) {
        struct chunk *chunk = xcalloc(1, sizeof(*chunk));

        chunk->bulk = bulk;
        chunk->number = (uint32_t)pg_u64(answer, 0, i, 0);
        chunk->start = pg_u64(answer, 0, i, 1);
        chunk->size = (uint32_t)pg_u64(answer, 0, i, 2);
        chunk->first_line = pg_u64(answer, 0, i, 3);
        chunk->repeat = bulk->again && bulk->loaded++ < CHUNKS_AHEAD_MAX;
        if (!pg_is_null(answer, 0, i, 4))
            chunk_read_only(chunk, pg_c(answer, 0, i, 4));
        if (!pg_is_null(answer, 0, i, 5))
            chunk->bad = json_loads(pg_c(answer, 0, i, 5), 0, NULL);
        bulk->newest = chunk->number;
        TAILQ_INSERT_TAIL(&bulk->chunks, chunk, link);
        bulk->chunk_count++;
    }
    bulk_go_on(bulk, 0);
}

static void bulk_load_chunks(struct bulk *bulk)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &bulk_load);
    pg_bind_id(batch, &bulk->id);
    pg_bind_i32(batch, bulk->newest);
    pg_bind_i64(batch, CHUNKS_LOADED_MAX);
    bulk->loading = bulk_query(bulk, &batch, on_chunks, bulk);
}

/* ---- its end ---- */

static void on_over(void *opaque, const struct pg_answer *answer)
{
    struct bulk *bulk = opaque;

    if (!bulk_unpin(bulk))
        return;
    bulk->ending = false;
    if (answer->err.code != ERR_OK) {
        bulk_go_on(bulk, INGEST_RETRY_MS);
        return;
    }
    log_info("bulk_over", LOG_STR("bulk", bulk->text), LOG_STR("tenant", bulk->tenant),
             LOG_BOOL("cancelled", bulk->cancelling), LOG_BOOL("expired", bulk->expired));
    bulk_drop(bulk);
}

static void bulk_finish(struct bulk *bulk)
{
    struct pg_batch *batch = pg_batch_new();
    uint8_t entropy[JOB_ID_RANDOM_SIZE];
    struct wire_id output, error;

    rng_secret_bytes(entropy, sizeof(entropy));
    output = job_id_make(0, clock_wall_ms(), entropy);
    rng_secret_bytes(entropy, sizeof(entropy));
    error = job_id_make(0, clock_wall_ms(), entropy);
    if (!bulk->validated) { /* canceled before its end: some chunks may be there */
        pg_add(batch, &bulk_forget_chunks);
        pg_bind_id(batch, &bulk->id);
        pg_bind_i64(batch, bulk->epoch);
    }
    pg_add(batch, &bulk_over);
    pg_bind_id(batch, &bulk->id);
    pg_bind_i64(batch, bulk->epoch);
    pg_bind_id(batch, &output);
    pg_bind_id(batch, &error);
    pg_bind_bool(batch, bulk->expired);
    bulk->ending = bulk_query(bulk, &batch, on_over, bulk);
}

/* ---- what is next ---- */

static void chunk_give_up(struct chunk *chunk)
{
    chunk->given_up = true;
    chunk->stage = CHUNK_COLLECT;
}

/* Jobs of it that are out there; what would make them more waits. */
static void bulk_pump_chunks(struct bulk *bulk)
{
    uint64_t window = bulk_pace_window(&bulk->pace, (uint64_t)bulk->ingest->settings.bulk_window);
    uint64_t live = 0;
    bool late = clock_wall_us() >= bulk->expires_us, sending = false, first = true;
    struct chunk *chunk, *next;

    for (chunk = TAILQ_FIRST(&bulk->chunks); chunk != NULL && !bulk->dead && !bulk->ending;
         chunk = next) {
        next = TAILQ_NEXT(chunk, link);
        if (chunk->stage != CHUNK_COLLECT) /* that has no job that could run */
            live += chunk->job_count > 0 ? chunk->job_count : CHUNK_LINES;
        if (live > window && !first && !(bulk->cancelling || late))
            return;
        if (chunk->stage == CHUNK_SEND && chunk->job_count == 0 && !chunk->repeat &&
            (bulk->cancelling || late)) {
            bulk->expired |= late && !bulk->cancelling;
            chunk_give_up(chunk);
        }
        if (chunk->stage == CHUNK_SEND && !sending) {
            sending = true; /* one after the other: in order */
            chunk_send(chunk);
        } else if (chunk->stage == CHUNK_WATCH) {
            chunk_watch(chunk, first);
        } else if (chunk->stage == CHUNK_COLLECT && chunk->bytes.size == 0 &&
                   bulk->collecting < COLLECTING_MAX) {
            chunk_collect(chunk);
        }
        first = false;
    }
}

static void bulk_work(struct bulk *bulk)
{
    if (bulk->ending)
        return;
    if (!bulk->validated && bulk->cancelling) {
        bulk_finish(bulk);
        return;
    }
    if (!bulk->loading && !bulk->all_loaded && bulk->chunk_count < CHUNKS_LOADED_MAX / 2)
        bulk_load_chunks(bulk);
    bulk_pin(bulk);
    bulk_pump_chunks(bulk);
    if (!bulk_unpin(bulk) || bulk->ending)
        return;
    if (bulk->all_loaded && bulk->chunk_count == 0 && !bulk->loading)
        bulk_finish(bulk);
}

static void on_step(void *opaque)
{
    struct bulk *bulk = opaque;

    bool opening = bulk->unpacking || (bulk->fd < 0 && bulk->scan == NULL);

    if (opening && !(bulk->cancelling && !bulk->validated))
        return;
    if (!bulk->validated && !bulk->cancelling && bulk->scan != NULL)
        bulk_scan_step(bulk);
    else
        bulk_work(bulk);
}

/* ---- a new one ---- */

static void on_targets(void *opaque, const struct pg_answer *answer)
{
    struct bulk *bulk = opaque;

    if (!bulk_unpin(bulk))
        return;
    if (answer->err.code != ERR_OK) {
        bulk_drop(bulk);
        return;
    }
    targets_take(bulk, answer, 0);
    bulk_scan_begin(bulk);
}

/* Its input can be read. */
static void bulk_begin(struct bulk *bulk)
{
    struct pg_batch *batch;

    if (bulk->validated || bulk->cancelling) {
        bulk_go_on(bulk, 0);
        return;
    }
    if (bulk->native) {
        bulk_scan_begin(bulk);
        return;
    }
    batch = pg_batch_new();
    targets_ask(batch, bulk);
    if (!bulk_query(bulk, &batch, on_targets, bulk))
        bulk_drop(bulk);
}

/* ---- a packed input ---- */

struct unpacking {
    uv_work_t work;
    struct bulk *bulk;
    int from, to;
    const char *folder;
    uint64_t limit, size;
    struct err err;
};

/* thread: libuv's pool */
static void unpack(uv_work_t *work)
{
    struct unpacking *unpacking = (struct unpacking *)work;

    unpacking->err.code = bulk_unpack(unpacking->from, unpacking->folder, unpacking->limit,
                                      &unpacking->to, &unpacking->size, &unpacking->err);
}

static void on_unpacked(uv_work_t *work, int status)
{
    OWNED(mem_free) struct unpacking *unpacking = (struct unpacking *)work;
    struct bulk *bulk = unpacking->bulk;
    bool good = unpacking->err.code == ERR_OK;

    assert(status == 0);
    if (!bulk_unpin(bulk)) {
        if (good)
            (void)close(unpacking->to);
        return;
    }
    if (good) {
        (void)close(bulk->fd);
        bulk->fd = unpacking->to;
        bulk->input_size = unpacking->size;
        bulk->unpacking = false;
        bulk_begin(bulk);
    } else if (err_class(unpacking->err.code) == ERR_CLASS_REJECT && !bulk->validated) {
        bulk->unpacking = false;
        bulk_scan_refuse(bulk, "invalid_file", unpacking->err.text);
    } else {
        log_warn("bulk_not_unpacked", LOG_STR("bulk", bulk->text), LOG_ERR(&unpacking->err));
        bulk_drop(bulk);
    }
}

static void bulk_unpack_begin(struct bulk *bulk)
{
    struct unpacking *unpacking = xcalloc(1, sizeof(*unpacking));
    int r;

    unpacking->bulk = bulk;
    unpacking->from = bulk->fd;
    unpacking->folder = bulk->ingest->settings.spool;
    unpacking->limit = bulk->ingest->settings.unpacked_max_size;
    bulk->unpacking = true;
    bulk_pin(bulk);
    r = uv_queue_work(loop_uv(bulk->ingest->loop), &unpacking->work, unpack, on_unpacked);
    assert(r == 0);
}

/* A store that is away comes back, and one that lacks the blob may be the wrong one for a while. */
static bool input_is_lost(const struct bulk *bulk, uint64_t size, const struct err *err)
{
    return bulk->epoch >= INPUT_TRIES &&
           (err->code == ERR_NOT_FOUND || (err->code == ERR_OK && size != bulk->input_size));
}

/* Whether it is over now or not: who claims it next goes on. */
static void on_lost(void *opaque, const struct pg_answer *answer)
{
    struct bulk *bulk = opaque;

    if (!bulk_unpin(bulk))
        return;
    if (answer->err.code == ERR_OK && pg_changed_count(answer, 0) > 0)
        log_info("bulk_over", LOG_STR("bulk", bulk->text), LOG_STR("tenant", bulk->tenant),
                 LOG_BOOL("input_lost", true));
    bulk_drop(bulk);
}

void bulk_lose_input(struct bulk *bulk, const char *code, uint64_t line, const char *text)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &bulk_lost);
    pg_bind_id(batch, &bulk->id);
    pg_bind_i64(batch, bulk->epoch);
    pg_bind_c(batch, code);
    pg_bind_i64(batch, (int64_t)line);
    pg_bind_c(batch, text);
    bulk->ending = bulk_query(bulk, &batch, on_lost, bulk);
    if (!bulk->ending)
        bulk_drop(bulk);
}

static void on_input(void *opaque, int fd, uint64_t size, const struct err *err)
{
    struct bulk *bulk = opaque;
    bool lost = input_is_lost(bulk, size, err);

    if (!bulk_unpin(bulk)) {
        if (err->code == ERR_OK)
            (void)close(fd);
        return;
    }
    if (err->code != ERR_OK || size != bulk->input_size) {
        log_warn("bulk_input_not_read", LOG_STR("bulk", bulk->text), LOG_U64("size", size),
                 LOG_ERR(err));
        if (err->code == ERR_OK)
            (void)close(fd);
        if (lost && !bulk->validated)
            bulk_scan_refuse(bulk, "input_lost", "the file is not in the blob store any more");
        else if (lost)
            bulk_lose_input(bulk, "input_lost", 0, "the file is not in the blob store any more");
        else
            bulk_drop(bulk); /* its lease lapses, and it is tried again */
        return;
    }
    bulk->fd = fd;
    if (bulk_is_packed(fd))
        bulk_unpack_begin(bulk);
    else
        bulk_begin(bulk);
}

void bulk_open_input(struct bulk *bulk)
{
    struct err err;

    if (blob_open(bulk->ingest->blobs, bulk->blob, on_input, bulk, &err) == 0) {
        bulk_pin(bulk);
        return;
    }
    log_warn("bulk_not_begun", LOG_STR("bulk", bulk->text), LOG_ERR(&err));
    bulk_drop(bulk);
}

/* What its row says. */
static void bulk_read_row(struct bulk *bulk, const struct pg_answer *answer, size_t row)
{
    bulk->id = pg_id(answer, 0, row, 0);
    job_id_format(&bulk->id, bulk->text);
    bulk->epoch = pg_i64(answer, 0, row, 1);
    mem_copy_text(bulk->tenant, pg_c(answer, 0, row, 2));
    mem_copy_text(bulk->key_prefix, pg_c(answer, 0, row, 3));
    mem_copy_text(bulk->endpoint, pg_c(answer, 0, row, 4));
    bulk->native = strcmp(bulk->endpoint, BULK_PREDICT) == 0;
    if (!bulk->native)
        (void)snprintf(bulk->route, sizeof(bulk->route), "POST %s", bulk->endpoint);
    mem_copy_text(bulk->blob, pg_c(answer, 0, row, 5));
    bulk->input_size = pg_u64(answer, 0, row, 6);
    bulk->expires_us = pg_time_us(answer, 0, row, 7);
    bulk->cancelling = strcmp(pg_c(answer, 0, row, 8), "cancelling") == 0;
    bulk->validated = pg_bool(answer, 0, row, 9);
    bulk->skip_bad = pg_bool(answer, 0, row, 11);
    bulk->input_file = pg_id(answer, 0, row, 12);
    bulk->again = bulk->epoch > 1;
}

static void bulk_new(struct ingest *ingest, const struct pg_answer *answer, size_t row)
{
    struct bulk *bulk = xcalloc(1, sizeof(*bulk));
    struct err err = {.code = ERR_OK};

    bulk->ingest = ingest;
    bulk->fd = -1;
    bulk->newest = -1;
    bulk_read_row(bulk, answer, row);
    TAILQ_INIT(&bulk->chunks);
    bulk_pace_init(&bulk->pace);
    bulk->step = loop_timer_new(ingest->loop, on_step, bulk);
    LIST_INSERT_HEAD(&ingest->bulks, bulk, link);
    metric_set(metrics_of(ingest->metrics, INGEST_METRIC_ingest_bulk_jobs), ++ingest->bulk_count);
    log_info("bulk_claimed", LOG_STR("bulk", bulk->text), LOG_STR("tenant", bulk->tenant),
             LOG_STR("status", pg_c(answer, 0, row, 8)), LOG_I64("epoch", bulk->epoch));
    if (bulk->validated || bulk->native)
        err.code = targets_read(bulk, pg_c(answer, 0, row, 10), &err);
    if (err.code < 0) {
        log_warn("bulk_not_begun", LOG_STR("bulk", bulk->text), LOG_ERR(&err));
        bulk_drop(bulk);
    } else if (bulk->blob[0] != '\0') {
        bulk_open_input(bulk);
    } else if (bulk->cancelling) {
        bulk_go_on(bulk, 0);
    } else {
        bulk_fetch_begin(bulk, pg_c(answer, 0, row, 13));
    }
}

/* ---- leases ---- */

static struct bulk *bulk_find(struct ingest *ingest, const struct wire_id *id)
{
    struct bulk *bulk;

    LIST_FOREACH(bulk, &ingest->bulks, link)
    {
        if (!bulk->dead && job_id_equal(&bulk->id, id))
            return bulk;
    }
    return NULL;
}

static void on_claimed(void *opaque, const struct pg_answer *answer)
{
    struct ingest *ingest = opaque;

    ingest->claiming = false;
    for (size_t i = 0; answer->err.code == ERR_OK && i < pg_row_count(answer, 0); i++) {
        struct wire_id id = pg_id(answer, 0, i, 0);
        struct bulk *old = bulk_find(ingest, &id);

        if (old != NULL) /* our own lease had lapsed */
            bulk_drop(old);
        bulk_new(ingest, answer, i);
    }
}

static void ingest_claim(struct ingest *ingest)
{
    int64_t room = ingest->settings.bulk_jobs - (int64_t)ingest->bulk_count;
    struct pg_batch *batch;
    struct err err;

    if (ingest->claiming || ingest->draining || room <= 0 || !pg_connected(ingest->pg))
        return;
    batch = pg_batch_new();
    pg_add(batch, &bulk_claim);
    pg_bind_c(batch, ingest->boot);
    pg_bind_double(batch, (double)ingest->settings.bulk_lease_ms);
    pg_bind_i32(batch, room);
    ingest->claiming = pg_send(ingest->pg, &batch, INGEST_QUERY_MS, on_claimed, ingest, &err) == 0;
    pg_batch_free(&batch);
}

static void bulk_on_cancel(struct bulk *bulk)
{
    struct chunk *chunk;

    if (bulk->cancelling)
        return;
    bulk->cancelling = true;
    log_info("bulk_cancelling", LOG_STR("bulk", bulk->text));
    TAILQ_FOREACH(chunk, &bulk->chunks, link)
    {
        if (chunk->stage == CHUNK_WATCH)
            chunk_cancel(chunk);
    }
    bulk_go_on(bulk, 0);
}

/* Whether online work waits where its lines go. */
static void bulk_measure(struct bulk *bulk, const struct pg_answer *answer)
{
    bool waits = false;

    for (size_t i = 0; i < bulk->target_count && !waits; i++) {
        const struct target *target = &bulk->targets[i];

        for (size_t row = 0; target->used && row < pg_row_count(answer, 1) && !waits; row++)
            waits = wire_text_equal(pg_text(answer, 1, row, 0), target->pool);
    }
    if (waits != bulk->pace.yields)
        log_info(waits ? "bulk_yields" : "bulk_goes_on", LOG_STR("bulk", bulk->text));
    bulk_pace_measured(&bulk->pace, waits);
}

static void on_renewed(void *opaque, const struct pg_answer *answer)
{
    struct ingest *ingest = opaque;
    struct bulk *bulk, *next;

    ingest->renewing = false;
    if (answer->err.code != ERR_OK)
        return;
    ingest->renewed_ms = loop_now_ms(ingest->loop);
    for (bulk = LIST_FIRST(&ingest->bulks); bulk != NULL; bulk = next) {
        const char *status = NULL;

        next = LIST_NEXT(bulk, link);
        if (!bulk->renew_asked || bulk->dead)
            continue;
        bulk->renew_asked = false;
        bulk_measure(bulk, answer);
        for (size_t i = 0; i < pg_row_count(answer, 0); i++) {
            struct wire_id id = pg_id(answer, 0, i, 0);

            if (job_id_equal(&id, &bulk->id) && pg_i64(answer, 0, i, 1) == bulk->epoch)
                status = pg_c(answer, 0, i, 2);
        }
        if (status == NULL)
            bulk_drop(bulk); /* somebody else's, or over */
        else if (strcmp(status, "cancelling") == 0)
            bulk_on_cancel(bulk);
    }
}

static void ingest_renew(struct ingest *ingest)
{
    struct pg_batch *batch;
    struct bulk *bulk;
    struct err err;

    if (ingest->renewing || ingest->bulk_count == 0 || !pg_connected(ingest->pg))
        return;
    batch = pg_batch_new();
    pg_add(batch, &bulk_renew);
    pg_bind_c(batch, ingest->boot);
    pg_bind_double(batch, (double)ingest->settings.bulk_lease_ms);
    pg_bind_array(batch, PG_ID, ingest->bulk_count);
    LIST_FOREACH(bulk, &ingest->bulks, link)
    {
        pg_bind_id(batch, &bulk->id);
        bulk->renew_asked = true;
    }
    pg_add(batch, &bulk_busy_pools);
    pg_bind_i16(batch, JOB_RANK_BULK);
    ingest->renewing = pg_send(ingest->pg, &batch, INGEST_QUERY_MS, on_renewed, ingest, &err) == 0;
    pg_batch_free(&batch);
}

/* Before anybody else may have taken them. */
static void ingest_lose(struct ingest *ingest)
{
    uint64_t now_ms = loop_now_ms(ingest->loop);
    struct bulk *bulk, *next;

    if (now_ms - ingest->renewed_ms < ingest->settings.bulk_lease_ms * 4 / 5)
        return;
    for (bulk = LIST_FIRST(&ingest->bulks); bulk != NULL; bulk = next) {
        next = LIST_NEXT(bulk, link);
        if (bulk->dead)
            continue;
        log_warn("bulk_lost", LOG_STR("bulk", bulk->text),
                 LOG_STR("error", pg_last_error(ingest->pg)));
        metric_add(metrics_of(ingest->metrics, INGEST_METRIC_ingest_bulk_jobs_lost_total), 1);
        bulk_drop(bulk);
    }
}

void ingest_tick(struct ingest *ingest)
{
    struct bulk *bulk;

    if (ingest->bulk_count == 0)
        ingest->renewed_ms = loop_now_ms(ingest->loop);
    ingest_lose(ingest);
    ingest_renew(ingest);
    ingest_claim(ingest);
    LIST_FOREACH(bulk, &ingest->bulks, link)
    {
        if (!loop_timer_is_running(bulk->step))
            bulk_go_on(bulk, 0); /* whatever was missed */
    }
}

static void on_released(void *opaque, const struct pg_answer *answer)
{
    struct ingest *ingest = opaque;

    (void)answer; /* at the worst they lapse */
    ingest->released = true;
}

void ingest_release(struct ingest *ingest)
{
    struct pg_batch *batch = pg_batch_new();
    struct bulk *bulk, *next;
    struct err err;

    for (bulk = LIST_FIRST(&ingest->bulks); bulk != NULL; bulk = next) {
        next = LIST_NEXT(bulk, link);
        bulk_drop(bulk);
    }
    pg_add(batch, &bulk_release);
    pg_bind_c(batch, ingest->boot);
    if (!pg_connected(ingest->pg) ||
        pg_send(ingest->pg, &batch, INGEST_QUERY_MS, on_released, ingest, &err) < 0)
        ingest->released = true;
    pg_batch_free(&batch);
}

/* After the adapters, which have dropped what is unanswered. */
void ingest_bulks_close(struct ingest *ingest)
{
    struct bulk *bulk;

    while ((bulk = LIST_FIRST(&ingest->bulks)) != NULL)
        bulk_free(&bulk);
}
