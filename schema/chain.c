/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/chain.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "schema/chain_int.h"
#include "schema/chain_template.h"
#include "schema/job.h"
#include "schema/secret.h"

/* What is being read, for errors and for who a template needs. */
struct reading {
    struct chain *chain;
    struct chain_step *step; /* NULL: the chain's own output */
    uint64_t reads;          /* bits of steps */
    char where[120];
};

json_t *chain_needs_json(const struct chain *chain, size_t step)
{
    json_t *names = json_array();

    for (size_t i = 0; i < chain->step_count; i++) {
        if ((chain->steps[step].needs >> i & 1) != 0)
            (void)json_array_append_new(names, json_string(chain->steps[i].name));
    }
    if (chain->steps[step].stands_in >= 0)
        (void)json_array_append_new(names,
                                    json_string(chain->steps[chain->steps[step].stands_in].name));
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

/* What has to be over before the step can be: also what it falls back to. */
static uint64_t waits_for(const struct chain *chain, size_t step)
{
    int stand_in = chain->steps[step].stand_in;

    return chain->steps[step].needs | (stand_in < 0 ? 0 : UINT64_C(1) << stand_in);
}

uint64_t chain_steps_behind(const struct chain *chain, size_t from)
{
    uint64_t found = UINT64_C(1) << from, before = 0;

    while (found != before) {
        before = found;
        for (size_t i = 0; i < chain->step_count; i++) {
            if ((waits_for(chain, i) & found) != 0)
                found |= UINT64_C(1) << i;
            if ((found >> i & 1) != 0 && chain->steps[i].stand_in >= 0)
                found |= UINT64_C(1) << chain->steps[i].stand_in;
        }
    }
    return found;
}

const char *chain_kind_name(enum chain_kind kind)
{
    static const char *const names[CHAIN_KINDS] = {"model",    "transform", "wait",
                                                   "approval", "switch",    "http"};

    return names[kind];
}

/* A case is named by the text that the value is, or by its JSON. */
int chain_switch_take(const struct chain_step *step, const json_t *value, uint64_t *ret_steps,
                      struct err *err)
{
    OWNED(mem_free)
    char *json = json_is_string(value) ? xstrdup(json_string_value(value))
                                       : json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);

    if (json == NULL || json_is_object(value) || json_is_array(value))
        return err_set(err, ERR_MISMATCH,
                       "switch came to %s, it must be a text, a number, a truth value or null",
                       json_is_array(value) ? "a list" : "an object");
    for (size_t i = 0; i < step->case_count; i++) {
        if (strcmp(step->cases[i].value, json) != 0)
            continue;
        *ret_steps = step->cases[i].steps;
        return 0;
    }
    if (step->otherwise_json == NULL)
        return err_set(err, ERR_NOT_FOUND,
                       "switch came to '%.60s', no case is that, and there is no default", json);
    *ret_steps = step->otherwise;
    return 0;
}

/* ---- what needs what ---- */

static int use_step(void *opaque, const char *name, struct err *err)
{
    struct reading *reading = opaque;
    int at = chain_find(reading->chain, name);

    if (at < 0)
        return err_set(err, ERR_RANGE, "there is no step '%.64s'", name);
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
            return err_set(err, ERR_RANGE, "step %s: needs.%zu: there is no step '%.64s'",
                           step->name, index, json_is_string(name) ? json_string_value(name) : "");
        step->needs |= UINT64_C(1) << at;
    }
    return 0;
}

/* Step names, or one of them, into bits. What a switch may choose waits for it. */
static int link_branch(struct chain *chain, const struct chain_step *step, const char *where,
                       const json_t *names, uint64_t *ret_steps, struct err *err)
{
    size_t count = json_is_array(names) ? json_array_size(names) : 1;
    uint64_t bit = UINT64_C(1) << (step - chain->steps);

    *ret_steps = 0;
    for (size_t i = 0; i < count; i++) {
        const char *name = json_string_value(json_is_array(names) ? json_array_get(names, i)
                                                                  : names);
        int at = name == NULL ? -1 : chain_find(chain, name);

        if (at < 0)
            return err_set(err, ERR_RANGE, "step %s: %.100s: there is no step '%.64s'", step->name,
                           where, name == NULL ? "" : name);
        *ret_steps |= UINT64_C(1) << at;
        chain->steps[at].needs |= bit;
        chain->steps[at].switches |= bit;
    }
    return 0;
}

static int link_switch(struct chain *chain, struct chain_step *step, struct err *err)
{
    const char *value;
    json_t *names;
    int r = 0;

    if (step->kind != CHAIN_SWITCH)
        return 0;
    step->cases = xcalloc(json_object_size(step->cases_json), sizeof(*step->cases));
    json_object_foreach((json_t *)step->cases_json, value, names)
    {
        struct chain_case *one = &step->cases[step->case_count++];
        char where[100];

        (void)snprintf(where, sizeof(where), "cases.%.80s", value);
        one->value = value;
        r = link_branch(chain, step, where, names, &one->steps, err);
        if (r < 0)
            return r;
    }
    if (step->otherwise_json != NULL)
        r = link_branch(chain, step, "default", step->otherwise_json, &step->otherwise, err);
    return r;
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
    if (step->until != NULL || step->output_schema != NULL)
        chain->used |= UINT64_C(1) << (step - chain->steps);
    if (r == 0)
        r = read_template(&reading, "map", step->map, false, &step->jq[CHAIN_KEY_MAP], err);
    if (r == 0)
        r = read_template(&reading, "when", step->when, false, &step->jq[CHAIN_KEY_WHEN], err);
    if (r == 0)
        r = read_template(&reading, "unless", step->unless, false, &step->jq[CHAIN_KEY_UNLESS],
                          err);
    if (r == 0)
        r = link_switch(chain, step, err);
    return r == 0 ? link_needs(chain, step, json_object_get(json, "needs"), err) : r;
}

/* The step that undoes this one begins when the run has failed, and nobody else may wait for it. */
static int link_undo(struct chain *chain, struct chain_step *step, struct err *err)
{
    struct chain_step *undo;

    step->undo = chain_find(chain, step->compensate);
    if (step->undo < 0)
        return err_set(err, ERR_RANGE, "step %s: compensate: there is no step '%.64s'", step->name,
                       step->compensate);
    undo = &chain->steps[step->undo];
    if (undo->kind != CHAIN_MODEL || undo->compensate != NULL || undo->switches != 0)
        return err_set(err, ERR_MISMATCH,
                       "step %s: compensate: step %s must have a model, no compensate, and no "
                       "switch that chooses it",
                       step->name, undo->name);
    if (undo->cache_seconds != 0)
        return err_set(err, ERR_MISMATCH,
                       "step %s: compensate: step %s has a cache, and undoing has to happen",
                       step->name, undo->name);
    if ((chain->undos >> step->undo & 1) != 0)
        return err_set(err, ERR_MISMATCH, "step %s: compensate: step %s undoes another step, too",
                       step->name, undo->name);
    chain->undos |= UINT64_C(1) << step->undo;
    undo->needs |= UINT64_C(1) << (step - chain->steps);
    return 0;
}

/* The other step begins when this one has failed, and may tell why it did; this one is over when
 * the other one is. */
static int link_stand_in(struct chain *chain, size_t at, struct err *err)
{
    struct chain_step *step = &chain->steps[at], *other;

    step->stand_in = chain_find(chain, step->fallback_step);
    if (step->stand_in < 0)
        return err_set(err, ERR_RANGE, "step %s: fallback_step: there is no step '%.64s'",
                       step->name, step->fallback_step);
    other = &chain->steps[step->stand_in];
    if (other == step || other->kind == CHAIN_SWITCH || other->switches != 0 ||
        (chain->undos >> step->stand_in & 1) != 0)
        return err_set(err, ERR_MISMATCH,
                       "step %s: fallback_step: step %s must be another one, no switch, chosen by "
                       "none, and undo nothing",
                       step->name, other->name);
    if (other->stands_in >= 0)
        return err_set(err, ERR_MISMATCH,
                       "step %s: fallback_step: step %s is that of another step, too", step->name,
                       other->name);
    other->stands_in = (int)at;
    other->needs &= ~(UINT64_C(1) << at);
    chain->used |= UINT64_C(1) << step->stand_in;
    return 0;
}

static int check_undo_is_free(const struct chain *chain, const char *where, uint64_t reads,
                              struct err *err)
{
    if ((reads & chain->undos) == 0)
        return 0;
    return err_set(err, ERR_MISMATCH, "%s%s: it waits for step %s, which only undoes another",
                   where[0] == '\0' ? "" : "step ", where[0] == '\0' ? "output" : where,
                   chain->steps[__builtin_ctzll(reads & chain->undos)].name);
}

static int link_undos(struct chain *chain, struct err *err)
{
    int r = 0;

    for (size_t i = 0; i < chain->step_count && r == 0; i++) {
        if (chain->steps[i].compensate != NULL)
            r = link_undo(chain, &chain->steps[i], err);
    }
    for (size_t i = 0; i < chain->step_count && r == 0; i++) {
        if (chain->steps[i].fallback_step != NULL)
            r = link_stand_in(chain, i, err);
    }
    for (size_t i = 0; i < chain->step_count && r == 0; i++)
        r = check_undo_is_free(chain, chain->steps[i].name, chain->steps[i].needs, err);
    return r;
}

/* Walks from a step that can never begin to one that it waits for, until it meets one again. */
static int tell_cycle(const struct chain *chain, uint64_t stuck, struct err *err)
{
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(400);
    size_t at = (size_t)__builtin_ctzll(stuck);

    for (size_t i = 0; i < chain->step_count; i++) /* into the cycle itself */
        at = (size_t)__builtin_ctzll(waits_for(chain, at) & stuck);
    for (size_t first = at, i = 0; i == 0 || at != first; i++) {
        buf_printf(&text, "%s -> ", chain->steps[at].name);
        at = (size_t)__builtin_ctzll(waits_for(chain, at) & stuck);
    }
    buf_append_text(&text, chain->steps[at].name);
    return err_set(err, ERR_MISMATCH, "steps wait for each other: %s",
                   text.failed ? "a cycle of many" : buf_text(&text));
}

static int check_order(struct chain *chain, struct err *err)
{
    uint64_t done = 0, before = UINT64_MAX, all = 0;
    size_t count = 0;

    for (size_t i = 0; i < chain->step_count; i++)
        all |= UINT64_C(1) << i;
    while (done != before) {
        before = done;
        for (size_t i = 0; i < chain->step_count; i++) {
            if ((done >> i & 1) != 0 || (waits_for(chain, i) & ~done) != 0)
                continue;
            done |= UINT64_C(1) << i;
            chain->order[count++] = (uint8_t)i;
        }
    }
    return done == all ? 0 : tell_cycle(chain, all & ~done, err);
}

static int check_streams(const struct chain *chain, struct err *err)
{
    const struct chain_step *found = NULL;

    for (size_t i = 0; i < chain->step_count; i++) {
        if (!chain->steps[i].stream)
            continue;
        if (found != NULL)
            return err_set(err, ERR_MISMATCH, "both step %s and step %s have stream, one may",
                           found->name, chain->steps[i].name);
        found = &chain->steps[i];
    }
    return 0;
}

/* Without an output of its own the run has that of its last step. */
static int find_last(struct chain *chain, struct err *err)
{
    uint64_t needed = 0;
    size_t count = 0, last = 0, first = 0;

    needed = chain->undos;
    for (size_t i = 0; i < chain->step_count; i++)
        needed |= (chain->undos >> i & 1) != 0 ? 0 : waits_for(chain, i);
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

static int check_size(const json_t *json, struct err *err)
{
    size_t size = json_dumpb(json, NULL, 0, JSON_COMPACT);

    if (size == 0 || size > CHAIN_SIZE_MAX)
        return err_set(err, ERR_TOO_BIG, "the chain has %zu bytes as JSON, at most %u are allowed",
                       size, CHAIN_SIZE_MAX);
    return 0;
}

static const char *const chain_keys[] = {"description", "timeout_seconds", "priority", "secrets",
                                         "webhook",     "steps",           "output"};

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
                   "secrets, webhook, steps and output",
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

/* The agent reads them as the deployment starts, by these names (workers/agent_secrets.c). */
static int check_secrets(const json_t *secrets, struct err *err)
{
    json_t *name;
    size_t i;

    if (secrets != NULL &&
        (!json_is_array(secrets) || json_array_size(secrets) > CHAIN_SECRETS_MAX))
        return err_set(err, ERR_RANGE, "secrets must be a list of up to %d names",
                       CHAIN_SECRETS_MAX);
    json_array_foreach(secrets, i, name)
    {
        if (!json_is_string(name) || secret_name_check(json_string_value(name), err) < 0)
            return err_set(err, ERR_RANGE, "secrets.%zu is no name of a secret", i);
    }
    return 0;
}

/* Whether it is one that may be called is for the gateway to say, as of a webhook_endpoint. */
static int check_webhook(const json_t *webhook, struct err *err)
{
    const char *url = json_string_value(webhook);

    if (webhook == NULL)
        return 0;
    if (url == NULL || (strncmp(url, "https://", 8) != 0 && strncmp(url, "http://", 7) != 0) ||
        strcspn(url, " \t\r\n") != json_string_length(webhook))
        return err_set(err, ERR_MALFORMED, "webhook must be a URL with https");
    if (json_string_length(webhook) >= CHAIN_WEBHOOK_SIZE)
        return err_set(err, ERR_RANGE, "webhook has %zu bytes, at most %d are allowed",
                       json_string_length(webhook), CHAIN_WEBHOOK_SIZE - 1);
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
    if (check_secrets(json_object_get(json, "secrets"), err) < 0 ||
        check_webhook(json_object_get(json, "webhook"), err) < 0)
        return err->code;
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
        r = chain_step_read(&chain->steps[chain->step_count++], name, json, err);
        if (r == 0 && chain->steps[chain->step_count - 1].kind == CHAIN_HTTP)
            r = chain_http_check_secrets(json_object_get(json, "http"), name,
                                         json_object_get(chain->json, "secrets"), err);
        if (r < 0)
            return r;
    }
    for (size_t i = 0; i < chain->step_count && r == 0; i++)
        r = link_step(chain, &chain->steps[i], json_object_get(steps, chain->steps[i].name), err);
    if (r == 0)
        r = link_undos(chain, err);
    if (r == 0)
        r = check_streams(chain, err);
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
    if (r == 0)
        r = check_undo_is_free(chain, "", reading.reads, err);
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
    for (size_t i = 0; i < chain->step_count; i++) {
        free(chain->steps[i].cases);
        json_schema_free(&chain->steps[i].output_schema);
    }
    free(chain->steps);
    chain_jq_done(&chain->jq);
    json_decref(chain->json);
    free(chain);
}
