/* SPDX-License-Identifier: Apache-2.0 */

#include "chains/plan.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/buf.h"
#include "schema/chain_template.h"

#define ASK_ITEMS_MAX 1000        /* of a map in one EVALUATE */
#define ASK_SIZE_MAX (150u << 20) /* of its request */

enum item_state { ITEM_IDLE, ITEM_LIVE, ITEM_OVER };

/* What the expressions of a template came to, or who is asked about it. */
struct ask {
    uint32_t part;  /* of the chain's expressions: which template it is */
    uint32_t first; /* the first item that there are values of */
    bool out;       /* it is asked for */
    json_t *values; /* NULL: none yet, or it failed */
    char error[256];
};

struct step_run {
    enum plan_state state;
    bool falling;   /* it has failed, and its fallback is being made */
    bool judging;   /* of a loop: an iteration is over, and it is to be seen if another follows */
    json_t *before; /* of a loop: what each iteration has before it; all but the last are null */
    enum chain_key next; /* what is looked at before it begins: when, unless, map, then its input */
    struct ask ask;
    json_t *items;  /* what a map goes over; NULL: no map */
    json_t *output; /* of the step, or the list of a map while it grows; NULL: nobody reads it */
    uint8_t *item_state;
    uint32_t item_count, next_item, live_count, over_count, failure_count;
    char error_class[32], error[PLAN_ERROR_SIZE];
};

struct plan {
    const struct chain *chain;
    const char *run;
    json_t *input, *scope; /* scope: the `steps` of templates */
    struct step_run *steps;
    struct ask ask; /* of the run's output */
    uint64_t over;  /* bits of steps that are final */
    size_t kept_size;
    bool failed, canceled, finished;
    bool moved; /* a step is over, or falls back: others may have something to do */
    uint32_t cancel_step, cancel_item; /* how far the CANCELs are */
    enum error_class error_class;
    char error[PLAN_ERROR_SIZE];
};

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
static void run_fail(struct plan *plan, const char *step, const char *why)
{
    if (plan->failed)
        return;
    plan->failed = true;
    plan->error_class = step[0] == '\0' ? ERROR_CLASS_BAD_INPUT : ERROR_CLASS_STEP_FAILED;
    (void)snprintf(plan->error, sizeof(plan->error), "%s%s%s%.400s", step[0] == '\0' ? "" : "step ",
                   step, step[0] == '\0' ? "" : ": ", why);
}

/* ---- steps that end ---- */

/* From here on templates can name it. Of one that failed the output is its fallback, or null. */
static void step_end(struct plan *plan, size_t at, enum plan_state state)
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
    json_decref(step->output);
    json_decref(step->ask.values);
    step->output = NULL;
    step->ask = (struct ask){.part = CHAIN_NO_JQ, .out = step->ask.out};
}

/* A step cannot be what it should: the run is over, or the step is. */
static void step_fail(struct plan *plan, size_t at, const char *class, const char *why)
{
    const struct chain_step *declared = &plan->chain->steps[at];
    struct step_run *step = &plan->steps[at];

    mem_copy_text(step->error_class, class);
    mem_copy_text(step->error, why);
    if (!declared->may_fail || step->falling) {
        step->state = PLAN_FAILED;
        run_fail(plan, declared->name, why);
    } else if (step->live_count == 0) {
        step_give_up(plan, at);
    } /* else: when the last of its jobs is over */
}

/* What was given does not fit its templates. */
static void step_fail_template(struct plan *plan, size_t at, const char *why)
{
    bool failed_before = plan->failed;

    step_fail(plan, at, "bad_input", why);
    if (!failed_before)
        plan->error_class = ERROR_CLASS_BAD_INPUT;
}

static bool step_has_failed(const struct step_run *step)
{
    return step->error_class[0] != '\0';
}

static void step_check_end(struct plan *plan, size_t at)
{
    struct step_run *step = &plan->steps[at];

    if (step->state != PLAN_RUNNING || plan->failed || step->falling)
        return;
    if (step_has_failed(step)) {
        if (step->live_count == 0)
            step_give_up(plan, at);
    } else if (step->over_count == step->item_count && !step->judging) {
        step_end(plan, at, PLAN_SUCCEEDED);
    }
}

/* ---- values ---- */

static int dump_to(const char *bytes, size_t size, void *opaque)
{
    struct buf *to = opaque;

    buf_append(to, bytes, size);
    return to->failed ? -1 : 0;
}

/* The value as JSON, the caller's to free. */
static int dump(const json_t *value, size_t limit, const char *what, struct plan_todo *todo,
                struct err *err)
{
    struct buf to = BUF_WITH_LIMIT(limit);
    int r = json_dump_callback(value, dump_to, &to, JSON_COMPACT | JSON_ENCODE_ANY);

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

/* A template and what it is made for. */
struct making {
    size_t step; /* step_count: the run's output */
    uint32_t part;
    const json_t *template;
    const json_t *items; /* of a map; NULL: none */
    uint32_t item;
};

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
    request = json_pack("{s:I, s:O, s:o, s:{s:s}, s:o, s:I}", "n", (json_int_t)making->part,
                        "input", plan->input, "steps", steps, "run", "id", plan->run, "items",
                        ask_items(making), "first", (json_int_t)making->item);
    *todo = (struct plan_todo){.type = PLAN_EVALUATE, .step = (uint32_t)making->step};
    r = dump(request, ASK_SIZE_MAX, "what its expressions are given", todo, err);
    json_decref(request);
    return r;
}

enum made { MADE_ASKED = 1, MADE_WAITS }; /* beside 0 and errors */

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
static int make(struct plan *plan, const struct making *making, json_t **ret_value,
                struct plan_todo *todo, struct err *err)
{
    size_t next = 0;
    struct chain_scope scope = {
        .input = plan->input,
        .steps = plan->scope,
        .item = making->items == NULL ? NULL : json_array_get(making->items, making->item),
        .index = making->item,
        .run = plan->run};
    int r = 0;

    if (making->part != CHAIN_NO_JQ) {
        scope.next_value = &next;
        r = values_of(plan, making, &scope.values, todo, err);
    }
    return r == 0 ? chain_template_make(making->template, &scope, ret_value, err) : r;
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

/* ---- steps that begin ---- */

/* 1, 0, MADE_…, or an error. */
static int step_make(struct plan *plan, size_t at, enum chain_key key, json_t **ret_value,
                     struct plan_todo *todo, struct err *err)
{
    static const char *const names[] = {"when", "unless", "map"};
    const struct chain_step *declared = &plan->chain->steps[at];
    const json_t *const templates[] = {declared->when, declared->unless, declared->map};
    const struct making making = {
        .step = at, .part = declared->jq[key], .template = templates[key]};
    int r;

    *ret_value = NULL;
    if (templates[key] == NULL)
        return 0;
    r = make(plan, &making, ret_value, todo, err);
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

/* One key after the other, each as often as it takes to know it. True: there is a to-do. */
static bool step_begin(struct plan *plan, size_t at, struct plan_todo *todo)
{
    struct step_run *step = &plan->steps[at];
    struct err err;
    int r = 0;

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

/* ---- to-dos ---- */

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
                                  .item = item};
    int r = make(plan, &making, ret_value, todo, err);

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
    r = dump(value, PLAN_STEP_INPUT_MAX, "input", todo, err);
    json_decref(value);
    return r;
}

/* Takes the value as the output of the item. */
static int output_set(struct plan *plan, size_t at, uint32_t item, json_t *value, size_t size,
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

/* As many items as need nobody else. True: there is a to-do. */
static bool transform_next(struct plan *plan, size_t at, struct plan_todo *todo)
{
    struct step_run *step = &plan->steps[at];
    struct err err;
    int r = 0;

    while (r == 0 && step->next_item < step->item_count) {
        json_t *value;

        r = item_make(plan, at, step->next_item, &value, todo, &err);
        if (r == 0)
            r = output_set(plan, at, step->next_item, value,
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

/* True: there is a to-do. */
static bool fallback_next(struct plan *plan, size_t at, struct plan_todo *todo)
{
    const struct chain_step *declared = &plan->chain->steps[at];
    const struct making making = {
        .step = at, .part = declared->jq[CHAIN_KEY_FALLBACK], .template = declared->fallback};
    json_t *value;
    struct err err;
    int r = make(plan, &making, &value, todo, &err);

    if (r == 0)
        r = output_set(plan, at, 0, value,
                       json_dumpb(value, NULL, 0, JSON_COMPACT | JSON_ENCODE_ANY), &err);
    if (r < 0) {
        (void)err_wrap(&err, "fallback");
        step_fail_template(plan, at, err.text);
    } else if (r == 0) {
        step_end(plan, at, PLAN_FAILED);
    }
    return r == MADE_ASKED;
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
static bool wait_next(struct plan *plan, size_t at, struct plan_todo *todo)
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
                : dump(value, JOB_INPUT_INLINE_MAX, "approval", todo, &err);
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

static bool submit_next(struct plan *plan, size_t at, struct plan_todo *todo)
{
    struct step_run *step = &plan->steps[at];
    struct err err;
    int r;

    if (step->next_item == step->item_count ||
        step->live_count >= plan->chain->steps[at].max_parallel)
        return false;
    r = submit_make(plan, at, step->next_item, todo, &err);
    if (r < 0)
        step_fail_template(plan, at, err.text);
    if (r != 0)
        return r == MADE_ASKED;
    step->item_state[step->next_item++] = ITEM_LIVE;
    step->live_count++;
    return true;
}

/* Whether another iteration follows. True: there is a to-do. */
static bool judge_next(struct plan *plan, size_t at, struct plan_todo *todo)
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
    int r = make(plan, &making, &value, todo, &err);
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

static bool step_next(struct plan *plan, size_t at, struct plan_todo *todo)
{
    const struct chain_step *declared = &plan->chain->steps[at];
    struct step_run *step = &plan->steps[at];

    if (step->state == PLAN_WAITING && (declared->needs & ~plan->over) == 0 &&
        step_begin(plan, at, todo))
        return true;
    if (step->state != PLAN_RUNNING || plan->failed)
        return false;
    if (step->falling)
        return fallback_next(plan, at, todo);
    if (step_has_failed(step))
        return false;
    if (step->judging)
        return judge_next(plan, at, todo);
    switch (declared->kind) {
    case CHAIN_MODEL:
        return submit_next(plan, at, todo);
    case CHAIN_TRANSFORM:
        return transform_next(plan, at, todo);
    case CHAIN_WAIT:
    case CHAIN_APPROVAL:
        return wait_next(plan, at, todo);
    case CHAIN_KINDS:
        break;
    }
    NEVER("a step is of a kind");
}

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
        r = make(plan, &making, &value, todo, &err);
    else
        value = json_incref(json_object_get(last, "output"));
    *ret_asked = r == MADE_ASKED;
    if (r > 0)
        return false;
    if (r == 0)
        r = dump(value, PLAN_OUTPUT_MAX, "it", todo, &err);
    json_decref(value);
    if (r < 0) {
        (void)err_wrap(&err, "output");
        run_fail(plan, "", err.text);
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
    else if (output_set(plan, at, item, output, final->output.size, &err) < 0)
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
    else if (output_set(plan, at, 0, output,
                        json_dumpb(output, NULL, 0, JSON_COMPACT | JSON_ENCODE_ANY), &err) < 0)
        step_fail(plan, at, "too_big", err.text);
    step_check_end(plan, at);
}
