/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The planner: what a run of a chain has to do next, from what its steps came to.
 *
 *     plan_new(chain, input, run)
 *     while (plan_next(plan, &todo))        SUBMIT a job, CANCEL one, EVALUATE expressions, WAIT
 * for a time or a person, or the run is over: FINISH plan_on_final(plan, step, item, …)    a job
 * that was submitted is final plan_on_values(plan, step, …)         what expressions came to
 *     plan_on_waited(plan, step, …)         the time has come, or somebody has decided
 *
 *     step:  WAITING ─▶ RUNNING ─▶ SUCCEEDED | FAILED        FAILED goes on only where it may
 *               └────▶ SKIPPED
 *
 * Everything that is submitted follows from the chain, the input and what steps came to: a run that
 * is planned anew asks for the same jobs with the same inputs. So its coordinator needs no memory:
 * it answers each SUBMIT of a new plan from what the ledger knows already.
 *
 * Every event is taken once: a second one about the same job changes nothing. Memory: a byte an
 * item, and outputs that a template reads, up to PLAN_SIZE_MAX; beyond, the run fails.
 *
 * An output that is no JSON is kept as it is, and may be the whole input of a model.
 *
 * Pure, but for memory. Thread: any.
 * Tests: tests/unit/test_chain_plan.c, test_chain_plan_body.c, test_chain_plan_ends.c,
 * test_chain_sim.c
 */

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/wire.h"
#include "schema/chain.h"
#include "schema/job.h"

#define PLAN_SIZE_MAX (64u << 20)       /* outputs that are kept, as they came */
#define PLAN_STEP_INPUT_MAX (16u << 20) /* one step's input, as JSON */
#define PLAN_OUTPUT_MAX (64u << 20)     /* of the run */
#define PLAN_WAIT_SECONDS_MAX 604800
#define PLAN_ERROR_SIZE 512

enum plan_state { PLAN_WAITING, PLAN_RUNNING, PLAN_SUCCEEDED, PLAN_SKIPPED, PLAN_FAILED };

enum plan_todo_type { PLAN_SUBMIT, PLAN_CANCEL, PLAN_EVALUATE, PLAN_WAIT, PLAN_FINISH };

struct plan_todo {
    enum plan_todo_type type;
    uint32_t step, item; /* SUBMIT, CANCEL; item 0: of a step without map; EVALUATE: whose it is */
    bool settle; /* the run has failed, and steps will be undone. SUBMIT: one that may have been
                  * submitted before; it is canceled, so that no other can come later. CANCEL: the
                  * same. Both: its end is told. WAIT: as it is if it is over, else it is canceled,
                  * also one that is out there already: then without its text */
    double wait_seconds; /* WAIT for a time, from when it was first asked for */
    /* SUBMIT: the input; WAIT: the time until which, NULL: wait_seconds, or of an approval what is
     * shown; EVALUATE: the request (schema/chain_jq.h); FINISH: the output, NULL: it
     * failed. The caller's. */
    char *text;
    size_t text_size;
    const char *text_type;        /* SUBMIT: media type of an input that is no JSON; the plan's */
    const char *error;            /* FINISH of a run that failed: says which step; the plan's */
    enum error_class error_class; /* … BAD_INPUT: a template could not be filled */
};

/* How a job of a step ended. */
struct plan_final {
    enum job_state state;
    enum error_class error_class;
    const char *class; /* of the error, as templates name it; NULL, "": that of error_class */
    struct wire_text error_message; /* borrowed for the call */
    struct wire_bytes output;       /* SUCCEEDED: JSON, or nothing; borrowed for the call */
    bool output_is_json;
    struct wire_text output_type; /* media type of one that is not */
    bool never;                   /* nothing of it was tried */
};

struct plan;

/* chain and run (the id as text) are borrowed for life; the input is a reference that is taken. */
struct plan *plan_new(const struct chain *chain, json_t *input, const char *run);
void plan_free(struct plan **plan_p);

/* The step has this as its input, or as the list of its map, whatever its template says. Takes the
 * value. Before the first plan_next(). */
void plan_give(struct plan *plan, uint32_t step, json_t *value);

/* False: nothing before the next event. After a FINISH always. */
bool plan_next(struct plan *plan, struct plan_todo *ret_todo);

/* Of a job that was submitted; ignored when it is over already or was never asked for. False: it
 * has succeeded, and its output is refused. */
bool plan_on_final(struct plan *plan, uint32_t step, uint32_t item, const struct plan_final *final);

/* Answers an EVALUATE, with the step that it was for. Takes the values: for each item that it had
 * room for a list of what each expression came to. NULL: an expression failed, and error says why.
 * A step has one EVALUATE out at a time; an answer that nobody waits for is ignored. */
void plan_on_values(struct plan *plan, uint32_t step, json_t *values, const char *error);

/* Answers a WAIT. Takes the output; NULL: the step fails, for such a reason. */
void plan_on_waited(struct plan *plan, uint32_t step, json_t *output, const char *class,
                    const char *why);

/* The run fails, for a reason that is no step's; what succeeded is undone. */
void plan_stop(struct plan *plan, const char *why);

/* The run is over for another reason: CANCELs for what runs, then no FINISH. */
void plan_cancel(struct plan *plan);

/* Whether somebody reads the outputs of that step: others need not be fetched. */
bool plan_reads(const struct plan *plan, uint32_t step);

enum plan_state plan_state_of(const struct plan *plan, uint32_t step);
uint32_t plan_item_count(const struct plan *plan,
                         uint32_t step);            /* 0: not begun, or an empty map */
const char *plan_state_name(enum plan_state state); /* "running"; static storage */
