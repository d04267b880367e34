/* SPDX-License-Identifier: Apache-2.0 */

/*
 * headrace bulk: files of requests. A file is sent as it is, plain or packed; what becomes of it is
 * shown by a bar on a terminal, by a line for each change elsewhere, both on standard error.
 * Leaving with Ctrl-C leaves the bulk job running and says how to come back to it.
 */

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/list.h"

#define POLL_MS 250
#define BAR_SIZE 30
#define UPLOAD_TIMEOUT_MS (24u * 3600 * 1000)
#define OUTPUT_TIMEOUT_MS (24u * 3600 * 1000)

int bulk_main(int argc, char **argv);

#define BULK_SETTINGS                                                                              \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(model, "", "submit: model that runs the lines, by name or id")                  \
    SETTING_STRING(environment, "production", "submit: environment of it")                         \
    SETTING_STRING(file_id, "", "submit: an uploaded file instead of FILE")                        \
    SETTING_STRING(input_url, "", "submit: a URL that is read instead of FILE")                    \
    SETTING_STRING(endpoint, "",                                                                   \
                   "submit: with --file-id or --input-url, lines as OpenAI's clients write them, " \
                   "for this route")                                                               \
    SETTING_STRING(window, "24h", "submit: when what has not run is given up; 1h to 72h")          \
    SETTING_STRING(on_bad_line, "stop",                                                            \
                   "submit: stop, so that no line is run; or skip, so that it fails alone")        \
    SETTING_BOOL(wait, false, "submit: watch it until it is over")                                 \
    SETTING_BOOL(errors, false, "output: the failed lines instead of the answers")                 \
    SETTING_INT(limit, 20, 1, 100, "ls: so many")

struct bulk_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    BULK_SETTINGS
#include "base/settings_end.def"
};

static const struct setting bulk_rows[] = {
#define SETTINGS_ROWS struct bulk_settings
#include "base/settings_rows.def"
    BULK_SETTINGS
#include "base/settings_end.def"
};

#define BULK_ACTION bulk_rows, COUNT_OF(bulk_rows), sizeof(struct bulk_settings)

/* ---- watch ---- */

static char watched[64]; /* id of the bulk job, for who leaves with Ctrl-C */

static void on_interrupt(int number)
{
    static const char left[] = "\nIt runs on. Come back with: headrace bulk watch ";

    (void)number;
    (void)!write(STDERR_FILENO, left, sizeof(left) - 1);
    (void)!write(STDERR_FILENO, watched, strlen(watched));
    (void)!write(STDERR_FILENO, "\n", 1);
    _exit(130);
}

struct bar {
    bool terminal;
    uint64_t started_ms;
    json_int_t first; /* lines that were done when we came */
    char last[32];
};

static json_int_t count_of(const json_t *batch, const char *name)
{
    return json_integer_value(json_object_get(json_object_get(batch, "request_counts"), name));
}

static void bar_show(struct bar *bar, const json_t *batch, const char *status)
{
    json_int_t total = count_of(batch, "total"), failed = count_of(batch, "failed");
    json_int_t done = count_of(batch, "completed") + failed;
    double seconds = (double)(clock_mono_ms() - bar->started_ms) / 1000;
    double rate = seconds > 0 ? (double)(done - bar->first) / seconds : 0;
    int filled = total > 0 ? (int)(BAR_SIZE * done / total) : 0;
    char eta[32] = "";

    if (!bar->terminal) {
        if (strcmp(bar->last, status) != 0)
            (void)fprintf(stderr, "%s, %lld of %lld lines done, %lld failed\n", status,
                          (long long)done, (long long)total, (long long)failed);
        mem_copy_text(bar->last, status);
        return;
    }
    if (rate > 0 && done < total)
        (void)snprintf(eta, sizeof(eta), ", %.0f s left", (double)(total - done) / rate);
    (void)fprintf(stderr, "\r\033[K%s [%.*s%.*s] %lld/%lld, %.0f/s%s, %lld failed", status, filled,
                  "##############################", BAR_SIZE - filled,
                  "..............................", (long long)done, (long long)total, rate, eta,
                  (long long)failed);
}

static bool is_over(const char *status)
{
    return strcmp(status, "completed") == 0 || strcmp(status, "failed") == 0 ||
           strcmp(status, "expired") == 0 || strcmp(status, "cancelled") == 0;
}

static void say_errors(const json_t *batch)
{
    const json_t *data = json_object_get(json_object_get(batch, "errors"), "data");
    size_t i;
    json_t *error;

    json_array_foreach(data, i, error)
    {
        const char *text = json_string_value(json_object_get(error, "message"));

        (void)fprintf(stderr, "line %lld: %s\n",
                      (long long)json_integer_value(json_object_get(error, "line")),
                      text == NULL ? "" : text);
    }
}

/* Until it is over; the last answer is the caller's. */
static int watch_batch(const struct client *client, const char *id, json_t **ret_batch,
                       struct err *err)
{
    struct bar bar = {.terminal = isatty(STDERR_FILENO) == 1, .started_ms = clock_mono_ms()};
    OWNED(mem_free) char *path = path_make("/v1/batches/%", id);
    const struct client_call call = {.method = "GET", .path = path};
    bool first = true;

    mem_copy_text(watched, id);
    (void)signal(SIGINT, on_interrupt);
    for (;;) {
        OWNED(client_json_free) json_t *batch = NULL;
        const char *status;
        int http, r = client_exchange(client, &call, &http, &batch, err);

        if (r < 0)
            return r;
        status = json_string_value(json_object_get(batch, "status"));
        if (status == NULL)
            return err_set(err, ERR_MALFORMED, "the gateway's answer has no status");
        if (first)
            bar.first = count_of(batch, "completed") + count_of(batch, "failed");
        first = false;
        bar_show(&bar, batch, status);
        if (is_over(status)) {
            if (bar.terminal)
                (void)fputc('\n', stderr);
            *ret_batch = TAKE(batch);
            return 0;
        }
        (void)poll(NULL, 0, POLL_MS);
    }
}

/* Watches, then shows; the exit code says whether every line has its answer. */
static int watch_and_show(const struct client *client, const char *verb, const char *id, bool json)
{
    OWNED(client_json_free) json_t *batch = NULL;
    struct err err;

    if (watch_batch(client, id, &batch, &err) < 0)
        return client_complain(verb, &err);
    say_errors(batch);
    if (json)
        table_print_json(stdout, batch);
    else
        table_print_object(stdout, batch);
    return strcmp(json_string_value(json_object_get(batch, "status")), "completed") == 0 &&
                   count_of(batch, "failed") == 0
               ? CLI_EXIT_OK
               : CLI_EXIT_FAILED;
}

static int bulk_watch(const struct client *client, const void *values, char **operands,
                      int operand_count)
{
    const struct bulk_settings *settings = values;

    if (!verb_operands("the id of one bulk job", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    return watch_and_show(client, "bulk watch", operands[0], settings->json);
}

/* ---- submit ---- */

static int fd_open(const char *path, uint64_t *ret_size, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat about;

    if (fd < 0)
        return err_set_errno(err, ERR_USAGE, "%s", path);
    if (fstat(fd, &about) == 0 && S_ISREG(about.st_mode) && about.st_size > 0) {
        *ret_size = (uint64_t)about.st_size;
        return fd;
    }
    (void)close(fd);
    return err_set(err, ERR_USAGE, "%s is no file with something in it", path);
}

/* Sends the file, or names one that is there already. */
static int submit_native(const struct client *client, const struct bulk_settings *settings,
                         const char *file, json_t **ret_batch, struct err *err)
{
    OWNED(mem_free)
    char *where = file != NULL                   ? xstrdup("")
                  : settings->file_id[0] != '\0' ? path_make("&input_file_id=%", settings->file_id)
                                                 : path_make("&input_url=%", settings->input_url);
    OWNED(mem_free)
    char *head = path_make("/model/%/environments/%/bulk?completion_window=%&on_bad_line=%",
                           settings->model, settings->environment, settings->window,
                           settings->on_bad_line);
    OWNED(mem_free) char *path = xasprintf("%s%s", head, where);
    struct client_call call = {.method = "POST", .path = path};
    uint64_t size = 0;
    int status, fd = -1, r;

    if (file != NULL) {
        fd = fd_open(file, &size, err);
        if (fd < 0)
            return fd;
        call.send = (struct http_send){
            .body_fd = fd, .body_size = size, .timeout_ms = UPLOAD_TIMEOUT_MS};
    }
    r = client_exchange(client, &call, &status, ret_batch, err);
    if (fd >= 0)
        (void)close(fd);
    return r;
}

static int submit_openai(const struct client *client, const struct bulk_settings *settings,
                         json_t **ret_batch, struct err *err)
{
    OWNED(client_json_free)
    json_t *body = json_pack(
        "{s:s, s:s, s:s, s:s}", settings->input_url[0] != '\0' ? "input_url" : "input_file_id",
        settings->input_url[0] != '\0' ? settings->input_url : settings->file_id, "endpoint",
        settings->endpoint, "completion_window", settings->window, "on_bad_line",
        settings->on_bad_line);
    const struct client_call call = {.method = "POST", .path = "/v1/batches", .body = body};
    int status;

    return client_exchange(client, &call, &status, ret_batch, err);
}

static int bulk_submit(const struct client *client, const void *values, char **operands,
                       int operand_count)
{
    const struct bulk_settings *settings = values;
    OWNED(client_json_free) json_t *batch = NULL;
    bool native = settings->model[0] != '\0';
    const char *id;
    struct err err;
    int r;

    if (!verb_operands("one FILE, --file-id or --input-url", operand_count, 0, 1))
        return CLI_EXIT_USAGE;
    if ((operand_count == 1) + (settings->file_id[0] != '\0') + (settings->input_url[0] != '\0') !=
        1)
        r = err_set(&err, ERR_USAGE, "it takes one FILE, --file-id or --input-url");
    else if (native == (settings->endpoint[0] != '\0') || (!native && operand_count == 1))
        r = err_set(
            &err, ERR_USAGE,
            "say --model and FILE, --file-id or --input-url; or --endpoint and --file-id or "
            "--input-url, for lines as OpenAI's clients write them");
    else if (native)
        r = submit_native(client, settings, operand_count == 1 ? operands[0] : NULL, &batch, &err);
    else
        r = submit_openai(client, settings, &batch, &err);
    if (r < 0)
        return client_complain("bulk submit", &err);
    id = json_string_value(json_object_get(batch, "id"));
    if (settings->wait && id != NULL)
        return watch_and_show(client, "bulk submit", id, settings->json);
    if (settings->json)
        table_print_json(stdout, batch);
    else
        (void)printf("%s\n", id == NULL ? "" : id);
    return CLI_EXIT_OK;
}

/* ---- ls, show, cancel, retry-failed, output ---- */

static int bulk_ls(const struct client *client, const void *values, char **operands,
                   int operand_count)
{
    static const struct table_column columns[] = {
        {"ID", "id", false, false},
        {"STATUS", "status", false, false},
        {"ENDPOINT", "endpoint", false, true},
        {"LINES", "request_counts.total", true, false},
        {"COMPLETED", "request_counts.completed", true, false},
        {"FAILED", "request_counts.failed", true, false},
    };
    const struct bulk_settings *settings = values;
    OWNED(mem_free) char *path = xasprintf("/v1/batches?limit=%lld", (long long)settings->limit);
    const struct list_view view = {"bulk ls",      path,    "data",
                                   "no bulk jobs", columns, COUNT_OF(columns)};

    (void)operands;
    if (!verb_operands("nothing more", operand_count, 0, 0))
        return CLI_EXIT_USAGE;
    return list_run(client, &view, settings->json);
}

static int about_one(const struct client *client, const struct bulk_settings *settings,
                     char **operands, int operand_count, const char *verb, const char *method,
                     const char *pattern)
{
    OWNED(mem_free) char *path = NULL;

    if (!verb_operands("the id of one bulk job", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    path = path_make(pattern, operands[0]);
    return show_run(client, verb, method, path, NULL, settings->json);
}

static int bulk_show(const struct client *client, const void *values, char **operands,
                     int operand_count)
{
    return about_one(client, values, operands, operand_count, "bulk show", "GET", "/v1/batches/%");
}

static int bulk_cancel(const struct client *client, const void *values, char **operands,
                       int operand_count)
{
    return about_one(client, values, operands, operand_count, "bulk cancel", "POST",
                     "/v1/batches/%/cancel");
}

static int bulk_retry(const struct client *client, const void *values, char **operands,
                      int operand_count)
{
    return about_one(client, values, operands, operand_count, "bulk retry-failed", "POST",
                     "/v1/batches/%/retry");
}

static bool on_bytes(const void *bytes, size_t size, void *opaque)
{
    (void)opaque;
    return fwrite(bytes, 1, size, stdout) == size;
}

static int bulk_output(const struct client *client, const void *values, char **operands,
                       int operand_count)
{
    const struct bulk_settings *settings = values;
    OWNED(client_answer_done) struct client_answer answer = {.status = 0};
    OWNED(mem_free) char *path = NULL;
    struct client_call call = {.method = "GET", .send = {.timeout_ms = OUTPUT_TIMEOUT_MS}};
    struct err err;
    int r;

    if (!verb_operands("the id of one bulk job", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    path = path_make(settings->errors ? "/v1/batches/%/errors" : "/v1/batches/%/output",
                     operands[0]);
    call.path = path;
    r = client_stream(client, &call, on_bytes, NULL, &answer, &err);
    if (r == 0 && answer.status >= 400)
        r = client_answer_refusal(&answer, &err);
    if (r == 0 && fflush(stdout) != 0)
        r = err_set_errno(&err, ERR_IO, "write the output");
    return r < 0 ? client_complain("bulk output", &err) : CLI_EXIT_OK;
}

int bulk_main(int argc, char **argv)
{
    static const struct verb_action actions[] = {
        {"submit", "FILE", "Runs each line of a file; prints the id of the bulk job.", BULK_ACTION,
         bulk_submit},
        {"ls", NULL, "Lists bulk jobs, newest first.", BULK_ACTION, bulk_ls},
        {"show", "ID", "Shows one.", BULK_ACTION, bulk_show},
        {"watch", "ID", "Shows how it goes until it is over.", BULK_ACTION, bulk_watch},
        {"cancel", "ID", "Cancels it; what has run stays in its output.", BULK_ACTION, bulk_cancel},
        {"retry-failed", "ID", "Runs its failed lines again, as a new bulk job.", BULK_ACTION,
         bulk_retry},
        {"output", "ID", "Prints what it has written, also while it runs.", BULK_ACTION,
         bulk_output},
    };
    static const struct verb verb = {"bulk", "Files of requests, each line a job.", actions,
                                     COUNT_OF(actions)};

    return verb_main(&verb, argc, argv);
}
