/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Expressions of a chain, in jq: a text that begins with `${` and ends with `}` is one.
 *
 *     input: {texts: "${ $steps.split.output.chunks | map(.text) }"}
 *
 * In it `.` is the run's input, and there are $input, $steps, $run, and in a step with `map` $item
 * and $index. It must come to one value. Behind $steps stands the name of a step, so that what an
 * expression needs can be read from its text; the rest is jq's business, and only its processes
 * run it (brokers/jq.h).
 *
 * All expressions of a chain are one program, since compiling it costs the same as one of them: a
 * part for each key that has some, chosen by the number in the request.
 *
 *     request  {"n": part, "input": …, "steps": {…}, "run": {"id": …}, "items": […], "first": 0}
 *     answer   for each item a list with a list for each expression: what that came to
 *
 * Pure, but for memory. Thread: any.   Tests: tests/unit/test_chain.c, tests/fuzz/fuzz_chain.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

#define CHAIN_JQ_SIZE_MAX 8192 /* of one expression */
#define CHAIN_JQ_COUNT_MAX 512 /* in a chain */

struct chain_jq_expression {
    char *where;      /* "step embed: input.texts" */
    const char *text; /* with its braces; borrowed from the chain */
};

/* The expressions of one key of one step. */
struct chain_jq_part {
    size_t first, count; /* of the expressions, in the order in which a template is walked */
    uint64_t reads;      /* bits of steps */
};

struct chain_jq {
    struct chain_jq_expression *expressions;
    size_t expression_count;
    struct chain_jq_part *parts;
    size_t part_count;
};

bool chain_jq_is_expression(const char *text);

/* Called with the name of each step that it reads: its code, should it be refused. */
typedef int chain_jq_use_fn(void *opaque, const char *step, struct err *err);

/* What can be known without jq: size, variables, steps. item: $item and $index may stand in it. */
int chain_jq_check(const char *text, bool item, chain_jq_use_fn *use, void *opaque,
                   struct err *err) MUST_CHECK;

/* Opens the next part; expressions that are added belong to it. */
void chain_jq_add_part(struct chain_jq *jq);
int chain_jq_add(struct chain_jq *jq, const char *where, const char *text,
                 struct err *err) MUST_CHECK;
/* Forgets the part again if it has none. False: it has. */
bool chain_jq_drop_empty_part(struct chain_jq *jq);

void chain_jq_program(const struct chain_jq *jq, struct buf *to);
/* One expression alone, to find out which of them does not compile. */
void chain_jq_program_of(const struct chain_jq *jq, size_t at, struct buf *to);

/* What jq says of a program, made readable: "line 2: foo/1 is not defined". Lines count from the
 * expression's first one. */
void chain_jq_explain(const char *message, char *to, size_t to_size);

void chain_jq_done(struct chain_jq *jq);
