/* SPDX-License-Identifier: Apache-2.0 */

#include "chains/plan_int.h"

#include <stdio.h>

#include "base/assert.h"
#include "base/buf.h"
#include "schema/chain_template.h"

/* ---- steps that end ---- */

/* From here on templates can name it. Of one that failed the output is its fallback, or null. */
void step_end(struct plan *plan, size_t at, enum plan_state state)
{
    struct step_run *step = &plan->steps[at];
    json_t *error = state == PLAN_FAILED ? json_pack("{s:s, s:s}", "class", step->error_class,
                                                     "message", step->error)
                                         : json_null();
    bool has_output = step->output != NULL && (state == PLAN_SUCCEEDED || step->falling);

    step->state = state;
    plan->moved = true;
    plan->over |= UINT64_C(1) << at;
    (void)json_object_set_new(
        plan->scope, plan->chain->steps[at].name,
        json_pack("{s:o, s:s, s:o}", "output", has_output ? json_incref(step->output) : json_null(),
                  "state", plan_state_name(state), "error", error != NULL ? error : json_null()));
    if (!has_output && plan->chain->steps[at].undo >= 0 && step->success_count > 0)
        step->partial = json_incref(step->output);
    json_decref(step->items);
    json_decref(step->output);
    json_decref(step->before);
    json_decref(step->ask.values);
    step->items = step->output = step->before = step->ask.values = NULL;
}

/* It has failed and may, and none of its jobs is left. */
static void step_give_up(struct plan *plan, size_t at)
{
    struct step_run *step = &plan->steps[at];

    if (!plan->chain->steps[at].falls_back) {
        step_end(plan, at, PLAN_FAILED);
        return;
    }
    step->falling = plan->moved = true;
    if (plan->chain->steps[at].stand_in >= 0) /* which may tell why it runs */
        (void)json_object_set_new(plan->scope, plan->chain->steps[at].name,
                                  json_pack("{s:n, s:s, s:{s:s, s:s}}", "output", "state",
                                            plan_state_name(PLAN_FAILED), "error", "class",
                                            step->error_class, "message", step->error));
    json_decref(step->output);
    json_decref(step->ask.values);
    step->output = NULL;
    step->ask = (struct ask){.part = CHAIN_NO_JQ, .out = step->ask.out};
}

/* A step cannot be what it should: the run is over, or the step is. */
void step_fail(struct plan *plan, size_t at, const char *class, const char *why)
{
    const struct chain_step *declared = &plan->chain->steps[at];
    struct step_run *step = &plan->steps[at];

    mem_copy_text(step->error_class, class);
    mem_copy_text(step->error, why);
    if ((!declared->may_fail || step->falling) && plan->chain->undos == 0) {
        step->state = PLAN_FAILED;
        plan_fail(plan, declared->name, why);
    } else if (step->falling) {
        plan_fail(plan, declared->name, why);
        step_end(plan, at, PLAN_FAILED);
    } else if (!declared->may_fail) {
        plan_fail(plan, declared->name, why);
        step_check_end(plan, at);
    } else if (step->live_count == 0) {
        step_give_up(plan, at);
    } /* else: when the last of its jobs is over */
}

/* What was given does not fit its templates. */
void step_fail_template(struct plan *plan, size_t at, const char *why)
{
    bool failed_before = plan->failed;

    step_fail(plan, at, "bad_input", why);
    if (!failed_before)
        plan->error_class = ERROR_CLASS_BAD_INPUT;
}

bool step_has_failed(const struct step_run *step)
{
    return step->error_class[0] != '\0';
}

/* Items behind the one that failed may have been submitted before; but none behind so many that
 * were canceled, for whoever sends one has heard the end of all the others but these. */
static bool step_looks_on(const struct plan *plan, size_t at)
{
    const struct chain_step *declared = &plan->chain->steps[at];
    const struct step_run *step = &plan->steps[at];

    return plan_settling(plan) && chain_kind_is_sent(declared->kind) && declared->until == NULL &&
           step->next_item < step->item_count &&
           step->cancel_count + step->live_count < declared->max_parallel + declared->max_failures;
}

void step_check_end(struct plan *plan, size_t at)
{
    struct step_run *step = &plan->steps[at];

    if (step->state != PLAN_RUNNING || plan_stopped(plan) || step->falling)
        return;
    if (step_has_failed(step)) {
        if (step->live_count == 0 && !step_looks_on(plan, at))
            step_give_up(plan, at);
    } else if (step->over_count == step->item_count && !step->judging) {
        step_end(plan, at, PLAN_SUCCEEDED);
    }
}

/* ---- steps that begin ---- */

/* 1, 0, MADE_…, or an error. */
static int step_make(struct plan *plan, size_t at, enum chain_key key, json_t **ret_value,
                     struct plan_todo *todo, struct err *err)
{
    static const char *const names[] = {"when", "unless", "map"};
    const struct chain_step *declared = &plan->chain->steps[at];
    const json_t *const templates[] = {declared->when, declared->unless, declared->map};
    const struct making making = {.step = at,
                                  .part = declared->jq[key],
                                  .template = templates[key],
                                  .takes_bodies = key == CHAIN_KEY_MAP};
    int r;

    *ret_value = NULL;
    if (templates[key] == NULL)
        return 0;
    if (key == CHAIN_KEY_MAP && plan->steps[at].given != NULL) {
        *ret_value = json_incref(plan->steps[at].given);
        return 0;
    }
    r = plan_make(plan, &making, ret_value, todo, err);
    if (r == 0 && body_is(plan, *ret_value)) {
        r = body_refuse(plan, *ret_value, err);
        json_decref(*ret_value);
    }
    return r < 0 ? err_wrap(err, "%s", names[key]) : r;
}

static int step_open_map(struct step_run *step, struct err *err)
{
    static const char *const names[] = {
        [JSON_OBJECT] = "an object", [JSON_STRING] = "a text", [JSON_INTEGER] = "a number",
        [JSON_REAL] = "a number",    [JSON_TRUE] = "true",     [JSON_FALSE] = "false",
        [JSON_NULL] = "null"};

    if (!json_is_array(step->items))
        return err_set(err, ERR_MISMATCH, "map is over %s, it must be a list",
                       names[json_typeof(step->items)]);
    if (json_array_size(step->items) > CHAIN_ITEMS_MAX)
        return err_set(err, ERR_TOO_BIG, "map is over %zu items, at most %u are allowed",
                       json_array_size(step->items), CHAIN_ITEMS_MAX);
    step->item_count = (uint32_t)json_array_size(step->items);
    step->output = json_array();
    for (uint32_t i = 0; i < step->item_count; i++)
        (void)json_array_append_new(step->output, json_null());
    return 0;
}

static int step_enter(struct plan *plan, size_t at, struct err *err)
{
    const struct chain_step *declared = &plan->chain->steps[at];
    struct step_run *step = &plan->steps[at];
    int r = 0;

    step->state = PLAN_RUNNING;
    step->item_count = 1;
    if (step->items != NULL)
        r = step_open_map(step, err);
    if (r < 0)
        return r;
    if (declared->until != NULL)
        step->before = json_pack("[n]");
    step->item_state = xcalloc((size_t)step->item_count + declared->max_iterations + 1, 1);
    step_check_end(plan, at); /* of nothing */
    return 0;
}

/* Whether all switches that name it have chosen it; one that was skipped, or failed, chooses none.
 */
static bool step_is_chosen(const struct plan *plan, size_t at)
{
    const struct chain *chain = plan->chain;

    for (size_t i = 0; i < chain->step_count; i++) {
        if ((chain->steps[at].switches >> i & 1) != 0 && (plan->steps[i].taken >> at & 1) == 0)
            return false;
    }
    return true;
}

/* What others fall back to begins when it is fallen back to. */
static bool step_may_begin(const struct plan *plan, size_t at)
{
    const struct chain_step *declared = &plan->chain->steps[at];

    return (declared->needs & ~plan->over) == 0 &&
           (declared->stands_in < 0 || (plan->over >> declared->stands_in & 1) != 0 ||
            plan->steps[declared->stands_in].falling);
}

/* One key after the other, each as often as it takes to know it. True: there is a to-do. */
static bool step_begin(struct plan *plan, size_t at, struct plan_todo *todo)
{
    const struct chain_step *declared = &plan->chain->steps[at];
    struct step_run *step = &plan->steps[at];
    struct err err;
    int r = 0;

    if (!step_is_chosen(plan, at) ||
        (declared->stands_in >= 0 && !plan->steps[declared->stands_in].falling))
        step_end(plan, at, PLAN_SKIPPED);
    while (r == 0 && step->next < CHAIN_KEY_INPUT && step->state == PLAN_WAITING) {
        enum chain_key key = step->next;
        json_t *value;

        r = step_make(plan, at, key, &value, todo, &err);
        if (r != 0)
            break;
        step->next++;
        if (key == CHAIN_KEY_MAP)
            step->items = json_incref(value);
        else if (value != NULL && chain_template_is_true(value) == (key == CHAIN_KEY_UNLESS))
            step_end(plan, at, PLAN_SKIPPED);
        json_decref(value);
    }
    if (r == 0 && step->state == PLAN_WAITING)
        r = step_enter(plan, at, &err);
    if (r < 0) {
        step->item_count = 0;
        step->state = PLAN_RUNNING;
        step_fail_template(plan, at, err.text);
    }
    return r == MADE_ASKED;
}

bool step_next(struct plan *plan, size_t at, struct plan_todo *todo)
{
    const struct chain_step *declared = &plan->chain->steps[at];
    struct step_run *step = &plan->steps[at];

    if (step->state == PLAN_WAITING && step_may_begin(plan, at) && step_begin(plan, at, todo))
        return true;
    if (step->state != PLAN_RUNNING || plan_stopped(plan))
        return false;
    if (step->falling)
        return declared->stand_in < 0 ? fallback_next(plan, at, todo) : stand_in_next(plan, at);
    if (step_has_failed(step))
        return step_looks_on(plan, at) && submit_next(plan, at, todo);
    if (step->judging)
        return judge_next(plan, at, todo);
    switch (declared->kind) {
    case CHAIN_MODEL:
    case CHAIN_HTTP:
        return submit_next(plan, at, todo);
    case CHAIN_TRANSFORM:
        return transform_next(plan, at, todo);
    case CHAIN_SWITCH:
        return switch_next(plan, at, todo);
    case CHAIN_WAIT:
    case CHAIN_APPROVAL:
        return wait_next(plan, at, todo);
    case CHAIN_KINDS:
        break;
    }
    NEVER("a step is of a kind");
}
