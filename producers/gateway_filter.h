/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Which jobs a request for many means: the JSON of POST /v1/jobs/cancel, replay and priority, as
 * checked values that become parameters. There is no other language: an unknown key is an error,
 * and nothing of it becomes the text of a statement.
 *
 * Pure.   Thread: any.   Tests: tests/unit/test_gateway_filter.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/wire.h"
#include "brokers/ledger.h"

struct json_t;

#define FILTER_NAME_SIZE 65
#define FILTER_IDS_MAX 1000
#define FILTER_PAGE_MAX 1000

struct job_filter {
    bool everything;    /* "all": true, or a filter without a condition */
    bool states[16];    /* by enum job_state: those that the action is for, or those asked for */
    int error_class;    /* enum error_class; -1: any */
    uint64_t after_us;  /* accepted at or after; 0: no bound */
    uint64_t before_us; /* accepted before; 0: no bound */
    char model[FILTER_NAME_SIZE], deployment[FILTER_NAME_SIZE], environment[FILTER_NAME_SIZE];
    char pool[FILTER_NAME_SIZE], worker[FILTER_NAME_SIZE], tag[FILTER_NAME_SIZE]; /* "": any */
};

struct job_request {
    enum command_kind kind;
    uint32_t priority;
    bool dry_run, has_cursor, has_operation;
    uint32_t limit;
    struct wire_id cursor, operation;
    struct wire_id *ids; /* NULL: the filter counts; the caller's to free */
    size_t id_count;
    struct job_filter filter;
};

/* ERR_MALFORMED and ERR_RANGE name the key, the value and what is allowed. */
int job_request_read(const struct json_t *body, enum command_kind kind, struct job_request *ret,
                     struct err *err) MUST_CHECK;
void job_request_done(struct job_request *request);

/* Whether the action is for jobs of that state. */
bool job_action_is_for(enum command_kind kind, enum job_state state);
