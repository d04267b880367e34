/* SPDX-License-Identifier: Apache-2.0 */

/*
 * API keys and webhook secrets: made here, shown once. Of a key the digest is kept; a secret must
 * be used again to sign, so it is kept sealed with a key that the database does not have.
 *
 * A tenant has one secret (HMAC), and one key pair (Ed25519) if it wants one; for a day after a
 * rotation two of that kind: both sign, newest first. A private key is never shown: what a receiver
 * needs is the public one.
 */

#include <jansson.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "base/seal.h"
#include "brokers/pg.h"
#include "producers/gateway.h"
#include "schema/webhook_key.h"

#define BODY_SIZE_MAX 65536
#define KEY_NAME_LENGTH_MAX 64 /* characters */
#define ROTATION_S (24 * 3600)

PG_STATEMENT(
    keys_list,
    "SELECT prefix, name, role, tenant, created_at, last_used_at, limits::text FROM api_key "
    "WHERE tenant = $1 AND revoked_at IS NULL ORDER BY created_at LIMIT 10000");
PG_STATEMENT(keys_insert,
             "INSERT INTO api_key (prefix, digest, tenant, name, role, limits) SELECT $1, $2, id, "
             "$4, $5, jsonb_strip_nulls(coalesce($6::text, '{}')::jsonb) FROM tenant "
             "WHERE id = $3 AND deleted_at IS NULL RETURNING prefix");
PG_STATEMENT(keys_set, "UPDATE api_key SET limits = jsonb_strip_nulls(limits || coalesce($3, "
                       "'{}')::jsonb), name = coalesce($4, name) WHERE tenant = $1 AND prefix = $2 "
                       "AND revoked_at IS NULL RETURNING prefix, name, limits::text");
PG_STATEMENT(keys_revoke, "UPDATE api_key SET revoked_at = now() WHERE tenant = $1 AND prefix = $2 "
                          "AND revoked_at IS NULL RETURNING prefix");
/* Of what this transaction itself has written: no row of audit for what was not there. */
#define AUDIT_OF(condition)                                                                        \
    "INSERT INTO audit (tenant, actor, action, target) SELECT $1, $2, $3, $4 FROM " condition      \
    " AND xmin = pg_current_xact_id()::xid"
PG_STATEMENT(audit_key, AUDIT_OF("api_key WHERE tenant = $1 AND prefix = $4"));
PG_STATEMENT(audit_secret, AUDIT_OF("webhook_secret WHERE tenant = $1 AND id = $4"));
PG_STATEMENT(audit_tenant, AUDIT_OF("tenant WHERE id = $1 AND $4 = id"));
PG_STATEMENT(secrets_list,
             "SELECT id, name, hint, created_at, retires_at, kind, public_key FROM webhook_secret "
             "WHERE tenant = $1 AND deleted_at IS NULL AND (retires_at IS NULL OR retires_at > "
             "now()) AND ($2::text IS NULL OR kind = $2) ORDER BY created_at DESC LIMIT 1000");
PG_STATEMENT(secrets_insert_first,
             "INSERT INTO webhook_secret (id, tenant, kind, sealed, hint, public_key) "
             "SELECT $1, $2, $3, $4, $5, $6 "
             "WHERE NOT EXISTS (SELECT 1 FROM webhook_secret WHERE tenant = $2 AND kind = $3 AND "
             "deleted_at IS NULL AND retires_at IS NULL) RETURNING created_at");
PG_STATEMENT(secrets_drop_old, "UPDATE webhook_secret SET deleted_at = now() WHERE tenant = $1 "
                               "AND kind = $2 AND deleted_at IS NULL AND retires_at IS NOT NULL");
PG_STATEMENT(secrets_retire,
             "UPDATE webhook_secret SET retires_at = now() + make_interval(secs => $3) "
             "WHERE tenant = $1 AND kind = $2 AND deleted_at IS NULL AND retires_at IS NULL");
PG_STATEMENT(secrets_insert,
             "INSERT INTO webhook_secret (id, tenant, kind, sealed, hint, public_key) "
             "VALUES ($1, $2, $3, $4, $5, $6) RETURNING created_at");
PG_STATEMENT(secrets_delete, "UPDATE webhook_secret SET deleted_at = now() WHERE tenant = $1 "
                             "AND id = $2 AND deleted_at IS NULL RETURNING id");
/* Serializes changes of one tenant's secrets: there are never two that are not retiring. */
PG_STATEMENT(secrets_lock, "SELECT 1 FROM tenant WHERE id = $1 FOR UPDATE");

void call_audit(struct pg_batch *batch, const struct call *call, const char *tenant,
                enum audited audited, const char *action, const char *target)
{
    static const struct pg_statement *const statements[] = {
        [AUDITED_KEY] = &audit_key,
        [AUDITED_SECRET] = &audit_secret,
        [AUDITED_TENANT] = &audit_tenant,
    };

    pg_add(batch, statements[audited]);
    pg_bind_c(batch, tenant);
    pg_bind_c(batch, call->key_prefix);
    pg_bind_c(batch, action);
    pg_bind_c(batch, target);
}

/* ---- keys ---- */

static const char *type_of_role(const char *name)
{
    enum api_key_role role;
    struct err err;

    return api_key_role_parse(name, &role, &err) == 0 ? api_key_role_type(role) : "";
}

static void on_keys(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *list, *body;

    if (!call_take_answer(&call, answer))
        return;
    list = json_array();
    for (size_t i = 0; i < pg_row_count(answer, 0); i++) {
        json_t *key = json_pack(
            "{s:s, s:s, s:s, s:s, s:s, s:o, s:o, s:o}", "prefix", pg_c(answer, 0, i, 0), "name",
            pg_c(answer, 0, i, 1), "type", type_of_role(pg_c(answer, 0, i, 2)), "tenant",
            pg_c(answer, 0, i, 3), "team_name", pg_c(answer, 0, i, 3), "created_at",
            json_of_time(answer, 0, i, 4), "last_used_at", json_of_time(answer, 0, i, 5), "limits",
            limits_json(pg_c(answer, 0, i, 6)));

        (void)json_array_append_new(list, key);
    }
    body = json_pack("{s:o}", "keys", list);
    call_answer_json(&call, 200, &body);
}

void keys_begin(struct call *call)
{
    struct pg_batch *batch;
    const char *tenant;
    struct err err;

    if (call_whose(call, &tenant, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &keys_list);
    pg_bind_c(batch, tenant);
    call_query(call, &batch, on_keys);
}

/* A key that is being made: its text must outlive the question to Postgres. */
struct new_key {
    struct call *call;
    struct api_key key;
};

static void new_key_free(struct new_key **new_p)
{
    struct new_key *new = *new_p;

    if (new != NULL)
        sodium_memzero(&new->key, sizeof(new->key));
    mem_free(new_p);
}

static void on_key_made(void *opaque, const struct pg_answer *answer)
{
    OWNED(new_key_free) struct new_key *new = opaque;
    json_t *body;

    if (!call_take_answer(&new->call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        call_fail_as(&new->call, 404, "client_error", "there is no such tenant");
        return;
    }
    body = json_pack("{s:s, s:s}", "api_key", new->key.text, "prefix", new->key.prefix);
    call_answer_json(&new->call, 201, &body);
}

static int read_key_body(const json_t *body, const char **ret_name, enum api_key_role *ret_role,
                         struct err *err)
{
    const json_t *name = json_object_get(body, "name");
    const json_t *type = json_object_get(body, "type");

    *ret_name = "";
    *ret_role = API_KEY_ROLE_ADMIN;
    if (name != NULL && !json_is_null(name)) {
        if (!json_is_string(name) ||
            count_characters(json_string_value(name)) > KEY_NAME_LENGTH_MAX)
            return err_set(err, ERR_RANGE, "name must be a string of at most %d characters",
                           KEY_NAME_LENGTH_MAX);
        *ret_name = json_string_value(name);
    }
    if (type == NULL || json_is_null(type))
        return 0;
    if (!json_is_string(type))
        return err_set(err, ERR_MALFORMED, "type must be a string");
    return api_key_type_parse(json_string_value(type), ret_role, err);
}

static void insert_key(struct pg_batch *batch, const struct new_key *new, const char *tenant,
                       const char *name, enum api_key_role role, const char *limits)
{
    pg_add(batch, &keys_insert);
    pg_bind_c(batch, new->key.prefix);
    pg_bind_bytes(batch, (struct wire_bytes){new->key.digest, API_KEY_DIGEST_SIZE});
    pg_bind_c(batch, tenant);
    pg_bind_c(batch, name);
    pg_bind_c(batch, api_key_role_name(role));
    pg_bind_c(batch, limits);
    call_audit(batch, new->call, tenant, AUDITED_KEY, "API_KEY_CREATED", new->key.prefix);
}

static void create_key(struct call *call)
{
    OWNED(mem_free) char *limits = NULL;
    uint8_t random[API_KEY_RANDOM_SIZE];
    enum api_key_role role = API_KEY_ROLE_ADMIN;
    struct new_key *new;
    struct pg_batch *batch;
    const char *name = "", *tenant = "";
    json_t *body = NULL;
    struct err err;
    int r = call_read_json(call, &body, &err);

    if (r == 0)
        r = read_key_body(body, &name, &role, &err);
    if (r == 0)
        r = limits_of_body(body, LIMIT_ON_KEY, &limits, &err);
    if (r == 0)
        r = call_whose(call, &tenant, &err);
    if (r < 0) {
        json_decref(body);
        call_fail(&call, &err);
        return;
    }
    new = xcalloc(1, sizeof(*new));
    new->call = call;
    rng_secret_bytes(random, sizeof(random));
    api_key_make(random, &new->key);
    batch = pg_batch_new();
    insert_key(batch, new, tenant, name, role, limits);
    json_decref(body);
    if (pg_pool_send(call->gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_key_made, new, &err) <
        0) {
        call_fail(&call, &err);
        new_key_free(&new);
    }
    pg_batch_free(&batch);
}

void key_create_begin(struct call *call)
{
    call_collect_body(call, BODY_SIZE_MAX, create_key);
}

static void on_key_revoked(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        call_fail_as(&call, 404, "client_error", "there is no key with this prefix");
        return;
    }
    gateway_keys_forget(call->gateway->keys, pg_c(answer, 0, 0, 0));
    body = json_pack("{s:s}", "prefix", pg_c(answer, 0, 0, 0));
    call_answer_json(&call, 200, &body);
}

void key_delete_begin(struct call *call)
{
    struct pg_batch *batch;
    const char *tenant;
    struct err err;

    if (call_whose(call, &tenant, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &keys_revoke);
    pg_bind_c(batch, tenant);
    pg_bind_c(batch, call->match.param);
    call_audit(batch, call, tenant, AUDITED_KEY, "API_KEY_DELETED", call->match.param);
    call_query(call, &batch, on_key_revoked);
}

static void on_key_set(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        call_fail_as(&call, 404, "client_error", "there is no key with this prefix");
        return;
    }
    body = json_pack("{s:s, s:s, s:o}", "prefix", pg_c(answer, 0, 0, 0), "name",
                     pg_c(answer, 0, 0, 1), "limits", limits_json(pg_c(answer, 0, 0, 2)));
    call_answer_json(&call, 200, &body);
}

static void set_key(struct call *call)
{
    static const char *const fields[] = {"name", "limits"};
    OWNED(mem_free) char *limits = NULL;
    enum api_key_role role; /* a key keeps the one that it was made with */
    const char *name = NULL, *tenant = "";
    struct pg_batch *batch;
    json_t *body = NULL;
    struct err err;
    int r = call_read_json(call, &body, &err);

    if (r == 0)
        r = fields_check(body, fields, COUNT_OF(fields), &err);
    if (r == 0)
        r = read_key_body(body, &name, &role, &err);
    if (r == 0)
        r = limits_of_body(body, LIMIT_ON_KEY, &limits, &err);
    if (r == 0)
        r = call_whose(call, &tenant, &err);
    if (r < 0) {
        json_decref(body);
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &keys_set);
    pg_bind_c(batch, tenant);
    pg_bind_c(batch, call->match.param);
    pg_bind_c(batch, limits);
    pg_bind_c(batch, name[0] == '\0' ? NULL : name);
    call_audit(batch, call, tenant, AUDITED_KEY, "API_KEY_CHANGED", call->match.param);
    json_decref(body);
    call_query(call, &batch, on_key_set);
}

void key_set_begin(struct call *call)
{
    call_collect_body(call, BODY_SIZE_MAX, set_key);
}

/* ---- webhook secrets and keys ---- */

#define KIND_SECRET "hmac"
#define KIND_KEY "ed25519"

/* "whpk_…", or null for a secret. */
static json_t *json_public_key(const struct pg_answer *answer, size_t row, size_t column)
{
    struct wire_bytes key = pg_bytes(answer, 0, row, column);
    char text[WEBHOOK_PUBLIC_KEY_TEXT_SIZE];

    if (key.size != WEBHOOK_PUBLIC_KEY_SIZE)
        return json_null();
    webhook_key_format_public(key.bytes, text);
    return json_string(text);
}

static void on_secrets(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *list, *body;

    if (!call_take_answer(&call, answer))
        return;
    list = json_array();
    for (size_t i = 0; i < pg_row_count(answer, 0); i++) {
        json_t *secret = json_pack(
            "{s:s, s:s, s:s, s:s, s:s, s:o, s:o, s:o}", "id", pg_c(answer, 0, i, 0), "name",
            pg_c(answer, 0, i, 1), "type", pg_c(answer, 0, i, 5), "hint", pg_c(answer, 0, i, 2),
            "state", pg_is_null(answer, 0, i, 4) ? "active" : "retiring", "created_at",
            json_of_time(answer, 0, i, 3), "expires_at", json_of_time(answer, 0, i, 4),
            "public_key", json_public_key(answer, i, 6));

        (void)json_array_append_new(list, secret);
    }
    body = json_pack("{s:o}", "webhook_secrets", list);
    call_answer_json(&call, 200, &body);
}

static void secrets_ask(struct call *call, const char *kind,
                        void (*done)(void *opaque, const struct pg_answer *answer))
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &secrets_list);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, kind);
    call_query(call, &batch, done);
}

void secrets_begin(struct call *call)
{
    secrets_ask(call, NULL, on_secrets);
}

/* A JWK set (RFC 7517, RFC 8037), with our own text form beside it. */
static void on_public_keys(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *list, *body;

    if (!call_take_answer(&call, answer))
        return;
    list = json_array();
    for (size_t i = 0; i < pg_row_count(answer, 0); i++) {
        struct wire_bytes key = pg_bytes(answer, 0, i, 6);
        char text[WEBHOOK_PUBLIC_KEY_URL_SIZE];

        if (key.size != WEBHOOK_PUBLIC_KEY_SIZE)
            continue;
        webhook_key_format_url(key.bytes, text);
        (void)json_array_append_new(
            list, json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:o, s:s, s:o}", "kty", "OKP", "crv",
                            "Ed25519", "alg", "EdDSA", "use", "sig", "kid", pg_c(answer, 0, i, 0),
                            "x", text, "public_key", json_public_key(answer, i, 6), "state",
                            pg_is_null(answer, 0, i, 4) ? "active" : "retiring", "expires_at",
                            json_of_time(answer, 0, i, 4)));
    }
    body = json_pack("{s:o}", "keys", list);
    call_answer_json(&call, 200, &body);
}

void public_keys_begin(struct call *call)
{
    secrets_ask(call, KIND_KEY, on_public_keys);
}

/* A secret or key that is being made: its text must outlive the question to Postgres. */
struct new_secret {
    struct call *call;
    char id[SHORT_ID_SIZE];
    const char *kind;
    char text[WEBHOOK_PRIVATE_KEY_TEXT_SIZE]; /* what is sealed */
    char public_text[WEBHOOK_PUBLIC_KEY_TEXT_SIZE];
    uint8_t public_key[WEBHOOK_PUBLIC_KEY_SIZE];
    size_t insert_at; /* which statement made it */
};

static void new_secret_free(struct new_secret **new_p)
{
    struct new_secret *new = *new_p;

    if (new != NULL)
        sodium_memzero(new->text, sizeof(new->text));
    mem_free(new_p);
}

static bool is_key(const struct new_secret *new)
{
    return strcmp(new->kind, KIND_KEY) == 0;
}

static void on_secret_made(void *opaque, const struct pg_answer *answer)
{
    OWNED(new_secret_free) struct new_secret *new = opaque;
    json_t *body;

    if (!call_take_answer(&new->call, answer))
        return;
    if (pg_row_count(answer, new->insert_at) == 0) {
        call_fail_as(&new->call, 409, "client_error",
                     is_key(new) ? "there is a webhook key already; rotate it instead"
                                 : "there is a webhook secret already; rotate it instead");
        return;
    }
    body = json_pack("{s:s, s:s, s:s, s:s, s:o}", "id", new->id, "type", new->kind,
                     is_key(new) ? "public_key" : "secret",
                     is_key(new) ? new->public_text : new->text, "state", "active", "created_at",
                     json_of_time(answer, new->insert_at, 0, 0));
    call_answer_json(&new->call, 201, &body);
}

static void secret_make(struct new_secret *new)
{
    uint8_t random[WEBHOOK_SECRET_RANDOM_SIZE];
    struct webhook_key_pair key;

    rng_secret_bytes(random, sizeof(random));
    if (is_key(new)) {
        webhook_key_make(random, &key);
        memcpy(new->public_key, key.public_key, sizeof(new->public_key));
        webhook_key_format_private(&key, new->text);
        webhook_key_format_public(new->public_key, new->public_text);
        sodium_memzero(&key, sizeof(key));
    } else {
        webhook_secret_make(random, new->text);
    }
    sodium_memzero(random, sizeof(random));
}

static void bind_secret(struct pg_batch *batch, const struct new_secret *new)
{
    const struct call *call = new->call;
    const char *shown = is_key(new) ? new->public_text : new->text;
    struct wire_bytes none = {NULL, 0};
    struct buf sealed = BUF_WITH_LIMIT(1024);
    char context[32];

    (void)snprintf(context, sizeof(context), "webhook_secret %s", new->id);
    seal_close(call->gateway->seal_key, context, new->text, strlen(new->text), &sealed);
    pg_bind_c(batch, new->id);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, new->kind);
    pg_bind_bytes(batch, (struct wire_bytes){sealed.bytes, sealed.size});
    pg_bind_c(batch, shown + strlen(shown) - WEBHOOK_SECRET_HINT_SIZE);
    pg_bind_bytes(batch, is_key(new) ? (struct wire_bytes){new->public_key, WEBHOOK_PUBLIC_KEY_SIZE}
                                     : none);
    buf_done(&sealed);
}

/* The kind that the body asks for: a secret unless it says otherwise. */
static int read_kind(struct call *call, const char **ret_kind, struct err *err)
{
    json_t *body = NULL;
    const json_t *type;
    int r = call_read_json(call, &body, err);

    if (r < 0)
        return r;
    type = json_object_get(body, "type");
    if (type == NULL || (json_is_string(type) && strcmp(json_string_value(type), KIND_SECRET) == 0))
        *ret_kind = KIND_SECRET;
    else if (json_is_string(type) && strcmp(json_string_value(type), KIND_KEY) == 0)
        *ret_kind = KIND_KEY;
    else
        r = err_set(err, ERR_RANGE, "type must be '%s' or '%s'", KIND_SECRET, KIND_KEY);
    json_decref(body);
    return r;
}

/* Statements in front of the insert of a rotation: the one that there is stays for a day. */
static size_t add_rotation(struct pg_batch *batch, const struct new_secret *new)
{
    pg_add(batch, &secrets_drop_old);
    pg_bind_c(batch, new->call->tenant);
    pg_bind_c(batch, new->kind);
    pg_add(batch, &secrets_retire);
    pg_bind_c(batch, new->call->tenant);
    pg_bind_c(batch, new->kind);
    pg_bind_double(batch, ROTATION_S);
    return 2;
}

static void make_secret(struct call *call, const char *kind, bool rotate)
{
    uint8_t random[SHORT_ID_RANDOM_SIZE];
    struct new_secret *new = xcalloc(1, sizeof(*new));
    struct pg_batch *batch = pg_batch_new();
    struct err err;

    new->call = call;
    new->kind = kind;
    rng_secret_bytes(random, sizeof(random));
    short_id_make(random, new->id);
    secret_make(new);
    pg_add(batch, &secrets_lock);
    pg_bind_c(batch, call->tenant);
    new->insert_at = 1 + (rotate ? add_rotation(batch, new) : 0);
    pg_add(batch, rotate ? &secrets_insert : &secrets_insert_first);
    bind_secret(batch, new);
    call_audit(batch, call, call->tenant, AUDITED_SECRET,
               rotate ? "WEBHOOK_SIGNING_SECRET_ROTATED" : "WEBHOOK_SIGNING_SECRET_CREATED",
               new->id);
    if (pg_pool_send(call->gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_secret_made, new,
                     &err) < 0) {
        call_fail(&call, &err);
        new_secret_free(&new);
    }
    pg_batch_free(&batch);
}

static void make_secret_of_body(struct call *call, bool rotate)
{
    const char *kind = NULL;
    struct err err;
    int r = 0;

    if (call->gateway->seal_key == NULL)
        r = err_set(&err, ERR_UNSUPPORTED,
                    "this gateway has no seal-key-file: it cannot keep secrets");
    if (r == 0)
        r = read_kind(call, &kind, &err);
    if (r < 0)
        call_fail(&call, &err);
    else
        make_secret(call, kind, rotate);
}

static void create_secret(struct call *call)
{
    make_secret_of_body(call, false);
}

static void rotate_secret(struct call *call)
{
    make_secret_of_body(call, true);
}

void secret_create_begin(struct call *call)
{
    call_collect_body(call, BODY_SIZE_MAX, create_secret);
}

void secret_rotate_begin(struct call *call)
{
    call_collect_body(call, BODY_SIZE_MAX, rotate_secret);
}

static void on_secret_deleted(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        call_fail_as(&call, 404, "client_error", "there is no such webhook secret");
        return;
    }
    body = json_pack("{s:s, s:b}", "id", pg_c(answer, 0, 0, 0), "deleted", 1);
    call_answer_json(&call, 200, &body);
}

void secret_delete_begin(struct call *call)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &secrets_delete);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, call->match.param);
    call_audit(batch, call, call->tenant, AUDITED_SECRET, "WEBHOOK_SIGNING_SECRET_DELETED",
               call->match.param);
    call_query(call, &batch, on_secret_deleted);
}
