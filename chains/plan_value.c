/* SPDX-License-Identifier: Apache-2.0 */

/* What templates come to. Those with expressions are asked about, as JSON, by an EVALUATE. */

#include "chains/plan_int.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "schema/chain_template.h"

#define DUMP_ROOM 500             /* most inputs fit: the text grows no more than once or twice */
#define ASK_ITEMS_MAX 1000        /* of a map in one EVALUATE */
#define ASK_SIZE_MAX (150u << 20) /* of its request */

static int dump_to(const char *bytes, size_t size, void *opaque)
{
    struct buf *to = opaque;

    buf_append(to, bytes, size);
    return to->failed ? -1 : 0;
}

/* The value as JSON, the caller's to free. */
int plan_dump(const json_t *value, size_t limit, const char *what, struct plan_todo *todo,
              struct err *err)
{
    struct buf to = BUF_WITH_LIMIT(limit);
    int r;

    (void)buf_reserve(&to, DUMP_ROOM < limit ? DUMP_ROOM : limit);
    r = json_dump_callback(value, dump_to, &to, JSON_COMPACT | JSON_ENCODE_ANY);

    if (to.failed)
        r = err_set(err, ERR_TOO_BIG, "%s has more than %zu bytes", what, limit);
    else if (r < 0)
        r = err_set(err, ERR_MALFORMED, "%s cannot be written as JSON", what);
    if (r < 0) {
        buf_done(&to);
        return r;
    }
    todo->text_size = to.size;
    todo->text = (char *)to.bytes;
    return 0;
}

static struct ask *ask_of(struct plan *plan, size_t step)
{
    return step < plan->chain->step_count ? &plan->steps[step].ask : &plan->ask;
}

static json_t *ask_items(const struct making *making)
{
    json_t *items = json_array();

    if (making->items == NULL)
        (void)json_array_append_new(items, json_null());
    for (size_t i = making->item;
         i < json_array_size(making->items) && i < (size_t)making->item + ASK_ITEMS_MAX; i++)
        (void)json_array_append(items, json_array_get(making->items, i));
    return items;
}

/* With the steps that the expressions read, and no others. */
static int ask_make(const struct plan *plan, const struct making *making, struct plan_todo *todo,
                    struct err *err)
{
    const struct chain *chain = plan->chain;
    json_t *steps = json_object(), *request;
    int r;

    for (size_t i = 0; i < chain->step_count; i++) {
        if ((chain->jq.parts[making->part].reads >> i & 1) != 0)
            (void)json_object_set(steps, chain->steps[i].name,
                                  json_object_get(plan->scope, chain->steps[i].name));
    }
    r = body_refuse(plan, steps, err);
    if (r == 0 && making->items != NULL)
        r = body_refuse(plan, making->items, err);
    if (r < 0) {
        json_decref(steps);
        return r;
    }
    request = json_pack("{s:I, s:O, s:o, s:{s:s}, s:o, s:I}", "n", (json_int_t)making->part,
                        "input", plan->input, "steps", steps, "run", "id", plan->run, "items",
                        ask_items(making), "first", (json_int_t)making->item);
    *todo = (struct plan_todo){.type = PLAN_EVALUATE, .step = (uint32_t)making->step};
    r = plan_dump(request, ASK_SIZE_MAX, "what its expressions are given", todo, err);
    json_decref(request);
    return r;
}

/* The values of its expressions: 0 and borrowed, MADE_ASKED with a to-do, MADE_WAITS for the answer
 * to one. */
static int values_of(struct plan *plan, const struct making *making, const json_t **ret_values,
                     struct plan_todo *todo, struct err *err)
{
    struct ask *ask = ask_of(plan, making->step);
    int r;

    if (ask->out)
        return MADE_WAITS;
    if (ask->error[0] != '\0')
        return err_set(err, ERR_MISMATCH, "jq: %s", ask->error);
    if (ask->values != NULL && ask->part == making->part && making->item >= ask->first &&
        making->item - ask->first < json_array_size(ask->values)) {
        *ret_values = json_array_get(ask->values, making->item - ask->first);
        return 0;
    }
    json_decref(ask->values);
    *ask = (struct ask){.part = making->part, .first = making->item};
    r = ask_make(plan, making, todo, err);
    ask->out = r == 0;
    return r < 0 ? r : MADE_ASKED;
}

/* Without expressions nobody has to be asked. */
int plan_make(struct plan *plan, const struct making *making, json_t **ret_value,
              struct plan_todo *todo, struct err *err)
{
    size_t next = 0;
    struct chain_scope scope = {
        .input = plan->input,
        .steps = plan->scope,
        .item = making->items == NULL ? NULL : json_array_get(making->items, making->item),
        .index = making->item,
        .run = plan->run,
        .bodies = plan->bodies == NULL ? NULL : plan,
        .body_about = body_about};
    const struct chain_step *step = making->step < plan->chain->step_count
                                        ? &plan->chain->steps[making->step]
                                        : NULL;
    json_t *value;
    int r = 0;

    if (step != NULL && step->kind == CHAIN_HTTP && making->template == step->builtin)
        scope.url = json_object_get(step->builtin, "url");

    if (making->part != CHAIN_NO_JQ) {
        scope.next_value = &next;
        r = values_of(plan, making, &scope.values, todo, err);
    }
    if (r == 0)
        r = chain_template_make(making->template, &scope, &value, err);
    if (r == 0 && !making->takes_bodies && (r = body_refuse(plan, value, err)) < 0)
        json_decref(value);
    if (r == 0)
        *ret_value = value;
    return r;
}

void plan_on_values(struct plan *plan, uint32_t step, json_t *values, const char *error)
{
    struct ask *ask = step <= plan->chain->step_count ? ask_of(plan, step) : NULL;

    if (ask == NULL || !ask->out) {
        json_decref(values);
        return;
    }
    ask->out = false;
    if (ask->part == CHAIN_NO_JQ) { /* it has failed since it asked */
        json_decref(values);
        return;
    }
    if (json_array_size(values) > 0)
        ask->values = json_incref(values);
    else
        mem_copy_text(ask->error, error == NULL ? "it came to nothing" : error);
    json_decref(values);
}

int plan_check(const struct plan *plan, size_t at, const json_t *value, struct err *err)
{
    const struct json_schema *schema = plan->chain->steps[at].output_schema;
    bool is_body = body_is(plan, value);
    char *text = schema == NULL || is_body ? NULL
                                           : json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    int r = 0;

    if (schema != NULL && is_body)
        r = err_set(err, ERR_MISMATCH, "it is %s, and no JSON", body_about(plan, value, false));

    if (text != NULL)
        r = json_schema_check(schema, text, strlen(text), err);
    free(text);
    return r < 0 ? err_wrap(err, "output_schema") : 0;
}

/* Takes the value as the output of the item. */
int plan_keep(struct plan *plan, size_t at, uint32_t item, json_t *value, size_t size,
              struct err *err)
{
    struct step_run *step = &plan->steps[at];

    plan->kept_size += size;
    if (plan->kept_size > PLAN_SIZE_MAX) {
        json_decref(value);
        return err_set(err, ERR_TOO_BIG,
                       "the outputs that templates read have over %u MiB together",
                       PLAN_SIZE_MAX >> 20);
    }
    if (step->items != NULL && !step->falling) {
        (void)json_array_set_new(step->output, item, value);
    } else {
        json_decref(step->output);
        step->output = value;
    }
    return 0;
}
