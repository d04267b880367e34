/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A chain as somebody has declared it: its steps, what each of them needs, and what may go wrong.
 * Read once from chain.yaml or its JSON, checked to the last key, never changed after that.
 *
 *     description: answers from documents
 *     steps:
 *       split:
 *         model: splitter
 *         input: {text: "{{input.text}}"}
 *       embed:
 *         model: minilm
 *         map: "{{steps.split.output.chunks}}"
 *         input: {text: "{{item}}"}
 *         max_parallel: 8
 *     output: "{{steps.embed.output}}"
 *
 * The order of keys means nothing, here and wherever it travels as JSON: a step needs what its
 * templates name, and what stands in its `needs`. The keys are in schema/chain.schema.json and
 * docs/chains.md. An error names step and key, the value and the limit.
 *
 * Pure, but for memory. Thread: any.   Tests: tests/unit/test_chain.c, tests/fuzz/fuzz_chain.c
 */

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "schema/chain_http.h"
#include "schema/chain_jq.h"
#include "schema/json_schema.h"

#define CHAIN_STEPS_MAX 64         /* a set of them is one word */
#define CHAIN_NAME_SIZE 65         /* 64 bytes and a terminator */
#define CHAIN_SIZE_MAX (56u << 10) /* of its JSON: it travels as an engine's settings */
#define CHAIN_ITEMS_MAX 100000u    /* of one map */
#define CHAIN_CASES_MAX 64         /* of one switch */
#define CHAIN_ITERATIONS_MAX 1000u
#define CHAIN_ITERATIONS_DEFAULT 10u
#define CHAIN_PARALLEL_MAX 4096u
#define CHAIN_PARALLEL_DEFAULT 16u
#define CHAIN_WEBHOOK_SIZE 513         /* 512 bytes and a terminator */
#define CHAIN_CACHE_SECONDS_MAX 86400u /* as long as chain_cache_sweep() keeps entries */

/* What a step is. All but the first have no job; an item of the last is a call. */
enum chain_kind {
    CHAIN_MODEL,
    CHAIN_TRANSFORM, /* its template is the output */
    CHAIN_WAIT,      /* …is how many seconds, or until when */
    CHAIN_APPROVAL,  /* …is shown to who decides */
    CHAIN_SWITCH,    /* …says which of its cases is taken: those steps, and no others of it */
    CHAIN_HTTP,      /* …is a request; the answer is the output */
    CHAIN_KINDS,
};

/* Where templates stand. */
enum chain_key {
    CHAIN_KEY_WHEN,
    CHAIN_KEY_UNLESS,
    CHAIN_KEY_MAP,
    CHAIN_KEY_INPUT, /* or the built-in's own */
    CHAIN_KEY_FALLBACK,
    CHAIN_KEY_UNTIL,
    CHAIN_KEYS,
};

#define CHAIN_NO_JQ UINT32_MAX

/* What a switch may come to, and the steps that begin then. */
struct chain_case {
    const char *value; /* as text; borrowed from the chain */
    uint64_t steps;    /* bits */
};

struct chain_step {
    char name[CHAIN_NAME_SIZE];
    char model[CHAIN_NAME_SIZE]; /* id or name; of a chain as well: it is a model */
    char environment[CHAIN_NAME_SIZE];
    char deployment[CHAIN_NAME_SIZE]; /* pinned; "": the environment chooses as a run begins */
    const json_t *input;              /* a template; borrowed from the chain, as all JSON here */
    enum chain_kind kind;
    const json_t *builtin;     /* its template, when it is no model */
    struct chain_http http;    /* HTTP */
    const json_t *fallback;    /* the output if it fails; NULL: null */
    const char *fallback_step; /* …or that of this step, which runs for nothing else; NULL: none */
    int stand_in;              /* its place; -1 */
    int stands_in;             /* of what falls back to this step: its place; -1 */
    struct json_schema *output_schema; /* of what each job, or the built-in, comes to; NULL: any */
    const json_t *map;                 /* of a list; NULL: one job */
    const json_t *until;               /* of a loop; NULL: none */
    uint32_t max_iterations;           /* of it */
    struct chain_case *cases;          /* of a switch */
    size_t case_count;
    const json_t *cases_json, *otherwise_json; /* as they were declared; the second NULL: none */
    uint64_t otherwise;                        /* bits of steps that begin when no case is taken */
    uint64_t switches;           /* bits of switches that choose whether this step begins */
    const json_t *when, *unless; /* NULL: always, never */
    uint64_t needs;              /* bits of steps that come before it */
    uint32_t max_parallel;       /* jobs of a map at a time */
    uint32_t max_failures;       /* items that may fail; their outputs are null */
    bool may_fail, falls_back;   /* on_error: skip or fallback; fallback */
    const char *compensate;      /* name of the step that undoes it; NULL: none */
    int undo;                    /* …its place; -1 */
    bool undo_always;            /* on_error: compensate: also when it has failed itself */
    uint32_t max_attempts;
    uint64_t initial_delay_ms, max_delay_ms;
    uint64_t run_limit_ms;   /* of one attempt; 0: the deployment's */
    uint64_t queue_limit_ms; /* until its first attempt */
    uint32_t priority;
    bool stream;             /* pieces of its answer are kept for who follows the run */
    uint32_t cache_seconds;  /* how old an output with the same input may be; 0: none is taken */
    uint32_t jq[CHAIN_KEYS]; /* the part of its expressions; CHAIN_NO_JQ: there are none */
};

struct chain {
    json_t *json; /* all of it, as it was given */
    struct chain_step *steps;
    size_t step_count;
    uint64_t run_limit_ms; /* of a run, from its first attempt on; 0: that of its deployment */
    uint32_t priority;     /* of steps that do not say */
    const json_t *output;  /* a template; NULL: the output of the last step… */
    size_t last;           /* …which is the only one that no other waits for */
    uint64_t used;         /* bits of steps whose output somebody reads */
    uint64_t undos;        /* bits of steps that only undo others */
    uint8_t order[CHAIN_STEPS_MAX]; /* each step behind all that it needs */
    struct chain_jq jq;             /* all expressions */
    uint32_t output_jq;             /* the part of those in `output`; CHAIN_NO_JQ */
};

/* Takes a reference of the object, which must not be changed any more. What is wrong inside of an
 * expression only jq knows: brokers/jq.h asks it. */
int chain_parse(json_t *json, struct chain **ret_chain, struct err *err) MUST_CHECK;
void chain_free(struct chain **chain_p);

/* Its items are sent somewhere, and come back: a job or a call each. */
static inline bool chain_kind_is_sent(enum chain_kind kind)
{
    return kind == CHAIN_MODEL || kind == CHAIN_HTTP;
}

const char *chain_kind_name(enum chain_kind kind); /* "model"; its key; static storage */

/* The keys that a step may have; NULL behind the last. Static storage. */
const char *chain_step_key(size_t at);
const char *chain_key(size_t at); /* of the chain itself, the same way */

/* Names of the steps that this one needs, an array of its own. */
json_t *chain_needs_json(const struct chain *chain, size_t step);

/* The steps of a switch that begin when it comes to that value. ERR_NOT_FOUND: no case names it,
 * and there is no default; ERR_MISMATCH: it is no text, number or truth value. */
int chain_switch_take(const struct chain_step *step, const json_t *value, uint64_t *ret_steps,
                      struct err *err) MUST_CHECK;

/* The place of the step; -1: there is none of that name. */
int chain_find(const struct chain *chain, const char *name);

/* Names of coordinators' wake-up channels begin so: they are told what their jobs came to at once.
 */
#define CHAIN_BOOT_PREFIX "chain-"

/* The step and those that need it, by whatever way: bits of steps. */
uint64_t chain_steps_behind(const struct chain *chain, size_t from);
