/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Files that were deleted or have expired: their blobs go, then their rows. An input stays as long
 * as a bulk job works on it; of an output it is the blobs of its chunks. One after the other, and
 * whatever stops it is done again by the next sweep, of any ingest: a blob that is gone may be
 * removed again.
 */

#include <stdlib.h>

#include "base/log.h"
#include "producers/ingest.h"

#define SWEEP_MS 30000
#define BLOBS_MAX 1000

/* Blobs of the oldest file that is to go, from the first that may still be there on. */
PG_STATEMENT(sweep_expire,
             "UPDATE file SET deleted_at = now() WHERE id IN (SELECT id FROM file WHERE deleted_at "
             "IS NULL AND expires_at < now() LIMIT 1000)");
PG_STATEMENT(sweep_find,
             "WITH f AS MATERIALIZED (SELECT f.id, f.blob, f.bulk_id, f.part FROM file f WHERE "
             "f.deleted_at IS NOT NULL AND NOT EXISTS (SELECT FROM bulk b WHERE b.input_file_id = "
             "f.id AND b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling')) "
             "ORDER BY f.deleted_at, f.id LIMIT 1) SELECT f.id, coalesce(f.blob, ''), f.bulk_id, "
             "coalesce(f.part = 'error', false), coalesce(c.number, 0) FROM f LEFT JOIN bulk_chunk "
             "c ON c.bulk_id = f.bulk_id AND CASE f.part WHEN 'error' THEN c.error_size ELSE "
             "c.output_size END > 0 ORDER BY c.number LIMIT $1");
PG_STATEMENT(sweep_mark,
             "UPDATE bulk_chunk SET output_size = CASE WHEN $2 THEN output_size ELSE 0 END, "
             "error_size = CASE WHEN $2 THEN 0 ELSE error_size END WHERE bulk_id = $1 AND number = "
             "ANY($3)");
PG_STATEMENT(sweep_forget,
             "DELETE FROM file f WHERE f.id = $1 AND f.deleted_at IS NOT NULL AND NOT EXISTS "
             "(SELECT FROM bulk_chunk c WHERE c.bulk_id = f.bulk_id AND CASE f.part WHEN 'error' "
             "THEN c.error_size ELSE c.output_size END > 0)");

struct sweep {
    struct ingest *ingest;
    struct loop_timer *timer;
    struct pg_answer rows;
    size_t row, count;
    bool under_way;
};

static void sweep_end(struct sweep *sweep, const struct err *err)
{
    if (err != NULL && err->code != ERR_OK)
        log_warn("files_not_removed", LOG_ERR(err));
    pg_answer_done(&sweep->rows);
    sweep->rows = (struct pg_answer){.result = NULL};
    sweep->row = sweep->count = 0;
    sweep->under_way = false;
}

static void sweep_begin(void *opaque);

static void on_forgotten(void *opaque, const struct pg_answer *answer)
{
    struct sweep *sweep = opaque;

    sweep_end(sweep, &answer->err);
    if (answer->err.code == ERR_OK)
        loop_timer_start(sweep->timer, 0, SWEEP_MS); /* there may be more */
}

static void sweep_forget_rows(struct sweep *sweep)
{
    const struct pg_answer *rows = &sweep->rows;
    const struct wire_id file = pg_id(rows, 1, 0, 0), bulk = pg_id(rows, 1, 0, 2);
    struct pg_batch *batch = pg_batch_new();
    struct err err = {.code = ERR_OK};
    int r;

    if (!pg_is_null(rows, 1, 0, 2)) {
        pg_add(batch, &sweep_mark);
        pg_bind_id(batch, &bulk);
        pg_bind_bool(batch, pg_bool(rows, 1, 0, 3));
        pg_bind_array(batch, PG_I32, sweep->count);
        for (size_t i = 0; i < sweep->count; i++)
            pg_bind_i32(batch, pg_i64(rows, 1, i, 4));
    }
    pg_add(batch, &sweep_forget);
    pg_bind_id(batch, &file);
    r = pg_send(sweep->ingest->pg, &batch, INGEST_QUERY_MS, on_forgotten, sweep, &err);
    pg_batch_free(&batch);
    if (r < 0)
        sweep_end(sweep, &err);
}

static void sweep_remove(struct sweep *sweep);

static void on_removed(void *opaque, const struct err *err)
{
    struct sweep *sweep = opaque;

    if (err->code != ERR_OK) {
        sweep_end(sweep, err);
        return;
    }
    sweep->row++;
    sweep_remove(sweep);
}

static void sweep_remove(struct sweep *sweep)
{
    const struct pg_answer *rows = &sweep->rows;
    char key[BLOB_KEY_SIZE];
    struct wire_id bulk;
    struct err err;

    if (sweep->row == sweep->count) {
        sweep_forget_rows(sweep);
        return;
    }
    mem_copy_text(key, pg_c(rows, 1, sweep->row, 1));
    bulk = pg_id(rows, 1, sweep->row, 2);
    if (!pg_is_null(rows, 1, sweep->row, 2))
        blob_key_bulk(&bulk, (uint32_t)pg_u64(rows, 1, sweep->row, 4),
                      pg_bool(rows, 1, sweep->row, 3), key);
    if (blob_remove(sweep->ingest->blobs, key, on_removed, sweep, &err) < 0)
        sweep_end(sweep, &err);
}

static void on_found(void *opaque, const struct pg_answer *answer)
{
    struct sweep *sweep = opaque;

    if (answer->err.code != ERR_OK || pg_row_count(answer, 1) == 0) {
        sweep_end(sweep, &answer->err);
        return;
    }
    pg_answer_take(answer, &sweep->rows);
    sweep->count = pg_row_count(&sweep->rows, 1);
    sweep_remove(sweep);
}

static void sweep_begin(void *opaque)
{
    struct sweep *sweep = opaque;
    struct pg_batch *batch;
    struct err err;

    if (sweep->under_way || sweep->ingest->draining || !pg_connected(sweep->ingest->pg))
        return;
    batch = pg_batch_new();
    pg_add(batch, &sweep_expire);
    pg_add(batch, &sweep_find);
    pg_bind_i64(batch, BLOBS_MAX);
    sweep->under_way = pg_send(sweep->ingest->pg, &batch, INGEST_QUERY_MS, on_found, sweep, &err) ==
                       0;
    pg_batch_free(&batch);
}

void ingest_sweep_open(struct ingest *ingest)
{
    struct sweep *sweep = xcalloc(1, sizeof(*sweep));

    ingest->sweep = sweep;
    sweep->ingest = ingest;
    sweep->timer = loop_timer_new(ingest->loop, sweep_begin, sweep);
    loop_timer_start(sweep->timer, SWEEP_MS, SWEEP_MS);
}

void ingest_sweep_now(struct ingest *ingest)
{
    loop_timer_start(ingest->sweep->timer, 0, SWEEP_MS);
}

void ingest_sweep_close(struct ingest *ingest)
{
    struct sweep *sweep = TAKE(ingest->sweep);

    if (sweep == NULL)
        return;
    loop_timer_free(&sweep->timer);
    pg_answer_done(&sweep->rows);
    free(sweep);
}
