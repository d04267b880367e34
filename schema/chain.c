/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/chain.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "schema/chain_template.h"
#include "schema/job.h"

#define QUEUE_S_MAX ((json_int_t)JOB_QUEUE_LIMIT_S_MAX)

/* What is being read, for errors and for who a template needs. */
struct reading {
    struct chain *chain;
    struct chain_step *step; /* NULL: the chain's own output */
    uint64_t reads;          /* bits of steps */
    char where[120];
};

static bool name_is_good(const char *text)
{
    size_t size = strlen(text);

    return size > 0 && size < CHAIN_NAME_SIZE &&
           strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == size;
}

json_t *chain_needs_json(const struct chain *chain, size_t step)
{
    json_t *names = json_array();

    for (size_t i = 0; i < chain->step_count; i++) {
        if ((chain->steps[step].needs >> i & 1) != 0)
            (void)json_array_append_new(names, json_string(chain->steps[i].name));
    }
    return names;
}

int chain_find(const struct chain *chain, const char *name)
{
    for (size_t i = 0; i < chain->step_count; i++) {
        if (strcmp(chain->steps[i].name, name) == 0)
            return (int)i;
    }
    return -1;
}

const char *chain_kind_name(enum chain_kind kind)
{
    static const char *const names[CHAIN_KINDS] = {"model", "transform", "wait", "approval"};

    return names[kind];
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
    if (step->may_fail || strcmp(text, "fail") == 0)
        return 0;
    return err_set(err, ERR_RANGE,
                   "step %s: on_error is '%.60s', it must be fail, skip or fallback", step->name,
                   text);
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
                                          "loop"};

    for (size_t i = 0; i < COUNT_OF(of_jobs); i++) {
        if (json_object_get(json, of_jobs[i]) == NULL ||
            (step->kind == CHAIN_TRANSFORM && strcmp(of_jobs[i], "map") == 0) ||
            (step->kind == CHAIN_APPROVAL && strcmp(of_jobs[i], "timeout_seconds") == 0))
            continue;
        return err_set(err, ERR_MISMATCH, "step %s: %s has no meaning with %s", step->name,
                       of_jobs[i], chain_kind_name(step->kind));
    }
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
        return err_set(err, ERR_MALFORMED,
                       "step %s: one of model, transform, wait and approval is missing",
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
    if (step->falls_back != (step->fallback != NULL))
        return err_set(err, ERR_MISMATCH,
                       "step %s: on_error: fallback and fallback need each other", step->name);
    return 0;
}

static int read_step(struct chain_step *step, const char *name, const json_t *json, struct err *err)
{
    const char *key;
    json_t *value;

    if (!name_is_good(name))
        return err_set(err, ERR_RANGE,
                       "steps: '%.80s' is no name of a step: 1 to %d of a-z A-Z 0-9 _ -", name,
                       CHAIN_NAME_SIZE - 1);
    *step = (struct chain_step){.environment = "production",
                                .priority = step->priority,
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

/* ---- what needs what ---- */

static int use_step(void *opaque, const char *name, struct err *err)
{
    struct reading *reading = opaque;
    int at = chain_find(reading->chain, name);

    if (at < 0)
        return err_set(err, ERR_NOT_FOUND, "there is no step '%.64s'", name);
    reading->chain->used |= UINT64_C(1) << at;
    reading->reads |= UINT64_C(1) << at;
    if (reading->step != NULL)
        reading->step->needs |= UINT64_C(1) << at;
    return 0;
}

/* The part of its expressions in *ret_jq. */
static int read_template(struct reading *reading, const char *key, const json_t *value, bool item,
                         uint32_t *ret_jq, struct err *err)
{
    struct chain_jq *jq = &reading->chain->jq;
    const struct chain_template_use use = {
        .item = item, .step = use_step, .opaque = reading, .jq = jq};
    char where[200];
    int r;

    *ret_jq = CHAIN_NO_JQ;
    if (value == NULL)
        return 0;
    mem_copy_text(where, reading->where);
    mem_copy_text_at(where + strlen(where), sizeof(where) - strlen(where), key);
    reading->reads = 0;
    chain_jq_add_part(jq);
    r = chain_template_check(value, where, &use, err);
    if (r < 0 || chain_jq_drop_empty_part(jq))
        return r;
    *ret_jq = (uint32_t)jq->part_count - 1;
    jq->parts[*ret_jq].reads = reading->reads;
    return 0;
}

static int link_needs(struct chain *chain, struct chain_step *step, const json_t *needs,
                      struct err *err)
{
    json_t *name;
    size_t index;

    json_array_foreach(needs, index, name)
    {
        int at = json_is_string(name) ? chain_find(chain, json_string_value(name)) : -1;

        if (at < 0)
            return err_set(err, ERR_NOT_FOUND, "step %s: needs.%zu: there is no step '%.64s'",
                           step->name, index, json_is_string(name) ? json_string_value(name) : "");
        step->needs |= UINT64_C(1) << at;
    }
    return 0;
}

static int link_step(struct chain *chain, struct chain_step *step, const json_t *json,
                     struct err *err)
{
    struct reading reading = {.chain = chain, .step = step};
    bool item = step->map != NULL || step->until != NULL;
    uint32_t none;
    int r;

    mem_copy_text(reading.where, "step ");
    mem_copy_text_at(reading.where + 5, sizeof(reading.where) - 7, step->name);
    mem_copy_text_at(reading.where + strlen(reading.where), 3, ": ");
    r = read_template(&reading, "input", step->input, item, &step->jq[CHAIN_KEY_INPUT], err);
    if (r == 0)
        r = read_template(&reading, chain_kind_name(step->kind), step->builtin, item,
                          step->builtin == NULL ? &none : &step->jq[CHAIN_KEY_INPUT], err);
    if (r == 0)
        r = read_template(&reading, "fallback", step->fallback, false,
                          &step->jq[CHAIN_KEY_FALLBACK], err);
    if (r == 0)
        r = read_template(&reading, "loop.until", step->until, true, &step->jq[CHAIN_KEY_UNTIL],
                          err);
    if (step->until != NULL)
        chain->used |= UINT64_C(1) << (step - chain->steps);
    if (r == 0)
        r = read_template(&reading, "map", step->map, false, &step->jq[CHAIN_KEY_MAP], err);
    if (r == 0)
        r = read_template(&reading, "when", step->when, false, &step->jq[CHAIN_KEY_WHEN], err);
    if (r == 0)
        r = read_template(&reading, "unless", step->unless, false, &step->jq[CHAIN_KEY_UNLESS],
                          err);
    return r == 0 ? link_needs(chain, step, json_object_get(json, "needs"), err) : r;
}

/* Walks from a step that can never begin to one that it waits for, until it meets one again. */
static int tell_cycle(const struct chain *chain, uint64_t stuck, struct err *err)
{
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(400);
    size_t at = (size_t)__builtin_ctzll(stuck);

    for (size_t i = 0; i < chain->step_count; i++) /* into the cycle itself */
        at = (size_t)__builtin_ctzll(chain->steps[at].needs & stuck);
    for (size_t first = at, i = 0; i == 0 || at != first; i++) {
        buf_printf(&text, "%s -> ", chain->steps[at].name);
        at = (size_t)__builtin_ctzll(chain->steps[at].needs & stuck);
    }
    buf_append_text(&text, chain->steps[at].name);
    return err_set(err, ERR_MISMATCH, "steps wait for each other: %s",
                   text.failed ? "a cycle of many" : buf_text(&text));
}

static int check_order(const struct chain *chain, struct err *err)
{
    uint64_t done = 0, before = UINT64_MAX, all = 0;

    for (size_t i = 0; i < chain->step_count; i++)
        all |= UINT64_C(1) << i;
    while (done != before) {
        before = done;
        for (size_t i = 0; i < chain->step_count; i++) {
            if ((chain->steps[i].needs & ~done) == 0)
                done |= UINT64_C(1) << i;
        }
    }
    return done == all ? 0 : tell_cycle(chain, all & ~done, err);
}

/* Without an output of its own the run has that of its last step. */
static int find_last(struct chain *chain, struct err *err)
{
    uint64_t needed = 0;
    size_t count = 0, last = 0, first = 0;

    for (size_t i = 0; i < chain->step_count; i++)
        needed |= chain->steps[i].needs;
    for (size_t i = 0; i < chain->step_count; i++) {
        if ((needed >> i & 1) != 0)
            continue;
        first = count++ == 0 ? i : first;
        last = i;
    }
    if (count > 1)
        return err_set(err, ERR_MALFORMED,
                       "output is missing, and %zu steps are last: %s and %s are, for example",
                       count, chain->steps[first].name, chain->steps[last].name);
    chain->last = last;
    chain->used |= UINT64_C(1) << last;
    return 0;
}

/* ---- the whole ---- */

const char *chain_step_key(size_t at)
{
    return at < COUNT_OF(keys) ? keys[at].name : NULL;
}

static int check_size(const json_t *json, struct err *err)
{
    size_t size = json_dumpb(json, NULL, 0, JSON_COMPACT);

    if (size == 0 || size > CHAIN_SIZE_MAX)
        return err_set(err, ERR_TOO_BIG, "the chain has %zu bytes as JSON, at most %u are allowed",
                       size, CHAIN_SIZE_MAX);
    return 0;
}

static const char *const chain_keys[] = {"description", "timeout_seconds", "priority", "steps",
                                         "output"};

const char *chain_key(size_t at)
{
    return at < COUNT_OF(chain_keys) ? chain_keys[at] : NULL;
}

static int check_key(const char *key, struct err *err)
{
    for (size_t i = 0; i < COUNT_OF(chain_keys); i++) {
        if (strcmp(key, chain_keys[i]) == 0)
            return 0;
    }
    return err_set(err, ERR_UNSUPPORTED,
                   "a chain has no key '%.60s'; there are description, timeout_seconds, priority, "
                   "steps and output",
                   key);
}

static int read_limit(const json_t *json, const char *key, json_int_t lowest, json_int_t highest,
                      uint64_t *ret_number, struct err *err)
{
    const json_t *value = json_object_get(json, key);
    json_int_t number = json_integer_value(value);

    *ret_number = 0;
    if (value == NULL)
        return 0;
    if (!json_is_integer(value))
        return err_set(err, ERR_MALFORMED, "%s must be a whole number", key);
    if (number < lowest || number > highest)
        return err_set(err, ERR_RANGE, "%s is %lld, it must be %lld to %lld", key,
                       (long long)number, (long long)lowest, (long long)highest);
    *ret_number = (uint64_t)number;
    return 0;
}

static int read_keys(struct chain *chain, const json_t *json, struct err *err)
{
    const json_t *description = json_object_get(json, "description");
    uint64_t seconds, priority = 0;
    const char *key;
    json_t *value;
    int r;

    if (!json_is_object(json))
        return err_set(err, ERR_MALFORMED, "a chain must be an object");
    json_object_foreach((json_t *)json, key, value)
    {
        if (check_key(key, err) < 0)
            return ERR_UNSUPPORTED;
    }
    if (description != NULL && !json_is_string(description))
        return err_set(err, ERR_MALFORMED, "description must be a text");
    if (!json_is_object(json_object_get(json, "steps")))
        return err_set(err, ERR_MALFORMED, "steps must be an object: a member for each step");
    r = read_limit(json, "timeout_seconds", 1, JOB_RUN_LIMIT_MS_DEFAULT / 1000, &seconds, err);
    if (r == 0)
        r = read_limit(json, "priority", 0, JOB_PRIORITY_MAX, &priority, err);
    chain->run_limit_ms = seconds * 1000;
    chain->priority = (uint32_t)priority;
    return r;
}

static int read_steps(struct chain *chain, const json_t *steps, struct err *err)
{
    const char *name;
    json_t *json;
    int r = 0;

    if (json_object_size(steps) == 0 || json_object_size(steps) > CHAIN_STEPS_MAX)
        return err_set(err, ERR_RANGE, "steps has %zu members, it must have 1 to %d",
                       json_object_size(steps), CHAIN_STEPS_MAX);
    chain->steps = xcalloc(json_object_size(steps), sizeof(*chain->steps));
    json_object_foreach((json_t *)steps, name, json)
    {
        chain->steps[chain->step_count].priority = chain->priority;
        r = read_step(&chain->steps[chain->step_count], name, json, err);
        if (r < 0)
            return r;
        chain->step_count++;
    }
    for (size_t i = 0; i < chain->step_count && r == 0; i++)
        r = link_step(chain, &chain->steps[i], json_object_get(steps, chain->steps[i].name), err);
    return r == 0 ? check_order(chain, err) : r;
}

int chain_parse(json_t *json, struct chain **ret_chain, struct err *err)
{
    OWNED(chain_free) struct chain *chain = xcalloc(1, sizeof(*chain));
    struct reading reading = {.chain = chain};
    int r = read_keys(chain, json, err);

    if (r == 0)
        r = check_size(json, err);
    if (r < 0)
        return r;
    chain->json = json_incref(json);
    r = read_steps(chain, json_object_get(json, "steps"), err);
    if (r < 0)
        return r;
    chain->output = json_object_get(json, "output");
    r = read_template(&reading, "output", chain->output, false, &chain->output_jq, err);
    if (r < 0)
        return r;
    if (chain->output == NULL)
        r = find_last(chain, err);
    if (r < 0)
        return r;
    *ret_chain = TAKE(chain);
    return 0;
}

void chain_free(struct chain **chain_p)
{
    struct chain *chain = TAKE(*chain_p);

    if (chain == NULL)
        return;
    free(chain->steps);
    chain_jq_done(&chain->jq);
    json_decref(chain->json);
    free(chain);
}
