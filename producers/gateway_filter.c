/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/gateway_filter.h"

#include <jansson.h>
#include <string.h>
#include <strings.h>

#include "base/assert.h"
#include "producers/gateway_tags.h"
#include "producers/gateway_time.h"
#include "schema/job_id.h"

#define NAME_CHARACTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"

static const char filter_keys[] = "status, error_class, model, deployment, environment, pool, "
                                  "worker, tag, accepted_after, accepted_before";

bool job_action_is_for(enum command_kind kind, enum job_state state)
{
    switch (kind) {
    case COMMAND_CANCEL:
        return !job_state_final(state);
    case COMMAND_REPLAY:
        return job_state_dead(state);
    case COMMAND_PRIORITY:
    case COMMAND_WAKE:
        return state == JOB_QUEUED;
    }
    NEVER("command kind is out of range");
}

static const char *states_of(enum command_kind kind)
{
    return kind == COMMAND_CANCEL   ? "QUEUED or IN_PROGRESS"
           : kind == COMMAND_REPLAY ? "FAILED or EXPIRED"
                                    : "QUEUED";
}

static int read_name(const char *key, const json_t *value, char to[FILTER_NAME_SIZE],
                     struct err *err)
{
    const char *name = json_string_value(value);
    size_t size = json_string_length(value);

    if (name == NULL || size == 0 || size >= FILTER_NAME_SIZE)
        return err_set(err, ERR_MALFORMED, "filter.%s must be a text of 1 to %d bytes", key,
                       FILTER_NAME_SIZE - 1);
    if (strcmp(key, "tag") == 0) {
        int r = tag_check(name, size, err);

        if (r < 0)
            return err_wrap(err, "filter.%s", key);
    } else if (strspn(name, NAME_CHARACTERS) != size) {
        return err_set(err, ERR_RANGE, "filter.%s is '%s'; it may hold letters, digits and . _ -",
                       key, name);
    }
    memcpy(to, name, size + 1);
    return 0;
}

static int read_state(const json_t *value, enum command_kind kind, struct job_filter *filter,
                      struct err *err)
{
    const char *name = json_string_value(value);

    if (name == NULL)
        return err_set(err, ERR_MALFORMED, "filter.status must be a text or a list of texts");
    for (enum job_state state = JOB_QUEUED; state <= JOB_CANCELED; state++) {
        if (strcmp(job_state_name(state), name) != 0)
            continue;
        if (!job_action_is_for(kind, state))
            break;
        filter->states[state] = true;
        return 0;
    }
    return err_set(err, ERR_RANGE, "filter.status is '%.40s'; for this action it must be %s", name,
                   states_of(kind));
}

static int read_states(const json_t *value, enum command_kind kind, struct job_filter *filter,
                       struct err *err)
{
    int r = 0;

    memset(filter->states, 0, sizeof(filter->states));
    if (!json_is_array(value))
        return read_state(value, kind, filter, err);
    if (json_array_size(value) == 0 || json_array_size(value) > JOB_CANCELED)
        return err_set(err, ERR_RANGE, "filter.status is a list of %zu; it must be one of 1 to %d",
                       json_array_size(value), JOB_CANCELED);
    for (size_t i = 0; r == 0 && i < json_array_size(value); i++)
        r = read_state(json_array_get(value, i), kind, filter, err);
    return r;
}

static int read_error_class(const json_t *value, struct job_filter *filter, struct err *err)
{
    const char *name = json_string_value(value);

    for (int class = 1; name != NULL && class < ERROR_CLASS_COUNT; class ++) {
        if (strcasecmp(error_class_name((enum error_class) class), name) == 0) {
            filter->error_class = class;
            return 0;
        }
    }
    return err_set(err, ERR_RANGE,
                   "filter.error_class is '%.40s'; it must be one of the classes that "
                   "headrace_v1.jobs shows, like oom or model_error",
                   name == NULL ? "no text" : name);
}

static int read_time(const char *key, const json_t *value, uint64_t *ret_us, struct err *err)
{
    int r;

    if (!json_is_string(value))
        return err_set(err, ERR_MALFORMED, "filter.%s must be a time as text", key);
    r = gateway_time_parse(json_string_value(value), ret_us, err);
    if (r < 0)
        return err_wrap(err, "filter.%s", key);
    if (*ret_us == 0)
        *ret_us = 1; /* before 1970; 0 would say that there is no bound */
    return 0;
}

static int read_condition(const char *key, const json_t *value, enum command_kind kind,
                          struct job_filter *filter, struct err *err)
{
    const struct {
        const char *key;
        char *to;
    } names[] = {
        {"model", filter->model},   {"deployment", filter->deployment},
        {"pool", filter->pool},     {"environment", filter->environment},
        {"worker", filter->worker}, {"tag", filter->tag},
    };

    for (size_t i = 0; i < COUNT_OF(names); i++) {
        if (strcmp(names[i].key, key) == 0)
            return read_name(key, value, names[i].to, err);
    }
    if (strcmp(key, "status") == 0)
        return read_states(value, kind, filter, err);
    if (strcmp(key, "error_class") == 0)
        return read_error_class(value, filter, err);
    if (strcmp(key, "accepted_after") == 0)
        return read_time(key, value, &filter->after_us, err);
    if (strcmp(key, "accepted_before") == 0)
        return read_time(key, value, &filter->before_us, err);
    return err_set(err, ERR_MALFORMED, "filter.%.40s is not known; there are %s", key, filter_keys);
}

/* A range of time that is empty is no error: like any other filter, it may match nothing. */
static int read_filter(const json_t *conditions, enum command_kind kind, struct job_filter *filter,
                       struct err *err)
{
    const char *key;
    json_t *value;
    int r = 0;

    *filter = (struct job_filter){.error_class = -1};
    for (enum job_state state = JOB_QUEUED; state <= JOB_CANCELED; state++)
        filter->states[state] = job_action_is_for(kind, state);
    if (conditions == NULL) {
        filter->everything = true;
        return 0;
    }
    if (!json_is_object(conditions))
        return err_set(err, ERR_MALFORMED, "filter must be an object of %s", filter_keys);
    if (json_object_size(conditions) == 0)
        return err_set(err, ERR_RANGE,
                       "an empty filter matches every job; say \"all\": true to mean that");
    json_object_foreach((json_t *)conditions, key, value)
    {
        if (r == 0)
            r = read_condition(key, value, kind, filter, err);
    }
    return r;
}

static int read_id(const char *key, const json_t *value, struct wire_id *ret_id, struct err *err)
{
    const char *text = json_string_value(value);
    int r = text == NULL ? err_set(err, ERR_MALFORMED, "it must be a text")
                         : job_id_parse(text, ret_id, err);

    return r < 0 ? err_wrap(err, "%s", key) : 0;
}

static int read_ids(const json_t *list, struct job_request *request, struct err *err)
{
    size_t count = json_array_size(list);
    int r = 0;

    if (!json_is_array(list) || count == 0 || count > FILTER_IDS_MAX)
        return err_set(err, ERR_RANGE, "request_ids has %zu; it must be a list of 1 to %d", count,
                       FILTER_IDS_MAX);
    request->ids = xcalloc(count, sizeof(*request->ids));
    for (size_t i = 0; r == 0 && i < count; i++)
        r = read_id("request_ids", json_array_get(list, i), &request->ids[i], err);
    request->id_count = count;
    return r;
}

static int read_number(const json_t *body, const char *key, int64_t lowest, int64_t highest,
                       uint32_t *to, struct err *err)
{
    const json_t *value = json_object_get(body, key);
    double number = json_number_value(value); /* JSON knows no difference of 1 and 1.0 */

    if (value == NULL)
        return 0;
    if (!json_is_number(value) || !(number >= (double)lowest && number <= (double)highest) ||
        number != (double)(int64_t)number)
        return err_set(err, ERR_RANGE, "%s must be an integer of %lld to %lld", key,
                       (long long)lowest, (long long)highest);
    *to = (uint32_t)number;
    return 0;
}

/* A slip of the pen, like "dryrun", must not do more than was meant. */
static int check_keys(const json_t *body, enum command_kind kind, struct err *err)
{
    static const char *const known[] = {"request_ids", "filter", "all",          "dry_run",
                                        "limit",       "cursor", "operation_id", "priority"};
    size_t count = COUNT_OF(known) - (kind == COMMAND_PRIORITY ? 0 : 1);
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)body, key, value)
    {
        size_t i = 0;

        while (i < count && strcmp(known[i], key) != 0)
            i++;
        if (i == count)
            return err_set(err, ERR_MALFORMED,
                           "%.40s is not known; there are request_ids, filter, all, dry_run, "
                           "limit, cursor, operation_id%s",
                           key, kind == COMMAND_PRIORITY ? ", priority" : "");
    }
    return 0;
}

/* Exactly one of the three. */
static int check_which(const json_t *ids, const json_t *filter, const json_t *all, struct err *err)
{
    int count = (ids != NULL) + (filter != NULL) + (all != NULL);

    if (count == 0)
        return err_set(err, ERR_MALFORMED,
                       "which jobs? request_ids, filter, or \"all\": true is missing");
    if (count > 1)
        return err_set(err, ERR_RANGE, "one of request_ids, filter and \"all\": true, not both");
    if (all != NULL && !json_is_true(all))
        return err_set(err, ERR_MALFORMED, "all must be true, or not be there");
    return 0;
}

static int read_options(const json_t *body, struct job_request *request, struct err *err)
{
    const json_t *dry_run = json_object_get(body, "dry_run");
    const json_t *cursor = json_object_get(body, "cursor");
    const json_t *operation = json_object_get(body, "operation_id");
    int r = 0;

    if (dry_run != NULL && !json_is_boolean(dry_run))
        return err_set(err, ERR_MALFORMED, "dry_run must be true or false");
    request->dry_run = json_is_true(dry_run);
    request->limit = FILTER_PAGE_MAX;
    r = read_number(body, "limit", 1, FILTER_PAGE_MAX, &request->limit, err);
    if (r == 0 && request->kind == COMMAND_PRIORITY && json_object_get(body, "priority") == NULL)
        r = err_set(err, ERR_MALFORMED, "priority is missing; it must be 0, 1 or 2");
    if (r == 0)
        r = read_number(body, "priority", 0, JOB_PRIORITY_MAX, &request->priority, err);
    request->has_cursor = cursor != NULL && !json_is_null(cursor);
    if (r == 0 && request->has_cursor)
        r = read_id("cursor", cursor, &request->cursor, err);
    request->has_operation = operation != NULL && !json_is_null(operation);
    if (r == 0 && request->has_operation)
        r = read_id("operation_id", operation, &request->operation, err);
    return r;
}

int job_request_read(const struct json_t *body, enum command_kind kind, struct job_request *ret,
                     struct err *err)
{
    OWNED(job_request_done) struct job_request request = {.kind = kind};
    const json_t *ids = json_object_get(body, "request_ids");
    const json_t *filter = json_object_get(body, "filter");
    int r = check_keys(body, kind, err);

    if (r == 0)
        r = check_which(ids, filter, json_object_get(body, "all"), err);
    if (r == 0)
        r = read_options(body, &request, err);
    if (r == 0)
        r = ids != NULL ? read_ids(ids, &request, err)
                        : read_filter(filter, kind, &request.filter, err);
    if (r < 0)
        return r;
    *ret = request;
    request.ids = NULL;
    return 0;
}

void job_request_done(struct job_request *request)
{
    mem_free(&request->ids);
}
