/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The first tenant, its key and its webhook secret, made in SQL because no key exists yet that
 * could ask the gateway for one.
 *
 * DATA/client.json (mode 0600) keeps the key between runs; the database keeps only its digest. A
 * key that the database does not know (it was reset, or it is somebody else's) is replaced.
 */

#include <jansson.h>
#include <libpq-fe.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/seal.h"
#include "cli/dev_files.h"
#include "cli/dev_roles.h"
#include "schema/api_key.h"
#include "schema/webhook_key.h"

#define TENANT "default"
#define SECRET_ID "dev"

enum { CLIENT_SIZE_MAX = 8192 };

static void connection_finish(PGconn **connection_p)
{
    PGconn *connection = TAKE(*connection_p);

    if (connection != NULL)
        PQfinish(connection);
}

/* Runs one statement; *ret_rows is how many rows it gave or changed. */
static int sql_run(PGconn *connection, const char *statement, int count, const char *const *values,
                   int *ret_rows, struct err *err)
{
    PGresult *result = PQexecParams(connection, statement, count, NULL, values, NULL, NULL, 0);
    ExecStatusType status = PQresultStatus(result);
    int code = 0;

    if (status == PGRES_TUPLES_OK)
        *ret_rows = PQntuples(result);
    else if (status == PGRES_COMMAND_OK)
        *ret_rows = (int)strtol(PQcmdTuples(result), NULL, 10);
    else
        code = err_set(err, ERR_DEPENDENCY, "%s: %s", statement, PQresultErrorMessage(result));
    PQclear(result);
    return code;
}

/* What an earlier run wrote, or NULL. */
static char *client_field(const struct dev *dev, const char *name)
{
    OWNED(mem_free) char *path = xasprintf("%s/client.json", dev->data_dir);
    OWNED(mem_free) char *text = NULL;
    struct err err;
    json_t *root;
    const char *value;
    char *field = NULL;

    if (dev_file_read(path, CLIENT_SIZE_MAX, &text, &err) < 0)
        return NULL;
    root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    value = json_string_value(json_object_get(root, name));
    if (value != NULL)
        field = xstrdup(value);
    json_decref(root);
    return field;
}

static char *bytea_text(const uint8_t *bytes, size_t size)
{
    char *text = xmalloc(size * 2 + 3);

    memcpy(text, "\\x", 2);
    (void)sodium_bin2hex(text + 2, size * 2 + 1, bytes, size);
    return text;
}

/* --- the key -----------------------------------------------------------------------------------
 */

static int key_is_known(PGconn *connection, const char *text, bool *ret_known, struct err *err)
{
    OWNED(mem_free) char *digest = NULL;
    struct api_key key;
    int rows;
    int code;

    *ret_known = false;
    if (api_key_parse(text, &key, err) < 0)
        return 0;
    digest = bytea_text(key.digest, sizeof(key.digest));
    code = sql_run(connection,
                   "SELECT 1 FROM headrace.api_key WHERE digest = $1::bytea AND revoked_at IS NULL",
                   1, (const char *const[]){digest}, &rows, err);
    *ret_known = code == 0 && rows == 1;
    return code;
}

static int key_make(struct dev *dev, PGconn *connection, struct err *err)
{
    OWNED(mem_free) char *digest = NULL;
    uint8_t random[API_KEY_RANDOM_SIZE];
    struct api_key key;
    int rows;
    int code;

    rng_secret_bytes(random, sizeof(random));
    api_key_make(random, &key);
    digest = bytea_text(key.digest, sizeof(key.digest));
    code = sql_run(connection,
                   "INSERT INTO headrace.api_key (prefix, digest, tenant, name) "
                   "VALUES ($1, $2::bytea, '" TENANT "', 'headrace dev')",
                   2, (const char *const[]){key.prefix, digest}, &rows, err);
    if (code == 0) {
        mem_free(&dev->key);
        dev->key = xstrdup(key.text);
    }
    sodium_memzero(&key, sizeof(key));
    return code;
}

static int key_ensure(struct dev *dev, PGconn *connection, struct err *err)
{
    bool known = false;
    int code = 0;

    mem_free(&dev->key);
    dev->key = client_field(dev, "api_key");
    if (dev->key != NULL)
        code = key_is_known(connection, dev->key, &known, err);
    return code < 0 || known ? code : key_make(dev, connection, err);
}

/* --- the webhook secret ------------------------------------------------------------------------
 */

static int secret_make(struct dev *dev, PGconn *connection, struct err *err)
{
    OWNED(mem_free) char *path = xasprintf("%s/seal.key", dev->data_dir);
    OWNED(seal_key_close) struct seal_key *key = NULL;
    OWNED(buf_done) struct buf sealed = BUF_WITH_LIMIT(1024);
    OWNED(mem_free) char *secret = xcalloc(1, WEBHOOK_SECRET_TEXT_SIZE);
    OWNED(mem_free) char *sealed_text = NULL;
    uint8_t random[WEBHOOK_SECRET_RANDOM_SIZE];
    int rows;
    int code = seal_key_open(path, &key, err);

    if (code < 0)
        return code;
    rng_secret_bytes(random, sizeof(random));
    webhook_secret_make(random, secret);
    seal_close(key, "webhook_secret " SECRET_ID, secret, strlen(secret), &sealed);
    sealed_text = bytea_text(sealed.bytes, sealed.size);
    code = sql_run(
        connection,
        "INSERT INTO headrace.webhook_secret (id, tenant, name, sealed, hint) "
        "VALUES ('" SECRET_ID "', '" TENANT "', 'headrace dev', $1::bytea, $2) "
        "ON CONFLICT (id) DO UPDATE SET sealed = excluded.sealed, "
        "hint = excluded.hint, retires_at = NULL, deleted_at = NULL",
        2, (const char *const[]){sealed_text, secret + strlen(secret) - WEBHOOK_SECRET_HINT_SIZE},
        &rows, err);
    if (code == 0)
        dev->webhook_secret = TAKE(secret);
    return code;
}

static int secret_ensure(struct dev *dev, PGconn *connection, struct err *err)
{
    int rows = 0;
    int code = sql_run(connection,
                       "SELECT 1 FROM headrace.webhook_secret WHERE tenant = '" TENANT "' "
                       "AND kind = 'hmac' AND deleted_at IS NULL AND retires_at IS NULL",
                       0, NULL, &rows, err);

    mem_free(&dev->webhook_secret);
    dev->webhook_secret = client_field(dev, "webhook_secret");
    if (code < 0 || rows > 0)
        return code;
    mem_free(&dev->webhook_secret);
    return secret_make(dev, connection, err);
}

/* --- all of it ---------------------------------------------------------------------------------
 */

static int client_write(struct dev *dev, struct err *err)
{
    OWNED(mem_free) char *path = xasprintf("%s/client.json", dev->data_dir);
    json_t *root = json_pack("{s:s, s:s, s:s, s:s}", "url", dev_service_url(dev, "gateway"),
                             "api_key", dev->key, "postgres", dev_service_url(dev, "postgres"),
                             "webhook_secret",
                             dev->webhook_secret == NULL ? "" : dev->webhook_secret);
    char *text = json_dumps(root, JSON_INDENT(2));
    int code = dev_file_write(path, text, err);

    sodium_memzero(text, strlen(text));
    free(text);
    json_decref(root);
    return code;
}

int dev_introduce(struct dev *dev, struct err *err)
{
    OWNED(connection_finish) PGconn *connection = PQconnectdb(dev_service_url(dev, "postgres"));
    int rows;
    int code;

    if (PQstatus(connection) != CONNECTION_OK)
        return err_set(err, ERR_UNAVAILABLE, "%s", PQerrorMessage(connection));
    (void)PQsetErrorVerbosity(connection, PQERRORS_TERSE);
    if ((code = sql_run(connection,
                        "INSERT INTO headrace.tenant (id, name) VALUES ('" TENANT "', '" TENANT
                        "') "
                        "ON CONFLICT DO NOTHING",
                        0, NULL, &rows, err)) < 0 ||
        (code = key_ensure(dev, connection, err)) < 0 ||
        (code = secret_ensure(dev, connection, err)) < 0)
        return err_wrap(err, "make the first key");
    return client_write(dev, err);
}
