/* SPDX-License-Identifier: Apache-2.0 */

/* The keys of a step: what each may be, and how they go together. What steps have to do with each
 * other is in chain.c. */

#include <string.h>

#include "base/buf.h"
#include "schema/chain_int.h"
#include "schema/job.h"

#define QUEUE_S_MAX ((json_int_t)JOB_QUEUE_LIMIT_S_MAX)

static bool name_is_good(const char *text)
{
    size_t size = strlen(text);

    return size > 0 && size < CHAIN_NAME_SIZE &&
           strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == size;
}

/* ---- keys ---- */

static int read_name(struct chain_step *step, const char *key, const json_t *value, char *to,
                     struct err *err)
{
    const char *text = json_string_value(value);

    if (text == NULL || strlen(text) != json_string_length(value) || text[0] == '\0' ||
        strlen(text) >= CHAIN_NAME_SIZE)
        return err_set(err, ERR_RANGE, "step %s: %s must be a text of 1 to %d bytes", step->name,
                       key, CHAIN_NAME_SIZE - 1);
    mem_copy_text_at(to, CHAIN_NAME_SIZE, text);
    return 0;
}

static int read_number(const struct chain_step *step, const char *key, const json_t *value,
                       json_int_t lowest, json_int_t highest, uint64_t *ret_number, struct err *err)
{
    json_int_t number = json_integer_value(value);

    if (!json_is_integer(value))
        return err_set(err, ERR_MALFORMED, "step %s: %s must be a whole number", step->name, key);
    if (number < lowest || number > highest)
        return err_set(err, ERR_RANGE, "step %s: %s is %lld, it must be %lld to %lld", step->name,
                       key, (long long)number, (long long)lowest, (long long)highest);
    *ret_number = (uint64_t)number;
    return 0;
}

static int read_u32(const struct chain_step *step, const char *key, const json_t *value,
                    uint32_t lowest, uint32_t highest, uint32_t *ret_number, struct err *err)
{
    uint64_t number = 0;
    int r = read_number(step, key, value, lowest, highest, &number, err);

    if (r == 0)
        *ret_number = (uint32_t)number;
    return r;
}

static int read_retry(struct chain_step *step, const json_t *value, struct err *err)
{
    const char *key;
    json_t *member;
    int r = 0;

    if (!json_is_object(value))
        return err_set(err, ERR_MALFORMED, "step %s: retry must be an object", step->name);
    json_object_foreach((json_t *)value, key, member)
    {
        if (strcmp(key, "max_attempts") == 0)
            r = read_u32(step, "retry.max_attempts", member, 1, JOB_ATTEMPTS_MAX,
                         &step->max_attempts, err);
        else if (strcmp(key, "initial_delay_ms") == 0)
            r = read_number(step, "retry.initial_delay_ms", member, 0, JOB_INITIAL_DELAY_MS_MAX,
                            &step->initial_delay_ms, err);
        else if (strcmp(key, "max_delay_ms") == 0)
            r = read_number(step, "retry.max_delay_ms", member, 0, JOB_MAX_DELAY_MS_MAX,
                            &step->max_delay_ms, err);
        else
            r = err_set(err, ERR_UNSUPPORTED,
                        "step %s: retry has no key '%.60s'; there are max_attempts, "
                        "initial_delay_ms and max_delay_ms",
                        step->name, key);
        if (r < 0)
            return r;
    }
    return 0;
}

static int read_on_error(struct chain_step *step, const json_t *value, struct err *err)
{
    const char *text = json_is_string(value) ? json_string_value(value) : "";

    step->falls_back = strcmp(text, "fallback") == 0;
    step->may_fail = step->falls_back || strcmp(text, "skip") == 0;
    step->undo_always = strcmp(text, "compensate") == 0;
    if (step->may_fail || step->undo_always || strcmp(text, "fail") == 0)
        return 0;
    return err_set(err, ERR_RANGE,
                   "step %s: on_error is '%.60s', it must be fail, skip, fallback or compensate",
                   step->name, text);
}

static int read_condition(const struct chain_step *step, const char *key, const json_t *value,
                          const json_t **to, struct err *err)
{
    if (!json_is_string(value) && !json_is_boolean(value))
        return err_set(err, ERR_MALFORMED, "step %s: %s must be a template or a truth value",
                       step->name, key);
    *to = value;
    return 0;
}

/* ---- a key each: what the value is is checked here, how keys go together in check_step() ---- */

#define KEY_READER(name)                                                                           \
    static int read_##name(struct chain_step *step, const json_t *value, struct err *err)

KEY_READER(model)
{
    return read_name(step, "model", value, step->model, err);
}

KEY_READER(environment)
{
    return read_name(step, "environment", value, step->environment, err);
}

KEY_READER(deployment)
{
    return read_name(step, "deployment", value, step->deployment, err);
}

static int read_builtin(struct chain_step *step, enum chain_kind kind, const json_t *value,
                        struct err *err)
{
    if (step->builtin != NULL)
        return err_set(err, ERR_MISMATCH, "step %s: both %s and %s are set", step->name,
                       chain_kind_name(step->kind), chain_kind_name(kind));
    step->kind = kind;
    step->builtin = value;
    return 0;
}

KEY_READER(transform)
{
    return read_builtin(step, CHAIN_TRANSFORM, value, err);
}

KEY_READER(wait)
{
    if (!json_is_string(value) && !json_is_number(value))
        return err_set(err, ERR_MALFORMED,
                       "step %s: wait must be seconds, a time, or a template of either",
                       step->name);
    return read_builtin(step, CHAIN_WAIT, value, err);
}

KEY_READER(approval)
{
    return read_builtin(step, CHAIN_APPROVAL, value, err);
}

KEY_READER(switch)
{
    return read_builtin(step, CHAIN_SWITCH, value, err);
}

KEY_READER(http)
{
    int r = chain_http_read(value, step->name, &step->http, err);

    return r < 0 ? r : read_builtin(step, CHAIN_HTTP, value, err);
}

/* Which steps those are is known when all are. */
static int check_branch(const struct chain_step *step, const char *where, const char *key,
                        const json_t *names, struct err *err)
{
    return json_is_string(names) || json_is_array(names)
               ? 0
               : err_set(err, ERR_MALFORMED, "step %s: %s%.80s must be a step or a list of steps",
                         step->name, where, key);
}

KEY_READER(cases)
{
    const char *key;
    json_t *names;

    if (!json_is_object(value) || json_object_size(value) == 0 ||
        json_object_size(value) > CHAIN_CASES_MAX)
        return err_set(err, ERR_RANGE, "step %s: cases must be an object of 1 to %d members",
                       step->name, CHAIN_CASES_MAX);
    json_object_foreach((json_t *)value, key, names)
    {
        if (check_branch(step, "cases.", key, names, err) < 0)
            return err->code;
    }
    step->cases_json = value;
    return 0;
}

KEY_READER(default)
{
    step->otherwise_json = value;
    return check_branch(step, "", "default", value, err);
}

KEY_READER(input)
{
    (void)err;
    step->input = value;
    return 0;
}

KEY_READER(fallback)
{
    (void)err;
    step->fallback = value;
    return 0;
}

KEY_READER(fallback_step)
{
    step->fallback_step = json_string_value(value);
    return step->fallback_step != NULL
               ? 0
               : err_set(err, ERR_MALFORMED, "step %s: fallback_step must be the name of a step",
                         step->name);
}

KEY_READER(compensate)
{
    step->compensate = json_string_value(value);
    return step->compensate != NULL
               ? 0
               : err_set(err, ERR_MALFORMED, "step %s: compensate must be the name of a step",
                         step->name);
}

KEY_READER(cache)
{
    const char *key;
    json_t *member;
    int r = 0;

    if (!json_is_object(value))
        return err_set(err, ERR_MALFORMED, "step %s: cache must be an object", step->name);
    json_object_foreach((json_t *)value, key, member)
    {
        if (strcmp(key, "ttl_seconds") == 0)
            r = read_u32(step, "cache.ttl_seconds", member, 1, CHAIN_CACHE_SECONDS_MAX,
                         &step->cache_seconds, err);
        else
            r = err_set(err, ERR_UNSUPPORTED,
                        "step %s: cache has no key '%.60s'; there is ttl_seconds", step->name, key);
        if (r < 0)
            return r;
    }
    return step->cache_seconds != 0
               ? 0
               : err_set(err, ERR_MALFORMED, "step %s: cache.ttl_seconds is missing", step->name);
}

KEY_READER(stream)
{
    step->stream = json_is_true(value);
    return json_is_boolean(value)
               ? 0
               : err_set(err, ERR_MALFORMED, "step %s: stream must be a truth value", step->name);
}

KEY_READER(output_schema)
{
    int r = json_schema_new(value, &step->output_schema, err);

    return r < 0 ? err_wrap(err, "step %s: output_schema", step->name) : 0;
}

KEY_READER(map)
{
    step->map = value;
    return json_is_string(value) || json_is_array(value)
               ? 0
               : err_set(err, ERR_MALFORMED, "step %s: map must be a template or a list",
                         step->name);
}

KEY_READER(loop)
{
    const char *key;
    json_t *member;
    int r = 0;

    if (!json_is_object(value))
        return err_set(err, ERR_MALFORMED, "step %s: loop must be an object", step->name);
    step->max_iterations = CHAIN_ITERATIONS_DEFAULT;
    json_object_foreach((json_t *)value, key, member)
    {
        if (strcmp(key, "until") == 0)
            r = read_condition(step, "loop.until", member, &step->until, err);
        else if (strcmp(key, "max_iterations") == 0)
            r = read_u32(step, "loop.max_iterations", member, 1, CHAIN_ITERATIONS_MAX,
                         &step->max_iterations, err);
        else
            r = err_set(err, ERR_UNSUPPORTED,
                        "step %s: loop has no key '%.60s'; there are until and max_iterations",
                        step->name, key);
        if (r < 0)
            return r;
    }
    return step->until != NULL
               ? 0
               : err_set(err, ERR_MALFORMED, "step %s: loop.until is missing", step->name);
}

KEY_READER(max_parallel)
{
    return read_u32(step, "max_parallel", value, 1, CHAIN_PARALLEL_MAX, &step->max_parallel, err);
}

KEY_READER(max_failures)
{
    return read_u32(step, "max_failures", value, 0, CHAIN_ITEMS_MAX, &step->max_failures, err);
}

KEY_READER(needs) /* which steps those are is known when all are */
{
    return json_is_array(value)
               ? 0
               : err_set(err, ERR_MALFORMED, "step %s: needs must be a list of steps", step->name);
}

KEY_READER(when)
{
    return read_condition(step, "when", value, &step->when, err);
}

KEY_READER(unless)
{
    return read_condition(step, "unless", value, &step->unless, err);
}

KEY_READER(timeout_seconds)
{
    uint64_t seconds = 0;
    int r = read_number(step, "timeout_seconds", value, 1, JOB_RUN_LIMIT_MS_DEFAULT / 1000,
                        &seconds, err);

    step->run_limit_ms = seconds * 1000;
    return r;
}

KEY_READER(max_time_in_queue_seconds)
{
    uint64_t seconds = 0;
    int r = read_number(step, "max_time_in_queue_seconds", value, JOB_QUEUE_LIMIT_S_MIN,
                        QUEUE_S_MAX, &seconds, err);

    step->queue_limit_ms = seconds * 1000;
    return r;
}

KEY_READER(priority)
{
    return read_u32(step, "priority", value, 0, JOB_PRIORITY_MAX, &step->priority, err);
}

static const struct {
    const char *name;
    int (*read)(struct chain_step *step, const json_t *value, struct err *err);
} keys[] = {
#define CHAIN_KEY(name) {#name, read_##name},
#include "schema/chain_keys.def"
#undef CHAIN_KEY
};

static int read_key(struct chain_step *step, const char *key, const json_t *value, struct err *err)
{
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        if (strcmp(key, keys[i].name) == 0)
            return keys[i].read(step, value, err);
    }
    return err_set(err, ERR_UNSUPPORTED, "step %s: there is no key '%.60s'", step->name, key);
}

static bool is_of_calls(const char *key)
{
    static const char *const keys_of_calls[] = {"map",  "max_parallel", "max_failures",
                                                "loop", "retry",        "timeout_seconds"};

    for (size_t i = 0; i < COUNT_OF(keys_of_calls); i++) {
        if (strcmp(key, keys_of_calls[i]) == 0)
            return true;
    }
    return false;
}

/* Those are no jobs: what is said of jobs has no meaning for them. */
static int check_builtin(const struct chain_step *step, const json_t *json, struct err *err)
{
    static const char *const of_jobs[] = {"input",
                                          "environment",
                                          "deployment",
                                          "max_parallel",
                                          "max_failures",
                                          "retry",
                                          "max_time_in_queue_seconds",
                                          "priority",
                                          "timeout_seconds",
                                          "map",
                                          "loop",
                                          "compensate",
                                          "cache",
                                          "stream"};

    for (size_t i = 0; i < COUNT_OF(of_jobs); i++) {
        if (json_object_get(json, of_jobs[i]) == NULL ||
            (step->kind == CHAIN_TRANSFORM && strcmp(of_jobs[i], "map") == 0) ||
            (step->kind == CHAIN_APPROVAL && strcmp(of_jobs[i], "timeout_seconds") == 0) ||
            (step->kind == CHAIN_HTTP && is_of_calls(of_jobs[i])))
            continue;
        return err_set(err, ERR_MISMATCH, "step %s: %s has no meaning with %s", step->name,
                       of_jobs[i], chain_kind_name(step->kind));
    }
    if (step->kind == CHAIN_SWITCH && step->cases_json == NULL)
        return err_set(err, ERR_MALFORMED, "step %s: cases is missing", step->name);
    if (step->output_schema != NULL && (step->kind == CHAIN_WAIT || step->kind == CHAIN_SWITCH))
        return err_set(err, ERR_MISMATCH, "step %s: output_schema has no meaning with %s",
                       step->name, chain_kind_name(step->kind));
    if (step->kind == CHAIN_SWITCH && step->falls_back)
        return err_set(err, ERR_MISMATCH,
                       "step %s: fallback has no meaning with switch: there is default",
                       step->name);
    return 0;
}

static int check_kind(const struct chain_step *step, const json_t *json, struct err *err)
{
    bool has_model = step->model[0] != '\0';

    if (has_model && step->builtin != NULL)
        return err_set(err, ERR_MISMATCH, "step %s: both model and %s are set", step->name,
                       chain_kind_name(step->kind));
    if (step->builtin != NULL)
        return check_builtin(step, json, err);
    if (!has_model)
        return err_set(
            err, ERR_MALFORMED,
            "step %s: one of model, transform, wait, approval, switch and http is missing",
            step->name);
    if (step->input == NULL)
        return err_set(err, ERR_MALFORMED, "step %s: input is missing", step->name);
    return 0;
}

static int check_step(const struct chain_step *step, const json_t *json, struct err *err)
{
    int r = check_kind(step, json, err);

    if (r < 0)
        return r;
    if (step->deployment[0] != '\0' && json_object_get(json, "environment") != NULL)
        return err_set(err, ERR_MISMATCH, "step %s: both environment and deployment are set",
                       step->name);
    if (step->map != NULL && step->until != NULL)
        return err_set(err, ERR_MISMATCH, "step %s: both map and loop are set", step->name);
    if (step->map == NULL && (json_object_get(json, "max_parallel") != NULL ||
                              json_object_get(json, "max_failures") != NULL))
        return err_set(err, ERR_MISMATCH,
                       "step %s: max_parallel and max_failures have a meaning only with map",
                       step->name);
    if (step->kind != CHAIN_SWITCH && (step->cases_json != NULL || step->otherwise_json != NULL))
        return err_set(err, ERR_MISMATCH,
                       "step %s: cases and default have a meaning only with switch", step->name);
    if (step->fallback != NULL && step->fallback_step != NULL)
        return err_set(err, ERR_MISMATCH, "step %s: both fallback and fallback_step are set",
                       step->name);
    if (step->falls_back != (step->fallback != NULL || step->fallback_step != NULL))
        return err_set(err, ERR_MISMATCH,
                       "step %s: on_error: fallback and fallback need each other (or "
                       "fallback_step)",
                       step->name);
    if (step->undo_always && step->compensate == NULL)
        return err_set(err, ERR_MISMATCH, "step %s: on_error: compensate needs compensate",
                       step->name);
    if (step->stream && (step->map != NULL || step->until != NULL))
        return err_set(err, ERR_MISMATCH, "step %s: stream has no meaning with map or loop",
                       step->name);
    if (step->compensate != NULL && step->cache_seconds != 0)
        return err_set(err, ERR_MISMATCH,
                       "step %s: both compensate and cache are set: what was taken over is not "
                       "this run's to undo",
                       step->name);
    if (step->compensate != NULL && step->map != NULL && step->may_fail)
        return err_set(err, ERR_MISMATCH,
                       "step %s: with compensate and map, on_error must be fail or compensate",
                       step->name);
    return 0;
}

int chain_step_read(struct chain_step *step, const char *name, const json_t *json, struct err *err)
{
    const char *key;
    json_t *value;

    if (!name_is_good(name))
        return err_set(err, ERR_RANGE,
                       "steps: '%.80s' is no name of a step: 1 to %d of a-z A-Z 0-9 _ -", name,
                       CHAIN_NAME_SIZE - 1);
    *step = (struct chain_step){.environment = "production",
                                .priority = step->priority,
                                .undo = -1,
                                .stand_in = -1,
                                .stands_in = -1,
                                .max_parallel = CHAIN_PARALLEL_DEFAULT,
                                .max_attempts = JOB_ATTEMPTS_DEFAULT,
                                .initial_delay_ms = JOB_INITIAL_DELAY_MS_DEFAULT,
                                .max_delay_ms = JOB_MAX_DELAY_MS_DEFAULT,
                                .queue_limit_ms = (uint64_t)QUEUE_S_MAX * 1000};
    mem_copy_text(step->name, name);
    if (!json_is_object(json))
        return err_set(err, ERR_MALFORMED, "step %s: must be an object", name);
    json_object_foreach((json_t *)json, key, value)
    {
        int r = read_key(step, key, value, err);

        if (r < 0)
            return r;
    }
    return check_step(step, json, err);
}

const char *chain_step_key(size_t at)
{
    return at < COUNT_OF(keys) ? keys[at].name : NULL;
}
