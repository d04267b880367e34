/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A conversation with one owner, of shard 3 in epoch 7: records and answers in, to-dos out. Time
 * stands still unless a test moves it.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "brokers/owner.h"
#include "schema/job_id.h"

#define SHARD 3
#define EPOCH 7
#define START_US 1000000000ull

struct talk {
    struct owner *owner;
    uint64_t now_us;
    int64_t intake, outcome; /* next offsets */
    struct buf buf;
    struct owner_todo todo;
};

static inline void talk_begin_with(struct talk *talk, struct owner_options options,
                                   struct ledger_takeover takeover, struct owner_ends ends)
{
    *talk = (struct talk){.now_us = START_US};
    takeover.shard = SHARD;
    takeover.epoch = EPOCH;
    talk->intake = takeover.intake_floor < 0 ? 0 : takeover.intake_floor;
    talk->outcome = takeover.outcome_floor < 0 ? 0 : takeover.outcome_floor;
    talk->buf = BUF_WITH_LIMIT(1 << 20);
    talk->owner = owner_new(&options, &takeover, ends, talk->now_us, talk->now_us);
}

static inline void talk_begin(struct talk *talk)
{
    talk_begin_with(talk, owner_options_default,
                    (struct ledger_takeover){.intake_floor = -1, .outcome_floor = -1},
                    (struct owner_ends){0});
}

static inline void talk_end(struct talk *talk)
{
    owner_free(&talk->owner);
    buf_done(&talk->buf);
}

/* Time passes in steps of 10 ms, with outcome read to its end all along. */
static inline void pass_ms(struct talk *talk, uint64_t ms)
{
    for (uint64_t i = 0; i < ms; i += 10) {
        talk->now_us += 10000;
        owner_on_outcome_end(talk->owner, talk->now_us);
        owner_tick(talk->owner, talk->now_us, talk->now_us);
    }
}

static inline struct wire_id job_named(uint8_t n)
{
    uint8_t entropy[JOB_ID_RANDOM_SIZE] = {n, n, n, n, n, n, n, n};

    return job_id_make(SHARD, START_US / 1000, entropy);
}

static inline struct message_submit submit_of(uint8_t n)
{
    static const uint8_t digest[32] = {1};

    return (struct message_submit){
        .id = job_named(n),
        .tenant = WIRE_TEXT_OF("t1"),
        .model = WIRE_TEXT_OF("m"),
        .deployment = WIRE_TEXT_OF("d"),
        .pool = WIRE_TEXT_OF("p"),
        .input = {(const uint8_t *)"{}", 2},
        .input_digest = {digest, sizeof(digest)},
        .max_attempts = 3,
        .initial_delay_ms = 1000,
        .max_delay_ms = 5000,
        .queue_limit_ms = 600000,
        .run_limit_ms = 60000,
        .gateway = WIRE_TEXT_OF("gw"),
        .received_us = START_US,
    };
}

static inline void say_intake(struct talk *talk, enum message_type type, const void *fields)
{
    struct err err;

    buf_clear(&talk->buf);
    assert_int_equal(message_encode(type, fields, &talk->buf, &err), 0);
    owner_on_intake(talk->owner, talk->intake++, talk->now_us, talk->buf.bytes, talk->buf.size);
}

static inline void say_outcome(struct talk *talk, enum message_type type, const void *fields)
{
    struct err err;

    buf_clear(&talk->buf);
    assert_int_equal(message_encode(type, fields, &talk->buf, &err), 0);
    owner_on_outcome(talk->owner, talk->outcome++, talk->buf.bytes, talk->buf.size);
}

static inline void say_submit(struct talk *talk, uint8_t n)
{
    struct message_submit submit = submit_of(n);

    say_intake(talk, MESSAGE_SUBMIT, &submit);
}

static inline void say_cancel(struct talk *talk, uint8_t n)
{
    struct message_cancel cancel = {.id = job_named(n),
                                    .tenant = WIRE_TEXT_OF("t1"),
                                    .gateway = WIRE_TEXT_OF("gw"),
                                    .request = 5};

    say_intake(talk, MESSAGE_CANCEL, &cancel);
}

struct held {
    uint64_t token;
    struct wire_id job;
};

static inline void say_heartbeat(struct talk *talk, const char *worker, uint64_t granted,
                                 uint64_t received, uint64_t position, const struct held *held,
                                 size_t held_count)
{
    uint64_t tokens[8];
    uint8_t jobs[8 * WIRE_ID_SIZE];
    struct message_heartbeat beat = {.worker = WIRE_TEXT_OF(worker),
                                     .boot = 1,
                                     .pool = WIRE_TEXT_OF("p"),
                                     .slots = 4,
                                     .granted = granted,
                                     .received = received,
                                     .position = position,
                                     .tokens = {tokens, held_count},
                                     .jobs = {jobs, held_count * WIRE_ID_SIZE}};

    for (size_t i = 0; i < held_count; i++) {
        tokens[i] = held[i].token;
        memcpy(jobs + i * WIRE_ID_SIZE, &held[i].job, WIRE_ID_SIZE);
    }
    say_outcome(talk, MESSAGE_HEARTBEAT, &beat);
}

static inline void say_finished(struct talk *talk, uint8_t n, uint64_t token,
                                enum error_class class)
{
    struct message_finished finished = {
        .job = job_named(n),
        .token = token,
        .worker = WIRE_TEXT_OF("w1"),
        .boot = 1,
        .error_class = class,
        .output = {(const uint8_t *)"42", class == ERROR_CLASS_NONE ? 2 : 0},
        .output_size = 2,
        .started_us = talk->now_us,
        .finished_us = talk->now_us,
    };

    say_outcome(talk, MESSAGE_FINISHED, &finished);
}

/* Commits the flush that was asked for; which of its rows were applied: bits. */
static inline void commit(struct talk *talk, const struct flush *flush, unsigned applied_bits)
{
    bool applied[8];
    struct flush_result result = {
        .verdict = FLUSH_COMMITTED, .number = flush->number, .applied = applied};

    for (size_t i = 0; i < COUNT_OF(applied); i++)
        applied[i] = (applied_bits >> i & 1) != 0;
    owner_on_flush(talk->owner, &result);
}

/* The next to-do. Where nobody asks what is due, nothing is; commands are read in passing, and
 * there are none, unless the test wants them. */
static inline bool next_todo_but(struct talk *talk, enum owner_todo_type wanted)
{
    while (owner_next_todo(talk->owner, &talk->todo)) {
        if (talk->todo.type == wanted)
            return true;
        if (talk->todo.type == OWNER_TODO_DUE)
            owner_on_due(talk->owner, &talk->todo.due.cursor, NULL, 0, true);
        else if (talk->todo.type == OWNER_TODO_COMMANDS)
            owner_on_commands(talk->owner, NULL, 0, true);
        else
            return true;
    }
    return false;
}

static inline bool next_todo(struct talk *talk)
{
    return next_todo_but(talk, OWNER_TODO_STOP);
}

/* The next to-do is of that type. Idle flushes, without a row, are committed in passing. */
static inline void want(struct talk *talk, enum owner_todo_type type)
{
    assert_true(next_todo_but(talk, type));
    while (talk->todo.type == OWNER_TODO_FLUSH && type != OWNER_TODO_FLUSH &&
           talk->todo.flush->job_count == 0) {
        commit(talk, talk->todo.flush, 0);
        assert_true(next_todo_but(talk, type));
    }
    assert_int_equal(talk->todo.type, type);
}

static inline void want_nothing(struct talk *talk)
{
    if (next_todo(talk))
        fail_msg("a to-do of type %d is left", talk->todo.type);
}

static inline void want_flush(struct talk *talk, size_t job_count)
{
    want(talk, OWNER_TODO_FLUSH);
    assert_int_equal(talk->todo.flush->job_count, job_count);
}

/* Submits job n, with w1 at hand, and returns the token of its attempt. */
static inline uint64_t run_one(struct talk *talk, uint8_t n)
{
    uint64_t token;

    say_submit(talk, n);
    want(talk, OWNER_TODO_ATTEMPT);
    token = talk->todo.attempt.message.token;
    owner_on_attempt_reported(talk->owner, token, n);
    return token;
}

/* Time passes until then, with the worker heard of; idle flushes are committed. */
static inline void pass_until(struct talk *talk, uint64_t due_us)
{
    while (talk->now_us < due_us) {
        pass_ms(talk, 10);
        say_heartbeat(talk, "w1", 99, 0, 0, NULL, 0);
    }
}

/* Commits a flush of one row, which must be asked for next, and gives its row. */
static inline struct flush_job commit_one(struct talk *talk)
{
    struct flush_job row;

    want(talk, OWNER_TODO_FLUSH);
    while (talk->todo.flush->job_count == 0) {
        commit(talk, talk->todo.flush, 0);
        want(talk, OWNER_TODO_FLUSH);
    }
    assert_int_equal(talk->todo.flush->job_count, 1);
    row = talk->todo.flush->jobs[0];
    commit(talk, talk->todo.flush, 1);
    return row;
}

/* A row as the ledger gives it; the Submit is encoded and decoded like any other. */
static inline struct ledger_row row_of(struct talk *talk, uint8_t n, enum job_state state,
                                       uint64_t token, uint64_t fence, uint32_t attempt_count)
{
    struct wire_decoder *decoder = wire_decoder_new();
    struct message_submit submit = submit_of(n);
    struct ledger_row row = {
        .state = state, .token = token, .fence = fence, .attempt_count = attempt_count};
    OWNED(buf_done) struct buf buf = BUF_WITH_LIMIT(1 << 16);
    struct err err;

    assert_int_equal(message_encode(MESSAGE_SUBMIT, &submit, &buf, &err), 0);
    assert_int_equal(job_spec_new(decoder, buf.bytes, buf.size, n, START_US, &row.spec, &err), 0);
    wire_decoder_free(&decoder);
    (void)talk;
    return row;
}
