/* SPDX-License-Identifier: Apache-2.0 */

/* headrace chains: declared chains, and what their runs have come to. */

#include <stdlib.h>
#include <string.h>

#include "cli/chains.h"
#include "cli/list.h"
#include "cli/push_model.h"
#include "cli/watch.h"
#include "schema/chain.h"

int chains_main(int argc, char **argv);

static const struct setting plain_rows[] = {
#define SETTINGS_ROWS struct chains_plain_settings
#include "base/settings_rows.def"
    VERB_COMMON_SETTINGS
#include "base/settings_end.def"
};

#define PLAIN_ACTION plain_rows, COUNT_OF(plain_rows), sizeof(struct chains_plain_settings)

/* ---- check ---- */

static int chains_check(const struct client *client, const void *values, char **operands,
                        int operand_count)
{
    OWNED(client_json_free) json_t *json = NULL;
    size_t steps = 0;
    struct err err;

    (void)client;
    (void)values;
    if (!verb_operands("one file", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    if (chains_read(operands[0], &json, &steps, &err) < 0)
        return client_complain("chains check", &err);
    (void)printf("%s: a chain of %zu step%s\n", operands[0], steps, steps == 1 ? "" : "s");
    return CLI_EXIT_OK;
}

/* ---- push ---- */

static const struct setting push_rows[] = {
#define SETTINGS_ROWS struct chains_push_settings
#include "base/settings_rows.def"
    CHAINS_PUSH_SETTINGS
#include "base/settings_end.def"
};

/* Sends the chain as a new deployment; *ret_id is its id, which the caller frees. */
static int chain_send(const struct client *client, const struct chains_push_settings *settings,
                      json_t *chain, char **ret_id, struct err *err)
{
    OWNED(buf_done) struct buf path = BUF_WITH_LIMIT(1024);
    OWNED(mem_free) char *route = path_make("/v1/models/%/deployments", settings->name);
    OWNED(client_json_free) json_t *answer = NULL;
    OWNED(client_json_free)
    json_t *body = json_pack("{s:s, s:I, s:O}", "engine", "chain", "replicas",
                             (json_int_t)settings->replicas, "settings", chain);
    struct client_call call = {.method = "POST", .body = body};
    const char *id;
    int status, r;

    if (settings->slots > 0)
        (void)json_object_set_new(body, "slots", json_integer(settings->slots));
    buf_printf(&path, "%s?v=1", route);
    path_append_field(&path, "environment", settings->environment);
    call.path = buf_text(&path);
    r = client_exchange(client, &call, &status, &answer, err);
    if (r < 0)
        return r;
    id = json_string_value(json_object_get(answer, "id"));
    if (id == NULL)
        return err_set(err, ERR_MALFORMED, "the gateway's answer has no id");
    *ret_id = xstrdup(id);
    return 0;
}

static bool is_python(const char *path)
{
    size_t size = strlen(path);

    return size > 3 && strcmp(path + size - 3, ".py") == 0;
}

static int chains_push(const struct client *client, const void *values, char **operands,
                       int operand_count)
{
    const struct chains_push_settings *settings = values;
    OWNED(client_json_free) json_t *chain = NULL;
    OWNED(client_json_free) json_t *state = NULL;
    OWNED(mem_free) char *id = NULL;
    size_t steps;
    struct err err;

    if (!verb_operands("one file", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    if (is_python(operands[0]))
        return chains_push_python(client, settings, operands[0]);
    if (settings->name[0] == '\0') {
        (void)err_set(&err, ERR_USAGE, "--name is missing");
        return client_complain("chains push", &err);
    }
    if (chains_read(operands[0], &chain, &steps, &err) < 0 ||
        chain_send(client, settings, chain, &id, &err) < 0)
        return client_complain("chains push", &err);
    if (settings->no_wait) {
        (void)printf("%s\n", id);
        return CLI_EXIT_OK;
    }
    if (push_model_wait(client, settings->name, id, settings->timeout_ms, &state, &err) < 0)
        return client_complain("chains push", &err);
    return push_model_report("chains push", settings->name, state, settings->json);
}

/* ---- run ---- */

#define RUN_SETTINGS                                                                               \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(input, "{}", "the run's input: JSON, @FILE, or - for standard input")           \
    SETTING_STRING(environment, "production", "environment whose deployment runs it")              \
    SETTING_BOOL(no_wait, false, "print the id of the run and leave")                              \
    SETTING_BOOL(quiet, false, "say nothing while it runs")

struct run_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    RUN_SETTINGS
#include "base/settings_end.def"
};

static const struct setting run_rows[] = {
#define SETTINGS_ROWS struct run_settings
#include "base/settings_rows.def"
    RUN_SETTINGS
#include "base/settings_end.def"
};

static int run_output(const struct client *client, const char *id, bool quiet)
{
    OWNED(buf_done) struct buf output = BUF_WITH_LIMIT(CLI_ANSWER_SIZE_MAX);
    OWNED(mem_free) char *path = path_make("/async_request/%/result", id);
    OWNED(client_json_free) json_t *status = NULL;
    const char *state;
    struct err err;

    if (watch_job(client, id, quiet, &status, &err) < 0)
        return client_complain("chains run", &err);
    state = json_string_value(json_object_get(status, "status"));
    if (state == NULL ||
        (strcmp(state, "SUCCEEDED") != 0 && strcmp(state, "WEBHOOK_FAILED") != 0)) {
        const char *why = json_string_value(
            json_object_get(json_array_get(json_object_get(status, "errors"), 0), "message"));

        (void)fprintf(stderr, "headrace chains run: %s %s%s%s\n", id, state == NULL ? "" : state,
                      why == NULL ? "" : ": ", why == NULL ? "" : why);
        return CLI_EXIT_FAILED;
    }
    if (client_fetch(client, path, &output, &err) < 0)
        return client_complain("chains run", &err);
    (void)fwrite(buf_text(&output), 1, output.size, stdout);
    (void)fputc('\n', stdout);
    return CLI_EXIT_OK;
}

int chains_follow(const struct client *client, const char *id, bool no_wait, bool quiet)
{
    if (id == NULL)
        return CLI_EXIT_REFUSED;
    if (no_wait) {
        (void)printf("%s\n", id);
        return CLI_EXIT_OK;
    }
    if (!quiet)
        (void)fprintf(stderr, "run %s\n", id);
    return run_output(client, id, quiet);
}

static int chains_run(const struct client *client, const void *values, char **operands,
                      int operand_count)
{
    const struct run_settings *settings = values;
    OWNED(client_json_free) json_t *body = NULL;
    OWNED(client_json_free) json_t *answer = NULL;
    OWNED(mem_free) char *path = NULL;
    struct client_call call = {.method = "POST"};
    json_t *input;
    struct err err;
    int status;

    if (!verb_operands("one chain", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    if (chains_input(settings->input, &input, &err) < 0)
        return client_complain("chains run", &err);
    path = path_make("/chain/%/environments/%/async_run_remote", operands[0],
                     settings->environment);
    body = json_pack("{s:o}", "model_input", input);
    call.path = path;
    call.body = body;
    if (client_exchange(client, &call, &status, &answer, &err) < 0)
        return client_complain("chains run", &err);
    return chains_follow(client, json_string_value(json_object_get(answer, "request_id")),
                         settings->no_wait, settings->quiet);
}

/* ---- runs ---- */

static int chains_ls(const struct client *client, const void *values, char **operands,
                     int operand_count)
{
    static const struct table_column columns[] = {
        {"ID", "id", false, false},
        {"NAME", "name", false, false},
        {"DEPLOYMENTS", "deployments_count", true, false},
        {"CREATED", "created_at", false, true},
    };
    static const struct list_view view = {"chains ls", "/v1/chains", "chains",
                                          "no chains", columns,      COUNT_OF(columns)};
    const struct chains_plain_settings *settings = values;

    (void)operands;
    if (!verb_operands("nothing", operand_count, 0, 0))
        return CLI_EXIT_USAGE;
    return list_run(client, &view, settings->json);
}

static int chains_runs(const struct client *client, const void *values, char **operands,
                       int operand_count)
{
    static const struct table_column columns[] = {
        {"RUN", "id", false, false},
        {"CHAIN", "chain", false, true},
        {"STATUS", "status", false, false},
        {"JOBS", "jobs", true, false},
        {"OVER", "jobs_over", true, false},
        {"ATTEMPTS", "attempts", true, false},
        {"ACCEPTED", "accepted_at", false, true},
        {"ERROR", "error_message", false, true},
    };
    const struct chains_plain_settings *settings = values;
    OWNED(buf_done) struct buf path = BUF_WITH_LIMIT(1024);
    struct list_view view = {"chains runs", NULL,
                             "chain_runs",  "no run of a chain has begun",
                             columns,       COUNT_OF(columns)};

    if (!verb_operands("at most one chain", operand_count, 0, 1))
        return CLI_EXIT_USAGE;
    buf_append_text(&path, "/v1/chain_runs?limit=100");
    path_append_field(&path, "chain", operand_count > 0 ? operands[0] : "");
    view.path = buf_text(&path);
    return list_run(client, &view, settings->json);
}

static const struct setting graph_rows[] = {
#define SETTINGS_ROWS struct chains_graph_settings
#include "base/settings_rows.def"
    CHAINS_GRAPH_SETTINGS
#include "base/settings_end.def"
};

static const struct setting show_rows[] = {
#define SETTINGS_ROWS struct chains_show_settings
#include "base/settings_rows.def"
    CHAINS_SHOW_SETTINGS
#include "base/settings_end.def"
};

static const struct setting retry_rows[] = {
#define SETTINGS_ROWS struct chains_retry_settings
#include "base/settings_rows.def"
    CHAINS_RETRY_SETTINGS
#include "base/settings_end.def"
};

static const struct setting rerun_rows[] = {
#define SETTINGS_ROWS struct chains_rerun_settings
#include "base/settings_rows.def"
    CHAINS_RERUN_SETTINGS
#include "base/settings_end.def"
};

/* Those that need no gateway; `graph` may, for a run. */
static bool is_offline(const char *action)
{
    return strcmp(action, "init") == 0 || strcmp(action, "check") == 0 ||
           strcmp(action, "graph") == 0;
}

/* ---- approve, reject ---- */

#define DECIDE_SETTINGS                                                                            \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(input, "",                                                                      \
                   "of approve: the step's output: JSON, @FILE, or - for standard input")          \
    SETTING_STRING(reason, "", "of reject: why not")

struct decide_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    DECIDE_SETTINGS
#include "base/settings_end.def"
};

static const struct setting decide_rows[] = {
#define SETTINGS_ROWS struct decide_settings
#include "base/settings_rows.def"
    DECIDE_SETTINGS
#include "base/settings_end.def"
};

static void chains_print(const json_t *answer, bool as_json)
{
    if (as_json)
        table_print_json(stdout, answer);
    else
        table_print_object(stdout, answer);
}

static int chains_decide(const struct client *client, const struct decide_settings *settings,
                         const char *path, const char *verb)
{
    OWNED(client_json_free) json_t *body = NULL;
    OWNED(client_json_free) json_t *answer = NULL;
    const bool has_input = settings->input[0] != '\0', has_reason = settings->reason[0] != '\0';
    struct client_call call = {.method = "POST", .path = path};
    struct err err;
    int status;

    if (has_input && chains_input(settings->input, &body, &err) < 0)
        return client_complain(verb, &err);
    if (!has_input && has_reason)
        body = json_pack("{s:s}", "reason", settings->reason);
    call.body = body;
    if (client_exchange(client, &call, &status, &answer, &err) < 0)
        return client_complain(verb, &err);
    chains_print(answer, settings->json);
    return CLI_EXIT_OK;
}

static int chains_approve(const struct client *client, const void *values, char **operands,
                          int operand_count)
{
    OWNED(mem_free) char *path = NULL;

    if (!verb_operands("a run and a step", operand_count, 2, 2))
        return CLI_EXIT_USAGE;
    path = path_make("/v1/chain_runs/%/steps/%/approve", operands[0], operands[1]);
    return chains_decide(client, values, path, "chains approve");
}

static int chains_reject(const struct client *client, const void *values, char **operands,
                         int operand_count)
{
    OWNED(mem_free) char *path = NULL;

    if (!verb_operands("a run and a step", operand_count, 2, 2))
        return CLI_EXIT_USAGE;
    path = path_make("/v1/chain_runs/%/steps/%/reject", operands[0], operands[1]);
    return chains_decide(client, values, path, "chains reject");
}

static int chains_token(const struct client *client, const void *values, char **operands,
                        int operand_count)
{
    OWNED(client_json_free) json_t *answer = NULL;
    OWNED(mem_free) char *path = NULL;
    const struct chains_plain_settings *settings = values;
    struct client_call call = {.method = "POST"};
    struct err err;
    int status;

    if (!verb_operands("a run and a step", operand_count, 2, 2))
        return CLI_EXIT_USAGE;
    call.path = path = path_make("/v1/chain_runs/%/steps/%/token", operands[0], operands[1]);
    if (client_exchange(client, &call, &status, &answer, &err) < 0)
        return client_complain("chains token", &err);
    chains_print(answer, settings->json);
    return CLI_EXIT_OK;
}

int chains_main(int argc, char **argv)
{
    static const struct verb_action actions[] = {
        {"ls", NULL, "Lists chains.", PLAIN_ACTION, chains_ls},
        {"init", "DIR", "Makes a folder with a chain to begin with.", PLAIN_ACTION, chains_init},
        {"check", "FILE", "Reads a chain.yaml and says what is wrong in it.", PLAIN_ACTION,
         chains_check},
        {"graph", "FILE|RUN", "Draws a chain that is in a file, or of a run.", graph_rows,
         COUNT_OF(graph_rows), sizeof(struct chains_graph_settings), chains_graph},
        {"push", "FILE", "Deploys a chain: a chain.yaml, or a Python file of truss_chains.",
         push_rows, COUNT_OF(push_rows), sizeof(struct chains_push_settings), chains_push},
        {"run", "CHAIN", "Runs a chain and prints its output.", run_rows, COUNT_OF(run_rows),
         sizeof(struct run_settings), chains_run},
        {"runs", "[CHAIN]", "Lists the newest runs.", PLAIN_ACTION, chains_runs},
        {"show", "RUN", "Draws a run and what its steps have come to.", show_rows,
         COUNT_OF(show_rows), sizeof(struct chains_show_settings), chains_show},
        {"cancel", "RUN", "Cancels a run and all that it has submitted.", PLAIN_ACTION,
         chains_cancel},
        {"retry", "RUN", "Goes on with a run that has failed: what succeeded is not run again.",
         retry_rows, COUNT_OF(retry_rows), sizeof(struct chains_retry_settings), chains_retry},
        {"rerun", "RUN", "Runs it again, from a step on or with another input, as a new run.",
         rerun_rows, COUNT_OF(rerun_rows), sizeof(struct chains_rerun_settings), chains_rerun},
        {"approve", "RUN STEP", "Says yes to a step that asks for an approval.", decide_rows,
         COUNT_OF(decide_rows), sizeof(struct decide_settings), chains_approve},
        {"token", "RUN STEP", "Makes a token that answers it once, for who has no API key.",
         PLAIN_ACTION, chains_token},
        {"reject", "RUN STEP", "Says no to it: the step fails.", decide_rows, COUNT_OF(decide_rows),
         sizeof(struct decide_settings), chains_reject},
    };
    static const struct verb verb = {"chains", "Models that feed models, durably.", actions,
                                     COUNT_OF(actions)};

    if (argc > 1 && is_offline(argv[1]))
        return verb_main_offline(&verb, argc, argv);
    return verb_main(&verb, argc, argv);
}
