/* SPDX-License-Identifier: Apache-2.0 */

#include "chains/plan_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/buf.h"

struct plan *plan_new(const struct chain *chain, json_t *input, const char *run)
{
    struct plan *plan = xcalloc(1, sizeof(*plan));

    plan->chain = chain;
    plan->run = run;
    plan->input = input;
    plan->scope = json_object();
    plan->steps = xcalloc(chain->step_count, sizeof(*plan->steps));
    return plan;
}

void plan_free(struct plan **plan_p)
{
    struct plan *plan = TAKE(*plan_p);

    if (plan == NULL)
        return;
    for (size_t i = 0; i < plan->chain->step_count; i++) {
        json_decref(plan->steps[i].items);
        json_decref(plan->steps[i].output);
        json_decref(plan->steps[i].before);
        json_decref(plan->steps[i].ask.values);
        free(plan->steps[i].item_state);
    }
    json_decref(plan->ask.values);
    free(plan->steps);
    json_decref(plan->scope);
    json_decref(plan->input);
    free(plan);
}

bool plan_reads(const struct plan *plan, uint32_t step)
{
    return (plan->chain->used >> step & 1) != 0;
}

enum plan_state plan_state_of(const struct plan *plan, uint32_t step)
{
    return plan->steps[step].state;
}

uint32_t plan_item_count(const struct plan *plan, uint32_t step)
{
    return plan->steps[step].item_count;
}

const char *plan_state_name(enum plan_state state)
{
    static const char *const names[] = {"waiting", "running", "succeeded", "skipped", "failed"};

    return names[state];
}

/* The run fails, for the first reason that there is. */
void plan_fail(struct plan *plan, const char *step, const char *why)
{
    if (plan->failed)
        return;
    plan->failed = true;
    plan->error_class = step[0] == '\0' ? ERROR_CLASS_BAD_INPUT : ERROR_CLASS_STEP_FAILED;
    (void)snprintf(plan->error, sizeof(plan->error), "%s%s%s%.400s", step[0] == '\0' ? "" : "step ",
                   step, step[0] == '\0' ? "" : ": ", why);
}

/* ---- what comes next ---- */

/* The next job that is still out there. */
static bool cancel_next(struct plan *plan, struct plan_todo *todo)
{
    for (; plan->cancel_step < plan->chain->step_count;
         plan->cancel_step++, plan->cancel_item = 0) {
        const struct step_run *step = &plan->steps[plan->cancel_step];

        if (plan->chain->steps[plan->cancel_step].kind != CHAIN_MODEL)
            continue; /* there is no job */
        while (step->live_count > 0 && plan->cancel_item < step->next_item) {
            uint32_t item = plan->cancel_item++;

            if (step->item_state[item] != ITEM_LIVE)
                continue;
            *todo = (struct plan_todo){
                .type = PLAN_CANCEL, .step = plan->cancel_step, .item = item};
            return true;
        }
    }
    return false;
}

/* All steps are over: what the run came to. False: its expressions are not known yet. */
static bool finish_make(struct plan *plan, struct plan_todo *todo, bool *ret_asked)
{
    const struct chain *chain = plan->chain;
    const json_t *last = json_object_get(plan->scope, chain->steps[chain->last].name);
    const struct making making = {
        .step = chain->step_count, .part = chain->output_jq, .template = chain->output};
    json_t *value = NULL;
    struct err err;
    int r = 0;

    *todo = (struct plan_todo){.type = PLAN_FINISH};
    if (chain->output != NULL)
        r = plan_make(plan, &making, &value, todo, &err);
    else
        value = json_incref(json_object_get(last, "output"));
    *ret_asked = r == MADE_ASKED;
    if (r > 0)
        return false;
    if (r == 0)
        r = plan_dump(value, PLAN_OUTPUT_MAX, "it", todo, &err);
    json_decref(value);
    if (r < 0) {
        (void)err_wrap(&err, "output");
        plan_fail(plan, "", err.text);
        *todo = (struct plan_todo){.type = PLAN_FINISH};
    }
    return true;
}

static bool all_over(const struct plan *plan)
{
    size_t count = plan->chain->step_count;

    return plan->over == (count == 64 ? UINT64_MAX : (UINT64_C(1) << count) - 1);
}

bool plan_next(struct plan *plan, struct plan_todo *ret_todo)
{
    bool asked;

    if (plan->finished)
        return false;
    do { /* a step that is skipped lets others begin */
        plan->moved = false;
        for (size_t i = 0; i < plan->chain->step_count && !plan->failed && !plan->canceled; i++) {
            if (step_next(plan, i, ret_todo))
                return true;
        }
    } while (plan->moved);
    if (plan->failed || plan->canceled) {
        if (cancel_next(plan, ret_todo))
            return true;
    } else if (!all_over(plan)) {
        return false;
    }
    *ret_todo = (struct plan_todo){.type = PLAN_FINISH};
    if (!plan->failed && !plan->canceled && !finish_make(plan, ret_todo, &asked))
        return asked;
    plan->finished = true;
    if (plan->canceled)
        return false;
    ret_todo->error = plan->failed ? plan->error : NULL;
    ret_todo->error_class = plan->failed ? plan->error_class : ERROR_CLASS_NONE;
    return true;
}

void plan_cancel(struct plan *plan)
{
    plan->canceled = true;
}

/* ---- events ---- */

static void keep_output(struct plan *plan, size_t at, uint32_t item, const struct plan_final *final)
{
    struct step_run *step = &plan->steps[at];
    json_error_t where;
    json_t *output = json_null();
    struct err err;

    if (!final->output_is_json) {
        step_fail(plan, at, "bad_output", "its output is not JSON, and a template reads it");
        return;
    }
    if (final->output.size > 0)
        output = json_loadb((const char *) final->output.bytes, final->output.size, JSON_DECODE_ANY,
                            &where);
    if (output == NULL)
        step_fail(plan, at, "bad_output", "its output is called JSON and is none");
    else if (plan_keep(plan, at, item, output, final->output.size, &err) < 0)
        step_fail(plan, at, "too_big", err.text);
    else if (step->before != NULL) {
        (void)json_array_set_new(step->before, item, json_null());
        (void)json_array_append(step->before, step->output);
        step->judging = true;
    }
}

static void item_failed(struct plan *plan, size_t at, uint32_t item, const struct plan_final *final)
{
    const struct chain_step *declared = &plan->chain->steps[at];
    struct step_run *step = &plan->steps[at];
    const char *class = final->error_class == ERROR_CLASS_NONE
                            ? job_state_name(final->state)
                            : error_class_name(final->error_class);
    size_t size = final->error_message.size > 300 ? 300 : final->error_message.size;
    char why[PLAN_ERROR_SIZE], place[32] = "";

    while (size > 0 && size < final->error_message.size &&
           ((unsigned char) final->error_message.text[size] & 0xc0) == 0x80)
        size--; /* not inside of a character */
    if (declared->map != NULL && ++step->failure_count <= declared->max_failures)
        return;
    if (declared->map != NULL || declared->until != NULL)
        (void)snprintf(place, sizeof(place),
                       "%s %u: ", declared->map != NULL ? "item" : "iteration", item);
    if (final->error_class == ERROR_CLASS_STEP_FAILED) /* of a chain: it names its own step */
        (void)snprintf(why, sizeof(why), "%s%.*s", place, (int)size, final->error_message.text);
    else
        (void)snprintf(why, sizeof(why), "%s%s (%s)%s%.*s", place, job_state_name(final->state),
                       class, size > 0 ? ": " : "", (int)size,
                       size > 0 ? final->error_message.text : "");
    step_fail(plan, at, class, why);
}

/* False: it was not out there, or is over. */
static bool item_take(struct plan *plan, uint32_t at, uint32_t item)
{
    struct step_run *step = at < plan->chain->step_count ? &plan->steps[at] : NULL;

    if (step == NULL || item >= step->item_count || step->item_state == NULL ||
        step->item_state[item] != ITEM_LIVE)
        return false;
    step->item_state[item] = ITEM_OVER;
    step->live_count--;
    step->over_count++;
    return true;
}

void plan_on_final(struct plan *plan, uint32_t at, uint32_t item, const struct plan_final *final)
{
    assert(job_state_final(final->state));
    if (!item_take(plan, at, item))
        return;
    if (plan->failed || plan->canceled || step_has_failed(&plan->steps[at]))
        ;
    else if (final->state != JOB_SUCCEEDED)
        item_failed(plan, at, item, final);
    else if (plan_reads(plan, at))
        keep_output(plan, at, item, final);
    step_check_end(plan, at);
}

void plan_on_waited(struct plan *plan, uint32_t at, json_t *output, const char *class,
                    const char *why)
{
    struct err err;

    if (!item_take(plan, at, 0) || plan->failed || plan->canceled) {
        json_decref(output);
        return;
    }
    if (output == NULL)
        step_fail(plan, at, class, why);
    else if (plan_keep(plan, at, 0, output,
                       json_dumpb(output, NULL, 0, JSON_COMPACT | JSON_ENCODE_ANY), &err) < 0)
        step_fail(plan, at, "too_big", err.text);
    step_check_end(plan, at);
}
