/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Secrets of models: set, listed by name, deleted. A value goes in and never comes out: it is
 * sealed before it leaves this file, for an agent with the same key to open.
 *
 * Audit rows are written by the statement that changes the secret: there is none for what was not
 * there.
 */

#include <jansson.h>
#include <sodium.h>
#include <string.h>

#include "base/seal.h"
#include "brokers/pg.h"
#include "producers/gateway.h"
#include "schema/secret.h"

#define BODY_SIZE_MAX (512u << 10) /* a value with every byte escaped, and its name */
#define SEALED_SIZE_MAX (SECRET_VALUE_SIZE_MAX + 256)

PG_STATEMENT(model_secrets_list,
             "SELECT id, name, tenant, created_at, updated_at FROM secret WHERE tenant = $1 "
             "ORDER BY name LIMIT 1000");
/* Serializes changes of one tenant's secrets: there are never more than the limit. */
PG_STATEMENT(model_secrets_lock,
             "SELECT 1 FROM tenant WHERE id = $1 AND deleted_at IS NULL FOR UPDATE");
PG_STATEMENT(
    model_secrets_set,
    "WITH done AS (INSERT INTO secret AS s (tenant, name, id, sealed) SELECT $1, $2, $3, $4 "
    "WHERE EXISTS (SELECT FROM tenant WHERE id = $1 AND deleted_at IS NULL) AND ((SELECT count(*) "
    "FROM secret WHERE tenant = $1) < $6 OR EXISTS (SELECT FROM secret WHERE tenant = $1 AND "
    "name = $2)) ON CONFLICT (tenant, name) DO UPDATE SET sealed = excluded.sealed, "
    "updated_at = now() RETURNING s.id, s.name, s.tenant, s.created_at, s.updated_at), "
    "told AS (INSERT INTO audit (tenant, actor, action, target) "
    "SELECT $1, $5, 'SECRET_UPDATED', name FROM done) "
    "SELECT id, name, tenant, created_at, updated_at FROM done");
PG_STATEMENT(model_secrets_delete,
             "WITH gone AS (DELETE FROM secret WHERE tenant = $1 AND name = $2 RETURNING name), "
             "told AS (INSERT INTO audit (tenant, actor, action, target) "
             "SELECT $1, $3, 'SECRET_DELETED', name FROM gone) SELECT name FROM gone");

/* A row of the statements above, without any value. */
static json_t *json_of_secret(const struct pg_answer *answer, size_t at, size_t row)
{
    const char *tenant = pg_c(answer, at, row, 2);

    return json_pack("{s:s, s:s, s:s, s:s, s:o, s:o}", "id", pg_c(answer, at, row, 0), "name",
                     pg_c(answer, at, row, 1), "tenant", tenant, "team_name", tenant, "created_at",
                     json_of_time(answer, at, row, 3), "updated_at",
                     json_of_time(answer, at, row, 4));
}

static void on_listed(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *list, *body;

    if (!call_take_answer(&call, answer))
        return;
    list = json_array();
    for (size_t i = 0; i < pg_row_count(answer, 0); i++)
        (void)json_array_append_new(list, json_of_secret(answer, 0, i));
    body = json_pack("{s:o}", "secrets", list);
    call_answer_json(&call, 200, &body);
}

void model_secrets_begin(struct call *call)
{
    struct pg_batch *batch;
    const char *tenant;
    struct err err;

    if (call_whose(call, &tenant, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &model_secrets_list);
    pg_bind_c(batch, tenant);
    call_query(call, &batch, on_listed);
}

/* ---- set ---- */

static void on_set(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;
    struct err err;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        call_fail_as(&call, 404, "client_error", "there is no such tenant");
        return;
    }
    if (pg_row_count(answer, 1) == 0) {
        (void)err_set(&err, ERR_CONFLICT, "the tenant has %d secrets, more it may not have",
                      SECRET_COUNT_MAX);
        call_fail(&call, &err);
        return;
    }
    body = json_of_secret(answer, 1, 0);
    call_answer_json(&call, 200, &body);
}

/* Both are borrowed from the body. The value is in no text of an error. */
static int read_secret(const json_t *body, const char **ret_name, const json_t **ret_value,
                       struct err *err)
{
    static const char *const fields[] = {"name", "value"};
    const json_t *name = json_object_get(body, "name"), *value = json_object_get(body, "value");
    int r = fields_check(body, fields, COUNT_OF(fields), err);

    if (r < 0)
        return r;
    if (!json_is_string(name) || strlen(json_string_value(name)) != json_string_length(name))
        return err_set(err, ERR_MALFORMED, "name must be a string");
    r = secret_name_check(json_string_value(name), err);
    if (r < 0)
        return err_wrap(err, "name");
    if (!json_is_string(value))
        return err_set(err, ERR_MALFORMED, "value must be a string");
    if (json_string_length(value) == 0 || json_string_length(value) > SECRET_VALUE_SIZE_MAX)
        return err_set(err, ERR_RANGE, "value has %zu bytes; it must have 1 to %d",
                       json_string_length(value), SECRET_VALUE_SIZE_MAX);
    if (strlen(json_string_value(value)) != json_string_length(value))
        return err_set(err, ERR_RANGE, "value has a NUL byte, which no file of text has");
    *ret_name = json_string_value(name);
    *ret_value = value;
    return 0;
}

static void bind_secret(struct pg_batch *batch, const struct call *call, const char *tenant,
                        const char *name, const json_t *value)
{
    uint8_t random[SHORT_ID_RANDOM_SIZE];
    struct buf sealed = BUF_WITH_LIMIT(SEALED_SIZE_MAX);
    char context[SECRET_CONTEXT_SIZE], id[SHORT_ID_SIZE];

    rng_secret_bytes(random, sizeof(random));
    short_id_make(random, id);
    secret_context(tenant, name, context);
    seal_close(call->gateway->seal_key, context, json_string_value(value),
               json_string_length(value), &sealed);
    pg_add(batch, &model_secrets_lock);
    pg_bind_c(batch, tenant);
    pg_add(batch, &model_secrets_set);
    pg_bind_c(batch, tenant);
    pg_bind_c(batch, name);
    pg_bind_c(batch, id);
    pg_bind_bytes(batch, (struct wire_bytes){sealed.bytes, sealed.size});
    pg_bind_c(batch, call->key_prefix);
    pg_bind_i64(batch, SECRET_COUNT_MAX);
    buf_done(&sealed);
}

/* Nothing of the value stays in our memory. */
static void wipe(struct call *call, json_t *body)
{
    const json_t *value = json_object_get(body, "value");
    struct buf *bytes = http_request_body(call->request);

    if (json_is_string(value))
        sodium_memzero((char *)json_string_value(value), json_string_length(value)); /* NOLINT */
    json_decref(body);
    if (bytes->bytes != NULL)
        sodium_memzero(bytes->bytes, bytes->size);
}

static void set_secret(struct call *call)
{
    struct pg_batch *batch = NULL;
    const char *name = NULL, *tenant = NULL;
    const json_t *value = NULL;
    json_t *body = NULL;
    struct err err;
    int r = 0;

    if (call->gateway->seal_key == NULL)
        r = err_set(&err, ERR_UNSUPPORTED,
                    "this gateway has no seal-key-file: it cannot keep secrets");
    if (r == 0)
        r = call_read_json(call, &body, &err);
    if (r == 0)
        r = read_secret(body, &name, &value, &err);
    if (r == 0)
        r = call_whose(call, &tenant, &err);
    if (r == 0) {
        batch = pg_batch_new();
        bind_secret(batch, call, tenant, name, value);
    }
    wipe(call, body);
    if (r < 0)
        call_fail(&call, &err);
    else
        call_query(call, &batch, on_set);
}

void model_secret_set_begin(struct call *call)
{
    call_collect_body(call, BODY_SIZE_MAX, set_secret);
}

/* ---- delete ---- */

static void on_deleted(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        call_fail_as(&call, 404, "client_error", "there is no secret of this name");
        return;
    }
    body = json_pack("{s:s}", "name", pg_c(answer, 0, 0, 0));
    call_answer_json(&call, 200, &body);
}

void model_secret_delete_begin(struct call *call)
{
    struct pg_batch *batch;
    const char *tenant;
    struct err err;

    if (secret_name_check(call->match.param, &err) < 0 || call_whose(call, &tenant, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &model_secrets_delete);
    pg_bind_c(batch, tenant);
    pg_bind_c(batch, call->match.param);
    pg_bind_c(batch, call->key_prefix);
    call_query(call, &batch, on_deleted);
}
