/* SPDX-License-Identifier: Apache-2.0 */

/*
 * headrace chains push FILE.py: a chain of the truss package.
 *
 *   the package's own generator makes a Truss of each chainlet (chains_generate.py)
 *   -> the secret with the key that they call each other with, if there is none yet
 *   -> each is a model, CHAIN.CHAINLET, with a deployment of one name, PUSH
 *   -> when these are ready, the entrypoint: the model CHAIN, at which the environment points
 *
 * Chainlets know each other by that name, so an entrypoint only ever meets those of its own push.
 * A failure leaves what runs alone: nobody is pointed at the new ones.
 */

#include <errno.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/rng.h"
#include "cli/chains.h"
#include "cli/list.h"
#include "cli/push_folder.h"
#include "cli/push_model.h"

#define KEY_SECRET "baseten_chain_api_key"
#define EXIT_NO_TRUSS 3
#define CHAINLETS_MAX 1000

extern char **environ;

/* ---- the generator ---- */

static int generator_outcome(const char *python, int status, struct err *err)
{
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_NO_TRUSS)
        return err_set(err, ERR_DEPENDENCY,
                       "a chain in Python needs the truss package: --python names a Python that "
                       "has it, and '%.100s' has not (scripts/python/venv compare makes one)",
                       python);
    return err_set(err, ERR_USAGE, "'%.100s' could not make Trusses of the chain's chainlets",
                   python);
}

/* What it says goes to standard error. */
static int generator_run(const struct chains_push_settings *settings, const char *file,
                         const char *deployment, const char *folder, struct err *err)
{
    char *const argv[] = {(char *)settings->python,
                          "-B",
                          "-c",
                          (char *)chains_generate_text,
                          (char *)file,
                          (char *)settings->entrypoint,
                          (char *)settings->name,
                          (char *)deployment,
                          (char *)folder,
                          NULL};
    int status, r;
    pid_t pid;

    r = posix_spawnp(&pid, settings->python, NULL, NULL, argv, environ);
    if (r != 0) {
        errno = r;
        return err_set_errno(err, ERR_DEPENDENCY, "start '%.100s' (--python)", settings->python);
    }
    while (waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR)
            return err_set_errno(err, ERR_IO, "wait for '%.100s'", settings->python);
    }
    return generator_outcome(settings->python, status, err);
}

static int generated_read(const char *folder, json_t **ret_made, struct err *err)
{
    OWNED(mem_free) char *path = xasprintf("%s/chain.json", folder);
    json_error_t where;
    json_t *made = json_load_file(path, 0, &where);

    if (made == NULL)
        return err_set(err, ERR_MALFORMED, "what the generator has written: %s", where.text);
    *ret_made = made;
    return 0;
}

/* ---- the key ---- */

static int secret_is_set(const struct client *client, bool *ret_set, struct err *err)
{
    const struct client_call call = {.method = "GET", .path = "/v1/secrets"};
    OWNED(client_json_free) json_t *answer = NULL;
    size_t i;
    json_t *secret;
    int status, r = client_exchange(client, &call, &status, &answer, err);

    *ret_set = false;
    if (r < 0)
        return r;
    json_array_foreach(json_object_get(answer, "secrets"), i, secret)
    {
        const char *name = json_string_value(json_object_get(secret, "name"));

        if (name != NULL && strcmp(name, KEY_SECRET) == 0)
            *ret_set = true;
    }
    return 0;
}

/* Chainlets call each other with a key that may do nothing else. */
static int key_ensure(const struct client *client, struct err *err)
{
    OWNED(client_json_free)
    json_t *wish = json_pack("{s:s, s:s}", "name", "calls between chainlets", "type",
                             "WORKSPACE_INVOKE");
    OWNED(client_json_free) json_t *key = NULL;
    OWNED(client_json_free) json_t *secret = NULL;
    OWNED(client_json_free) json_t *answer = NULL;
    struct client_call call = {.method = "POST", .path = "/v1/api_keys", .body = wish};
    bool set;
    int status, r = secret_is_set(client, &set, err);

    if (r < 0 || set)
        return r;
    r = client_exchange(client, &call, &status, &key, err);
    if (r < 0)
        return r;
    secret = json_pack("{s:s, s:O}", "name", KEY_SECRET, "value", json_object_get(key, "api_key"));
    if (secret == NULL)
        return err_set(err, ERR_MALFORMED, "the gateway's answer has no api_key");
    call.path = "/v1/secrets";
    call.body = secret;
    r = client_exchange(client, &call, &status, &answer, err);
    if (r == 0)
        (void)fprintf(stderr,
                      "made a key for calls between chainlets, the secret " KEY_SECRET "\n");
    return r;
}

/* ---- deploy ---- */

static int chainlet_send(const struct client *client, json_t *chainlet, const char *deployment,
                         const char *environment, struct err *err)
{
    const struct push_model push = {
        .folder = json_string_value(json_object_get(chainlet, "folder")),
        .name = json_string_value(json_object_get(chainlet, "model")),
        .deployment_name = deployment,
        .environment = environment,
        .device = "",
    };
    OWNED(mem_free) char *id = NULL;
    int r;

    if (push.folder == NULL || push.name == NULL)
        return err_set(err, ERR_MALFORMED, "what the generator has written has no such member");
    (void)fprintf(stderr, "%s: ", push.name);
    r = push_model_send(client, &push, &id, err);
    if (r < 0)
        return err_wrap(err, "chainlet %s", push.name);
    (void)json_object_set_new(chainlet, "deployment_id", json_string(id));
    (void)json_object_del(chainlet, "folder");
    return 0;
}

static int chainlet_wait(const struct client *client, json_t *chainlet, uint64_t timeout_ms,
                         struct err *err)
{
    const char *model = json_string_value(json_object_get(chainlet, "model"));
    OWNED(client_json_free) json_t *state = NULL;
    const char *status, *why;
    int r;

    (void)fprintf(stderr, "%s:\n", model);
    r = push_model_wait(client, model,
                        json_string_value(json_object_get(chainlet, "deployment_id")), timeout_ms,
                        &state, err);
    if (r < 0)
        return err_wrap(err, "chainlet %s", model);
    status = json_string_value(json_object_get(state, "status"));
    why = json_string_value(json_object_get(state, "error"));
    (void)json_object_set_new(chainlet, "status", json_string(status));
    if (strcmp(status, "ACTIVE") == 0)
        return 0;
    return err_set(err, ERR_UNAVAILABLE, "chainlet %s: %s%s%s", model, status,
                   why != NULL ? ": " : "", why != NULL ? why : "");
}

/* All but the last side by side, and when they are ready the last, the entrypoint. */
static int chainlets_deploy(const struct client *client,
                            const struct chains_push_settings *settings, const json_t *made,
                            struct err *err)
{
    const char *deployment = json_string_value(json_object_get(made, "deployment"));
    const json_t *chainlets = json_object_get(made, "chainlets");
    size_t count = json_array_size(chainlets);
    int r = count > 0 && count <= CHAINLETS_MAX && deployment != NULL
                ? 0
                : err_set(err, ERR_RANGE, "the chain has %zu chainlets; it must be 1 to %u", count,
                          CHAINLETS_MAX);

    for (size_t i = 0; i + 1 < count && r == 0; i++)
        r = chainlet_send(client, json_array_get(chainlets, i), deployment, "", err);
    for (size_t i = 0; i + 1 < count && r == 0; i++)
        r = chainlet_wait(client, json_array_get(chainlets, i), settings->timeout_ms, err);
    if (r == 0)
        r = chainlet_send(client, json_array_get(chainlets, count - 1), deployment,
                          settings->environment, err);
    if (r == 0 && !settings->no_wait)
        r = chainlet_wait(client, json_array_get(chainlets, count - 1), settings->timeout_ms, err);
    return r;
}

static void deployed_show(const json_t *made, bool json)
{
    static const struct table_column columns[] = {
        {"CHAINLET", "name", false, false},
        {"MODEL", "model", false, false},
        {"DEPLOYMENT", "deployment_id", false, false},
        {"STATUS", "status", false, false},
    };
    struct err err;

    if (json)
        table_print_json(stdout, made);
    else if (table_print(stdout, json_object_get(made, "chainlets"), columns, COUNT_OF(columns), "",
                         &err) < 0)
        (void)client_complain("chains push", &err);
}

int chains_push_python(const struct client *client, const struct chains_push_settings *settings,
                       const char *file)
{
    OWNED(push_folder_remove) char *folder = NULL;
    OWNED(client_json_free) json_t *made = NULL;
    char deployment[24];
    uint32_t number;
    struct err err;
    int r;

    rng_secret_bytes(&number, sizeof(number));
    (void)snprintf(deployment, sizeof(deployment), "push-%08x", (unsigned)number);
    r = push_folder_make("headrace-chain", &folder, &err);
    if (r == 0)
        r = generator_run(settings, file, deployment, folder, &err);
    if (r == 0)
        r = generated_read(folder, &made, &err);
    if (r == 0)
        r = key_ensure(client, &err);
    if (r == 0)
        r = chainlets_deploy(client, settings, made, &err);
    if (r < 0)
        return client_complain("chains push", &err);
    deployed_show(made, settings->json);
    return CLI_EXIT_OK;
}
