/* SPDX-License-Identifier: Apache-2.0 */

/*
 * headrace chains rerun --dry-run: plans a run again with what its jobs came to, and tells what
 * would be asked for. No job is made; the planner is the coordinator's own (chains/plan.h), so this
 * may include it, like a program. Expressions are evaluated by processes as there (brokers/jq.h).
 *
 * A job with another input than the recorded one is told as changed, and counts with its recorded
 * output all the same: so the rest can be planned. One without a record ends there, and steps that
 * need it are not known.
 */

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/loop.h"
#include "brokers/jq.h"
#include "chains/plan.h"
#include "cli/chains.h"
#include "cli/list.h"

#define DIGEST_SIZE 32

struct tally {
    uint32_t same, changed, unknown;
    uint32_t calls; /* of URLs, as they were recorded */
};

struct dry {
    struct chain *chain;
    struct plan *plan;
    struct loop *loop;
    struct jq_pool *jq;
    const json_t *record;
    json_t *output;
    char error[512];
    char unrecorded[160]; /* the first call that nobody can answer */
    uint64_t again;       /* bits of steps that would run again */
    struct tally tallies[CHAIN_STEPS_MAX];
    uint32_t asked; /* questions that are out */
    bool over;
};

/* ---- what was recorded ---- */

static const json_t *find_job(const struct dry *dry, const char *step, uint32_t item)
{
    const json_t *jobs = json_object_get(dry->record, "jobs");
    size_t i;
    json_t *job;

    json_array_foreach(jobs, i, job)
    {
        if (strcmp(json_string_value(json_object_get(job, "step")), step) == 0 &&
            json_integer_value(json_object_get(job, "item")) == item)
            return job;
    }
    return NULL;
}

static const json_t *find_call(const struct dry *dry, const char *step, uint32_t item)
{
    size_t i;
    json_t *call;

    json_array_foreach(json_object_get(dry->record, "calls"), i, call)
    {
        if (strcmp(json_string_value(json_object_get(call, "step")), step) == 0 &&
            json_integer_value(json_object_get(call, "item")) == (json_int_t)item)
            return call;
    }
    return NULL;
}

static const json_t *find_wait(const struct dry *dry, const char *step)
{
    size_t i;
    json_t *wait;

    json_array_foreach(json_object_get(dry->record, "waits"), i, wait)
    {
        if (strcmp(json_string_value(json_object_get(wait, "step")), step) == 0)
            return wait;
    }
    return NULL;
}

static bool digest_is(const char *text, size_t size, const char *wanted)
{
    uint8_t digest[DIGEST_SIZE];
    char hex[2 * DIGEST_SIZE + 1] = "";
    int done = EVP_Digest(text, size, digest, NULL, EVP_sha256(), NULL);

    assert(done == 1);
    for (size_t i = 0; i < DIGEST_SIZE; i++)
        (void)snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    return wanted != NULL && strcmp(hex, wanted) == 0;
}

/* ---- to-dos ---- */

static void dry_tell(struct dry *dry, const struct plan_todo *todo, const json_t *job)
{
    const char *status = json_string_value(json_object_get(job, "status"));
    const char *message = json_string_value(json_object_get(job, "error_message"));
    char *output = json_dumps(json_object_get(job, "output"), JSON_COMPACT | JSON_ENCODE_ANY);
    struct plan_final final = {.state = JOB_SUCCEEDED, .output_is_json = true};

    final.output = (struct wire_bytes){(const uint8_t *)output, strlen(output)};
    if (strcmp(status, "SUCCEEDED") != 0)
        final = (struct plan_final){.state = JOB_FAILED,
                                    .error_class = ERROR_CLASS_MODEL_ERROR,
                                    .error_message = WIRE_TEXT_OF(message == NULL ? "" : message)};
    plan_on_final(dry->plan, todo->step, todo->item, &final);
    free(output);
}

/* Nobody is called: what is not recorded is not known. */
static void dry_call(struct dry *dry, const struct plan_todo *todo)
{
    const char *step = dry->chain->steps[todo->step].name;
    const json_t *call = find_call(dry, step, todo->item);

    if (call != NULL) {
        dry->tallies[todo->step].calls++;
        dry_tell(dry, todo, call);
        return;
    }
    dry->tallies[todo->step].unknown++;
    if (dry->unrecorded[0] == '\0')
        (void)snprintf(dry->unrecorded, sizeof(dry->unrecorded),
                       "step %s: call %u has no recorded answer, and a dry run calls nobody", step,
                       todo->item);
}

static void dry_submit(struct dry *dry, const struct plan_todo *todo)
{
    const json_t *job = find_job(dry, dry->chain->steps[todo->step].name, todo->item);
    struct tally *tally = &dry->tallies[todo->step];
    const char *digest = json_string_value(json_object_get(job, "input_digest"));

    if (job == NULL || json_is_true(json_object_get(job, "output_is_large"))) {
        tally->unknown++;
        return;
    }
    if (digest_is(todo->text, todo->text_size, digest))
        tally->same++;
    else
        tally->changed++;
    dry_tell(dry, todo, job);
}

static void dry_wait(struct dry *dry, const struct plan_todo *todo)
{
    const struct chain_step *step = &dry->chain->steps[todo->step];
    const json_t *wait = find_wait(dry, step->name);

    if (step->kind == CHAIN_WAIT) {
        plan_on_waited(dry->plan, todo->step, json_null(), NULL, NULL);
    } else if (json_is_true(json_object_get(wait, "approved"))) {
        dry->tallies[todo->step].same++;
        plan_on_waited(dry->plan, todo->step, json_incref(json_object_get(wait, "payload")), NULL,
                       NULL);
    } else {
        dry->tallies[todo->step].unknown++;
    }
}

static void dry_pump(struct dry *dry);

struct question {
    struct dry *dry;
    uint32_t step;
};

static void on_values(void *opaque, json_t *values, const char *error)
{
    OWNED(mem_free) struct question *question = opaque;

    question->dry->asked--;
    plan_on_values(question->dry->plan, question->step, values, error);
    dry_pump(question->dry);
}

static void dry_evaluate(struct dry *dry, struct plan_todo *todo)
{
    struct question *question = xcalloc(1, sizeof(*question));

    *question = (struct question){.dry = dry, .step = todo->step};
    dry->asked++;
    jq_pool_ask(dry->jq, &todo->text, todo->text_size, on_values, question);
}

static void dry_finish(struct dry *dry, const struct plan_todo *todo)
{
    dry->over = true;
    if (todo->error != NULL)
        mem_copy_text(dry->error, todo->error);
    else
        dry->output = json_loadb(todo->text, todo->text_size, JSON_DECODE_ANY, NULL);
}

static void dry_pump(struct dry *dry)
{
    struct plan_todo todo;

    while (plan_next(dry->plan, &todo)) {
        switch (todo.type) {
        case PLAN_SUBMIT:
            if (dry->chain->steps[todo.step].kind == CHAIN_HTTP)
                dry_call(dry, &todo);
            else
                dry_submit(dry, &todo);
            break;
        case PLAN_CANCEL:
            break;
        case PLAN_EVALUATE:
            dry_evaluate(dry, &todo);
            continue; /* the pool has its text */
        case PLAN_WAIT:
            dry_wait(dry, &todo);
            break;
        case PLAN_FINISH:
            dry_finish(dry, &todo);
            break;
        }
        free(todo.text);
    }
    if (dry->asked == 0)
        loop_stop(dry->loop);
}

/* ---- the report ---- */

static json_t *dry_steps(const struct dry *dry)
{
    json_t *steps = json_array();

    for (uint32_t i = 0; i < dry->chain->step_count; i++) {
        const struct tally *tally = &dry->tallies[i];
        bool again = (dry->again >> i & 1) != 0;

        (void)json_array_append_new(
            steps,
            json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I}", "step", dry->chain->steps[i].name,
                      "state", plan_state_name(plan_state_of(dry->plan, i)), "would",
                      !chain_kind_is_sent(dry->chain->steps[i].kind) ? "be planned"
                      : again || tally->unknown > 0                  ? "run"
                                                                     : "be reused",
                      "same", (json_int_t)tally->same, "changed", (json_int_t)tally->changed, "new",
                      (json_int_t)tally->unknown, "calls", (json_int_t)tally->calls));
    }
    return steps;
}

static int dry_report(const struct dry *dry, bool json)
{
    static const struct table_column columns[] = {
        {"STEP", "step", false, false},      {"WOULD", "would", false, false},
        {"SAME INPUT", "same", true, false}, {"OTHER INPUT", "changed", true, false},
        {"NO RECORD", "new", true, false},   {"STATE", "state", false, false},
    };
    OWNED(client_json_free)
    json_t *report = json_pack("{s:o, s:b, s:O?, s:s?, s:s?}", "steps", dry_steps(dry), "ends",
                               dry->over, "output", dry->output, "error",
                               dry->error[0] == '\0' ? NULL : dry->error, "unrecorded",
                               dry->unrecorded[0] == '\0' ? NULL : dry->unrecorded);
    struct err err;

    if (json) {
        table_print_json(stdout, report);
        return CLI_EXIT_OK;
    }
    if (table_print(stdout, json_object_get(report, "steps"), columns, COUNT_OF(columns), "",
                    &err) < 0)
        return client_complain("chains rerun", &err);
    if (dry->error[0] != '\0')
        (void)printf("it would fail: %s\n", dry->error);
    else if (dry->unrecorded[0] != '\0')
        (void)printf("%s\n", dry->unrecorded);
    else if (!dry->over)
        (void)printf("what follows a job without a record is not known\n");
    return CLI_EXIT_OK;
}

/* ---- the run ---- */

static int dry_read(struct dry *dry, const json_t *body, json_t *file, struct err *err)
{
    const json_t *inputs = json_object_get(body, "inputs");
    const char *from = json_string_value(json_object_get(body, "from")), *name;
    json_t *value;
    int at, r = chain_parse(file, &dry->chain, err);

    if (r < 0)
        return r;
    at = from == NULL ? 0 : chain_find(dry->chain, from);
    if (at < 0)
        return err_set(err, ERR_USAGE, "--from: the chain has no step '%.64s'", from);
    if (from != NULL)
        dry->again |= chain_steps_behind(dry->chain, (size_t)at);
    json_object_foreach((json_t *)inputs, name, value)
    {
        at = chain_find(dry->chain, name);
        if (at < 0)
            return err_set(err, ERR_USAGE, "--inputs: the chain has no step '%.64s'", name);
        dry->again |= chain_steps_behind(dry->chain, (size_t)at);
    }
    if (dry->again == 0)
        dry->again = UINT64_MAX;
    value = json_object_get(body, "input");
    if (value == NULL && !json_is_true(json_object_get(dry->record, "input_is_kept")))
        return err_set(err, ERR_USAGE, "the run's input is not kept any more: give it by --input");
    if (value == NULL)
        value = json_object_get(dry->record, "input");
    dry->plan = plan_new(dry->chain, json_incref(value),
                         json_string_value(json_object_get(dry->record, "id")));
    json_object_foreach((json_t *)inputs, name, value)
        plan_give(dry->plan, (uint32_t)chain_find(dry->chain, name), json_incref(value));
    return 0;
}

int chains_dry_run(const struct client *client, const char *run, const json_t *body,
                   const char *chain_file, bool json)
{
    OWNED(mem_free) char *path = path_make("/v1/chain_runs/%/record", run);
    OWNED(client_json_free) json_t *record = NULL;
    OWNED(client_json_free) json_t *file = NULL;
    const struct client_call call = {.method = "GET", .path = path};
    struct dry dry = {.over = false};
    size_t steps;
    struct err err;
    int status, code = CLI_EXIT_REFUSED, r = client_exchange(client, &call, &status, &record, &err);

    dry.record = record;
    if (r == 0 && chain_file[0] != '\0')
        r = chains_read(chain_file, &file, &steps, &err);
    if (r == 0)
        r = dry_read(&dry, body, file != NULL ? file : json_object_get(record, "config"), &err);
    if (r == 0)
        r = loop_open(&dry.loop, &err);
    if (r < 0) {
        code = client_complain("chains rerun", &err);
    } else {
        dry.jq = jq_pool_new(dry.loop, dry.chain);
        dry_pump(&dry);
        loop_run(dry.loop);
        code = dry_report(&dry, json);
        jq_pool_close(&dry.jq);
        loop_close(&dry.loop);
    }
    plan_free(&dry.plan);
    chain_free(&dry.chain);
    json_decref(dry.output);
    return code;
}
