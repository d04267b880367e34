/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Secrets on their way to a worker: read anew at each start, for the names that its deployment
 * says, opened with the key of this machine's agent, and handed over in a memfd that becomes
 * descriptor 3 of the worker. Nothing of them is in a command line, an environment or a file.
 *
 * The start waits for Postgres only when the deployment names a secret. What cannot be read or
 * opened ends the start as if the process had failed, with the reason.
 */

#include <errno.h>
#include <jansson.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "base/seal.h"
#include "schema/secret.h"
#include "workers/agent_int.h"
#include "workers/engine_host.h"

#define SECRETS_TIMEOUT_MS 10000

PG_STATEMENT(
    agent_secrets,
    "SELECT s.tenant, s.name, s.sealed FROM deployment d JOIN model m ON m.id = d.model_id "
    "JOIN secret s ON s.tenant = m.tenant AND (d.config->'secrets' ? s.name "
    "OR d.config->'truss'->'secrets' ? s.name) WHERE d.id = $1 ORDER BY s.name LIMIT 1000");

/* A start that waits for its secrets: copies, for the core's may be gone by then. */
struct secret_start {
    struct agent *agent;
    struct agent_todo todo;
    struct agent_deployment deployment;
    char *folder;
};

static void secret_start_free(struct secret_start **start_p)
{
    struct secret_start *start = TAKE(*start_p);

    if (start == NULL)
        return;
    free(start->deployment.config);
    free(start->folder);
    free(start);
}

bool agent_secrets_are_wanted(const struct agent_deployment *deployment)
{
    return engine_host_kind(deployment->engine) != ENGINE_HOST_C &&
           secrets_are_named(deployment->config);
}

static void json_wipe(json_t **object_p)
{
    const char *name;
    json_t *value;

    json_object_foreach(*object_p, name, value)
        sodium_memzero((char *)json_string_value(value), json_string_length(value)); /* NOLINT */
    json_decref(*object_p);
    *object_p = NULL;
}

static int secret_open(const struct agent *agent, const struct pg_answer *answer, size_t row,
                       json_t *values, struct err *err)
{
    OWNED(buf_done) struct buf value = BUF_WITH_LIMIT(SECRET_VALUE_SIZE_MAX);
    const char *tenant = pg_c(answer, 0, row, 0), *name = pg_c(answer, 0, row, 1);
    struct wire_bytes sealed = pg_bytes(answer, 0, row, 2);
    char context[SECRET_CONTEXT_SIZE];
    int r;

    if (agent->seal_key == NULL)
        return err_set(err, ERR_DEPENDENCY,
                       "the deployment names the secret '%s', and this agent has no seal-key-file "
                       "to open it with",
                       name);
    secret_context(tenant, name, context);
    r = seal_open(agent->seal_key, context, sealed.bytes, sealed.size, &value, err);
    if (r < 0)
        return r;
    (void)json_object_set_new(values, name, json_stringn((const char *)value.bytes, value.size));
    sodium_memzero(value.bytes, value.size);
    return 0;
}

static int memfd_of(const char *text, size_t size, int *ret_fd, struct err *err)
{
    int fd = memfd_create("headrace-secrets", MFD_CLOEXEC);

    if (fd < 0)
        return err_set_errno(err, ERR_IO, "make a place for secrets in memory");
    while (size > 0) {
        ssize_t n = write(fd, text, size);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            (void)close(fd);
            return err_set_errno(err, ERR_IO, "write secrets to memory");
        }
        text += n;
        size -= (size_t)n;
    }
    *ret_fd = fd;
    return 0;
}

/* All of them as one JSON object in a memfd; the caller closes it. */
static int secrets_open(const struct agent *agent, const struct pg_answer *answer, int *ret_fd,
                        struct err *err)
{
    OWNED(json_wipe) json_t *values = json_object();
    size_t size;
    char *text;
    int r = 0;

    for (size_t i = 0; r == 0 && i < pg_row_count(answer, 0); i++)
        r = secret_open(agent, answer, i, values, err);
    if (r < 0)
        return r;
    text = json_dumps(values, JSON_COMPACT);
    size = strlen(text);
    if (size > SECRETS_SIZE_MAX)
        r = err_set(err, ERR_TOO_BIG,
                    "the secrets of this deployment have %zu bytes as JSON, the limit is %d", size,
                    SECRETS_SIZE_MAX);
    else
        r = memfd_of(text, size, ret_fd, err);
    sodium_memzero(text, size);
    free(text);
    return r;
}

static void start_end(struct secret_start *start, int fd, struct err *err)
{
    struct agent *agent = start->agent;

    agent_tick(agent);
    agent_start_with(agent, &start->todo, fd, err);
    if (fd >= 0)
        (void)close(fd);
    agent_act(agent);
}

static void on_secrets(void *opaque, const struct pg_answer *answer)
{
    OWNED(secret_start_free) struct secret_start *start = opaque;
    struct err err = answer->err;
    int fd = -1;

    if (err.code != ERR_OK)
        (void)err_wrap(&err, "read the secrets of the deployment");
    else
        err.code = secrets_open(start->agent, answer, &fd, &err);
    start_end(start, fd, &err);
}

void agent_secrets_start(struct agent *agent, const struct agent_todo *todo)
{
    OWNED(secret_start_free) struct secret_start *start = xcalloc(1, sizeof(*start));
    struct pg_batch *batch = pg_batch_new();
    struct err err = {0};

    start->agent = agent;
    start->todo = *todo;
    start->deployment = *todo->deployment;
    start->deployment.config = xstrdup(todo->deployment->config);
    start->folder = xstrdup(todo->folder);
    start->todo.deployment = &start->deployment;
    start->todo.folder = start->folder;
    pg_add(batch, &agent_secrets);
    pg_bind_c(batch, start->deployment.id);
    if (pg_send(agent->pg, &batch, SECRETS_TIMEOUT_MS, on_secrets, start, &err) == 0) {
        (void)TAKE(start);
        return;
    }
    pg_batch_free(&batch);
    (void)err_wrap(&err, "read the secrets of the deployment");
    agent_start_with(agent, &start->todo, -1, &err);
}
