/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: a batch that finds no memory shrinks until it fits, a text that finds none alone costs its
 * own request and no other, and a run that fails otherwise costs those whose texts it had. Where
 * the device computes by itself, two batches are out while there is work, and what happens to a
 * request meanwhile touches no other. Method: a runner that is no model: it has so many tokens of
 * memory, fails as it is told, and writes each text's number of tokens as its vector, in run or
 * between start and finish.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/encoder_drive.h"
#include "workers/engines/encoder/encoder_texts.h"

#define TINY "tests/data/encoder/tiny"
#define LENGTH 48u
#define ROOMY UINT32_MAX

struct memory {
    uint32_t token_room;   /* more tokens than these find no memory */
    uint32_t broken_count; /* a batch of so many texts fails otherwise; 0: none */
    bool lost;             /* the device is: each run fails */
    uint32_t run_count;
    struct bert_batch out[ENCODER_FLIGHT_MAX]; /* text_count 0: no batch in that slot */
    float *rows[ENCODER_FLIGHT_MAX];
    uint32_t out_count, out_max, finish_count, finish_slot;
};

static int run(void *self, const struct bert_batch *batch, float *rows, uint32_t *ret_pad_count,
               struct err *err)
{
    struct memory *memory = self;
    const uint32_t token_count = batch->offsets[batch->text_count];

    *ret_pad_count = 0;
    memory->run_count++;
    if (memory->lost)
        return err_set(err, ERR_DEVICE, "lost");
    if (token_count > memory->token_room)
        return err_set(err, ERR_MEMORY, "no memory for %u tokens", token_count);
    if (batch->text_count == memory->broken_count)
        return err_set(err, ERR_INTERNAL, "broken");
    for (uint32_t i = 0; i < batch->text_count; i++)
        rows[i] = (float)(batch->offsets[i + 1] - batch->offsets[i]);
    return 0;
}

static int start(void *self, uint32_t slot, const struct bert_batch *batch, float *rows,
                 struct err *err)
{
    struct memory *memory = self;

    assert_true(slot < ENCODER_FLIGHT_MAX && memory->out[slot].text_count == 0);
    if (batch->text_count == memory->broken_count)
        return err_set(err, ERR_INTERNAL, "broken");
    memory->out[slot] = *batch;
    memory->rows[slot] = rows;
    memory->out_count++;
    if (memory->out_count > memory->out_max)
        memory->out_max = memory->out_count;
    return 0;
}

static int finish(void *self, uint32_t slot, uint32_t *ret_pad_count, struct err *err)
{
    struct memory *memory = self;
    const struct bert_batch batch = memory->out[slot];

    assert_int_equal(slot, memory->finish_slot); /* in order, as all are started in turn */
    memory->finish_slot = (slot + 1) % ENCODER_FLIGHT_MAX;
    assert_true(batch.text_count > 0);
    memory->out[slot].text_count = 0;
    memory->out_count--;
    memory->finish_count++;
    return run(memory, &batch, memory->rows[slot], ret_pad_count, err);
}

struct world {
    struct drive drive; /* its events */
    struct memory memory;
    struct encoder_texts *texts;
};

static void open_any(struct world *world, bool is_device)
{
    OWNED(tokenizer_free) struct tokenizer *tokenizer = NULL;
    const struct engine_load load = {.model = "fake", .sink = {drive_emit, NULL, &world->drive}};
    const struct encoder_texts_options options = {
        .runner = {run, &world->memory, is_device ? start : NULL, is_device ? finish : NULL},
        .width = 1,
        .token_count_max = LENGTH,
        .batching = {.item_max = 64, .token_max = 4 * LENGTH},
    };
    struct err err;

    world->memory.token_room = ROOMY;
    assert_int_equal(tokenizer_open(TINY, &tokenizer, &err), 0);
    assert_int_equal(encoder_texts_new(&load, &options, &tokenizer, &world->texts, &err), 0);
}

static void open_world(struct world *world)
{
    open_any(world, false);
}

static void close_world(struct world *world)
{
    drive_clear(&world->drive);
    encoder_texts_free(&world->texts);
}

static void submit(struct world *world, uint64_t id, const char *input)
{
    const struct engine_req req = {.id = id, .input = input, .input_size = strlen(input)};
    struct err err;

    assert_int_equal(encoder_texts_submit(world->texts, &req, 1, &err), 0);
}

static void step(struct world *world)
{
    uint64_t wake_us = 0;
    struct err err;

    while (wake_us == 0)
        assert_int_equal(encoder_texts_step(world->texts, 1, &wake_us, &err), 0);
}

/* Vectors are lengths: each answer belongs to its text. */
static void check_answer(const struct world *world, uint64_t id, uint32_t index, double want)
{
    const struct drive_event *event = drive_final(&world->drive, id);
    const json_t *data = json_object_get(event->output, "data");
    const json_t *vector = json_object_get(json_array_get(data, index), "embedding");

    assert_int_equal(event->type, ENGINE_EVENT_OUTPUT);
    assert_true(json_number_value(json_array_get(vector, 0)) == want);
}

static void check_error(const struct world *world, uint64_t id, enum engine_error class,
                        const char *text)
{
    const struct drive_event *event = drive_final(&world->drive, id);

    assert_int_equal(event->type, ENGINE_EVENT_ERROR);
    assert_int_equal(event->error, class);
    assert_string_equal(event->text, text);
}

#define LONG_TEXT                                                                                  \
    "\"the cat sat on the mat the cat sat on the mat the cat sat on the mat\"" /* 20 */

static void submit_four(struct world *world)
{
    submit(world, 1, "{\"input\":[\"a\",\"the cat\"]}");
    submit(world, 2, "{\"input\":" LONG_TEXT "}");
    submit(world, 3, "{\"input\":[\"the cat sat\"," LONG_TEXT ",\"a\"]}");
    submit(world, 4, "{\"input\":\"the cat sat on\"}");
}

static void test_a_batch_shrinks_until_it_fits(void **state)
{
    for (uint32_t room = 20; room < 80; room++) {
        OWNED(close_world) struct world world = {.texts = NULL};
        struct engine_stats stats;

        (void)state;
        open_world(&world);
        world.memory.token_room = room;
        submit_four(&world);
        step(&world);
        check_answer(&world, 1, 0, 3);
        check_answer(&world, 1, 1, 4);
        check_answer(&world, 2, 0, 20);
        check_answer(&world, 3, 0, 5);
        check_answer(&world, 3, 1, 20);
        check_answer(&world, 3, 2, 3);
        check_answer(&world, 4, 0, 6);
        encoder_texts_stats(world.texts, &stats);
        assert_int_equal(stats.oom_count, 0);
        assert_int_equal(stats.step_count, 1);
        assert_int_equal(world.memory.run_count, room >= 61 ? 1 : world.memory.run_count);
        assert_true(room >= 61 || world.memory.run_count > 1);
    }
}

static void test_what_does_not_fit_alone_costs_its_request(void **state)
{
    OWNED(close_world) struct world world = {.texts = NULL};
    struct engine_stats stats;

    (void)state;
    open_world(&world);
    world.memory.token_room = 19;
    submit_four(&world);
    step(&world);
    check_answer(&world, 1, 1, 4);
    check_error(&world, 2, ENGINE_ERROR_OOM, "no memory for 20 tokens");
    check_error(&world, 3, ENGINE_ERROR_OOM, "no memory for 20 tokens");
    check_answer(&world, 4, 0, 6);
    encoder_texts_stats(world.texts, &stats);
    assert_int_equal(stats.oom_count, 2);
    assert_int_equal(stats.queue_req_count, 0);
    world.memory.token_room = ROOMY; /* and it goes on */
    submit(&world, 5, "{\"input\":" LONG_TEXT "}");
    step(&world);
    check_answer(&world, 5, 0, 20);
}

/* The half that ran is answered, what was in the other is not. */
static void test_other_failures_cost_those_they_met(void **state)
{
    OWNED(close_world) struct world world = {.texts = NULL};

    (void)state;
    open_world(&world);
    world.memory.token_room = 50;
    world.memory.broken_count = 2;
    submit(&world, 1, "{\"input\":" LONG_TEXT "}");
    submit(&world, 2, "{\"input\":" LONG_TEXT "}");
    submit(&world, 3, "{\"input\":" LONG_TEXT "}");
    submit(&world, 4, "{\"input\":\"a\"}");
    submit(&world, 5, "{\"input\":\"a\"}");
    step(&world);
    /* 66 tokens do not fit; the first half is two long texts, which break. */
    for (uint64_t id = 1; id <= 5; id++)
        check_error(&world, id, ENGINE_ERROR_MODEL_ERROR, "broken");
    drive_clear(&world.drive);
    world.memory.token_room = 40; /* 40, and then 26 of three texts, whose first half is one */
    world.memory.broken_count = 3;
    submit(&world, 6, "{\"input\":" LONG_TEXT "}");
    submit(&world, 7, "{\"input\":" LONG_TEXT "}");
    submit(&world, 8, "{\"input\":[" LONG_TEXT ",\"a\",\"a\"]}");
    step(&world);
    check_answer(&world, 6, 0, 20);
    check_answer(&world, 7, 0, 20);
    check_error(&world, 8, ENGINE_ERROR_MODEL_ERROR, "broken");
}

/* Each step begins a batch while fewer than two are out, and waits for the older one otherwise. */
static void test_two_batches_are_out_while_there_is_work(void **state)
{
    OWNED(close_world) struct world world = {.texts = NULL};
    uint64_t wake_us = 0;
    struct engine_stats stats;
    struct err err;

    (void)state;
    open_any(&world, true);
    for (uint64_t id = 1; id <= 27; id++) /* nine a batch */
        submit(&world, id, "{\"input\":" LONG_TEXT "}");
    assert_int_equal(encoder_texts_step(world.texts, 1, &wake_us, &err), 0);
    assert_int_equal(world.memory.out_count, 1);
    assert_int_equal(wake_us, 0);
    for (uint32_t i = 1; i < 3; i++) {
        assert_int_equal(encoder_texts_step(world.texts, 1, &wake_us, &err), 0);
        assert_int_equal(world.memory.finish_count, i); /* the one before; the next was out */
        assert_int_equal(world.memory.out_count, 1);
        encoder_texts_stats(world.texts, &stats);
        assert_int_equal(stats.running_req_count, 9);
    }
    assert_int_equal(world.memory.out_max, 2);
    step(&world);
    assert_int_equal(world.memory.finish_count, 3);
    for (uint64_t id = 1; id <= 27; id++)
        check_answer(&world, id, 0, 20);
    encoder_texts_stats(world.texts, &stats);
    assert_int_equal(stats.step_count, 3);
    assert_int_equal(stats.step_req_count, 27);
    assert_int_equal(stats.running_req_count, 0);
}

#define FIVE_LONG LONG_TEXT "," LONG_TEXT "," LONG_TEXT "," LONG_TEXT "," LONG_TEXT

/* Ten long texts are in two batches; the request goes while both are out. */
static void test_a_request_goes_while_its_batches_are_out(void **state)
{
    uint64_t wake_us = 0;
    struct err err;

    (void)state;
    for (uint32_t i = 0; i < 3; i++) {
        OWNED(close_world) struct world world = {.texts = NULL};

        open_any(&world, true);
        submit(&world, 1, "{\"input\":[" FIVE_LONG "," FIVE_LONG "]}");
        submit(&world, 2, "{\"input\":" LONG_TEXT "}");
        assert_int_equal(encoder_texts_step(world.texts, 1, &wake_us, &err), 0);
        assert_int_equal(world.memory.out_count, 1);
        if (i == 0)
            assert_int_equal(encoder_texts_cancel(world.texts, 1, &err), 0);
        world.memory.token_room = i == 1 ? 19 : ROOMY;
        world.memory.broken_count = i == 2 ? 9 : 0;
        assert_int_equal(encoder_texts_step(world.texts, 1, &wake_us, &err), 0);
        world.memory.token_room = ROOMY;
        step(&world);
        assert_int_equal(world.memory.out_count, 0);
        check_answer(&world, 2, 0, 20);
        if (i == 0)
            check_error(&world, 1, ENGINE_ERROR_CANCELED, "canceled");
        if (i == 1)
            check_error(&world, 1, ENGINE_ERROR_OOM, "no memory for 20 tokens");
        if (i == 2)
            check_error(&world, 1, ENGINE_ERROR_MODEL_ERROR, "broken");
    }
}

/* Also in the middle of a batch whose first half ran; nothing of it may leak. */
static void test_a_lost_device_ends_it(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 3; i++) {
        OWNED(close_world) struct world world = {.texts = NULL};
        uint64_t wake_us = 0;
        struct err err;

        open_any(&world, i > 0);
        submit(&world, 1, "{\"input\":[" FIVE_LONG "," FIVE_LONG "]}");
        submit(&world, 2, "{\"input\":" LONG_TEXT "}");
        if (i == 1) /* with the first of two out; else with none, and with both */
            assert_int_equal(encoder_texts_step(world.texts, 1, &wake_us, &err), 0);
        world.memory.lost = true;
        while (wake_us == 0) {
            if (encoder_texts_step(world.texts, 1, &wake_us, &err) < 0)
                break;
        }
        assert_int_equal(err.code, ERR_DEVICE);
        assert_string_equal(err.text, "lost");
        for (uint32_t k = 0; k < world.drive.event_count; k++)
            assert_int_equal(world.drive.events[k].type, ENGINE_EVENT_ACCEPTED);
    }
}

static void test_who_runs_alone_has_the_device_to_itself(void **state)
{
    OWNED(close_world) struct world world = {.texts = NULL};
    const char input[] = "{\"input\":" LONG_TEXT "}";
    const struct engine_req alone = {
        .id = 2, .input = input, .input_size = strlen(input), .alone = true};
    struct err err;

    (void)state;
    open_any(&world, true);
    submit(&world, 1, input);
    assert_int_equal(encoder_texts_submit(world.texts, &alone, 1, &err), 0);
    submit(&world, 3, input);
    step(&world);
    assert_int_equal(world.memory.finish_count, 3);
    assert_int_equal(world.memory.out_max, 1);
    for (uint64_t id = 1; id <= 3; id++)
        check_answer(&world, id, 0, 20);
}

/* What is out when the engine goes is waited for: the device writes into its memory. */
static void test_unload_waits_for_the_device(void **state)
{
    struct world world = {.texts = NULL};
    uint64_t wake_us = 0;
    struct err err;

    (void)state;
    open_any(&world, true);
    submit(&world, 1, "{\"input\":[" FIVE_LONG "," FIVE_LONG "]}");
    submit(&world, 2, "{\"input\":" LONG_TEXT "}");
    assert_int_equal(encoder_texts_step(world.texts, 1, &wake_us, &err), 0);
    assert_int_equal(encoder_texts_cancel(world.texts, 1, &err), 0);
    assert_int_equal(world.memory.out_count, 1);
    close_world(&world);
    assert_int_equal(world.memory.out_count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_batch_shrinks_until_it_fits),
        cmocka_unit_test(test_what_does_not_fit_alone_costs_its_request),
        cmocka_unit_test(test_other_failures_cost_those_they_met),
        cmocka_unit_test(test_two_batches_are_out_while_there_is_work),
        cmocka_unit_test(test_a_request_goes_while_its_batches_are_out),
        cmocka_unit_test(test_a_lost_device_ends_it),
        cmocka_unit_test(test_who_runs_alone_has_the_device_to_itself),
        cmocka_unit_test(test_unload_waits_for_the_device),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
