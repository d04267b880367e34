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
        json_decref(plan->steps[i].partial);
        json_decref(plan->steps[i].given);
        json_decref(plan->steps[i].ask.values);
        free(plan->steps[i].item_state);
    }
    json_decref(plan->ask.values);
    free(plan->steps);
    json_decref(plan->scope);
    bodies_free(plan);
    json_decref(plan->input);
    free(plan);
}

void plan_give(struct plan *plan, uint32_t step, json_t *value)
{
    json_decref(plan->steps[step].given);
    plan->steps[step].given = value;
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

        if (!chain_kind_is_sent(plan->chain->steps[plan->cancel_step].kind))
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
        r = body_refuse(plan, value = json_incref(json_object_get(last, "output")), &err);
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

/* ---- a run that has failed, of a chain whose steps can be undone ---- */

bool plan_settling(const struct plan *plan)
{
    return plan->failed && plan->chain->undos != 0 && !plan->settled;
}

bool plan_stopped(const struct plan *plan)
{
    return plan->failed && plan->chain->undos == 0;
}

static uint64_t forward_steps(const struct plan *plan)
{
    size_t count = plan->chain->step_count;

    return (count == 64 ? UINT64_MAX : (UINT64_C(1) << count) - 1) & ~plan->chain->undos;
}

static bool all_over(const struct plan *plan)
{
    return (forward_steps(plan) & ~plan->over) == 0;
}

static bool steps_next(struct plan *plan, uint64_t which, struct plan_todo *todo)
{
    do { /* a step that is skipped lets others begin */
        plan->moved = false;
        for (size_t i = 0; i < plan->chain->step_count; i++) {
            if ((which >> i & 1) != 0 && !plan_stopped(plan) && !plan->canceled &&
                step_next(plan, i, todo))
                return true;
        }
    } while (plan->moved);
    return false;
}

/* What is waited for, and nobody needs any more. */
static bool wait_end_next(struct plan *plan, struct plan_todo *todo)
{
    for (uint32_t i = 0; i < plan->chain->step_count; i++) {
        enum chain_kind kind = plan->chain->steps[i].kind;
        struct step_run *step = &plan->steps[i];

        if ((kind != CHAIN_WAIT && kind != CHAIN_APPROVAL) || step->live_count == 0 ||
            step->wait_ends)
            continue;
        step->wait_ends = true;
        *todo = (struct plan_todo){.type = PLAN_WAIT, .step = i};
        return true;
    }
    return false;
}

/* What was submitted is canceled, and how it ended is waited for. The steps are planned as before:
 * what an earlier coordinator had submitted, or one that does not know yet that it is over still
 * submits, is found in no other way. */
static bool settle_next(struct plan *plan, struct plan_todo *todo)
{
    if (cancel_next(plan, todo) || wait_end_next(plan, todo)) {
        todo->settle = true;
        return true;
    }
    if (steps_next(plan, forward_steps(plan), todo)) {
        todo->settle = true;
        plan->steps[todo->step].wait_ends = todo->type == PLAN_WAIT;
        return true;
    }
    plan->settled = all_over(plan);
    plan->undo_left = plan->settled ? plan->chain->step_count : 0;
    return false;
}

static void undo_note_failure(struct plan *plan, const struct chain_step *step)
{
    const struct step_run *undo = &plan->steps[step->undo];
    size_t size = strlen(plan->error);

    if (undo->state == PLAN_FAILED)
        (void)snprintf(plan->error + size, sizeof(plan->error) - size,
                       "; step %s is not undone: step %s: %.200s", step->name,
                       plan->chain->steps[step->undo].name, undo->error);
}

/* One after the other, those first that needed others. True: there is a to-do. */
static bool undo_next(struct plan *plan, struct plan_todo *todo)
{
    for (; plan->undo_left > 0; plan->undo_left--) {
        size_t at = plan->chain->order[plan->undo_left - 1];
        const struct chain_step *step = &plan->chain->steps[at];
        struct step_run *run = &plan->steps[at];

        if (step->undo < 0 || (run->success_count == 0 && !(step->undo_always && run->tried)))
            continue;
        if (run->partial != NULL)
            (void)json_object_set(json_object_get(plan->scope, step->name), "output", run->partial);
        if (steps_next(plan, UINT64_C(1) << step->undo, todo))
            return true;
        if ((plan->over >> step->undo & 1) == 0)
            return false;
        undo_note_failure(plan, step);
    }
    plan->undone = true;
    return false;
}

/* ---- the next to-do ---- */

static bool finish_next(struct plan *plan, struct plan_todo *todo)
{
    bool ends_well = !plan->failed && !plan->canceled, asked;

    *todo = (struct plan_todo){.type = PLAN_FINISH};
    if (ends_well && !finish_make(plan, todo, &asked))
        return asked;
    if (ends_well && plan->failed && plan->chain->undos != 0)
        return plan_next(plan, todo); /* for want of an output */
    plan->finished = true;
    if (plan->canceled)
        return false;
    todo->error = plan->failed ? plan->error : NULL;
    todo->error_class = plan->failed ? plan->error_class : ERROR_CLASS_NONE;
    return true;
}

bool plan_next(struct plan *plan, struct plan_todo *ret_todo)
{
    if (plan->finished)
        return false;
    if (!plan->failed && steps_next(plan, forward_steps(plan), ret_todo))
        return true;
    if (plan->canceled || plan_stopped(plan)) {
        if (cancel_next(plan, ret_todo))
            return true;
    } else if (plan->failed) {
        if (plan_settling(plan) && settle_next(plan, ret_todo))
            return true;
        if (plan->settled && !plan->undone && undo_next(plan, ret_todo))
            return true;
        if (!plan->undone)
            return false;
    } else if (!all_over(plan)) {
        return false;
    }
    return finish_next(plan, ret_todo);
}

void plan_stop(struct plan *plan, const char *why)
{
    if (plan->failed)
        return;
    plan_fail(plan, "", why);
    plan->error_class = ERROR_CLASS_STEP_FAILED;
}

void plan_cancel(struct plan *plan)
{
    plan->canceled = true;
    plan->cancel_step = plan->cancel_item = 0; /* what undoes is canceled, too */
}

/* ---- events ---- */

/* An item of a map may, up to its max_failures. */
static void item_refused(struct plan *plan, size_t at, uint32_t item, const char *class,
                         const char *why)
{
    const struct chain_step *declared = &plan->chain->steps[at];
    struct step_run *step = &plan->steps[at];
    char text[PLAN_ERROR_SIZE];

    if (step_has_failed(step))
        return;
    if (declared->map != NULL && ++step->failure_count <= declared->max_failures)
        return;
    if (declared->map == NULL && declared->until == NULL) {
        step_fail(plan, at, class, why);
        return;
    }
    (void)snprintf(text, sizeof(text), "%s %u: %.450s",
                   declared->map != NULL ? "item" : "iteration", item, why);
    step_fail(plan, at, class, text);
}

/* As it is; of a step with `stream`, what is UTF-8 is a text. */
static json_t *other_output(struct plan *plan, size_t at, const struct plan_final *final)
{
    json_t *text = !plan->chain->steps[at].stream
                       ? NULL
                       : json_stringn((const char *) final->output.bytes, final->output.size);

    return text != NULL ? text : body_make(plan, final->output, final->output_type);
}

/* False: it is not what it must be. */
static bool keep_output(struct plan *plan, size_t at, uint32_t item, const struct plan_final *final)
{
    struct step_run *step = &plan->steps[at];
    json_error_t where;
    json_t *output = json_null();
    struct err err;

    if (!final->output_is_json)
        output = other_output(plan, at, final);
    if (final->output_is_json && final->output.size > 0)
        output = json_loadb((const char *) final->output.bytes, final->output.size, JSON_DECODE_ANY,
                            &where);
    if (output == NULL) {
        step_fail(plan, at, "bad_output", "its output is called JSON and is none");
    } else if (plan_check(plan, at, output, &err) < 0) {
        json_decref(output);
        item_refused(plan, at, item, "output_mismatch", err.text);
        return false;
    } else if (plan_keep(plan, at, item, output, final->output.size, &err) < 0)
        step_fail(plan, at, "too_big", err.text);
    else if (step->before != NULL) {
        (void)json_array_set_new(step->before, item, json_null());
        (void)json_array_append(step->before, step->output);
        step->judging = true;
    }
    return true;
}

static void item_failed(struct plan *plan, size_t at, uint32_t item, const struct plan_final *final)
{
    bool named = final->class != NULL && final->class[0] != '\0';
    const char *class = named ? final->class
                        : final->error_class == ERROR_CLASS_NONE
                            ? job_state_name(final->state)
                            : error_class_name(final->error_class);
    size_t size = final->error_message.size > 300 ? 300 : final->error_message.size;
    char why[PLAN_ERROR_SIZE];

    while (size > 0 && size < final->error_message.size &&
           ((unsigned char) final->error_message.text[size] & 0xc0) == 0x80)
        size--;                                                 /* not inside of a character */
    if (named || final->error_class == ERROR_CLASS_STEP_FAILED) /* of a chain: with its own step */
        (void)snprintf(why, sizeof(why), "%.*s", (int)size, final->error_message.text);
    else
        (void)snprintf(why, sizeof(why), "%s (%s)%s%.*s", job_state_name(final->state), class,
                       size > 0 ? ": " : "", (int)size, size > 0 ? final->error_message.text : "");
    item_refused(plan, at, item, class, why);
}

/* False: it was not out there, or is over. */
bool item_take(struct plan *plan, uint32_t at, uint32_t item)
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

bool plan_on_final(struct plan *plan, uint32_t at, uint32_t item, const struct plan_final *final)
{
    bool right = true;

    assert(job_state_final(final->state));
    if (!item_take(plan, at, item))
        return true;
    plan->steps[at].tried = plan->steps[at].tried || !final->never;
    plan->steps[at].success_count += final->state == JOB_SUCCEEDED;
    plan->steps[at].cancel_count += final->state == JOB_CANCELED;
    if (plan_stopped(plan) || plan->canceled ||
        (step_has_failed(&plan->steps[at]) &&
         (final->state != JOB_SUCCEEDED || plan->chain->undos == 0)))
        ;
    else if (final->state != JOB_SUCCEEDED)
        item_failed(plan, at, item, final);
    else if (plan_reads(plan, at))
        right = keep_output(plan, at, item, final);
    step_check_end(plan, at);
    return right;
}

void plan_on_waited(struct plan *plan, uint32_t at, json_t *output, const char *class,
                    const char *why)
{
    struct err err;

    if (!item_take(plan, at, 0) || plan_stopped(plan) || plan->canceled) {
        json_decref(output);
        return;
    }
    if (output == NULL) {
        step_fail(plan, at, class, why);
    } else if (plan_check(plan, at, output, &err) < 0) {
        json_decref(output);
        step_fail(plan, at, "output_mismatch", err.text);
    } else if (plan_keep(plan, at, 0, output,
                         json_dumpb(output, NULL, 0, JSON_COMPACT | JSON_ENCODE_ANY), &err) < 0) {
        step_fail(plan, at, "too_big", err.text);
    }
    step_check_end(plan, at);
}
