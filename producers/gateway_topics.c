/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Bindings of users' Kafka topics: bound, listed, paused, unbound. What they do is the ingest's
 * (producers/ingest.h), which learns of a change by the notification that the row makes.
 *
 * Whoever binds says where an ingest connects to, so only the operator's admin may; pausing and
 * unbinding are the tenant's own, too. Properties of librdkafka are those of a list: others read
 * files, load libraries or start programs on the machine of the ingest.
 */

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "brokers/pg.h"
#include "producers/gateway.h"
#include "producers/gateway_tags.h"
#include "producers/ingest_map.h"
#include "schema/api_key.h"
#include "schema/job.h"
#include "schema/secret.h"
#include "schema/topics.h"

#define BODY_SIZE_MAX (64u << 10)
#define BINDINGS_MAX 256 /* of all tenants: what an ingest reads */
#define TOPIC_SIZE_MAX 249
#define BROKERS_SIZE_MAX 1024
#define PROPERTIES_SIZE_MAX 3000
#define QUEUE_LIMIT_S_DEFAULT 259200
#define GROUP_PREFIX "headrace."

#define COLUMNS                                                                                    \
    "name, tenant, topic, brokers, group_id, model, environment, deployment, format, bad, "        \
    "dead_topic, result_topic, paused, created_at, accepted, refused, repeated, lag, problem"

PG_STATEMENT(topics_list, "SELECT " COLUMNS
                          " FROM headrace_v1.topics WHERE tenant = $1 ORDER BY name LIMIT 1000");
PG_STATEMENT(topic_find,
             "SELECT " COLUMNS " FROM headrace_v1.topics WHERE tenant = $1 AND name = $2");
PG_STATEMENT(
    topic_find_partitions,
    "SELECT topic, partition, position, log_end, lag, accepted, refused, owner FROM "
    "headrace_v1.topic_partitions WHERE tenant = $1 AND name = $2 ORDER BY 1, 2 LIMIT 1000");
PG_STATEMENT(
    topic_find_refusals,
    "SELECT partition, record_offset, reason, at FROM headrace_v1.topic_refusals WHERE tenant "
    "= $1 AND name = $2 ORDER BY at DESC, 1, 2 LIMIT 20");
PG_STATEMENT(
    topic_bind,
    "WITH done AS (INSERT INTO topic_binding (id, tenant, name, topic, brokers, properties, "
    "secret, group_id, model, environment, deployment, format, mapping, max_attempts, "
    "queue_limit_ms, priority, tags, start_at, bad, dead_topic, result_topic, created_by) "
    "SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, "
    "$19, $20, $21, $22 WHERE EXISTS (SELECT FROM tenant WHERE id = $2 AND deleted_at IS NULL) "
    "AND (SELECT count(*) FROM topic_binding) < 256 ON CONFLICT DO NOTHING RETURNING name), "
    "told AS (INSERT INTO audit (tenant, actor, action, target) SELECT $2, $22, "
    "'TOPIC_BOUND', name FROM done) SELECT name FROM done");
PG_STATEMENT(
    topic_pause,
    "WITH done AS (UPDATE topic_binding SET paused_at = CASE WHEN $3 THEN coalesce(paused_at, "
    "now()) END WHERE tenant = $1 AND name = $2 RETURNING name), told AS (INSERT INTO audit "
    "(tenant, actor, action, target) SELECT $1, $4, CASE WHEN $3 THEN 'TOPIC_PAUSED' ELSE "
    "'TOPIC_RESUMED' END, name FROM done) SELECT name FROM done");
PG_STATEMENT(
    topic_unbind,
    "WITH gone AS (DELETE FROM topic_binding WHERE tenant = $1 AND name = $2 RETURNING name), "
    "told AS (INSERT INTO audit (tenant, actor, action, target) SELECT $1, $3, "
    "'TOPIC_UNBOUND', name FROM gone) SELECT name FROM gone");

/* ---- answers ---- */

static json_t *number_of(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    return pg_is_null(answer, at, row, column)
               ? json_null()
               : json_integer((json_int_t)pg_i64(answer, at, row, column));
}

static json_t *topic_json(const struct pg_answer *answer, size_t row)
{
    static const char *const texts[] = {"name",
                                        "tenant",
                                        "topic",
                                        "brokers",
                                        "group",
                                        "model",
                                        "environment",
                                        "deployment",
                                        "format",
                                        "on_bad_record",
                                        "dead_letter_topic",
                                        "result_topic"};
    json_t *topic = json_object();

    for (size_t i = 0; i < COUNT_OF(texts); i++)
        (void)json_object_set_new(topic, texts[i], json_of_text(answer, 0, row, i));
    (void)json_object_set_new(topic, "paused", json_boolean(pg_bool(answer, 0, row, 12)));
    (void)json_object_set_new(topic, "created_at", json_of_time(answer, 0, row, 13));
    (void)json_object_set_new(topic, "accepted", number_of(answer, 0, row, 14));
    (void)json_object_set_new(topic, "refused", number_of(answer, 0, row, 15));
    (void)json_object_set_new(topic, "repeated", number_of(answer, 0, row, 16));
    (void)json_object_set_new(topic, "lag", number_of(answer, 0, row, 17));
    (void)json_object_set_new(topic, "problem", json_of_text(answer, 0, row, 18));
    return topic;
}

static void on_topics(void *opaque, const struct pg_answer *answer)
{
    call_answer_rows(opaque, answer, "topics", topic_json);
}

void topics_begin(struct call *call)
{
    struct pg_batch *batch;
    const char *tenant;
    struct err err;

    if (call_whose(call, &tenant, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &topics_list);
    pg_bind_c(batch, tenant);
    call_query(call, &batch, on_topics);
}

/* The name in the path, and whose it is. */
static int topic_of_path(struct call *call, const char **ret_tenant, struct err *err)
{
    int r = name_check("name", call->match.param, err);

    return r < 0 ? r : call_whose(call, ret_tenant, err);
}

static bool answered_missing(struct call **call_p, const struct pg_answer *answer)
{
    if (pg_row_count(answer, 0) > 0)
        return false;
    call_fail_as(call_p, 404, "client_error", "there is no binding of this name");
    return true;
}

static void on_topic(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body, *partitions, *refusals;

    if (!call_take_answer(&call, answer) || answered_missing(&call, answer))
        return;
    body = topic_json(answer, 0);
    partitions = json_array();
    refusals = json_array();
    for (size_t row = 0; row < pg_row_count(answer, 1); row++)
        (void)json_array_append_new(
            partitions,
            json_pack("{s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:s}", "topic", pg_c(answer, 1, row, 0),
                      "partition", number_of(answer, 1, row, 1), "position",
                      number_of(answer, 1, row, 2), "log_end", number_of(answer, 1, row, 3), "lag",
                      number_of(answer, 1, row, 4), "accepted", number_of(answer, 1, row, 5),
                      "refused", number_of(answer, 1, row, 6), "owner", pg_c(answer, 1, row, 7)));
    for (size_t row = 0; row < pg_row_count(answer, 2); row++)
        (void)json_array_append_new(
            refusals, json_pack("{s:o, s:o, s:s, s:o}", "partition", number_of(answer, 2, row, 0),
                                "offset", number_of(answer, 2, row, 1), "reason",
                                pg_c(answer, 2, row, 2), "at", json_of_time(answer, 2, row, 3)));
    (void)json_object_set_new(body, "partitions", partitions);
    (void)json_object_set_new(body, "refusals", refusals);
    call_answer_json(&call, 200, &body);
}

static void add_named(struct pg_batch *batch, const struct pg_statement *statement,
                      const char *tenant, const char *name)
{
    pg_add(batch, statement);
    pg_bind_c(batch, tenant);
    pg_bind_c(batch, name);
}

void topic_begin(struct call *call)
{
    struct pg_batch *batch;
    const char *tenant;
    struct err err;

    if (topic_of_path(call, &tenant, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    add_named(batch, &topic_find, tenant, call->match.param);
    add_named(batch, &topic_find_partitions, tenant, call->match.param);
    add_named(batch, &topic_find_refusals, tenant, call->match.param);
    call_query(call, &batch, on_topic);
}

/* ---- pause, resume, unbind ---- */

static void on_changed(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer) || answered_missing(&call, answer))
        return;
    body = json_pack("{s:s}", "name", pg_c(answer, 0, 0, 0));
    call_answer_json(&call, 200, &body);
}

void topic_pause_begin(struct call *call)
{
    struct pg_batch *batch;
    const char *tenant;
    struct err err;

    if (topic_of_path(call, &tenant, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    add_named(batch, &topic_pause, tenant, call->match.param);
    pg_bind_bool(batch, call->match.route == ROUTE_TOPIC_PAUSE);
    pg_bind_c(batch, call->key_prefix);
    call_query(call, &batch, on_changed);
}

void topic_unbind_begin(struct call *call)
{
    struct pg_batch *batch;
    const char *tenant;
    struct err err;

    if (topic_of_path(call, &tenant, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    add_named(batch, &topic_unbind, tenant, call->match.param);
    pg_bind_c(batch, call->key_prefix);
    call_query(call, &batch, on_changed);
}

/* ---- bind ---- */

struct bind_body {
    const char *name, *topic, *brokers, *secret, *group, *model, *environment, *deployment, *format,
        *start, *bad, *dead_topic, *result_topic; /* borrowed from the body; NULL: not said */
    char *mapping;
    struct buf properties;
    char tags[TAGS_SIZE];
    int64_t max_attempts, queue_limit_s, priority;
};

static void bind_body_done(struct bind_body *body)
{
    mem_free(&body->mapping);
    buf_done(&body->properties);
}

static int read_texts(const json_t *json, struct bind_body *body, struct err *err)
{
    const struct {
        const char *name, **to;
    } texts[] = {{"name", &body->name},
                 {"topic", &body->topic},
                 {"brokers", &body->brokers},
                 {"secret", &body->secret},
                 {"group", &body->group},
                 {"model", &body->model},
                 {"environment", &body->environment},
                 {"deployment", &body->deployment},
                 {"format", &body->format},
                 {"start", &body->start},
                 {"on_bad_record", &body->bad},
                 {"dead_letter_topic", &body->dead_topic},
                 {"result_topic", &body->result_topic}};

    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        const json_t *value = json_object_get(json, texts[i].name);

        if (value == NULL || json_is_null(value))
            continue;
        if (!json_is_string(value) || strlen(json_string_value(value)) != json_string_length(value))
            return err_set(err, ERR_MALFORMED, "%s must be a text", texts[i].name);
        if (json_string_length(value) == 0 || json_string_length(value) > BROKERS_SIZE_MAX)
            return err_set(err, ERR_RANGE, "%s has %zu bytes; it must have 1 to %d", texts[i].name,
                           json_string_length(value), BROKERS_SIZE_MAX);
        *texts[i].to = json_string_value(value);
    }
    return 0;
}

static int read_number(const json_t *json, const char *name, int64_t initial, int64_t lowest,
                       int64_t highest, int64_t *ret_number, struct err *err)
{
    const json_t *value = json_object_get(json, name);

    *ret_number = initial;
    if (value == NULL || json_is_null(value))
        return 0;
    if (!json_is_integer(value))
        return err_set(err, ERR_MALFORMED, "%s must be a whole number", name);
    *ret_number = json_integer_value(value);
    if (*ret_number < lowest || *ret_number > highest)
        return err_set(err, ERR_RANGE, "%s is %lld; it must be %lld to %lld", name,
                       (long long)*ret_number, (long long)lowest, (long long)highest);
    return 0;
}

static int read_properties(const json_t *json, struct buf *to, struct err *err)
{
    static const char *const allowed[] = {"security.protocol",
                                          "sasl.mechanism",
                                          "sasl.mechanisms",
                                          "sasl.username",
                                          "ssl.ca.pem",
                                          "ssl.certificate.pem",
                                          "ssl.endpoint.identification.algorithm",
                                          "broker.address.family",
                                          "client.rack",
                                          "isolation.level",
                                          "compression.codec",
                                          "socket.timeout.ms"};
    json_t *properties = json_object_get(json, "properties"), *value;
    const char *name;

    buf_init(to, PROPERTIES_SIZE_MAX);
    if (properties == NULL || json_is_null(properties))
        return 0;
    if (!json_is_object(properties))
        return err_set(err, ERR_MALFORMED, "properties must be an object of texts");
    json_object_foreach(properties, name, value)
    {
        bool known = false;

        for (size_t i = 0; i < COUNT_OF(allowed); i++)
            known = known || strcmp(allowed[i], name) == 0;
        if (!known)
            return err_set(err, ERR_RANGE,
                           "properties.%.60s is not one that a binding may have (docs/kafka.md); "
                           "passwords and keys belong into a secret",
                           name);
        if (!json_is_string(value) || strpbrk(json_string_value(value), ";") != NULL)
            return err_set(err, ERR_RANGE, "properties.%s must be a text without ';'", name);
        buf_printf(to, "%s%s=%s", to->size > 0 ? ";" : "", name, json_string_value(value));
    }
    return buf_check(to, "properties", err);
}

static int read_tags(const json_t *json, char to[TAGS_SIZE], struct err *err)
{
    const json_t *tags = json_object_get(json, "tags");

    to[0] = '\0';
    if (tags == NULL || json_is_null(tags))
        return 0;
    if (!json_is_string(tags))
        return err_set(err, ERR_MALFORMED, "tags must be a text: as X-Headrace-Tags");
    return tags_read(json_string_value(tags), to, err);
}

/* ---- what it says, taken together ---- */

static int check_topic(const struct bind_body *body, const char *what, const char *topic,
                       struct err *err)
{
    size_t size = topic == NULL ? 1 : strlen(topic);

    if (topic == NULL)
        return 0;
    if (size > TOPIC_SIZE_MAX ||
        strspn(topic, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                      "0123456789._-") != size ||
        strcmp(topic, ".") == 0 || strcmp(topic, "..") == 0)
        return err_set(err, ERR_RANGE,
                       "%s is '%.80s'; it must be 1 to %d characters of A-Z a-z 0-9 . _ -", what,
                       topic, TOPIC_SIZE_MAX);
    if (body->brokers != NULL)
        return 0;
    for (enum topic own = 0; own < TOPIC_COUNT; own++) {
        if (strcmp(topic, topic_name(own)) == 0 || strncmp(topic, "dispatch.", 9) == 0 ||
            strncmp(topic, "__", 2) == 0)
            return err_set(err, ERR_RANGE, "%s is '%s', which is a topic of the platform", what,
                           topic);
    }
    return 0;
}

static int check_one_of(const char *what, const char *value, const char *one, const char *two,
                        const char *three, struct err *err)
{
    if (strcmp(value, one) == 0 || strcmp(value, two) == 0 || strcmp(value, three) == 0)
        return 0;
    return err_set(err, ERR_RANGE, "%s is '%.40s'; it must be %s, %s%s%s", what, value, one, two,
                   strcmp(two, three) == 0 ? "" : ", ", strcmp(two, three) == 0 ? "" : three);
}

static int check_target(struct bind_body *body, struct err *err)
{
    int r = 0;

    if (body->model == NULL)
        return err_set(err, ERR_MALFORMED, "model is missing: whom are the records for?");
    if (body->environment != NULL && body->deployment != NULL)
        return err_set(err, ERR_MALFORMED, "environment and deployment exclude each other");
    if (body->environment == NULL && body->deployment == NULL)
        body->environment = "production";
    r = name_check("model", body->model, err);
    if (r == 0)
        r = name_check(body->environment != NULL ? "environment" : "deployment",
                       body->environment != NULL ? body->environment : body->deployment, err);
    return r;
}

static int check_topics(struct bind_body *body, struct err *err)
{
    int r;

    if (body->topic == NULL && body->result_topic == NULL)
        return err_set(err, ERR_MALFORMED, "topic is missing, and so is result_topic: one must be");
    if (body->bad == NULL)
        body->bad = body->dead_topic != NULL ? "dead_letter" : "stop";
    if (body->start == NULL)
        body->start = body->topic != NULL ? "beginning" : "end";
    if (body->format == NULL)
        body->format = "json";
    r = check_topic(body, "topic", body->topic, err);
    if (r == 0)
        r = check_topic(body, "dead_letter_topic", body->dead_topic, err);
    if (r == 0)
        r = check_topic(body, "result_topic", body->result_topic, err);
    if (r == 0)
        r = check_one_of("on_bad_record", body->bad, "stop", "skip", "dead_letter", err);
    if (r == 0)
        r = check_one_of("start", body->start, "beginning", "end", "end", err);
    if (r < 0)
        return r;
    if ((strcmp(body->bad, "dead_letter") == 0) != (body->dead_topic != NULL))
        return err_set(err, ERR_MALFORMED,
                       "on_bad_record dead_letter and dead_letter_topic need each other");
    if (body->topic != NULL &&
        ((body->dead_topic != NULL && strcmp(body->topic, body->dead_topic) == 0) ||
         (body->result_topic != NULL && strcmp(body->topic, body->result_topic) == 0)))
        return err_set(err, ERR_RANGE, "topic '%s' would be read and written by the same binding",
                       body->topic);
    return 0;
}

static int check_mapping(const json_t *json, struct bind_body *body, struct err *err)
{
    const json_t *value = json_object_get(json, "mapping");
    struct ingest_mapping *mapping = NULL;
    int r;

    body->mapping = value == NULL || json_is_null(value)
                        ? xstrdup("{}")
                        : json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    r = ingest_mapping_parse(body->format, body->mapping, &mapping, err);
    ingest_mapping_free(&mapping);
    return r;
}

static int read_bind_body(const json_t *json, struct bind_body *body, struct err *err)
{
    static const char *const fields[] = {"name",
                                         "topic",
                                         "brokers",
                                         "properties",
                                         "secret",
                                         "group",
                                         "model",
                                         "environment",
                                         "deployment",
                                         "format",
                                         "mapping",
                                         "max_attempts",
                                         "max_time_in_queue_seconds",
                                         "priority",
                                         "tags",
                                         "start",
                                         "on_bad_record",
                                         "dead_letter_topic",
                                         "result_topic"};
    int r = fields_check(json, fields, COUNT_OF(fields), err);

    if (r == 0)
        r = read_texts(json, body, err);
    if (r == 0)
        r = body->name == NULL ? err_set(err, ERR_MALFORMED, "name is missing")
                               : name_check("name", body->name, err);
    if (r == 0)
        r = check_target(body, err);
    if (r == 0)
        r = check_topics(body, err);
    if (r == 0 && body->secret != NULL)
        r = secret_name_check(body->secret, err);
    if (r == 0)
        r = read_properties(json, &body->properties, err);
    if (r == 0)
        r = read_tags(json, body->tags, err);
    if (r == 0)
        r = check_mapping(json, body, err);
    if (r == 0)
        r = read_number(json, "max_attempts", JOB_ATTEMPTS_DEFAULT, 1, JOB_ATTEMPTS_MAX,
                        &body->max_attempts, err);
    if (r == 0)
        r = read_number(json, "max_time_in_queue_seconds", QUEUE_LIMIT_S_DEFAULT, 10,
                        QUEUE_LIMIT_S_DEFAULT, &body->queue_limit_s, err);
    return r < 0 ? r : read_number(json, "priority", 0, 0, 2, &body->priority, err);
}

static void on_bound(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;
    struct err err;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        (void)err_set(
            &err, ERR_CONFLICT,
            "there is no such tenant, a binding of this name exists, or there are %d bindings, "
            "which is the most",
            BINDINGS_MAX);
        call_fail(&call, &err);
        return;
    }
    body = json_pack("{s:s}", "name", pg_c(answer, 0, 0, 0));
    call_answer_json(&call, 201, &body);
}

static void bind_bind(struct pg_batch *batch, const struct call *call, const char *tenant,
                      const struct bind_body *body)
{
    uint8_t random[SHORT_ID_RANDOM_SIZE];
    OWNED(mem_free)
    char *group = body->group != NULL ? xstrdup(body->group)
                                      : xasprintf(GROUP_PREFIX "%s.%s", tenant, body->name);
    char id[SHORT_ID_SIZE];

    rng_secret_bytes(random, sizeof(random));
    short_id_make(random, id);
    pg_add(batch, &topic_bind);
    pg_bind_c(batch, id);
    pg_bind_c(batch, tenant);
    pg_bind_c(batch, body->name);
    pg_bind_c(batch, body->topic);
    pg_bind_c(batch, body->brokers != NULL ? body->brokers : "");
    pg_bind_text(batch, (struct wire_text){
                            body->properties.size > 0 ? (const char *)body->properties.bytes : "",
                            body->properties.size});
    pg_bind_c(batch, body->secret);
    pg_bind_c(batch, group);
    pg_bind_c(batch, body->model);
    pg_bind_c(batch, body->environment);
    pg_bind_c(batch, body->deployment);
    pg_bind_c(batch, body->format);
    pg_bind_json(batch, body->mapping);
    pg_bind_i16(batch, body->max_attempts);
    pg_bind_i64(batch, 1000 * body->queue_limit_s);
    pg_bind_i16(batch, body->priority);
    pg_bind_c(batch, body->tags);
    pg_bind_c(batch, body->start);
    pg_bind_c(batch, body->bad);
    pg_bind_c(batch, body->dead_topic);
    pg_bind_c(batch, body->result_topic);
    pg_bind_c(batch, call->key_prefix);
}

static void on_bind_body(struct call *call)
{
    struct bind_body body = {.name = NULL};
    struct pg_batch *batch;
    const char *tenant;
    json_t *json = NULL;
    struct err err;
    int r = 0;

    if (!call_is_operator(call))
        r = err_set(&err, ERR_FORBIDDEN,
                    "only an admin's api-key of the operator's tenant may bind topics");
    if (r == 0)
        r = call_read_json(call, &json, &err);
    if (r == 0)
        r = read_bind_body(json, &body, &err);
    if (r == 0)
        r = call_whose(call, &tenant, &err);
    if (r < 0) {
        call_fail(&call, &err);
    } else {
        batch = pg_batch_new();
        bind_bind(batch, call, tenant, &body);
        call_query(call, &batch, on_bound);
    }
    bind_body_done(&body);
    json_decref(json);
}

void topic_bind_begin(struct call *call)
{
    call_collect_body(call, BODY_SIZE_MAX, on_bind_body);
}
