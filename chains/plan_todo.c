/* SPDX-License-Identifier: Apache-2.0 */

/* What a step that runs asks for, by what it is. */

#include "chains/plan_int.h"

#include <ctype.h>
#include <string.h>

#include "base/buf.h"
#include "schema/chain_template.h"
#include "schema/job.h"

/* What the model is given, or what the template of a built-in comes to. */
static int item_make(struct plan *plan, size_t at, uint32_t item, json_t **ret_value,
                     struct plan_todo *todo, struct err *err)
{
    const struct chain_step *declared = &plan->chain->steps[at];
    bool has_model = declared->kind == CHAIN_MODEL;
    const struct making making = {.step = at,
                                  .part = declared->jq[CHAIN_KEY_INPUT],
                                  .template = has_model ? declared->input : declared->builtin,
                                  .items = declared->until != NULL ? plan->steps[at].before
                                                                   : plan->steps[at].items,
                                  .item = item,
                                  .takes_bodies = has_model};
    int r;

    if (plan->steps[at].given != NULL && declared->map == NULL) {
        *ret_value = json_incref(plan->steps[at].given);
        return 0;
    }
    r = plan_make(plan, &making, ret_value, todo, err);
    return r < 0 ? err_wrap(err, "%s", has_model ? "input" : chain_kind_name(declared->kind)) : r;
}

/* 0: it is in the to-do; MADE_…, or an error. */
static int submit_make(struct plan *plan, size_t at, uint32_t item, struct plan_todo *todo,
                       struct err *err)
{
    json_t *value;
    int r = item_make(plan, at, item, &value, todo, err);

    if (r != 0)
        return r;
    *todo = (struct plan_todo){.type = PLAN_SUBMIT, .step = (uint32_t)at, .item = item};
    if (body_is(plan, value))
        r = body_put(plan, value, todo, err);
    else if (body_refuse(plan, value, err) < 0)
        r = err_wrap(err, "input");
    else
        r = plan_dump(value, PLAN_STEP_INPUT_MAX, "input", todo, err);
    json_decref(value);
    return r;
}

/* As many items as need nobody else. True: there is a to-do. */
bool transform_next(struct plan *plan, size_t at, struct plan_todo *todo)
{
    struct step_run *step = &plan->steps[at];
    struct err err;
    int r = 0;

    while (r == 0 && step->next_item < step->item_count) {
        json_t *value;

        r = item_make(plan, at, step->next_item, &value, todo, &err);
        if (r == 0 && plan_check(plan, at, value, &err) < 0) {
            json_decref(value);
            step_fail(plan, at, "output_mismatch", err.text);
            return false;
        }
        if (r == 0)
            r = plan_keep(plan, at, step->next_item, value,
                          json_dumpb(value, NULL, 0, JSON_COMPACT | JSON_ENCODE_ANY), &err);
        if (r != 0)
            break;
        step->item_state[step->next_item++] = ITEM_OVER;
        step->over_count++;
    }
    if (r < 0)
        step_fail_template(plan, at, err.text);
    else if (r == 0)
        step_check_end(plan, at);
    return r == MADE_ASKED;
}

/* Its output is what it came to; which steps begin now follows from that. */
bool switch_next(struct plan *plan, size_t at, struct plan_todo *todo)
{
    struct step_run *step = &plan->steps[at];
    json_t *value;
    struct err err;
    int r = item_make(plan, at, 0, &value, todo, &err);

    if (r == 0) {
        r = chain_switch_take(&plan->chain->steps[at], value, &step->taken, &err);
        if (r == 0)
            r = plan_keep(plan, at, 0, json_incref(value),
                          json_dumpb(value, NULL, 0, JSON_COMPACT | JSON_ENCODE_ANY), &err);
        json_decref(value);
    }
    if (r < 0)
        step_fail_template(plan, at, err.text);
    else if (r == 0)
        step_end(plan, at, PLAN_SUCCEEDED);
    return r == MADE_ASKED;
}

/* True: there is a to-do. */
bool fallback_next(struct plan *plan, size_t at, struct plan_todo *todo)
{
    const struct chain_step *declared = &plan->chain->steps[at];
    const struct making making = {
        .step = at, .part = declared->jq[CHAIN_KEY_FALLBACK], .template = declared->fallback};
    json_t *value;
    struct err err;
    int r = plan_make(plan, &making, &value, todo, &err);

    if (r == 0)
        r = plan_keep(plan, at, 0, value,
                      json_dumpb(value, NULL, 0, JSON_COMPACT | JSON_ENCODE_ANY), &err);
    if (r < 0) {
        (void)err_wrap(&err, "fallback");
        step_fail_template(plan, at, err.text);
    } else if (r == 0) {
        step_end(plan, at, PLAN_FAILED);
    }
    return r == MADE_ASKED;
}

/* Its output is that of the step that it falls back to, which is counted already. */
bool stand_in_next(struct plan *plan, size_t at)
{
    const struct chain *chain = plan->chain;
    int other = chain->steps[at].stand_in;

    if ((plan->over >> other & 1) == 0)
        return false;
    plan->steps[at].output = json_incref(
        json_object_get(json_object_get(plan->scope, chain->steps[other].name), "output"));
    step_end(plan, at, PLAN_FAILED);
    return false;
}

/* "2026-11-26T12:00:00Z", also with parts of a second, or with +01:00 for Z. Whether there is such
 * a day is for the ledger to say. */
static bool is_time(const char *text)
{
    static const char form[] = "dddd-dd-ddTdd:dd:dd";
    size_t i = 0;

    for (; form[i] != '\0'; i++) {
        if (form[i] == 'd' ? !isdigit((unsigned char)text[i]) : text[i] != form[i])
            return false;
    }
    if (text[i] == '.') {
        for (i++; isdigit((unsigned char)text[i]) && i < 30; i++)
            ;
    }
    if (text[i] == 'Z')
        return text[i + 1] == '\0';
    return (text[i] == '+' || text[i] == '-') && isdigit((unsigned char)text[i + 1]) &&
           isdigit((unsigned char)text[i + 2]) && text[i + 3] == ':' &&
           isdigit((unsigned char)text[i + 4]) && isdigit((unsigned char)text[i + 5]) &&
           text[i + 6] == '\0';
}

static int wait_make(const json_t *value, struct plan_todo *todo, struct err *err)
{
    const char *text = json_string_value(value);

    if (text != NULL && is_time(text)) {
        todo->text = xstrdup(text);
        todo->text_size = strlen(text);
        return 0;
    }
    if (text != NULL || !json_is_number(value))
        return err_set(err, ERR_MISMATCH,
                       "wait came to %.60s%s, it must be a number of seconds or a time such as "
                       "2026-11-26T12:00:00Z",
                       text == NULL ? "something else" : "the text ", text == NULL ? "" : text);
    todo->wait_seconds = json_number_value(value);
    if (!(todo->wait_seconds >= 0 && todo->wait_seconds <= PLAN_WAIT_SECONDS_MAX))
        return err_set(err, ERR_RANGE, "wait is %g, it must be 0 to %d seconds", todo->wait_seconds,
                       PLAN_WAIT_SECONDS_MAX);
    return 0;
}

/* A step that is nobody's job: once, then plan_on_waited() says how it ended. */
bool wait_next(struct plan *plan, size_t at, struct plan_todo *todo)
{
    struct step_run *step = &plan->steps[at];
    json_t *value;
    struct err err;
    int r;

    if (step->next_item > 0)
        return false;
    r = item_make(plan, at, 0, &value, todo, &err);
    if (r == 0) {
        *todo = (struct plan_todo){.type = PLAN_WAIT, .step = (uint32_t)at};
        r = plan->chain->steps[at].kind == CHAIN_WAIT
                ? wait_make(value, todo, &err)
                : plan_dump(value, JOB_INPUT_INLINE_MAX, "approval", todo, &err);
        json_decref(value);
    }
    if (r < 0)
        step_fail_template(plan, at, err.text);
    if (r != 0)
        return r == MADE_ASKED;
    step->item_state[step->next_item++] = ITEM_LIVE;
    step->live_count++;
    return true;
}

bool submit_next(struct plan *plan, size_t at, struct plan_todo *todo)
{
    struct step_run *step = &plan->steps[at];
    struct err err;
    int r;

    if (step->next_item == step->item_count ||
        step->live_count >= plan->chain->steps[at].max_parallel)
        return false;
    r = submit_make(plan, at, step->next_item, todo, &err);
    if (r < 0) {
        step->item_count = step->next_item; /* no other can be asked for */
        step_fail_template(plan, at, err.text);
    }
    if (r != 0)
        return r == MADE_ASKED;
    step->item_state[step->next_item++] = ITEM_LIVE;
    step->live_count++;
    return true;
}

/* Whether another iteration follows. True: there is a to-do. */
bool judge_next(struct plan *plan, size_t at, struct plan_todo *todo)
{
    const struct chain_step *declared = &plan->chain->steps[at];
    struct step_run *step = &plan->steps[at];
    const struct making making = {.step = at,
                                  .part = declared->jq[CHAIN_KEY_UNTIL],
                                  .template = declared->until,
                                  .items = step->before,
                                  .item = step->next_item};
    json_t *value;
    struct err err;
    int r = plan_make(plan, &making, &value, todo, &err);
    bool holds;

    if (r < 0) {
        (void)err_wrap(&err, "loop.until");
        step_fail_template(plan, at, err.text);
    }
    if (r != 0)
        return r == MADE_ASKED;
    holds = chain_template_is_true(value);
    json_decref(value);
    step->judging = false;
    if (holds) {
        step_end(plan, at, PLAN_SUCCEEDED);
    } else if (step->item_count == declared->max_iterations) {
        (void)err_set(&err, ERR_RANGE, "loop.until did not hold after %u iterations",
                      declared->max_iterations);
        step_fail(plan, at, "loop_too_long", err.text);
    } else {
        step->item_count++;
        return submit_next(plan, at, todo);
    }
    return false;
}
