/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/jobs_bulk.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/list.h"

#define PAGE 1000
#define POLL_MS_FIRST 50
#define POLL_MS_MAX 1000

struct bulk {
    const struct client *client;
    const struct bulk_settings *settings;
    const char *action;
    char verb[32], path[32];
    json_t *filter; /* NULL: --all */
    json_t *operation, *refused;
    json_int_t accepted;
    bool terminal;
};

bool bulk_has_filter(const struct bulk_settings *settings)
{
    return settings->all || settings->where[0] != '\0';
}

/* ---- --where ---- */

static json_t *status_list(const char *text)
{
    json_t *list = json_array();

    while (*text != '\0') {
        size_t size = strcspn(text, ",");

        if (size > 0)
            (void)json_array_append_new(list, json_stringn(text, size));
        text += text[size] == ',' ? size + 1 : size;
    }
    return list;
}

int bulk_read_where(const char *where, json_t **ret_filter, struct err *err)
{
    OWNED(client_json_free) json_t *filter = json_object();

    for (;;) {
        OWNED(mem_free) char *term = NULL;
        size_t size;
        char *equals;

        where += strspn(where, " \t\n");
        size = strcspn(where, " \t\n");
        if (size == 0)
            break;
        term = xmemdup(where, size + 1);
        term[size] = '\0';
        where += size;
        equals = strchr(term, '=');
        if (equals == NULL || equals == term || equals[1] == '\0')
            return err_set(err, ERR_USAGE, "--where: '%.80s' is not of the form key=value", term);
        *equals = '\0';
        if (json_object_get(filter, term) != NULL)
            return err_set(err, ERR_USAGE, "--where: %.80s is there twice", term);
        if (json_object_set_new(filter, term,
                                strcmp(term, "status") == 0 ? status_list(equals + 1)
                                                            : json_string(equals + 1)) < 0)
            return err_set(err, ERR_USAGE, "--where: '%.80s' is no UTF-8", term);
    }
    *ret_filter = TAKE(filter);
    return 0;
}

/* ---- one exchange ---- */

static json_t *body_new(const struct bulk *bulk)
{
    json_t *body = json_object();

    if (bulk->filter != NULL)
        (void)json_object_set(body, "filter", bulk->filter);
    else if (bulk->settings->all)
        (void)json_object_set_new(body, "all", json_true());
    if (strcmp(bulk->action, "priority") == 0)
        (void)json_object_set_new(body, "priority", json_integer(bulk->settings->to));
    return body;
}

static int post(const struct bulk *bulk, json_t *body, json_t **ret_answer, struct err *err)
{
    const struct client_call call = {.method = "POST", .path = bulk->path, .body = body};
    int status;

    return client_exchange(bulk->client, &call, &status, ret_answer, err);
}

/* ---- what would happen ---- */

static void show_plan(const struct bulk *bulk, const json_t *plan, FILE *to)
{
    static const struct table_column groups[] = {
        {"MODEL", "model_id", false, true},
        {"STATUS", "status", false, false},
        {"ERROR CLASS", "error_class", false, true},
        {"JOBS", "count", true, false},
    };
    static const struct table_column sample[] = {
        {"REQUEST", "request_id", false, false}, {"STATUS", "status", false, false},
        {"MODEL", "model_id", false, true},      {"ERROR CLASS", "error_class", false, true},
        {"ROUND", "round", true, false},         {"CREATED", "created_at", false, true},
    };
    json_int_t matched = json_integer_value(json_object_get(plan, "matched"));
    json_int_t gone = json_integer_value(json_object_get(plan, "input_gone"));
    struct err err;

    (void)fprintf(to, "%s%lld job%s match\n",
                  json_is_true(json_object_get(plan, "is_complete")) ? "" : "at least ",
                  (long long)matched, matched == 1 ? "" : "s");
    if (gone > 0)
        (void)fprintf(to, "%lld of them cannot be replayed: their input is gone\n",
                      (long long)gone);
    if (table_print(to, json_object_get(plan, "groups"), groups, COUNT_OF(groups), "", &err) < 0 ||
        table_print(to, json_object_get(plan, "sample"), sample, COUNT_OF(sample), "", &err) < 0)
        (void)client_complain(bulk->verb, &err);
}

/* Asks the person at the terminal. */
static bool confirmed(const struct bulk *bulk)
{
    char answer[16] = "";

    if (bulk->settings->yes)
        return true;
    if (isatty(STDIN_FILENO) != 1) {
        (void)fprintf(stderr, "headrace %s: nobody is here to be asked; --yes goes on\n",
                      bulk->verb);
        return false;
    }
    (void)fprintf(stderr, "%s them? [y/N] ", bulk->action);
    return fgets(answer, sizeof(answer), stdin) != NULL && (answer[0] == 'y' || answer[0] == 'Y');
}

/* Returns an exit code, or -1 to go on. */
static int plan(const struct bulk *bulk)
{
    OWNED(client_json_free) json_t *body = body_new(bulk);
    OWNED(client_json_free) json_t *answer = NULL;
    struct err err;

    (void)json_object_set_new(body, "dry_run", json_true());
    if (post(bulk, body, &answer, &err) < 0)
        return client_complain(bulk->verb, &err);
    if (bulk->settings->json &&
        (bulk->settings->dry_run || json_integer_value(json_object_get(answer, "matched")) == 0))
        table_print_json(stdout, answer);
    else
        show_plan(bulk, answer, bulk->settings->dry_run ? stdout : stderr);
    if (json_integer_value(json_object_get(answer, "matched")) == 0) {
        (void)fprintf(stderr, "headrace %s: no job matches\n", bulk->verb);
        return CLI_EXIT_NOTHING;
    }
    if (bulk->settings->dry_run)
        return CLI_EXIT_OK;
    return confirmed(bulk) ? -1 : CLI_EXIT_USAGE;
}

/* ---- asking, page by page ---- */

static void progress(const struct bulk *bulk, const char *what, json_int_t n)
{
    if (bulk->terminal && !bulk->settings->json)
        (void)fprintf(stderr, "\r\033[K%s %lld", what, (long long)n);
}

static void take_page(struct bulk *bulk, const json_t *answer)
{
    json_t *operation = json_object_get(answer, "operation_id");

    bulk->accepted += json_integer_value(json_object_get(answer, "accepted"));
    (void)json_array_extend(bulk->refused, json_object_get(answer, "refused"));
    if (json_is_string(operation)) {
        json_decref(bulk->operation);
        bulk->operation = json_incref(operation);
    }
    progress(bulk, "asked for", bulk->accepted);
}

/* One page; *cursor_p becomes the next one's, JSON null at the end. */
static int ask_page(struct bulk *bulk, json_t *body, json_t **cursor_p, struct err *err)
{
    OWNED(client_json_free) json_t *answer = NULL;
    int r;

    if (bulk->operation != NULL)
        (void)json_object_set(body, "operation_id", bulk->operation);
    r = post(bulk, body, &answer, err);
    if (r < 0)
        return r;
    take_page(bulk, answer);
    json_decref(*cursor_p);
    *cursor_p = json_incref(json_object_get(answer, "next_cursor"));
    return 0;
}

static int ask_filter(struct bulk *bulk, struct err *err)
{
    OWNED(client_json_free) json_t *cursor = json_null();
    int r = 0;

    do {
        OWNED(client_json_free) json_t *body = body_new(bulk);

        if (json_is_string(cursor))
            (void)json_object_set(body, "cursor", cursor);
        r = ask_page(bulk, body, &cursor, err);
    } while (r == 0 && json_is_string(cursor));
    return r;
}

static int ask_ids(struct bulk *bulk, char **ids, int count, struct err *err)
{
    OWNED(client_json_free) json_t *cursor = json_null();
    int r = 0;

    for (int i = 0; r == 0 && i < count; i += PAGE) {
        OWNED(client_json_free) json_t *body = body_new(bulk);
        json_t *page = json_array();

        for (int j = i; j < count && j < i + PAGE; j++)
            (void)json_array_append_new(page, json_string(ids[j]));
        (void)json_object_set_new(body, "request_ids", page);
        r = ask_page(bulk, body, &cursor, err);
    }
    return r;
}

/* ---- what came of it ---- */

/* Waits until the owners have decided, at most --wait; *ret_answer is NULL when nothing was asked.
 */
static int wait_done(const struct bulk *bulk, json_t **ret_answer, struct err *err)
{
    uint64_t end_ms = clock_mono_ms() + bulk->settings->wait_ms;
    OWNED(mem_free) char *path = NULL;
    struct client_call call = {.method = "GET"};
    int wait_ms = POLL_MS_FIRST, status, r;

    if (bulk->operation == NULL)
        return 0;
    call.path = path = path_make("/v1/jobs/operations/%", json_string_value(bulk->operation));
    for (;;) {
        json_int_t pending;

        r = client_exchange(bulk->client, &call, &status, ret_answer, err);
        if (r < 0)
            return r;
        pending = json_integer_value(json_object_get(*ret_answer, "pending"));
        if (pending == 0 || clock_mono_ms() >= end_ms)
            return 0;
        progress(bulk, "waiting for", pending);
        client_json_free(ret_answer);
        *ret_answer = NULL;
        (void)poll(NULL, 0, wait_ms);
        wait_ms = wait_ms * 3 / 2 < POLL_MS_MAX ? wait_ms * 3 / 2 : POLL_MS_MAX;
    }
}

static void show_reasons(const json_t *list, const char *text, const char *count)
{
    size_t i;
    json_t *row;

    json_array_foreach((json_t *)list, i, row)
    {
        const char *why = json_string_value(json_object_get(row, text));
        const json_t *number = json_object_get(row, count);

        if (json_is_integer(number))
            (void)fprintf(stderr, "  %lld: %s\n", (long long)json_integer_value(number), why);
        else
            (void)fprintf(stderr, "  %s: %s\n", json_string_value(number), why);
    }
}

static int report(const struct bulk *bulk, json_t *answer)
{
    json_int_t refused_early = (json_int_t)json_array_size(bulk->refused);
    json_int_t pending = json_integer_value(json_object_get(answer, "pending"));
    json_int_t applied = json_integer_value(json_object_get(answer, "applied"));
    json_int_t refused = refused_early + json_integer_value(json_object_get(answer, "refused"));

    if (bulk->terminal && !bulk->settings->json)
        (void)fprintf(stderr, "\r\033[K");
    if (bulk->settings->json) {
        OWNED(client_json_free)
        json_t *all = json_pack("{s:s, s:O?, s:I, s:I, s:I, s:I, s:O, s:O?}", "action",
                                bulk->action, "operation_id", bulk->operation, "accepted",
                                bulk->accepted, "applied", applied, "refused", refused, "pending",
                                pending, "refused_requests", bulk->refused, "reasons",
                                json_object_get(answer, "reasons"));

        table_print_json(stdout, all);
    } else {
        (void)printf("%s: %lld applied, %lld refused, %lld pending\n", bulk->action,
                     (long long)applied, (long long)refused, (long long)pending);
        show_reasons(bulk->refused, "message", "request_id");
        show_reasons(json_object_get(answer, "reasons"), "reason", "count");
        if (pending > 0)
            (void)fprintf(stderr, "operation %s goes on; GET /v1/jobs/operations/%s tells more\n",
                          json_string_value(bulk->operation), json_string_value(bulk->operation));
    }
    return refused > 0 ? CLI_EXIT_FAILED : CLI_EXIT_OK;
}

static void bulk_done(struct bulk *bulk)
{
    json_decref(bulk->filter);
    json_decref(bulk->operation);
    json_decref(bulk->refused);
}

static int bulk_check(struct bulk *bulk, int operand_count, struct err *err)
{
    const struct bulk_settings *settings = bulk->settings;

    if (operand_count > 0 && bulk_has_filter(settings))
        return err_set(err, ERR_USAGE, "request ids or a filter, not both");
    if (operand_count == 0 && !bulk_has_filter(settings))
        return err_set(err, ERR_USAGE, "which jobs? request ids, --where or --all");
    if (settings->all && settings->where[0] != '\0')
        return err_set(err, ERR_USAGE, "--where or --all, not both");
    if (operand_count > 0 && settings->dry_run)
        return err_set(err, ERR_USAGE, "--dry-run is for --where and --all");
    return settings->where[0] == '\0' ? 0 : bulk_read_where(settings->where, &bulk->filter, err);
}

int bulk_run(const struct client *client, const char *action, const struct bulk_settings *settings,
             char **operands, int operand_count)
{
    OWNED(bulk_done)
    struct bulk bulk = {.client = client,
                        .settings = settings,
                        .action = action,
                        .refused = json_array(),
                        .terminal = isatty(STDERR_FILENO) == 1};
    OWNED(client_json_free) json_t *answer = NULL;
    struct err err;
    int r, code;

    (void)snprintf(bulk.verb, sizeof(bulk.verb), "jobs %s", action);
    (void)snprintf(bulk.path, sizeof(bulk.path), "/v1/jobs/%s", action);
    if (bulk_check(&bulk, operand_count, &err) < 0)
        return client_complain(bulk.verb, &err);
    if (operand_count == 0) {
        code = plan(&bulk);
        if (code >= 0)
            return code;
    }
    r = operand_count > 0 ? ask_ids(&bulk, operands, operand_count, &err) : ask_filter(&bulk, &err);
    if (r == 0)
        r = wait_done(&bulk, &answer, &err);
    if (r < 0)
        return client_complain(bulk.verb, &err);
    return report(&bulk, answer);
}
