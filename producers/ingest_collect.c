/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Jobs -> output: once all jobs of a chunk are final, what became of them is read from the ledger,
 * a page at a time, and written to one blob for the answers and one for the failures, each a line
 * in the order of the input. Then the chunk is done, by one UPDATE that also counts.
 *
 *     watch: how many are final? -> collect: page -> rows -> (a large answer's blob) -> parts, in
 *     pieces -> blobs have their keys -> done
 *
 * Nothing of a chunk counts before its last step. Whatever fails before is done again from the
 * rows.
 */

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "producers/ingest.h"

#define LOOK_MS_FIRST 40
#define LOOK_MS_MAX 1000
#define PAGE_FIRST 16
#define PAGE_MAX 1000
#define PAGE_SIZE (2u << 20)
#define PIECE_SIZE (1u << 20)
#define OUTPUT_SIZE_MAX (64u << 20)
#define TEXT_SIZE_MAX (512u << 20)

/* Joined, for then each id is looked for in the partition of its day alone. */
PG_STATEMENT(chunk_look, "SELECT count(*) FROM unnest($1::uuid[]) AS u (id) JOIN job j ON j.id = "
                         "u.id WHERE j.state NOT IN (1, 2)");
PG_STATEMENT(chunk_rows,
             "SELECT j.state, j.error_class, j.attempt_count, coalesce(j.error_message, ''), "
             "r.output, coalesce(r.output_type, ''), coalesce(r.output_blob, ''), "
             "coalesce(r.http_status, 0) FROM unnest($1::uuid[]) WITH ORDINALITY AS u (id, n) "
             "JOIN job j ON j.id = u.id LEFT JOIN job_result r ON r.job_id = j.id AND r.round = "
             "j.round WHERE j.state NOT IN (1, 2) ORDER BY u.n");
PG_STATEMENT(chunk_done, "SELECT bulk_chunk_done($1, $2, $3, $4, $5, $6, $7, $8)");

/* ---- life ---- */

static void collect_forget(struct chunk *chunk)
{
    for (int i = 0; i < PART_COUNT; i++) {
        buf_done(&chunk->parts[i].text);
        blob_upload_free(&chunk->parts[i].upload);
        chunk->parts[i] = (struct part){.text = BUF_WITH_LIMIT(TEXT_SIZE_MAX)};
    }
    pg_answer_done(&chunk->rows);
    chunk->rows = (struct pg_answer){.result = NULL};
    chunk->row = chunk->row_count = chunk->collected = 0;
    chunk->completed = chunk->failed = 0;
    mem_free(&chunk->failed_lines);
    buf_done(&chunk->bytes);
}

void chunk_free(struct chunk **chunk_p)
{
    struct chunk *chunk = TAKE(*chunk_p);

    collect_forget(chunk);
    TAILQ_REMOVE(&chunk->bulk->chunks, chunk, link);
    chunk->bulk->chunk_count--;
    json_decref(chunk->bad);
    free(chunk->jobs);
    free(chunk->only);
    free(chunk);
}

/* From the beginning, a little later. */
static void collect_again(struct chunk *chunk, const struct err *err)
{
    struct bulk *bulk = chunk->bulk;

    if (err != NULL)
        log_warn("lines_not_written", LOG_STR("bulk", bulk->text), LOG_U64("chunk", chunk->number),
                 LOG_ERR(err));
    collect_forget(chunk);
    bulk->collecting--;
    chunk->stage = chunk->given_up ? CHUNK_COLLECT : CHUNK_WATCH;
    chunk->look_ms = loop_now_ms(bulk->ingest->loop) + INGEST_RETRY_MS;
    bulk_go_on(bulk, INGEST_RETRY_MS);
}

/* ---- watch ---- */

static void on_look(void *opaque, const struct pg_answer *answer)
{
    struct chunk *chunk = opaque;
    struct bulk *bulk = chunk->bulk;

    if (!bulk_unpin(bulk))
        return;
    chunk->looking = false;
    if (answer->err.code == ERR_OK && !chunk->last_is_final) {
        chunk->last_is_final = pg_u64(answer, 0, 0, 0) == 1;
        if (chunk->last_is_final)
            chunk->look_ms = chunk->gap_ms = 0; /* as a rule, they all are */
    } else if (answer->err.code == ERR_OK && pg_u64(answer, 0, 0, 0) == chunk->job_count) {
        chunk->stage = CHUNK_COLLECT;
        if (!chunk->repeat) /* of a repeat we did not see the beginning */
            bulk_pace_ended(&bulk->pace, chunk->job_count,
                            1000 * (loop_now_ms(bulk->ingest->loop) - chunk->sent_ms),
                            (uint64_t)bulk->ingest->settings.bulk_window);
    }
    bulk_go_on(bulk, 0);
}

static void bind_jobs(struct pg_batch *batch, const struct chunk *chunk, uint32_t from,
                      uint32_t count)
{
    pg_bind_array(batch, PG_ID, count);
    for (uint32_t i = 0; i < count; i++)
        pg_bind_id(batch, &chunk->jobs[from + i]);
}

/* Lines run in their order as a rule, so the last job of a chunk is asked for first, and all of
 * them only then. The first chunk of a bulk job is looked at often, since the others wait behind
 * it. */
void chunk_watch(struct chunk *chunk, bool first)
{
    struct bulk *bulk = chunk->bulk;
    uint64_t now_ms = loop_now_ms(bulk->ingest->loop);
    struct pg_batch *batch;

    if (chunk->job_count == 0) {
        chunk->stage = CHUNK_COLLECT;
        bulk_go_on(bulk, 0);
        return;
    }
    if (chunk->looking)
        return;
    if (first && chunk->look_ms > now_ms + LOOK_MS_FIRST)
        chunk->look_ms = now_ms + LOOK_MS_FIRST;
    if (chunk->look_ms > now_ms) {
        bulk_go_on(bulk, chunk->look_ms - now_ms);
        return;
    }
    chunk->gap_ms = chunk->gap_ms == 0 ? LOOK_MS_FIRST : 2 * chunk->gap_ms;
    if (chunk->gap_ms > LOOK_MS_MAX)
        chunk->gap_ms = LOOK_MS_MAX;
    chunk->look_ms = now_ms + chunk->gap_ms;
    batch = pg_batch_new();
    pg_add(batch, &chunk_look);
    if (chunk->last_is_final)
        bind_jobs(batch, chunk, 0, chunk->job_count);
    else
        bind_jobs(batch, chunk, chunk->job_count - 1, 1);
    chunk->looking = bulk_query(bulk, &batch, on_look, chunk);
}

/* ---- lines ---- */

static void collect_go_on(struct chunk *chunk);

static void collect_append(struct chunk *chunk, const struct bulk_outcome *outcome)
{
    bool good = bulk_outcome_is_good(outcome);
    struct part *part = &chunk->parts[good ? PART_OUTPUT : PART_ERROR];
    size_t before = part->text.size;

    bulk_outcome_append(chunk->bulk->ingest->reader, outcome, &part->text);
    part->size += part->text.size - before;
    if (good) {
        chunk->completed++;
        return;
    }
    chunk->failed_lines = xrealloc(chunk->failed_lines, chunk->failed + 1,
                                   sizeof(*chunk->failed_lines));
    chunk->failed_lines[chunk->failed++] = outcome->line;
}

/* A line that was never run, since validation found it wrong; custom_id: null where it has none. */
static void collect_bad(struct chunk *chunk, const json_t *bad, struct wire_text custom_id)
{
    const char *message = json_string_value(json_object_get(bad, "message"));
    const char *code = json_string_value(json_object_get(bad, "code"));
    const struct bulk_outcome outcome = {
        .line = (uint64_t)json_integer_value(json_object_get(bad, "line")),
        .custom_id = custom_id.size > 0 ? custom_id : WIRE_TEXT_OF("null"),
        .never_run = code == NULL ? "" : code,
        .error_message = WIRE_TEXT_OF(message == NULL ? "" : message),
    };

    collect_append(chunk, &outcome);
}

/* The custom_id of the next request that was run, and its line; those before it that are bad are
 * appended. False: the input has no more. */
static bool collect_line(struct chunk *chunk, struct bulk_outcome *outcome)
{
    char code[BULK_CODE_SIZE];
    struct bulk_line line;
    const char *text;
    size_t size;
    struct err err;

    while (chunk_next(chunk, &text, &size)) {
        const json_t *bad = chunk_bad(chunk);
        int r = bulk_line_read(chunk->bulk->ingest->reader, text, size, chunk->line - 1,
                               chunk->bulk->endpoint, &line, code, &err);

        if (bad == NULL) { /* r < 0: it was good when it was sent */
            outcome->custom_id = r < 0 ? WIRE_TEXT_OF("null") : line.custom_id;
            outcome->line = chunk->line - 1;
            return true;
        }
        collect_bad(chunk, bad, line.custom_id);
        chunk->bad_at++;
    }
    return false;
}

/* Bad lines behind the last that was run, and those whose text is not there to be read. */
static void collect_rest(struct chunk *chunk)
{
    struct bulk_outcome outcome;

    while (collect_line(chunk, &outcome))
        log_warn("line_not_sent", LOG_STR("bulk", chunk->bulk->text),
                 LOG_U64("line", outcome.line));
    while (chunk->bad_at < json_array_size(chunk->bad))
        collect_bad(chunk, json_array_get(chunk->bad, chunk->bad_at++), (struct wire_text){0});
}

static bool is_json(struct wire_text type)
{
    static const char json[] = "application/json";

    return type.size == 0 ||
           (type.size >= sizeof(json) - 1 && memcmp(type.text, json, sizeof(json) - 1) == 0);
}

static void collect_take(struct chunk *chunk, struct wire_bytes output)
{
    const struct pg_answer *rows = &chunk->rows;
    uint32_t row = chunk->row++;
    uint64_t class = pg_u64(rows, 0, row, 1);
    struct bulk_outcome outcome = {
        .job = &chunk->jobs[chunk->collected++],
        .state = (enum job_state)pg_i64(rows, 0, row, 0),
        .class = error_class_known(class) ? (enum error_class) class : ERROR_CLASS_NONE,
        .attempts = pg_u64(rows, 0, row, 2),
        .error_message = pg_text(rows, 0, row, 3),
        .output = output,
        .output_is_json = is_json(pg_text(rows, 0, row, 5)),
        .http_status = (int)pg_i64(rows, 0, row, 7),
    };

    chunk->bulk->expired |= outcome.state == JOB_EXPIRED;
    chunk->page_size += output.size;
    if (collect_line(chunk, &outcome))
        collect_append(chunk, &outcome);
}

static void on_output(void *opaque, struct buf *bytes, const struct err *err)
{
    struct chunk *chunk = opaque;
    struct bulk *bulk = chunk->bulk;

    if (!bulk_unpin(bulk))
        return;
    if (err->code != ERR_OK && err_class(err->code) == ERR_CLASS_RETRY) {
        collect_again(chunk, err);
        return;
    }
    if (err->code != ERR_OK)
        log_warn("line_output_lost", LOG_STR("bulk", bulk->text), LOG_ERR(err));
    collect_take(chunk, (struct wire_bytes){bytes == NULL ? NULL : bytes->bytes,
                                            bytes == NULL ? 0 : bytes->size});
    collect_go_on(chunk);
}

/* False: an answer is waited for, or it begins anew. */
static bool collect_row(struct chunk *chunk)
{
    OWNED(mem_free) char *blob = wire_text_dup(pg_text(&chunk->rows, 0, chunk->row, 6));
    struct err err;

    if (blob == NULL || blob[0] == '\0') {
        collect_take(chunk, pg_bytes(&chunk->rows, 0, chunk->row, 4));
        return true;
    }
    if (blob_get(chunk->bulk->ingest->blobs, blob, OUTPUT_SIZE_MAX, on_output, chunk, &err) < 0)
        collect_again(chunk, &err);
    else
        bulk_pin(chunk->bulk);
    return false;
}

/* ---- pages ---- */

static void on_page(void *opaque, const struct pg_answer *answer)
{
    struct chunk *chunk = opaque;

    if (!bulk_unpin(chunk->bulk))
        return;
    if (answer->err.code != ERR_OK || pg_row_count(answer, 0) != chunk->row_count) {
        collect_again(chunk, answer->err.code != ERR_OK ? &answer->err : NULL);
        return;
    }
    pg_answer_take(answer, &chunk->rows);
    collect_go_on(chunk);
}

static void collect_ask(struct chunk *chunk)
{
    uint32_t left = chunk->job_count - chunk->collected;
    struct pg_batch *batch = pg_batch_new();

    if (chunk->row_count > 0 && chunk->page_size / chunk->row_count > 0) {
        uint64_t fit = PAGE_SIZE / (chunk->page_size / chunk->row_count);

        chunk->page = fit < 1 ? 1 : fit > PAGE_MAX ? PAGE_MAX : (uint32_t)fit;
    } else {
        chunk->page = chunk->row_count > 0 ? PAGE_MAX : PAGE_FIRST;
    }
    pg_answer_done(&chunk->rows);
    chunk->rows = (struct pg_answer){.result = NULL};
    chunk->row = 0;
    chunk->page_size = 0;
    chunk->row_count = left < chunk->page ? left : chunk->page;
    pg_add(batch, &chunk_rows);
    bind_jobs(batch, chunk, chunk->collected, chunk->row_count);
    if (!bulk_query(chunk->bulk, &batch, on_page, chunk))
        collect_again(chunk, NULL);
}

/* ---- the blobs ---- */

static void on_stored(void *opaque, const struct err *err)
{
    struct chunk *chunk = opaque;

    if (!bulk_unpin(chunk->bulk))
        return;
    if (err->code != ERR_OK)
        collect_again(chunk, err);
    else
        collect_go_on(chunk);
}

static void part_write(struct chunk *chunk, struct part *part)
{
    struct err err = {.code = ERR_OK};
    int r = buf_check(&part->text, "lines of the output", &err);

    if (r == 0 && part->upload == NULL)
        r = blob_upload_new(chunk->bulk->ingest->blobs, &part->upload, &err);
    if (r == 0)
        r = blob_upload_write(part->upload, &part->text, on_stored, chunk, &err);
    if (r < 0)
        collect_again(chunk, &err);
    else
        bulk_pin(chunk->bulk);
}

static void part_end(struct chunk *chunk, int which)
{
    struct part *part = &chunk->parts[which];
    char key[BLOB_KEY_SIZE];
    struct err err;

    bulk_key(chunk->bulk, chunk->number, which, key);
    part->stored = true;
    if (blob_upload_end(part->upload, key, on_stored, chunk, &err) < 0)
        collect_again(chunk, &err);
    else
        bulk_pin(chunk->bulk);
}

/* ---- done ---- */

static void on_done(void *opaque, const struct pg_answer *answer)
{
    static const char *const names[PART_COUNT] = {"output", "error"};
    struct chunk *chunk = opaque;
    struct bulk *bulk = chunk->bulk;
    struct metrics *metrics = bulk->ingest->metrics;

    if (!bulk_unpin(bulk))
        return;
    if (answer->err.code != ERR_OK) {
        collect_again(chunk, &answer->err);
        return;
    }
    metric_add(metrics_of(metrics, INGEST_METRIC_ingest_chunks_done_total), 1);
    for (int i = 0; i < PART_COUNT; i++)
        metric_add(metrics_series(metrics, INGEST_METRIC_ingest_lines_written_total, &names[i]),
                   i == PART_OUTPUT ? chunk->completed : chunk->failed);
    bulk->collecting--;
    chunk_free(&chunk);
    bulk_go_on(bulk, 0);
}

static void collect_finish(struct chunk *chunk)
{
    struct bulk *bulk = chunk->bulk;
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &chunk_done);
    pg_bind_id(batch, &bulk->id);
    pg_bind_i64(batch, bulk->epoch);
    pg_bind_i32(batch, chunk->number);
    pg_bind_i32(batch, chunk->completed);
    pg_bind_i32(batch, chunk->failed);
    pg_bind_i64(batch, (int64_t)chunk->parts[PART_OUTPUT].size);
    pg_bind_i64(batch, (int64_t)chunk->parts[PART_ERROR].size);
    pg_bind_array(batch, PG_I64, chunk->failed);
    for (uint32_t i = 0; i < chunk->failed; i++)
        pg_bind_i64(batch, (int64_t)chunk->failed_lines[i]);
    if (!bulk_query(bulk, &batch, on_done, chunk))
        collect_again(chunk, NULL);
}

/* What is next, until something has to be waited for. */
static void collect_go_on(struct chunk *chunk)
{
    bool all;

    while (chunk->row < chunk->row_count) {
        if (chunk->parts[PART_OUTPUT].text.size >= PIECE_SIZE ||
            chunk->parts[PART_ERROR].text.size >= PIECE_SIZE)
            break;
        if (!collect_row(chunk))
            return;
    }
    all = chunk->given_up ||
          (chunk->row == chunk->row_count && chunk->collected == chunk->job_count);
    if (all)
        collect_rest(chunk);
    for (int i = 0; i < PART_COUNT; i++) {
        if (chunk->parts[i].text.size >= PIECE_SIZE || (all && chunk->parts[i].text.size > 0)) {
            part_write(chunk, &chunk->parts[i]);
            return;
        }
    }
    if (!all) {
        collect_ask(chunk);
        return;
    }
    for (int i = 0; i < PART_COUNT; i++) {
        if (chunk->parts[i].upload != NULL && !chunk->parts[i].stored) {
            part_end(chunk, i);
            return;
        }
    }
    collect_finish(chunk);
}

static void collect_given_up(struct chunk *chunk)
{
    struct bulk_outcome outcome = {.never_run = chunk->bulk->cancelling ? "batch_cancelled"
                                                                        : "batch_expired"};

    while (collect_line(chunk, &outcome))
        collect_append(chunk, &outcome);
}

void chunk_collect(struct chunk *chunk)
{
    struct err err;

    collect_forget(chunk);
    chunk->bulk->collecting++;
    if (chunk_read(chunk, &err) < 0) {
        collect_again(chunk, &err);
        return;
    }
    if (chunk->given_up)
        collect_given_up(chunk);
    collect_go_on(chunk);
}
