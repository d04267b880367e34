/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Logs of a deployment: the last lines of the files that its replicas write to (replica.log_path),
 * where this gateway can read them: on one machine, or from a file system that all share. For a
 * replica whose file cannot be read there is one line that says where it is.
 *
 * The cursor is "<worker>:<position>,…": with it a page holds what came since. Files are read on a
 * thread of the pool, at most TAIL_SIZE bytes each.
 */

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <uv.h>

#include "base/assert.h"
#include "base/loop.h"
#include "brokers/pg.h"
#include "producers/gateway.h"

#define LINES_DEFAULT 500
#define LINES_MAX 1000
#define TAIL_SIZE (1u << 20)
#define REPLICAS_MAX 32
#define PATH_SIZE 1024
#define CURSOR_CHARACTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:,-"

PG_STATEMENT(logs_replicas,
             "SELECT coalesce(r.worker, ''), coalesce(r.log_path, ''), coalesce(r.host, '') "
             "FROM deployment d LEFT JOIN replica r ON r.deployment_id = d.id "
             "WHERE d.model_id = $1 AND (d.id = $2 OR d.name = $2) AND d.deleted_at IS NULL "
             "ORDER BY r.started_at DESC LIMIT 32");

struct log_file {
    char worker[CONFIG_NAME_SIZE], host[256], path[PATH_SIZE];
    uint64_t from; /* position to read from; UINT64_MAX: the tail */
    uint64_t to;   /* position behind the last whole line that was read */
    struct buf text;
    char why[128]; /* it cannot be read: why */
};

struct logs {
    uv_work_t work;
    struct call *call;
    int64_t limit;
    size_t file_count;
    struct log_file files[REPLICAS_MAX];
};

static void logs_free(struct logs **logs_p)
{
    struct logs *logs = TAKE(*logs_p);

    for (size_t i = 0; i < logs->file_count; i++)
        buf_done(&logs->files[i].text);
    free(logs);
}

/* ---- reading, on a thread ---- */

/* Keeps whole lines: nothing before the first newline of a tail, nothing behind the last one. */
static void keep_whole_lines(struct log_file *file, uint64_t start, bool cut)
{
    const uint8_t *bytes = file->text.bytes;
    size_t end = file->text.size, begin = 0;

    while (end > 0 && bytes[end - 1] != '\n')
        end--;
    file->text.size = end;
    file->to = start + end;
    while (cut && begin < end && bytes[begin] != '\n')
        begin++;
    if (cut && begin < end)
        buf_consume(&file->text, begin + 1);
}

static void read_file(struct log_file *file)
{
    int fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct stat st;
    uint64_t start, size;
    uint8_t *to;

    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        (void)snprintf(file->why, sizeof(file->why), "%s", fd < 0 ? strerror(errno) : "no file");
        if (fd >= 0)
            (void)close(fd);
        return;
    }
    size = (uint64_t)st.st_size;
    start = file->from > size ? 0 : file->from; /* a file that shrank was begun anew */
    if (file->from == UINT64_MAX || size - start > TAIL_SIZE)
        start = size > TAIL_SIZE ? size - TAIL_SIZE : 0;
    to = buf_reserve(&file->text, TAIL_SIZE);
    while (to != NULL && file->text.size < size - start) {
        ssize_t n = pread(fd, file->text.bytes + file->text.size, size - start - file->text.size,
                          (off_t)(start + file->text.size));

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        file->text.size += (size_t)n;
    }
    (void)close(fd);
    keep_whole_lines(file, start, start > 0 && start != file->from);
}

/* thread: libuv's pool   The logs belong to this thread until on_read(). */
static void read_files(uv_work_t *work)
{
    struct logs *logs = (struct logs *)work;

    for (size_t i = 0; i < logs->file_count; i++) {
        if (logs->files[i].path[0] != '\0')
            read_file(&logs->files[i]);
        else
            mem_copy_text(logs->files[i].why, "the agent wrote no path");
    }
}

/* ---- the answer ---- */

/* A line of our own log format brings its time and level; anything else is a message. */
static json_t *line_json(const struct log_file *file, const char *line, size_t size)
{
    json_t *parsed = size > 0 && line[0] == '{' ? json_loadb(line, size, 0, NULL) : NULL;
    const char *when = json_string_value(json_object_get(parsed, "ts"));
    const char *level = json_string_value(json_object_get(parsed, "level"));
    const char *request = json_string_value(json_object_get(parsed, "job"));
    json_t *message = json_stringn(line, size);
    json_t *out;

    if (message == NULL) /* bytes that are no UTF-8 */
        message = json_string("(a line that is not UTF-8)");
    out = json_pack("{s:s, s:o, s:s, s:s?, s:s?}", "timestamp", when != NULL ? when : "", "message",
                    message, "replica", file->worker, "level", level, "request_id", request);
    json_decref(parsed);
    return out;
}

/* The last `limit` lines of a file. */
static void append_lines(json_t *list, const struct log_file *file, int64_t limit)
{
    const char *text = (const char *)file->text.bytes;
    size_t size = file->text.size, begin = size;
    int64_t count = 0;

    while (begin > 0 && count <= limit) {
        begin--;
        if (text[begin] == '\n' && begin + 1 < size)
            count++;
        if (count == limit) {
            begin++;
            break;
        }
    }
    while (begin < size) {
        const char *newline = memchr(text + begin, '\n', size - begin);
        size_t end = newline == NULL ? size : (size_t)(newline - text);

        (void)json_array_append_new(list, line_json(file, text + begin, end - begin));
        begin = end + 1;
    }
}

static void on_read(uv_work_t *work, int status)
{
    OWNED(logs_free) struct logs *logs = (struct logs *)work;
    OWNED(buf_done) struct buf cursor = BUF_WITH_LIMIT(8192);
    json_t *list = json_array(), *body;

    assert(status == 0);
    for (size_t i = 0; i < logs->file_count; i++) {
        const struct log_file *file = &logs->files[i];

        if (file->why[0] == '\0') {
            append_lines(list, file, logs->limit);
            buf_printf(&cursor, "%s%s:%llu", cursor.size > 0 ? "," : "", file->worker,
                       (unsigned long long)file->to);
        } else if (file->from == UINT64_MAX) {
            (void)json_array_append_new(
                list, json_pack("{s:s, s:o, s:s}", "timestamp", "", "message",
                                json_sprintf("its log is %s on %s and cannot be read here: %s",
                                             file->path, file->host, file->why),
                                "replica", file->worker));
        }
    }
    body = json_pack("{s:o, s:s}", "logs", list, "next_cursor", buf_text(&cursor));
    call_answer_json(&logs->call, 200, &body);
}

/* ---- the question ---- */

static uint64_t cursor_of(const char *cursor, const char *worker)
{
    size_t size = strlen(worker);

    while (cursor != NULL && *cursor != '\0') {
        if (strncmp(cursor, worker, size) == 0 && cursor[size] == ':') {
            const char *digits = cursor + size + 1;
            uint64_t number = 0;

            for (int i = 0; i < 18 && digits[i] >= '0' && digits[i] <= '9'; i++)
                number = 10 * number + (uint64_t)(digits[i] - '0');
            return number;
        }
        cursor += strcspn(cursor, ",");
        cursor += *cursor == ',';
    }
    return UINT64_MAX;
}

static void on_replicas(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    struct logs *logs;
    const char *cursor;
    struct err err;
    int r;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        call_fail_as(&call, 404, "model_does_not_exist", "the model has no such deployment");
        return;
    }
    logs = xcalloc(1, sizeof(*logs));
    logs->call = call;
    if (call_query_number(call, "limit", LINES_DEFAULT, 1, LINES_MAX, &logs->limit, &err) < 0)
        logs->limit = LINES_DEFAULT; /* it was checked before the query */
    cursor = http_target_query(&call->target, "cursor");
    for (size_t i = 0; i < pg_row_count(answer, 0) && i < REPLICAS_MAX; i++) {
        struct log_file *file = &logs->files[logs->file_count];

        if (pg_c(answer, 0, i, 0)[0] == '\0')
            continue; /* the row of a deployment without replicas */
        logs->file_count++;
        mem_copy_text(file->worker, pg_c(answer, 0, i, 0));
        mem_copy_text(file->path, pg_c(answer, 0, i, 1));
        mem_copy_text(file->host, pg_c(answer, 0, i, 2));
        file->text = BUF_WITH_LIMIT(TAIL_SIZE + 1);
        file->from = cursor_of(cursor, file->worker);
    }
    r = uv_queue_work(loop_uv(call->gateway->loop), &logs->work, read_files, on_read);
    assert(r == 0);
}

static void ask_replicas(struct call *call, const struct config_model *model)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &logs_replicas);
    pg_bind_c(batch, model->id);
    pg_bind_c(batch, call->match.param);
    call_query(call, &batch, on_replicas);
}

void deployment_logs_begin(struct call *call)
{
    const char *cursor = http_target_query(&call->target, "cursor");
    int64_t limit;
    struct err err;
    int r = call_query_number(call, "limit", LINES_DEFAULT, 1, LINES_MAX, &limit, &err);

    if (r == 0 && cursor != NULL && cursor[strspn(cursor, CURSOR_CHARACTERS)] != '\0')
        r = err_set(&err, ERR_MALFORMED, "cursor is '%.60s'; it must be one from next_cursor",
                    cursor);
    if (r < 0)
        call_fail(&call, &err);
    else
        gateway_watch_find_model(call, ask_replicas);
}
