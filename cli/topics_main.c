/* SPDX-License-Identifier: Apache-2.0 */

/* headrace topics: Kafka topics whose records become jobs, and topics that results go to. */

#include <stdio.h>
#include <string.h>

#include "cli/list.h"

int topics_main(int argc, char **argv);

#define TOPICS_SETTINGS                                                                            \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(tenant, "",                                                                     \
                   "bindings of this tenant; only an operator may say another one than its own")

#define BIND_SETTINGS                                                                              \
    TOPICS_SETTINGS                                                                                \
    SETTING_STRING(topic, "", "topic whose records become jobs")                                   \
    SETTING_STRING(model, "", "model or chain that they are for, by id or name")                   \
    SETTING_STRING(environment, "", "environment of the model; default: production")               \
    SETTING_STRING(deployment, "", "this deployment and no other")                                 \
    SETTING_STRING(brokers, "",                                                                    \
                   "bootstrap servers of the topic's cluster; empty: the platform's own")          \
    SETTING_STRING(properties, "",                                                                 \
                   "name=value;… of librdkafka, as far as docs/kafka.md lists them")               \
    SETTING_STRING(secret, "", "secret of the tenant with more of them: sasl.password=…")          \
    SETTING_STRING(group, "", "consumer group; default: headrace.TENANT.NAME")                     \
    SETTING_STRING(format, "json", "json or msgpack")                                              \
    SETTING_STRING(mapping, "", "JSON: input, key, priority as templates of the record")           \
    SETTING_INT(max_attempts, 3, 1, 10, "tries of a job, the first one included")                  \
    SETTING_INT(priority, 0, 0, 2, "priority of the jobs: lower runs first")                       \
    SETTING_STRING(tags, "", "tags of the jobs, with commas between")                              \
    SETTING_STRING(start, "", "beginning or end of the topic, when the group is new")              \
    SETTING_STRING(on_bad_record, "", "stop, skip or dead_letter; default: stop")                  \
    SETTING_STRING(dead_letter_topic, "", "where records go that cannot be jobs")                  \
    SETTING_STRING(result_topic, "", "where results go")

struct topics_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    TOPICS_SETTINGS
#include "base/settings_end.def"
};

static const struct setting topics_rows[] = {
#define SETTINGS_ROWS struct topics_settings
#include "base/settings_rows.def"
    TOPICS_SETTINGS
#include "base/settings_end.def"
};

struct bind_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    BIND_SETTINGS
#include "base/settings_end.def"
};

static const struct setting bind_rows[] = {
#define SETTINGS_ROWS struct bind_settings
#include "base/settings_rows.def"
    BIND_SETTINGS
#include "base/settings_end.def"
};

#define TOPICS_ACTION topics_rows, COUNT_OF(topics_rows), sizeof(struct topics_settings)

/* The path of a binding, or of one thing to do with it, for that tenant. */
static char *topic_path(const char *tenant, const char *name, const char *what)
{
    OWNED(buf_done) struct buf path = BUF_WITH_LIMIT(4096);

    buf_append_text(&path, "/v1/topics");
    if (name != NULL) {
        buf_append_byte(&path, '/');
        client_append_escaped(&path, name);
        buf_append_text(&path, what);
    }
    if (tenant[0] != '\0') {
        buf_append_text(&path, "?tenant=");
        client_append_escaped(&path, tenant);
    }
    return xstrdup(buf_text(&path));
}

static int topics_ls(const struct client *client, const void *values, char **operands,
                     int operand_count)
{
    static const struct table_column columns[] = {
        {"NAME", "name", false, false},        {"TOPIC", "topic", false, true},
        {"MODEL", "model", false, true},       {"RESULTS", "result_topic", false, true},
        {"PAUSED", "paused", false, false},    {"LAG", "lag", true, false},
        {"ACCEPTED", "accepted", true, false}, {"REFUSED", "refused", true, false},
        {"PROBLEM", "problem", false, true},
    };
    const struct topics_settings *settings = values;
    OWNED(mem_free) char *path = topic_path(settings->tenant, NULL, "");
    const struct list_view view = {"topics ls",         path,    "topics",
                                   "no topic is bound", columns, COUNT_OF(columns)};

    (void)operands;
    if (!verb_operands("nothing more", operand_count, 0, 0))
        return CLI_EXIT_USAGE;
    return list_run(client, &view, settings->json);
}

/* One exchange about one binding. */
static int topic_run(const struct client *client, const struct topics_settings *settings,
                     char **operands, int operand_count, const char *verb, const char *method,
                     const char *what)
{
    OWNED(mem_free) char *path = NULL;

    if (!verb_operands("the name of one binding", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    path = topic_path(settings->tenant, operands[0], what);
    return show_run(client, verb, method, path, NULL, settings->json);
}

static int topics_show(const struct client *client, const void *values, char **operands,
                       int operand_count)
{
    return topic_run(client, values, operands, operand_count, "topics show", "GET", "");
}

static int topics_pause(const struct client *client, const void *values, char **operands,
                        int operand_count)
{
    return topic_run(client, values, operands, operand_count, "topics pause", "POST", "/pause");
}

static int topics_resume(const struct client *client, const void *values, char **operands,
                         int operand_count)
{
    return topic_run(client, values, operands, operand_count, "topics resume", "POST", "/resume");
}

static int topics_unbind(const struct client *client, const void *values, char **operands,
                         int operand_count)
{
    return topic_run(client, values, operands, operand_count, "topics unbind", "DELETE", "");
}

/* ---- bind ---- */

static void set_text(json_t *body, const char *name, const char *value)
{
    if (value[0] != '\0')
        (void)json_object_set_new(body, name, json_string(value));
}

/* "name=value;…" as an object. */
static int set_properties(json_t *body, const char *text, struct err *err)
{
    OWNED(mem_free) char *copy = xstrdup(text);
    char *rest = copy, *part;
    json_t *properties = json_object();

    (void)json_object_set_new(body, "properties", properties);
    while ((part = strsep(&rest, ";")) != NULL) {
        char *value = strchr(part, '=');

        if (*part == '\0')
            continue;
        if (value == NULL)
            return err_set(err, ERR_USAGE, "--properties: '%s' has no '='", part);
        *value++ = '\0';
        (void)json_object_set_new(properties, part, json_string(value));
    }
    return 0;
}

static int bind_body(const struct bind_settings *settings, const char *name, json_t *body,
                     struct err *err)
{
    json_error_t where;

    set_text(body, "name", name);
    set_text(body, "topic", settings->topic);
    set_text(body, "model", settings->model);
    set_text(body, "environment", settings->environment);
    set_text(body, "deployment", settings->deployment);
    set_text(body, "brokers", settings->brokers);
    set_text(body, "secret", settings->secret);
    set_text(body, "group", settings->group);
    set_text(body, "format", settings->format);
    set_text(body, "tags", settings->tags);
    set_text(body, "start", settings->start);
    set_text(body, "on_bad_record", settings->on_bad_record);
    set_text(body, "dead_letter_topic", settings->dead_letter_topic);
    set_text(body, "result_topic", settings->result_topic);
    (void)json_object_set_new(body, "max_attempts", json_integer(settings->max_attempts));
    (void)json_object_set_new(body, "priority", json_integer(settings->priority));
    if (settings->mapping[0] != '\0') {
        json_t *mapping = json_loads(settings->mapping, JSON_REJECT_DUPLICATES, &where);

        if (mapping == NULL)
            return err_set(err, ERR_USAGE, "--mapping is no JSON: %.200s", where.text);
        (void)json_object_set_new(body, "mapping", mapping);
    }
    return settings->properties[0] == '\0' ? 0 : set_properties(body, settings->properties, err);
}

static int topics_bind(const struct client *client, const void *values, char **operands,
                       int operand_count)
{
    const struct bind_settings *settings = values;
    OWNED(client_json_free) json_t *body = json_object();
    OWNED(mem_free) char *path = topic_path(settings->tenant, NULL, "");
    struct err err;

    if (!verb_operands("a name for the binding", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    if (bind_body(settings, operands[0], body, &err) < 0)
        return client_complain("topics bind", &err);
    return show_run(client, "topics bind", "POST", path, body, settings->json);
}

int topics_main(int argc, char **argv)
{
    static const struct verb_action actions[] = {
        {"ls", NULL, "Lists bindings: how far they are, and what is wrong.", TOPICS_ACTION,
         topics_ls},
        {"bind", "NAME", "Binds a topic to a model, or results of a model to a topic.", bind_rows,
         COUNT_OF(bind_rows), sizeof(struct bind_settings), topics_bind},
        {"show", "NAME", "Shows a binding: its partitions, and the records that were refused last.",
         TOPICS_ACTION, topics_show},
        {"pause", "NAME", "Reads no further; what was claimed is finished.", TOPICS_ACTION,
         topics_pause},
        {"resume", "NAME", "Reads on where it paused.", TOPICS_ACTION, topics_resume},
        {"unbind", "NAME", "Forgets a binding, and how far it was; its jobs stay.", TOPICS_ACTION,
         topics_unbind},
    };
    static const struct verb verb = {"topics", "Kafka topics in and out.", actions,
                                     COUNT_OF(actions)};

    return verb_main(&verb, argc, argv);
}
