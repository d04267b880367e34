/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Lines and figures of a training job.
 *
 * A page of lines comes with next_cursor, "<rank>:<line>,…": with it the next page holds what came
 * behind, in the order of the lines of each node, without a gap or a line twice, whatever happened
 * to trainers meanwhile: lines are numbered by node over all placements, and a chunk of them is
 * there whole or not at all. Searching is the database's: a pattern is a regular expression of
 * Postgres, and one that takes too long ends with the statement's time.
 *
 * What is asked for stands in the query, or in the body of a POST, as older clients have it.
 */

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/settings.h"
#include "producers/gateway_training.h"

#define LINES_DEFAULT 500
#define LINES_MAX 1000
#define RANKS_MAX 1024
#define WORDS_MAX 8
#define WORD_SIZE_MAX 256
#define POINTS 300 /* of a series, unless step_seconds says otherwise */
#define STEP_S_MAX 86400
#define CURSOR_SIZE_MAX (RANKS_MAX * 24)

/* Chunks in the order of each node's lines; `ord` makes times of a node that went back go on. */
#define LINES_OF_JOB                                                                               \
    "WITH place AS (SELECT * FROM unnest($4::integer[], $5::bigint[]) AS p (rank, line)), chunk "  \
    "AS (SELECT l.rank, l.number, l.placement, l.at, l.text, coalesce(p.line, 0) AS seen, "        \
    "max(l.at) OVER (PARTITION BY l.rank ORDER BY l.number) AS ord FROM training_log l LEFT JOIN " \
    "place p ON p.rank = l.rank WHERE l.job_id = $2 AND l.number + l.line_count > "                \
    "coalesce(p.line, "                                                                            \
    "0) + 1 AND EXISTS (SELECT FROM training_job t JOIN training_project y ON y.id = "             \
    "t.project_id WHERE t.tenant = $1 AND t.job_id = $2 AND ($3 = '-' OR $3 IN (y.id, y.name)))) " \
    "SELECT k.rank, k.number + x.n - 1, k.at, k.placement, x.message FROM chunk k CROSS JOIN "     \
    "LATERAL unnest(string_to_array(left(k.text, -1), E'\\n')) WITH ORDINALITY x (message, n) "    \
    "WHERE k.number + x.n - 1 > k.seen AND ($6 < 0 OR k.rank = $6)          AND "                  \
    "($7::timestamptz IS NULL OR k.at >= $7) AND ($8::timestamptz IS NULL OR k.at < $8) AND "      \
    "($9::text IS NULL OR x.message ~ $9) AND NOT EXISTS (SELECT FROM unnest($10::text[]) w "      \
    "WHERE strpos(x.message, w) = 0) AND NOT EXISTS (SELECT FROM unnest($11::text[]) w WHERE "     \
    "strpos(x.message, w) > 0) "
PG_STATEMENT(training_lines_up, LINES_OF_JOB "ORDER BY k.ord, k.rank, k.number, x.n LIMIT $12");
PG_STATEMENT(training_lines_down,
             LINES_OF_JOB "ORDER BY k.ord DESC, k.rank DESC, k.number DESC, x.n DESC LIMIT $12");
PG_STATEMENT(training_has_job, "SELECT 1 FROM headrace_v1.training_jobs WHERE" TRAINING_OF_PATH);

PG_STATEMENT(training_metrics_job, "SELECT " TRAINING_JOB_COLUMNS
                                   " FROM headrace_v1.training_jobs WHERE" TRAINING_OF_PATH);
/* Means of equal pieces of the time; $4 and $5 are its ends, $6 a piece in seconds (0: the time in
 * $7 pieces, which short jobs have short ones of). */
PG_STATEMENT(
    training_series,
    "WITH job AS (SELECT t.job_id, coalesce($4, t.created_at) AS low, coalesce($5, t.ended_at + "
    "interval '1 minute', now()) AS high FROM training_job t JOIN training_project y ON y.id = "
    "t.project_id WHERE t.tenant = $1 AND t.job_id = $2 AND ($3 = '-' OR $3 IN (y.id, y.name))), "
    "piece AS (SELECT *, make_interval(secs => greatest(0.05, CASE WHEN $6 > 0 THEN $6 ELSE "
    "extract("
    "epoch FROM high - low)::float8 / $7 END)) AS width FROM job) SELECT m.rank, m.name, "
    "date_bin(p.width, m.at, p.low), avg(m.value), max(m.step) FROM piece p JOIN training_metric "
    "m ON m.job_id = p.job_id AND m.at >= p.low AND m.at < p.high GROUP BY m.rank, m.name, 3 "
    "ORDER BY m.rank, m.name, 3 LIMIT 100000");

/* ---- what is asked for ---- */

/* The query's fields as a JSON object of texts, or of lists of them where a name stands twice. */
static json_t *fields_of_query(const struct call *call)
{
    json_t *fields = json_object();

    for (size_t i = 0; i < call->target.field_count; i++) {
        const char *name = call->target.fields[i].name;
        json_t *value = json_string(call->target.fields[i].value);
        json_t *known = json_object_get(fields, name);

        if (known == NULL)
            (void)json_object_set_new(fields, name, value);
        else if (json_is_array(known))
            (void)json_array_append_new(known, value);
        else
            (void)json_object_set_new(fields, name, json_pack("[O, o]", known, value));
    }
    return fields;
}

/* A whole number, also as the text of one; *ret stays when it is not there. */
static int read_number(const json_t *fields, const char *name, int64_t lowest, int64_t highest,
                       int64_t *ret, struct err *err)
{
    const json_t *value = json_object_get(fields, name);
    int64_t number = json_integer_value(value);
    struct err ignored;

    if (value == NULL || json_is_null(value))
        return 0;
    if (!json_is_integer(value) &&
        (!json_is_string(value) ||
         settings_parse_int(name, json_string_value(value), &number, &ignored) < 0))
        return err_set(err, ERR_MALFORMED, "%s must be a whole number", name);
    if (number < lowest || number > highest)
        return err_set(err, ERR_RANGE, "%s is %lld; it must be %lld to %lld", name,
                       (long long)number, (long long)lowest, (long long)highest);
    *ret = number;
    return 0;
}

static int read_time(const json_t *fields, const char *name, uint64_t *ret_us, struct err *err)
{
    int64_t ms = 0;
    int r = read_number(fields, name, 1, 253402300799999, &ms, err);

    if (r == 0)
        *ret_us = (uint64_t)ms * 1000;
    return r;
}

static int read_window(const json_t *fields, uint64_t *ret_start_us, uint64_t *ret_end_us,
                       struct err *err)
{
    int r = read_time(fields, "start_epoch_millis", ret_start_us, err);

    if (r == 0)
        r = read_time(fields, "end_epoch_millis", ret_end_us, err);
    return r;
}

static int read_word(const json_t *value, const char *name, const char **ret, struct err *err)
{
    if (!json_is_string(value) || json_string_length(value) == 0 ||
        json_string_length(value) > WORD_SIZE_MAX ||
        strlen(json_string_value(value)) != json_string_length(value))
        return err_set(err, ERR_RANGE, "%s must be a text of 1 to %d bytes", name, WORD_SIZE_MAX);
    *ret = json_string_value(value);
    return 0;
}

struct words {
    const char *texts[WORDS_MAX];
    size_t count;
};

static int read_words(const json_t *fields, const char *name, struct words *words, struct err *err)
{
    const json_t *value = json_object_get(fields, name), *item;
    size_t i;

    if (value == NULL || json_is_null(value))
        return 0;
    if (!json_is_array(value)) {
        words->count = 1;
        return read_word(value, name, &words->texts[0], err);
    }
    if (json_array_size(value) > WORDS_MAX)
        return err_set(err, ERR_RANGE, "%s has %zu texts; at most %d", name, json_array_size(value),
                       WORDS_MAX);
    json_array_foreach(value, i, item)
    {
        int r = read_word(item, name, &words->texts[i], err);

        if (r < 0)
            return r;
    }
    words->count = json_array_size(value);
    return 0;
}

struct place {
    int32_t rank;
    int64_t line;
};

struct lines_query {
    struct words includes, excludes;
    const char *pattern;
    uint64_t start_us, end_us;
    int64_t limit, rank; /* rank -1: all */
    bool down;
    struct place *places; /* of the cursor */
    size_t place_count;
};

/* The number at *at, which moves behind it; -1: there is none. */
static int64_t take_digits(const char **at)
{
    int64_t number = 0;
    const char *from = *at;

    for (; **at >= '0' && **at <= '9' && *at - from < 18; (*at)++)
        number = 10 * number + (**at - '0');
    return *at == from ? -1 : number;
}

static int read_cursor(const json_t *fields, struct lines_query *query, struct err *err)
{
    const char *at = json_string_value(json_object_get(fields, "cursor")), *whole = at;

    if (at == NULL || *at == '\0')
        return 0;
    query->places = xcalloc(RANKS_MAX, sizeof(*query->places));
    for (;;) {
        int64_t rank = take_digits(&at), line = *at == ':' ? (at++, take_digits(&at)) : -1;

        if (rank < 0 || rank >= RANKS_MAX || line < 0 || query->place_count == RANKS_MAX ||
            (*at != '\0' && *at != ','))
            return err_set(err, ERR_MALFORMED, "cursor is '%.60s'; it must be one from next_cursor",
                           whole);
        query->places[query->place_count++] = (struct place){(int32_t)rank, line};
        if (*at++ == '\0')
            return 0;
    }
}

/* A node is named by its rank: "0", or as a page of lines names it, "node-0". */
static int read_replica(const json_t *fields, struct lines_query *query, struct err *err)
{
    const char *text = json_string_value(json_object_get(fields, "replica"));

    query->rank = -1;
    if (text == NULL)
        return 0;
    if (strncmp(text, "node-", 5) == 0)
        text += 5;
    query->rank = take_digits(&text);
    if (query->rank < 0 || query->rank >= RANKS_MAX || *text != '\0')
        return err_set(err, ERR_RANGE, "replica must be node-<rank>");
    return 0;
}

static int read_direction(const json_t *fields, struct lines_query *query, struct err *err)
{
    const char *text = json_string_value(json_object_get(fields, "direction"));

    query->down = query->place_count == 0;
    if (text == NULL)
        return 0;
    if (strcmp(text, "asc") != 0 && strcmp(text, "desc") != 0)
        return err_set(err, ERR_RANGE, "direction is '%.20s'; it must be asc or desc", text);
    query->down = *text == 'd' && query->place_count == 0; /* a cursor goes forward */
    return 0;
}

static int lines_read(const json_t *fields, struct lines_query *query, struct err *err)
{
    static const char *const known[] = {
        "start_epoch_millis", "end_epoch_millis", "direction", "limit", "replica",
        "search_pattern",     "includes",         "excludes",  "cursor"};
    const json_t *pattern = json_object_get(fields, "search_pattern");
    int r = fields_check(fields, known, COUNT_OF(known), err);

    query->limit = LINES_DEFAULT;
    if (r == 0)
        r = read_window(fields, &query->start_us, &query->end_us, err);
    if (r == 0)
        r = read_number(fields, "limit", 1, LINES_MAX, &query->limit, err);
    if (r == 0)
        r = read_replica(fields, query, err);
    if (r == 0 && pattern != NULL && !json_is_null(pattern))
        r = read_word(pattern, "search_pattern", &query->pattern, err);
    if (r == 0)
        r = read_words(fields, "includes", &query->includes, err);
    if (r == 0)
        r = read_words(fields, "excludes", &query->excludes, err);
    if (r == 0)
        r = read_cursor(fields, query, err);
    return r < 0 ? r : read_direction(fields, query, err);
}

/* ---- lines ---- */

/* Where readers of the cursor stand: behind what the page has, else where they stood. */
struct places {
    int64_t line[RANKS_MAX]; /* -1: not seen */
};

static void places_append(const struct places *places, struct buf *to)
{
    for (int rank = 0; rank < RANKS_MAX; rank++) {
        if (places->line[rank] >= 0)
            buf_printf(to, "%s%d:%lld", to->size > 0 ? "," : "", rank,
                       (long long)places->line[rank]);
    }
}

static json_t *line_json(const struct pg_answer *answer, size_t row)
{
    json_t *message = json_stringn(pg_c(answer, 0, row, 4), pg_text(answer, 0, row, 4).size);

    return json_pack(
        "{s:o, s:o, s:o, s:n, s:n, s:I, s:I, s:I}", "timestamp", json_of_time(answer, 0, row, 2),
        "message", message != NULL ? message : json_string(""), "replica",
        json_sprintf("node-%lld", (long long)pg_i64(answer, 0, row, 0)), "request_id", "level",
        "node_rank", (json_int_t)pg_i64(answer, 0, row, 0), "line",
        (json_int_t)pg_i64(answer, 0, row, 1), "placement", (json_int_t)pg_i64(answer, 0, row, 3));
}

static void on_lines(void *opaque, const struct pg_answer *answer)
{
    OWNED(buf_done) struct buf cursor = BUF_WITH_LIMIT(CURSOR_SIZE_MAX);
    struct call *call = opaque;
    OWNED(mem_free) struct places *places = TAKE(call->state);
    json_t *list, *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 1) == 0) {
        training_fail_missing(&call);
        return;
    }
    list = json_array();
    for (size_t i = 0; i < pg_row_count(answer, 0); i++) {
        int64_t rank = pg_i64(answer, 0, i, 0), line = pg_i64(answer, 0, i, 1);

        (void)json_array_append_new(list, line_json(answer, i));
        if (rank >= 0 && rank < RANKS_MAX && line > places->line[rank])
            places->line[rank] = line;
    }
    places_append(places, &cursor);
    body = json_pack("{s:o, s:s}", "logs", list, "next_cursor",
                     cursor.size > 0 ? buf_text(&cursor) : "");
    call_answer_json(&call, 200, &body);
}

static void bind_words(struct pg_batch *batch, const struct words *words)
{
    pg_bind_array(batch, PG_TEXT, words->count);
    for (size_t i = 0; i < words->count; i++)
        pg_bind_c(batch, words->texts[i]);
}

static int lines_bind(struct pg_batch *batch, struct call *call, const struct lines_query *query,
                      struct err *err)
{
    int r = training_bind_path(batch, query->down ? &training_lines_down : &training_lines_up, call,
                               err);

    if (r < 0)
        return r;
    pg_bind_array(batch, PG_I32, query->place_count);
    for (size_t i = 0; i < query->place_count; i++)
        pg_bind_i32(batch, query->places[i].rank);
    pg_bind_array(batch, PG_I64, query->place_count);
    for (size_t i = 0; i < query->place_count; i++)
        pg_bind_i64(batch, query->places[i].line);
    pg_bind_i32(batch, query->rank);
    pg_bind_time(batch, query->start_us);
    pg_bind_time(batch, query->end_us);
    pg_bind_c(batch, query->pattern);
    bind_words(batch, &query->includes);
    bind_words(batch, &query->excludes);
    pg_bind_i64(batch, query->limit);
    return training_bind_path(batch, &training_has_job, call, err);
}

static struct places *places_new(const struct lines_query *query)
{
    struct places *places = xmalloc(sizeof(*places));

    memset(places->line, 0xff, sizeof(places->line));
    for (size_t i = 0; i < query->place_count; i++)
        places->line[query->places[i].rank] = query->places[i].line;
    return places;
}

static void lines_send(struct call *call, const json_t *fields)
{
    struct pg_batch *batch = pg_batch_new();
    struct lines_query query = {.limit = LINES_DEFAULT};
    struct err err;
    int r = lines_read(fields, &query, &err);

    if (r == 0)
        r = lines_bind(batch, call, &query, &err);
    if (r < 0) {
        pg_batch_free(&batch);
        free(query.places);
        call_fail(&call, &err);
        return;
    }
    call->state = places_new(&query);
    free(query.places);
    call_query(call, &batch, on_lines);
}

/* ---- figures ---- */

static json_t *list_of(json_t *map, const char *name)
{
    json_t *list = json_object_get(map, name);

    if (list == NULL) {
        list = json_array();
        (void)json_object_set_new(map, name, list);
    }
    return list;
}

static json_t *metrics_new(void)
{
    return json_pack("{s:{}, s:{}, s:[], s:[], s:{s:[], s:[]}, s:{}}", "gpu_memory_usage_bytes",
                     "gpu_utilization", "cpu_usage", "cpu_memory_usage_bytes", "ephemeral_storage",
                     "usage_bytes", "utilization", "user_metrics");
}

/* The series of a name among a node's; NULL: it has no place in the answer. */
static json_t *series_of(json_t *metrics, const char *name)
{
    const char *rest;
    char gpu[16];
    size_t size;

    if (strcmp(name, "cpu") == 0)
        return list_of(metrics, "cpu_usage");
    if (strcmp(name, "memory_bytes") == 0)
        return list_of(metrics, "cpu_memory_usage_bytes");
    if (strcmp(name, "disk_bytes") == 0)
        return list_of(json_object_get(metrics, "ephemeral_storage"), "usage_bytes");
    if (strncmp(name, "user.", 5) == 0)
        return list_of(json_object_get(metrics, "user_metrics"), name + 5);
    if (strncmp(name, "gpu.", 4) != 0)
        return NULL;
    size = strcspn(name + 4, ".");
    rest = name + 4 + size;
    (void)snprintf(gpu, sizeof(gpu), "%.*s", (int)(size < 15 ? size : 15), name + 4);
    return list_of(json_object_get(metrics, strcmp(rest, ".utilization") == 0
                                                ? "gpu_utilization"
                                                : "gpu_memory_usage_bytes"),
                   gpu);
}

static json_t *point_json(const struct pg_answer *answer, size_t row)
{
    json_t *point = json_pack("{s:f, s:o}", "value", pg_double(answer, 1, row, 3), "timestamp",
                              json_of_time(answer, 1, row, 2));

    if (!pg_is_null(answer, 1, row, 4))
        (void)json_object_set_new(point, "step",
                                  json_integer((json_int_t)pg_i64(answer, 1, row, 4)));
    return point;
}

static void on_metrics(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *nodes, *body, *node = NULL, *first;
    int64_t rank = -1;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        training_fail_missing(&call);
        return;
    }
    nodes = json_array();
    for (size_t i = 0; i < pg_row_count(answer, 1); i++) {
        if (node == NULL || pg_i64(answer, 1, i, 0) != rank) {
            rank = pg_i64(answer, 1, i, 0);
            node = metrics_new();
            (void)json_array_append_new(nodes, json_pack("{s:o, s:o}", "node_id",
                                                         json_sprintf("node-%lld", (long long)rank),
                                                         "metrics", node));
        }
        first = series_of(node, pg_c(answer, 1, i, 1));
        if (first != NULL)
            (void)json_array_append_new(first, point_json(answer, i));
    }
    first = json_object_get(json_array_get(nodes, 0), "metrics");
    body = first != NULL ? json_copy(first) : metrics_new();
    (void)json_object_set_new(body, "training_job", training_job_json_at(answer, 0, 0, 0));
    (void)json_object_set_new(body, "cache", json_null());
    (void)json_object_set_new(body, "per_node_metrics", nodes);
    call_answer_json(&call, 200, &body);
}

static void metrics_send(struct call *call, const json_t *fields)
{
    static const char *const known[] = {"start_epoch_millis", "end_epoch_millis", "step_seconds"};
    struct pg_batch *batch = pg_batch_new();
    uint64_t start_us = 0, end_us = 0;
    int64_t step_s = 0;
    struct err err;
    int r = fields_check(fields, known, COUNT_OF(known), &err);

    if (r == 0)
        r = read_window(fields, &start_us, &end_us, &err);
    if (r == 0)
        r = read_number(fields, "step_seconds", 1, STEP_S_MAX, &step_s, &err);
    if (r == 0)
        r = training_bind_path(batch, &training_metrics_job, call, &err);
    if (r == 0)
        r = training_bind_path(batch, &training_series, call, &err);
    if (r < 0) {
        pg_batch_free(&batch);
        call_fail(&call, &err);
        return;
    }
    pg_bind_time(batch, start_us);
    pg_bind_time(batch, end_us);
    pg_bind_double(batch, (double)step_s);
    pg_bind_double(batch, POINTS);
    call_query(call, &batch, on_metrics);
}

/* ---- both ---- */

static void answer_read(struct call *call, const json_t *fields)
{
    bool lines = call->match.route == ROUTE_TRAINING_LOGS ||
                 call->match.route == ROUTE_TRAINING_LOGS_POST;

    if (lines)
        lines_send(call, fields);
    else
        metrics_send(call, fields);
}

static void on_body(struct call *call)
{
    json_t *body = NULL;
    struct err err;

    if (call_read_json(call, &body, &err) < 0)
        call_fail(&call, &err);
    else
        answer_read(call, body);
    json_decref(body);
}

void training_read_begin(struct call *call)
{
    json_t *fields;

    if (call->match.route == ROUTE_TRAINING_LOGS_POST ||
        call->match.route == ROUTE_TRAINING_METRICS_POST) {
        call_collect_body(call, TRAINING_BODY_MAX, on_body);
        return;
    }
    fields = fields_of_query(call);
    answer_read(call, fields);
    json_decref(fields);
}
