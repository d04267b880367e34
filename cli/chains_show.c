/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Chains and runs as pictures, and what is done with a run.
 *
 * A picture that is watched is drawn over itself on a terminal; elsewhere it is printed again when
 * something has changed.
 */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/chain_graph.h"
#include "cli/chains.h"
#include "cli/list.h"
#include "cli/watch.h"
#include "schema/job_id.h"

#define POLL_MS 300
#define NEW_MS 10000
#define PICTURE_SIZE_MAX (4u << 20)

static int run_fetch(const struct client *client, const char *id, json_t **ret_run, struct err *err)
{
    OWNED(mem_free) char *path = path_make("/v1/chain_runs/%", id);
    const struct client_call call = {.method = "GET", .path = path};
    int status;

    return client_exchange(client, &call, &status, ret_run, err);
}

/* ---- show ---- */

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text == NULL ? "" : text;
}

/* The run in a line or two, its picture, and why steps have failed. */
static int run_draw(const json_t *run, bool colour, struct buf *to, size_t *ret_lines,
                    struct err *err)
{
    OWNED(chain_graph_free) struct chain_graph *graph = NULL;
    const json_t *steps = json_object_get(run, "steps");
    size_t i;
    json_t *step;
    int r = chain_graph_new(steps, &graph, err);

    if (r < 0)
        return r;
    buf_printf(to, "%s  %s  %s\n", text_of(run, "id"), text_of(run, "chain"),
               text_of(run, "status"));
    *ret_lines = 1 + chain_graph_draw(graph, colour, to);
    json_array_foreach(steps, i, step)
    {
        if (text_of(step, "error_message")[0] == '\0')
            continue;
        buf_printf(to, "%s: %.200s\n", text_of(step, "name"), text_of(step, "error_message"));
        ++*ret_lines;
    }
    if (text_of(run, "error_message")[0] != '\0') {
        buf_printf(to, "%.300s\n", text_of(run, "error_message"));
        ++*ret_lines;
    }
    return buf_check(to, "the picture", err);
}

/* The picture that stands there. */
struct view {
    bool terminal, colour;
    size_t lines;
    struct buf last;
};

static int view_show(struct view *view, const json_t *run, struct err *err)
{
    struct buf now = BUF_WITH_LIMIT(PICTURE_SIZE_MAX);
    size_t lines;
    int r = run_draw(run, view->colour, &now, &lines, err);

    if (r < 0 || (now.size == view->last.size && view->last.size > 0 &&
                  memcmp(now.bytes, view->last.bytes, now.size) == 0)) {
        buf_done(&now);
        return r;
    }
    if (view->terminal && view->lines > 0)
        (void)printf("\033[%zuA\033[J", view->lines);
    else if (view->lines > 0)
        (void)fputc('\n', stdout);
    (void)fwrite(now.bytes, 1, now.size, stdout);
    (void)fflush(stdout);
    view->lines = lines;
    buf_done(&view->last);
    buf_move(&view->last, &now);
    return 0;
}

/* A run is seen when its coordinator has begun with it: not at once. */
static bool run_is_new(const char *text)
{
    uint64_t now_ms = clock_wall_us() / 1000;
    struct wire_id id;
    struct err err;

    return job_id_parse(text, &id, &err) == 0 && job_id_time_ms(&id) + NEW_MS > now_ms;
}

int chains_show(const struct client *client, const void *values, char **operands, int operand_count)
{
    const struct chains_show_settings *settings = values;
    bool terminal = isatty(STDOUT_FILENO) == 1;
    struct view view = {terminal, terminal && getenv("NO_COLOR") == NULL, 0,
                        BUF_WITH_LIMIT(PICTURE_SIZE_MAX)};
    bool over = false;
    struct err err;
    int r = 0;

    if (!verb_operands("one run", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    while (!over && r == 0) {
        OWNED(client_json_free) json_t *run = NULL;

        r = run_fetch(client, operands[0], &run, &err);
        if (r == ERR_NOT_FOUND && run_is_new(operands[0])) {
            (void)poll(NULL, 0, POLL_MS);
            r = 0;
            continue;
        }
        over = !settings->watch || watch_is_final(text_of(run, "status"));
        if (r == 0 && !settings->json)
            r = view_show(&view, run, &err);
        else if (r == 0 && over)
            table_print_json(stdout, run);
        if (!over)
            (void)poll(NULL, 0, POLL_MS);
    }
    buf_done(&view.last);
    return r < 0 ? client_complain("chains show", &err) : CLI_EXIT_OK;
}

/* ---- graph ---- */

static int steps_of_file(const char *path, json_t **ret_steps, struct err *err)
{
    OWNED(client_json_free) json_t *json = NULL;
    OWNED(chain_free) struct chain *chain = NULL;
    size_t count;
    int r = chains_read(path, &json, &count, err);

    if (r == 0)
        r = chain_parse(json, &chain, err);
    if (r == 0)
        *ret_steps = chain_graph_steps(chain);
    return r;
}

static int steps_of_run(const struct chains_graph_settings *settings, const char *id,
                        json_t **ret_steps, struct err *err)
{
    OWNED(client_json_free) json_t *run = NULL;
    OWNED(client_done) struct client client = {0};
    int r = verb_client((const struct verb_common *)settings, &client, err);

    if (r == 0)
        r = run_fetch(&client, id, &run, err);
    if (r == 0)
        *ret_steps = json_incref(json_object_get(run, "steps"));
    return r;
}

int chains_graph(const struct client *client, const void *values, char **operands,
                 int operand_count)
{
    const struct chains_graph_settings *settings = values;
    OWNED(buf_done) struct buf picture = BUF_WITH_LIMIT(PICTURE_SIZE_MAX);
    OWNED(client_json_free) json_t *steps = NULL;
    OWNED(chain_graph_free) struct chain_graph *graph = NULL;
    struct err err;
    int r;

    (void)client;
    if (!verb_operands("one file or run", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    if (strcmp(operands[0], "-") == 0 || access(operands[0], F_OK) == 0)
        r = steps_of_file(operands[0], &steps, &err);
    else
        r = steps_of_run(settings, operands[0], &steps, &err);
    if (r == 0 && settings->json) {
        table_print_json(stdout, steps);
        return CLI_EXIT_OK;
    }
    if (r == 0)
        r = chain_graph_new(steps, &graph, &err);
    if (r < 0)
        return client_complain("chains graph", &err);
    if (settings->svg)
        chain_graph_svg(graph, &picture);
    else if (settings->dot)
        chain_graph_dot(graph, &picture);
    else
        (void)chain_graph_draw(graph, false, &picture);
    if (buf_check(&picture, "the picture", &err) < 0)
        return client_complain("chains graph", &err);
    (void)fwrite(picture.bytes, 1, picture.size, stdout);
    return CLI_EXIT_OK;
}

/* ---- cancel, retry ---- */

int chains_cancel(const struct client *client, const void *values, char **operands,
                  int operand_count)
{
    const struct chains_plain_settings *settings = values;
    OWNED(mem_free) char *path = NULL;

    if (!verb_operands("one run", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    path = path_make("/async_request/%", operands[0]);
    return show_run(client, "chains cancel", "DELETE", path, NULL, settings->json);
}

int chains_retry(const struct client *client, const void *values, char **operands,
                 int operand_count)
{
    const struct chains_retry_settings *settings = values;
    OWNED(client_json_free) json_t *body = NULL;
    OWNED(client_json_free) json_t *forgotten = NULL;
    OWNED(mem_free) char *path = NULL;
    struct client_call call = {.method = "POST"};
    struct err err;
    int status;

    if (!verb_operands("one run", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    call.path = path = path_make("/v1/chain_runs/%/forget?from=%", operands[0], settings->from);
    if (settings->from[0] != '\0' && client_exchange(client, &call, &status, &forgotten, &err) < 0)
        return client_complain("chains retry", &err);
    body = json_pack("{s:[s]}", "request_ids", operands[0]);
    return show_run(client, "chains retry", "POST", "/v1/jobs/replay", body, settings->json);
}

/* ---- init ---- */

static const char template_text[] =
    "# A chain: models whose outputs are inputs of others (docs/chains.md).\n"
    "#\n"
    "#     headrace chains check chain.yaml\n"
    "#     headrace chains graph chain.yaml\n"
    "#     headrace chains push chain.yaml --name=NAME\n"
    "#     headrace chains run NAME --input '{\"texts\": [\"water\", \"a wheel\"]}'\n"
    "description: embeds each text of a list\n"
    "steps:\n"
    "  embed:\n"
    "    model: minilm                    # name of a model that is deployed\n"
    "    map: \"{{input.texts}}\"           # a job for each; without it, one job\n"
    "    input: {input: \"{{item}}\"}\n"
    "    max_parallel: 16\n"
    "    # on_error: skip                 # go on without it when it fails\n"
    "    # when: \"{{input.wanted?}}\"      # skip it unless this is so\n"
    "output: {vectors: \"{{steps.embed.output}}\"}\n";

int chains_init(const struct client *client, const void *values, char **operands, int operand_count)
{
    OWNED(mem_free) char *path = NULL;
    struct err err;
    ssize_t n = -1;
    int fd;

    (void)client;
    (void)values;
    if (!verb_operands("one directory", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    path = xasprintf("%s/chain.yaml", operands[0]);
    if (mkdir(operands[0], 0777) < 0 && errno != EEXIST) {
        (void)err_set_errno(&err, ERR_USAGE, "make the directory %s", operands[0]);
        return client_complain("chains init", &err);
    }
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0) {
        n = write(fd, template_text, strlen(template_text));
        (void)close(fd);
    }
    if (n != (ssize_t)strlen(template_text)) {
        (void)err_set_errno(&err, ERR_USAGE, "write %s", path);
        return client_complain("chains init", &err);
    }
    (void)printf("%s\n", path);
    return CLI_EXIT_OK;
}
