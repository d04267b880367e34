/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Validation: every line of an input is looked at once, in order, and cut into chunks, which become
 * rows. The input is read in pieces, however large it is; a few milliseconds of it at a time.
 *
 * What is wrong is written down by line, up to ERRORS_MAX of them; then the bulk job fails and no
 * line of it is run. Or, where the caller wants it so, bad lines fail alone: what is wrong with
 * each goes with its chunk, and from there into the error file. Killed in the middle, the next
 * ingest begins anew and writes the same rows.
 */

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json_fast.h"
#include "base/log.h"
#include "producers/ingest.h"

#define READ_SIZE (1u << 20)
#define TURN_US 8000
#define ERRORS_MAX 100
#define CHUNK_LINES_MAX 1000
#define CHUNK_SIZE_MAX (1u << 20) /* or one line */
#define ROWS_MAX 256              /* chunks that are written at once */
#define BAD_SIZE_MAX (4u << 20)   /* or what is said of bad lines in them */
#define MESSAGE_MAX 600
#define LONG_LINE_KEPT 64 /* bytes of a line that is too long, as its chunk */

PG_STATEMENT(scan_chunks, "SELECT bulk_chunks_add($1, $2, $3, $4, $5, $6, $7)");
PG_STATEMENT(scan_forget,
             "DELETE FROM bulk_chunk c USING bulk b WHERE c.bulk_id = b.id AND b.id = $1 AND "
             "b.epoch = $2");
PG_STATEMENT(scan_good,
             "UPDATE bulk SET status = 'in_progress', in_progress_at = now(), total = $3, targets "
             "= $4, errors = $5 WHERE id = $1 AND epoch = $2 AND status = 'validating'");
PG_STATEMENT(scan_bad,
             "UPDATE bulk SET status = 'failed', failed_at = now(), total = $3, errors = $4, "
             "input_url = NULL, leased_until = 'infinity' WHERE id = $1 AND epoch = $2 AND status "
             "= 'validating'");

struct scan {
    struct buf text; /* of the input, from `start` on; JSON_FAST_PADDING bytes of room behind it */
    uint64_t start, read;    /* of text; how far the input was read */
    size_t at;               /* in text: the next line */
    uint64_t line, requests; /* the next one's number; those that were there */
    struct bulk_seen *seen;
    json_t *errors;
    struct chunk_row {
        uint32_t number, size;
        uint64_t start, first_line;
        char *bad;          /* as bulk_chunk.bad; NULL: none */
    } rows[ROWS_MAX], open; /* those that are to be written; the one that grows */
    uint32_t row_count, open_lines;
    json_t *open_bad;        /* of the one that grows */
    size_t bad_size;         /* of those that are to be written */
    bool ended, over;        /* the input is read; the end is on its way to Postgres */
    bool refused, in_a_line; /* all of it; in one that is too long, up to its end */
};

static void rows_forget(struct scan *scan)
{
    for (uint32_t i = 0; i < scan->row_count; i++)
        free(scan->rows[i].bad);
    scan->row_count = 0;
    scan->bad_size = 0;
}

void bulk_scan_end(struct scan **scan_p)
{
    struct scan *scan = TAKE(*scan_p);

    if (scan == NULL)
        return;
    rows_forget(scan);
    json_decref(scan->open_bad);
    buf_done(&scan->text);
    bulk_seen_free(&scan->seen);
    json_decref(scan->errors);
    free(scan);
}

void bulk_scan_begin(struct bulk *bulk)
{
    struct scan *scan = xcalloc(1, sizeof(*scan));

    scan->text = BUF_WITH_LIMIT(bulk->ingest->settings.bulk_line_max_size + READ_SIZE +
                                JSON_FAST_PADDING + 1);
    scan->line = 1;
    scan->open.first_line = 1;
    scan->seen = bulk_seen_new();
    scan->errors = json_array();
    scan->open_bad = json_array();
    bulk->scan = scan;
    bulk_go_on(bulk, 0);
}

/* ---- the end ---- */

static void scan_refuse(struct bulk *bulk, const char *code, const char *text);

/* Its lines can be run, if need be without the bad ones. */
static bool scan_is_good(const struct bulk *bulk)
{
    return json_array_size(bulk->scan->errors) == 0 || (bulk->skip_bad && !bulk->scan->refused);
}

static void on_validated(void *opaque, const struct pg_answer *answer)
{
    struct bulk *bulk = opaque;
    bool good;

    if (!bulk_unpin(bulk))
        return;
    if (answer->err.code != ERR_OK) {
        bulk->scan->over = false; /* asked again */
        bulk_go_on(bulk, INGEST_RETRY_MS);
        return;
    }
    good = scan_is_good(bulk);
    if (pg_changed_count(answer, good ? 0 : 1) == 0) { /* canceled meanwhile */
        bulk_scan_end(&bulk->scan);
        bulk->cancelling = true;
        bulk_go_on(bulk, 0);
        return;
    }
    log_info("bulk_validated", LOG_STR("bulk", bulk->text), LOG_STR("tenant", bulk->tenant),
             LOG_U64("lines", bulk->scan->requests), LOG_BOOL("good", good));
    bulk_scan_end(&bulk->scan);
    if (!good) {
        bulk_drop(bulk); /* it is over */
        return;
    }
    bulk->validated = true;
    bulk_go_on(bulk, 0);
}

static void scan_finish(struct bulk *bulk)
{
    struct scan *scan = bulk->scan;
    bool good = scan_is_good(bulk);
    json_t *errors = json_array_size(scan->errors) == 0
                         ? NULL
                         : json_pack("{s:s, s:O}", "object", "list", "data", scan->errors);
    json_t *targets = good ? targets_json(bulk) : NULL;
    char *errors_text = errors == NULL ? NULL : json_dumps(errors, JSON_COMPACT);
    char *targets_text = targets == NULL ? NULL : json_dumps(targets, JSON_COMPACT);
    struct pg_batch *batch = pg_batch_new();

    if (!good) {
        pg_add(batch, &scan_forget);
        pg_bind_id(batch, &bulk->id);
        pg_bind_i64(batch, bulk->epoch);
    }
    pg_add(batch, good ? &scan_good : &scan_bad);
    pg_bind_id(batch, &bulk->id);
    pg_bind_i64(batch, bulk->epoch);
    pg_bind_i64(batch, (int64_t)scan->requests);
    if (good)
        pg_bind_json(batch, targets_text);
    pg_bind_json(batch, errors_text);
    scan->over = bulk_query(bulk, &batch, on_validated, bulk);
    free(errors_text);
    free(targets_text);
    json_decref(errors);
    json_decref(targets);
}

/* ---- chunks ---- */

static void on_rows(void *opaque, const struct pg_answer *answer)
{
    struct bulk *bulk = opaque;

    if (!bulk_unpin(bulk))
        return;
    if (answer->err.code == ERR_OK)
        rows_forget(bulk->scan);
    bulk_go_on(bulk, answer->err.code == ERR_OK ? 0 : INGEST_RETRY_MS);
}

static void scan_write_rows(struct bulk *bulk)
{
    const struct scan *scan = bulk->scan;
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &scan_chunks);
    pg_bind_id(batch, &bulk->id);
    pg_bind_i64(batch, bulk->epoch);
    pg_bind_array(batch, PG_I32, scan->row_count);
    for (uint32_t i = 0; i < scan->row_count; i++)
        pg_bind_i32(batch, scan->rows[i].number);
    pg_bind_array(batch, PG_I64, scan->row_count);
    for (uint32_t i = 0; i < scan->row_count; i++)
        pg_bind_i64(batch, (int64_t)scan->rows[i].start);
    pg_bind_array(batch, PG_I32, scan->row_count);
    for (uint32_t i = 0; i < scan->row_count; i++)
        pg_bind_i32(batch, scan->rows[i].size);
    pg_bind_array(batch, PG_I64, scan->row_count);
    for (uint32_t i = 0; i < scan->row_count; i++)
        pg_bind_i64(batch, (int64_t)scan->rows[i].first_line);
    pg_bind_array(batch, PG_TEXT, scan->row_count);
    for (uint32_t i = 0; i < scan->row_count; i++)
        pg_bind_c(batch, scan->rows[i].bad == NULL ? "" : scan->rows[i].bad);
    (void)bulk_query(bulk, &batch, on_rows, bulk);
}

static void chunk_close(struct scan *scan)
{
    if (scan->open_lines == 0)
        return;
    if (json_array_size(scan->open_bad) > 0) {
        scan->open.bad = json_dumps(scan->open_bad, JSON_COMPACT);
        scan->bad_size += strlen(scan->open.bad);
        (void)json_array_clear(scan->open_bad);
    }
    scan->rows[scan->row_count++] = scan->open;
    scan->open = (struct chunk_row){.number = scan->open.number + 1,
                                    .start = scan->open.start + scan->open.size,
                                    .first_line = scan->line};
    scan->open_lines = 0;
}

/* ---- lines ---- */

/* It may quote a part of a character: then nothing but ASCII stays of it. */
static json_t *json_of_message(const char *text)
{
    char plain[MESSAGE_MAX];
    json_t *json;

    (void)snprintf(plain, sizeof(plain), "%s", text);
    json = json_string(plain);
    if (json != NULL)
        return json;
    for (char *c = plain; *c != '\0'; c++) {
        if ((unsigned char)*c >= 0x80)
            *c = '?';
    }
    return json_string(plain);
}

/* Once a line: the first that is wrong with it. */
static void scan_add_bad(struct scan *scan, const char *code, const char *text)
{
    size_t count = json_array_size(scan->open_bad);
    const json_t *last = count == 0 ? NULL : json_array_get(scan->open_bad, count - 1);

    if (json_integer_value(json_object_get(last, "line")) == (json_int_t)scan->line)
        return;
    (void)json_array_append_new(scan->open_bad,
                                json_pack("{s:I, s:s, s:o}", "line", (json_int_t)scan->line, "code",
                                          code, "message", json_of_message(text)));
}

static void scan_refuse(struct bulk *bulk, const char *code, const char *text)
{
    struct scan *scan = bulk->scan;

    if (bulk->skip_bad)
        scan_add_bad(scan, code, text);
    if (json_array_size(scan->errors) < ERRORS_MAX)
        (void)json_array_append_new(scan->errors,
                                    json_pack("{s:s, s:I, s:o, s:n}", "code", code, "line",
                                              (json_int_t)scan->line, "message",
                                              json_of_message(text), "param"));
}

static void scan_request(struct bulk *bulk, const char *text, size_t size)
{
    struct scan *scan = bulk->scan;
    char code[BULK_CODE_SIZE] = "";
    struct target *target;
    struct bulk_line line;
    struct err err;

    scan->requests++;
    if (scan->line == 1 && size >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) {
        scan_refuse(bulk, "invalid_json_line", "the file begins with a byte order mark");
        return;
    }
    if (bulk_line_read(bulk->ingest->reader, text, size, scan->line, bulk->endpoint, &line, code,
                       &err) < 0) {
        scan_refuse(bulk, code, err.text);
        return;
    }
    if (!bulk_seen_add(scan->seen, line.custom_id_plain.text, line.custom_id_plain.size))
        scan_refuse(bulk, "duplicate_custom_id", "custom_id was there in an earlier line");
    target = target_find(bulk, line.model, &err);
    if (target == NULL)
        scan_refuse(bulk, "model_not_found", err.text);
    else
        target->used = true;
}

/* size: with its end. */
static void scan_line(struct bulk *bulk, const char *text, size_t size, size_t size_with_end)
{
    struct scan *scan = bulk->scan;

    if (scan->open_lines > 0 && scan->open.size + size_with_end > CHUNK_SIZE_MAX)
        chunk_close(scan);
    if (!bulk_line_is_blank(text, size))
        scan_request(bulk, text, size);
    scan->open.size += (uint32_t)size_with_end;
    scan->line++;
    if (++scan->open_lines == CHUNK_LINES_MAX)
        chunk_close(scan);
}

/* No more of it is looked at. */
static void scan_stop(struct bulk *bulk, const char *code, const char *text)
{
    struct scan *scan = bulk->scan;

    scan->refused = true;
    if (json_array_size(scan->errors) == ERRORS_MAX)
        (void)json_array_remove(scan->errors, ERRORS_MAX - 1);
    scan_refuse(bulk, code, text);
    scan->ended = true;
    scan->at = scan->text.size;
    rows_forget(scan);
}

/* Where in the input `at` is. */
static uint64_t scan_place(const struct scan *scan)
{
    return scan->read - (scan->text.size - scan->at);
}

/* A line that is too long becomes a chunk of its own, of its first bytes; the rest is passed over.
 */
static void scan_pass_over(struct bulk *bulk, const char *text)
{
    struct scan *scan = bulk->scan;

    chunk_close(scan);
    scan->requests++;
    scan_refuse(bulk, "line_too_long", text);
    scan->open.size = LONG_LINE_KEPT;
    scan->open_lines = 1;
    scan->line++;
    chunk_close(scan);
    scan->in_a_line = true;
}

/* On to the line behind it; false: more has to be read, or there is none. */
static bool scan_leave_line(struct scan *scan)
{
    const uint8_t *text = scan->text.bytes + scan->at;
    size_t left = scan->text.size - scan->at;
    const uint8_t *end = left == 0 ? NULL : memchr(text, '\n', left);

    scan->at += end == NULL ? left : (size_t)(end - text) + 1;
    scan->open.start = scan_place(scan);
    scan->in_a_line = end == NULL;
    return end != NULL;
}

/* The next line that is there as a whole; false: more has to be read, or there is none. */
static bool scan_next(struct bulk *bulk)
{
    struct scan *scan = bulk->scan;
    const char *text = (const char *)scan->text.bytes + scan->at;
    size_t left = scan->text.size - scan->at;
    const char *end = left == 0 ? NULL : memchr(text, '\n', left);
    uint64_t size_max = bulk->ingest->settings.bulk_line_max_size;
    size_t size = end == NULL ? left : (size_t)(end - text);
    struct err err;

    if (scan->in_a_line)
        return scan_leave_line(scan);
    if (size > size_max) {
        (void)err_set(&err, ERR_TOO_BIG, "the line has more than the %llu bytes of bulk-line-max",
                      (unsigned long long)size_max);
        if (bulk->skip_bad) {
            scan_pass_over(bulk, err.text);
            return true;
        }
        scan_stop(bulk, "line_too_long", err.text);
        return false;
    }
    if (left == 0 || (end == NULL && !scan->ended))
        return false;
    scan->at += size + (end != NULL);
    scan_line(bulk, text, size, size + (end != NULL));
    if (scan->requests > (uint64_t)bulk->ingest->settings.bulk_lines_max) {
        (void)err_set(&err, ERR_TOO_BIG,
                      "the file has more than the %lld requests of "
                      "bulk-lines-max",
                      (long long)bulk->ingest->settings.bulk_lines_max);
        scan_stop(bulk, "too_many_requests", err.text);
        return false;
    }
    return true;
}

/* Makes room and reads on; ERR_IO when the input is shorter than it was. */
static int scan_read(struct bulk *bulk, struct err *err)
{
    struct scan *scan = bulk->scan;
    uint64_t left = bulk->input_size - scan->read;
    size_t want = left < READ_SIZE ? (size_t)left : READ_SIZE;
    uint8_t *to;
    ssize_t n;

    buf_consume(&scan->text, scan->at);
    scan->at = 0;
    to = buf_reserve(&scan->text, want + JSON_FAST_PADDING);
    if (to == NULL)
        return err_set(err, ERR_INTERNAL, "a line found no room");
    n = want == 0 ? 0 : pread(bulk->fd, to, want, (off_t)scan->read);
    if (n < 0)
        return err_set_errno(err, ERR_IO, "read the input");
    if (n == 0 && want > 0)
        return err_set(err, ERR_IO, "the input ends after %llu of its %llu bytes",
                       (unsigned long long)scan->read, (unsigned long long)bulk->input_size);
    memset(to + n, 0, JSON_FAST_PADDING);
    buf_commit(&scan->text, (size_t)n);
    scan->read += (uint64_t)n;
    scan->ended = scan->read == bulk->input_size;
    return 0;
}

/* A line may end two chunks. */
static bool scan_is_full(const struct scan *scan)
{
    return scan->row_count >= ROWS_MAX - 1 || scan->bad_size > BAD_SIZE_MAX;
}

/* All is looked at: the last rows, and then the end. */
static void scan_end(struct bulk *bulk)
{
    struct scan *scan = bulk->scan;

    if (scan->requests == 0 && json_array_size(scan->errors) == 0) {
        scan->refused = true;
        scan_refuse(bulk, "empty_file", "the file has no request");
    }
    if (scan_is_good(bulk))
        chunk_close(scan);
    else
        rows_forget(scan);
    if (scan->row_count > 0)
        scan_write_rows(bulk);
    else
        scan_finish(bulk);
}

void bulk_scan_step(struct bulk *bulk)
{
    struct scan *scan = bulk->scan;
    uint64_t until_us = clock_mono_us() + TURN_US, before = scan->requests;
    struct err err;

    if (scan->over || bulk->pin_count > 0)
        return; /* an answer goes on with it */
    while (!scan_is_full(scan) && clock_mono_us() < until_us) {
        if (scan_next(bulk))
            continue;
        if (scan->ended && scan->at == scan->text.size)
            break;
        if (scan_read(bulk, &err) < 0) {
            log_warn("bulk_not_read", LOG_STR("bulk", bulk->text), LOG_ERR(&err));
            bulk_drop(bulk); /* its lease lapses, somebody tries again */
            return;
        }
    }
    metric_add(metrics_of(bulk->ingest->metrics, INGEST_METRIC_ingest_lines_validated_total),
               (double)(scan->requests - before));
    if (!scan->ended || scan->at < scan->text.size) {
        if (scan_is_full(scan))
            scan_write_rows(bulk);
        else
            bulk_go_on(bulk, 0);
        return;
    }
    scan_end(bulk);
}

void bulk_scan_refuse(struct bulk *bulk, const char *code, const char *text)
{
    bulk->input_size = 0;
    bulk_scan_begin(bulk);
    bulk->scan->refused = true;
    scan_refuse(bulk, code, text);
}
