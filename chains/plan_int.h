/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Inside of the planner: plan.c (life, what comes next, events), plan_step.c (a step: how it begins
 * and ends), plan_todo.c (what one that runs asks for), plan_value.c (what templates come to),
 * plan_body.c (outputs that are no JSON).
 */

#include "chains/plan.h"

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
    json_t *given;  /* its input, or the list of its map, in place of the template; NULL: none */
    json_t *before; /* of a loop: what each iteration has before it; all but the last are null */
    uint32_t success_count; /* jobs */
    bool tried;             /* one of its jobs was */
    bool wait_ends;         /* what it waits for is asked to end */
    uint32_t cancel_count;  /* jobs that were canceled */
    json_t *partial;     /* what a step that failed has come to all the same: for who undoes it */
    uint64_t taken;      /* of a switch: bits of steps that it has chosen */
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
    struct body *bodies; /* outputs that are no JSON */
    bool failed, canceled, finished;
    bool moved;       /* a step is over, or falls back: others may have something to do */
    bool settled;     /* it has failed, and everything that was under way is told */
    bool undone;      /* …and what had succeeded is undone */
    size_t undo_left; /* places of the chain's order that may have to be */
    uint32_t cancel_step, cancel_item; /* how far the CANCELs are */
    enum error_class error_class;
    char error[PLAN_ERROR_SIZE];
};

/* A template and what it is made for. */
struct making {
    size_t step; /* step_count: the run's output */
    uint32_t part;
    const json_t *template;
    const json_t *items; /* of a map; NULL: none */
    uint32_t item;
    bool takes_bodies; /* it may come to a body, or be a list of them */
};

enum made { MADE_ASKED = 1, MADE_WAITS }; /* beside 0 and errors */

/* plan.c */
bool plan_stopped(const struct plan *plan);  /* no step goes on */
bool plan_settling(const struct plan *plan); /* it has failed, and what runs is to be known */
bool item_take(struct plan *plan, uint32_t at, uint32_t item); /* false: it is not out there */
/* The run fails, for the first reason that there is. */
void plan_fail(struct plan *plan, const char *step, const char *why);

/* plan_step.c */
/* A step's way from here: true, and a to-do, or nothing before the next event. */
bool step_next(struct plan *plan, size_t at, struct plan_todo *todo);
void step_end(struct plan *plan, size_t at, enum plan_state state);
/* A step cannot be what it should: the run is over, or the step is. */
void step_fail(struct plan *plan, size_t at, const char *class, const char *why);
void step_fail_template(struct plan *plan, size_t at, const char *why);
bool step_has_failed(const struct step_run *step);
void step_check_end(struct plan *plan, size_t at);

/* plan_todo.c; true: there is a to-do */
bool submit_next(struct plan *plan, size_t at, struct plan_todo *todo);
bool transform_next(struct plan *plan, size_t at, struct plan_todo *todo);
bool switch_next(struct plan *plan, size_t at, struct plan_todo *todo);
bool wait_next(struct plan *plan, size_t at, struct plan_todo *todo);
bool judge_next(struct plan *plan, size_t at, struct plan_todo *todo);
bool fallback_next(struct plan *plan, size_t at, struct plan_todo *todo);
bool stand_in_next(struct plan *plan, size_t at);

/* plan_body.c */
json_t *body_make(struct plan *plan, struct wire_bytes bytes, struct wire_text type);
void bodies_free(struct plan *plan);
bool body_is(const struct plan *plan, const json_t *value);
const char *body_about(const void *plan, const json_t *value, bool deep); /* NULL: it is none */
int body_refuse(const struct plan *plan, const json_t *value, struct err *err);
/* Of a value that is one: its copy and its type. */
int body_put(const struct plan *plan, const json_t *value, struct plan_todo *todo, struct err *err);

/* plan_value.c */
/* Whether the output is what the step's output_schema says. */
int plan_check(const struct plan *plan, size_t at, const json_t *value, struct err *err);
/* The value as JSON in the to-do's text, the caller's to free. */
int plan_dump(const json_t *value, size_t limit, const char *what, struct plan_todo *todo,
              struct err *err);
/* What the template comes to: 0 and the caller's reference, MADE_ASKED with a to-do, MADE_WAITS for
 * the answer to one, or an error. */
int plan_make(struct plan *plan, const struct making *making, json_t **ret_value,
              struct plan_todo *todo, struct err *err);
/* Takes the value as the output of the item. */
int plan_keep(struct plan *plan, size_t at, uint32_t item, json_t *value, size_t size,
              struct err *err);
