/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: whatever arrives in intake and outcome, in whatever order, the owner neither crashes nor
 * leaks, and its memory comes back.
 * Method: the input is a list of steps. A step is one byte that says what happens and, for records,
 * a length byte and the bytes: raw ones, or a message whose texts, numbers and lists come from
 * them.
 */

#include <string.h>

#include "base/assert.h"
#include "brokers/owner.h"
#include "schema/job_id.h"

#define SHARD 3
#define EPOCH 7
#define START_US 1000000000ull
#define STEPS_MAX 400

struct fuzz {
    struct owner *owner;
    const uint8_t *at, *end;
    uint64_t now_us;
    int64_t intake, outcome, dispatch;
    struct buf buf;
    uint64_t flush_number;
    size_t flush_jobs;
    uint64_t tokens[8];
};

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static uint8_t next(struct fuzz *fuzz)
{
    return fuzz->at < fuzz->end ? *fuzz->at++ : 0;
}

static struct wire_id next_id(struct fuzz *fuzz)
{
    uint8_t entropy[JOB_ID_RANDOM_SIZE] = {next(fuzz) % 8};

    return job_id_make(next(fuzz) == 255 ? SHARD + 1 : SHARD, START_US / 1000, entropy);
}

static uint64_t next_token(struct fuzz *fuzz)
{
    uint8_t n = next(fuzz);

    return n < 128 ? fuzz->tokens[n % 8] : TOKEN_MAKE(EPOCH - 1 + n % 3, n / 3);
}

static struct wire_text next_worker(struct fuzz *fuzz)
{
    static const char *const names[] = {"w1", "w2", "w3", "w4"};

    return WIRE_TEXT_OF(names[next(fuzz) % 4]);
}

static void record(struct fuzz *fuzz, bool intake, enum message_type type, const void *fields)
{
    struct err err;

    buf_clear(&fuzz->buf);
    if (message_encode(type, fields, &fuzz->buf, &err) < 0)
        return;
    if (intake)
        owner_on_intake(fuzz->owner, fuzz->intake++, fuzz->now_us, fuzz->buf.bytes, fuzz->buf.size);
    else
        owner_on_outcome(fuzz->owner, fuzz->outcome++, fuzz->buf.bytes, fuzz->buf.size);
}

static void step_submit(struct fuzz *fuzz)
{
    static const uint8_t digest[32] = {1};
    struct message_submit submit = {
        .id = next_id(fuzz),
        .tenant = WIRE_TEXT_OF("t"),
        .model = WIRE_TEXT_OF("m"),
        .deployment = WIRE_TEXT_OF("d"),
        .pool = next(fuzz) % 2 == 0 ? WIRE_TEXT_OF("p") : WIRE_TEXT_OF("q"),
        .priority = next(fuzz),
        .input_digest = {digest, sizeof(digest)},
        .max_attempts = 1 + next(fuzz) % 4u,
        .initial_delay_ms = next(fuzz),
        .max_delay_ms = next(fuzz) * 4u,
        .queue_limit_ms = 1 + next(fuzz) * 100u,
        .run_limit_ms = 1 + next(fuzz) * 100u,
        .total_limit_ms = next(fuzz) * 100u,
        .repeat = next(fuzz) % 4 == 0,
        .slot_count = next(fuzz) % 8 == 0 ? UINT64_MAX : 0,
        .received_us = 1,
    };

    record(fuzz, true, MESSAGE_SUBMIT, &submit);
}

static void step_cancel(struct fuzz *fuzz)
{
    struct message_cancel cancel = {
        .id = next_id(fuzz), .tenant = WIRE_TEXT_OF("t"), .gateway = WIRE_TEXT_OF("g")};

    record(fuzz, true, MESSAGE_CANCEL, &cancel);
}

static void step_heartbeat(struct fuzz *fuzz)
{
    uint64_t tokens[3];
    uint8_t jobs[3 * WIRE_ID_SIZE];
    size_t count = next(fuzz) % 4;
    struct message_heartbeat beat = {
        .worker = next_worker(fuzz),
        .boot = 1 + next(fuzz) % 2u,
        .pool = WIRE_TEXT_OF("p"),
        .slots = next(fuzz) == 0 ? UINT64_MAX : 3,
        .granted = next(fuzz) == 255 ? UINT64_MAX : next(fuzz),
        .received = next(fuzz),
        .position = next(fuzz) == 255 ? UINT64_MAX : next(fuzz),
        .tokens = {tokens, count},
        .draining = next(fuzz) == 255,
        .jobs = {jobs, (next(fuzz) == 255 ? 1 : count) * WIRE_ID_SIZE}};

    for (size_t i = 0; i < count; i++) {
        struct wire_id id = next_id(fuzz);

        tokens[i] = next_token(fuzz);
        memcpy(jobs + i * WIRE_ID_SIZE, &id, sizeof(id));
    }
    record(fuzz, false, MESSAGE_HEARTBEAT, &beat);
}

static void step_finished(struct fuzz *fuzz)
{
    struct message_finished finished = {.job = next_id(fuzz),
                                        .token = next_token(fuzz),
                                        .worker = next_worker(fuzz),
                                        .boot = 1,
                                        .error_class = next(fuzz) % 16u,
                                        .retry_after_ms = next(fuzz)};

    record(fuzz, false, MESSAGE_FINISHED, &finished);
}

static void step_life(struct fuzz *fuzz)
{
    struct message_hello hello = {.worker = next_worker(fuzz),
                                  .boot = 1 + next(fuzz) % 2u,
                                  .pool = next(fuzz) % 4 == 0 ? WIRE_TEXT_OF("q")
                                                              : WIRE_TEXT_OF("p"),
                                  .slots = 2};
    struct message_gone gone = {.worker = hello.worker, .boot = hello.boot};
    struct message_bye bye = {.worker = hello.worker, .boot = hello.boot};
    struct message_started started = {.job = next_id(fuzz),
                                      .token = next_token(fuzz),
                                      .worker = hello.worker,
                                      .started_us = fuzz->now_us};

    switch (next(fuzz) % 4) {
    case 0:
        record(fuzz, false, MESSAGE_HELLO, &hello);
        break;
    case 1:
        record(fuzz, false, MESSAGE_GONE, &gone);
        break;
    case 2:
        record(fuzz, false, MESSAGE_BYE, &bye);
        break;
    default:
        record(fuzz, false, MESSAGE_STARTED, &started);
        break;
    }
}

static void step_raw(struct fuzz *fuzz, bool intake)
{
    size_t size = next(fuzz);

    if (size > (size_t)(fuzz->end - fuzz->at))
        size = (size_t)(fuzz->end - fuzz->at);
    if (intake)
        owner_on_intake(fuzz->owner, fuzz->intake++, fuzz->now_us, fuzz->at, size);
    else
        owner_on_outcome(fuzz->owner, fuzz->outcome++, fuzz->at, size);
    fuzz->at += size;
}

static void step_flush(struct fuzz *fuzz)
{
    bool applied[FLUSH_JOBS_MAX];
    uint8_t how = next(fuzz);
    struct flush_result result = {.number = fuzz->flush_number,
                                  .verdict = FLUSH_COMMITTED,
                                  .applied = applied,
                                  .refused_why = "no"};

    memset(applied, 0, sizeof(applied));
    for (size_t i = 0; i < COUNT_OF(applied); i++)
        applied[i] = how < 250 || i % 2 == 0;
    if (fuzz->flush_number == 0)
        return;
    if (how > 240 && how < 245)
        result.verdict = FLUSH_RETRY;
    if (how > 230 && how < 240 && fuzz->flush_jobs > 0) {
        result.verdict = FLUSH_REFUSED;
        result.refused_index = how % fuzz->flush_jobs;
    }
    fuzz->flush_number = 0;
    owner_on_flush(fuzz->owner, &result);
}

static void give_command(struct fuzz *fuzz, uint64_t from)
{
    struct ledger_command command = {.id = from + next(fuzz),
                                     .job = next_id(fuzz),
                                     .kind = (enum command_kind)(next(fuzz) % 3),
                                     .round = 1,
                                     .priority = next(fuzz) % 3u};

    owner_on_commands(fuzz->owner, &command, 1, true);
}

static void carry_out(struct fuzz *fuzz)
{
    struct owner_todo todo;

    while (owner_next_todo(fuzz->owner, &todo)) {
        switch (todo.type) {
        case OWNER_TODO_ATTEMPT:
            fuzz->tokens[fuzz->dispatch % 8] = todo.attempt.message.token;
            owner_on_attempt_reported(fuzz->owner, todo.attempt.message.token,
                                      next(fuzz) == 255 ? -1 : fuzz->dispatch);
            fuzz->dispatch++;
            break;
        case OWNER_TODO_FLUSH:
            fuzz->flush_number = todo.flush->number;
            fuzz->flush_jobs = todo.flush->job_count;
            break;
        case OWNER_TODO_PUBLISH:
            owner_on_published(fuzz->owner, todo.publish.flush_number);
            break;
        case OWNER_TODO_LOAD:
            owner_on_rows(fuzz->owner, &todo.load.lane, NULL, 0, true);
            break;
        case OWNER_TODO_LOOKUP:
            owner_on_lookup(fuzz->owner, NULL, 0);
            break;
        case OWNER_TODO_DUE:
            owner_on_due(fuzz->owner, &todo.due.cursor, NULL, 0, true);
            break;
        case OWNER_TODO_COMMANDS:
            give_command(fuzz, todo.commands.from);
            break;
        case OWNER_TODO_PLACE:
            record(fuzz, true, MESSAGE_PLACE, &todo.place);
            owner_on_place_reported(fuzz->owner, todo.place.command, next(fuzz) != 255);
            break;
        default:
            break;
        }
    }
}

static void step(struct fuzz *fuzz)
{
    switch (next(fuzz) % 10) {
    case 0:
    case 1:
        step_submit(fuzz);
        break;
    case 2:
        step_cancel(fuzz);
        break;
    case 3:
    case 4:
        step_heartbeat(fuzz);
        break;
    case 5:
        step_finished(fuzz);
        break;
    case 6:
        step_life(fuzz);
        break;
    case 7:
        step_raw(fuzz, next(fuzz) % 2 == 0);
        break;
    case 8:
        step_flush(fuzz);
        break;
    default:
        fuzz->now_us += next(fuzz) * 10000ull;
        owner_on_outcome_end(fuzz->owner, fuzz->now_us);
        owner_tick(fuzz->owner, fuzz->now_us, fuzz->now_us);
        break;
    }
    carry_out(fuzz);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct ledger_takeover takeover = {
        .shard = SHARD, .epoch = EPOCH, .intake_floor = -1, .outcome_floor = -1};
    struct owner_options options = owner_options_default;
    struct fuzz fuzz = {
        .at = bytes, .end = bytes + size, .now_us = START_US, .buf = BUF_WITH_LIMIT(1 << 20)};

    options.window_jobs = 5;
    options.load_jobs = 2;
    options.workers_max = 3;
    fuzz.owner = owner_new(&options, &takeover,
                           (struct owner_ends){.intake_end = 2, .outcome_end = 2}, START_US,
                           START_US);
    for (int i = 0; i < STEPS_MAX && fuzz.at < fuzz.end; i++)
        step(&fuzz);
    assert(owner_stats(fuzz.owner).workers <= options.workers_max);
    owner_free(&fuzz.owner);
    buf_done(&fuzz.buf);
    return 0;
}
