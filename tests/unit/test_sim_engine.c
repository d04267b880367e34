/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: the simulated engine keeps the engines' contract and its own settings: times, batches,
 * lanes, capacity, deadlines, failure rate. Method: the real plugin, driven on a made-up clock. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "workers/host_plugin.h"

#define REQS_MAX 4096

struct world {
    const struct engine_api *api;
    struct engine *engine;
    struct engine_info info;
    uint64_t now_us, wake_us, next_id;
    uint64_t began_us[REQS_MAX], took_us[REQS_MAX];
    int error[REQS_MAX]; /* -1: not ended, 0: output, else 1 + enum engine_error */
    uint32_t batch[REQS_MAX];
    uint32_t ended;
    char said[4096]; /* what came, cut */
};

static void on_event(void *opaque, const struct engine_event *event)
{
    struct world *world = opaque;

    if (event->type == ENGINE_EVENT_ACCEPTED)
        return;
    (void)snprintf(world->said + strlen(world->said), sizeof(world->said) - strlen(world->said),
                   "%s<%.*s>", event->output_type == NULL ? "" : event->output_type,
                   (int)event->data_size, event->data_size > 0 ? (const char *)event->data : "");
    if (event->type == ENGINE_EVENT_TOKENS)
        return;
    assert_int_equal(world->error[event->req_id], -1); /* one final event a request */
    world->error[event->req_id] = event->type == ENGINE_EVENT_OUTPUT ? 0 : 1 + (int)event->error;
    world->took_us[event->req_id] = world->now_us - world->began_us[event->req_id];
    world->batch[event->req_id] = event->batch_req_count;
    world->ended++;
}

static int world_load(struct world *world, const char *settings, uint32_t req_count_max,
                      struct err *err)
{
    struct engine_load load = {.dir = "",
                               .model = "m",
                               .device = "cpu",
                               .req_count_max = req_count_max,
                               .settings_json = settings,
                               .sink = {.emit = on_event, .opaque = world}};
    int r;

    *world = (struct world){.now_us = 1000000, .next_id = 1};
    for (size_t i = 0; i < REQS_MAX; i++)
        world->error[i] = -1;
    r = host_plugin_open(NULL, "sim", NULL, &world->api, err);
    return r < 0 ? r : world->api->load(&load, &world->engine, &world->info, err);
}

static uint64_t submit(struct world *world, const char *input, bool alone, uint64_t deadline_us)
{
    const struct engine_req req = {.id = world->next_id,
                                   .input = input,
                                   .input_size = strlen(input),
                                   .alone = alone,
                                   .number = 1,
                                   .deadline_us = deadline_us};
    struct err err;

    world->began_us[req.id] = world->now_us;
    assert_int_equal(world->api->submit(world->engine, &req, world->now_us, &err), 0);
    return world->next_id++;
}

static void step(struct world *world)
{
    struct err err;

    assert_int_equal(world->api->step(world->engine, world->now_us, &world->wake_us, &err), 0);
}

/* Follows the engine's wishes until it has none. */
static void run(struct world *world)
{
    step(world);
    while (world->wake_us != ENGINE_NEVER_US) {
        assert_true(world->wake_us > world->now_us);
        world->now_us = world->wake_us;
        step(world);
    }
}

static double mean_of(const struct world *world)
{
    double sum = 0;

    for (uint64_t id = 1; id < world->next_id; id++)
        sum += (double)world->took_us[id];
    return sum / (double)(world->next_id - 1);
}

static void test_means(void **state)
{
    static const struct {
        const char *settings;
        double lowest_us, highest_us;
    } rows[] = {
        {"{\"service_ms\":10}", 10000, 10000},
        {"{\"service_ms\":10,\"dist\":\"exponential\"}", 9300, 10700},
        {"{\"service_ms\":10,\"dist\":\"lognormal\",\"sigma\":0.5}", 9500, 10500},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct world world;
        struct err err;

        assert_int_equal(world_load(&world, rows[i].settings, 3000, &err), 0);
        assert_int_equal(world.info.req_count_max, 3000);
        for (int n = 0; n < 3000; n++)
            (void)submit(&world, "{}", false, 0);
        run(&world);
        assert_int_equal(world.ended, 3000);
        assert_true(mean_of(&world) >= rows[i].lowest_us);
        assert_true(mean_of(&world) <= rows[i].highest_us);
        world.api->unload(&world.engine);
    }
}

static void test_zero_time_ends_in_one_step(void **state)
{
    struct world world;
    struct err err;

    (void)state;
    assert_int_equal(world_load(&world, NULL, 100, &err), 0);
    for (int n = 0; n < 100; n++)
        (void)submit(&world, "{}", false, 0);
    step(&world);
    assert_int_equal(world.ended, 100);
    assert_true(world.wake_us == ENGINE_NEVER_US);
    world.api->unload(&world.engine);
}

static void test_lanes_and_batches(void **state)
{
    struct engine_stats stats;
    struct world world;
    struct err err;

    (void)state;
    assert_int_equal(world_load(&world, "{\"service_ms\":10,\"lanes\":2,\"batch\":3}", 64, &err),
                     0);
    for (int n = 0; n < 12; n++)
        (void)submit(&world, "{}", n == 4, 0); /* the fifth wants to be alone */
    step(&world);
    world.api->stats(world.engine, &stats);
    assert_int_equal(stats.running_req_count, 4); /* 3, and 1 that stops before the fifth */
    assert_int_equal(stats.queue_req_count, 8);
    run(&world);
    assert_int_equal(world.batch[1], 3);
    assert_int_equal(world.batch[4], 1);
    assert_int_equal(world.batch[5], 1);
    assert_int_equal(world.batch[6], 3);
    assert_int_equal(world.took_us[12], 30000); /* two lanes, five batches, 10 ms each */
    world.api->unload(&world.engine);
}

static void test_capacity_deadline_cancel(void **state)
{
    const struct engine_req more = {.id = 9, .input = "{}", .input_size = 2};
    struct world world;
    uint64_t first, late, canceled;
    struct err err;

    (void)state;
    assert_int_equal(world_load(&world, "{\"service_ms\":10,\"lanes\":1}", 3, &err), 0);
    first = submit(&world, "{}", false, 0);
    late = submit(&world, "{}", false, world.now_us + 5000);
    canceled = submit(&world, "{}", false, 0);
    assert_int_equal(world.api->submit(world.engine, &more, world.now_us, &err), ERR_FULL);
    assert_int_equal(world.api->cancel(world.engine, canceled, &err), 0);
    assert_int_equal(world.api->cancel(world.engine, 77, &err), 0); /* unknown: no failure */
    run(&world);
    assert_int_equal(world.error[first], 0);
    assert_int_equal(world.error[late], 1 + ENGINE_ERROR_EXPIRED);
    assert_int_equal(world.error[canceled], 1 + ENGINE_ERROR_CANCELED);
    world.api->unload(&world.engine);
    assert_null(world.engine);
}

static void test_failure_rate(void **state)
{
    struct world world;
    uint32_t failed = 0;
    struct err err;

    (void)state;
    assert_int_equal(world_load(&world, "{\"failure_rate\":0.2,\"failure\":\"oom\"}", 3000, &err),
                     0);
    for (int n = 0; n < 3000; n++)
        (void)submit(&world, "{}", false, 0);
    run(&world);
    for (uint64_t id = 1; id < world.next_id; id++)
        failed += world.error[id] == 1 + ENGINE_ERROR_OOM;
    assert_in_range(failed, 500, 700);
    world.api->unload(&world.engine);
}

static void submit_req(struct world *world, struct engine_req req)
{
    struct err err;

    req.id = world->next_id++;
    req.input_size = strlen(req.input);
    assert_int_equal(world->api->submit(world->engine, &req, world->now_us, &err), 0);
    world->said[0] = '\0';
    step(world);
}

/* Pieces have their times; the output is all of them, as a JSON string where no stream is wanted.
 */
static void test_pieces_types_and_routes(void **state)
{
    static const char pieces[] = "{\"sim\":{\"pieces\":2,\"piece_bytes\":4,\"piece_gap_ms\":1}}";
    struct world world;
    struct err err;

    (void)state;
    assert_int_equal(world_load(&world, "{\"test_mode\":true}", 8, &err), 0);
    submit_req(&world, (struct engine_req){.input = pieces, .stream = true});
    assert_string_equal(world.said, "application/octet-stream<0:x\n>");
    assert_true(world.wake_us == world.now_us + 1000);
    world.now_us += 1000;
    step(&world);
    world.now_us += 1000;
    step(&world);
    assert_string_equal(world.said, "application/octet-stream<0:x\n>application/octet-stream<1:x\n>"
                                    "application/octet-stream<0:x\n1:x\n>");
    submit_req(&world, (struct engine_req){.input = pieces});
    world.now_us += 2000;
    step(&world);
    assert_string_equal(world.said, "<\"0:x\\n1:x\\n\">");
    submit_req(&world, (struct engine_req){.input = "\xff", .input_type = "image/png"});
    assert_string_equal(world.said, "image/png<\xff>");
    submit_req(&world, (struct engine_req){.input = "1", .route = "GET /a"});
    assert_non_null(strstr(world.said, "\"service_us\":0,\"route\":\"GET /a\"}"));
    submit_req(&world, (struct engine_req){.input = "{\"sim\":{\"fail\":\"bad_input\","
                                                    "\"body\":\"no\",\"http_status\":418}}"});
    assert_string_equal(world.said, "text/plain<no>");
    world.api->unload(&world.engine);
}

static void test_plugins_that_cannot_be_had(void **state)
{
    static const struct {
        const char *folder, *name;
        int want;
        const char *holds;
    } rows[] = {
        {NULL, "", ERR_RANGE, "1 to 64"},
        {NULL, "../sim", ERR_RANGE, "'../sim'"},
        {"/no/such/folder", "sim", ERR_NOT_FOUND, "/no/such/folder/sim.so"},
    };
    const struct engine_api *api;
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        assert_int_equal(host_plugin_open(rows[i].folder, rows[i].name, NULL, &api, &err),
                         rows[i].want);
        assert_non_null(strstr(err.text, rows[i].holds));
    }
}

/* Neither file can be opened, so the text says which of them was taken. */
static void test_a_device_has_its_own_plugin(void **state)
{
    static const struct {
        const char *device, *holds;
    } rows[] = {
        {NULL, "/a.so: file too short"},        {"cpu", "/a.so: file too short"},
        {"cuda", "/a_cuda.so: file too short"}, {"cuda:1", "/a_cuda.so: file too short"},
        {"cudax", "/a.so: file too short"},
    };
    char folder[] = "/tmp/test_sim_engine.XXXXXX";
    OWNED(mem_free) char *one = NULL, *other = NULL;
    const struct engine_api *api;
    struct err err;

    (void)state;
    assert_non_null(mkdtemp(folder));
    one = xasprintf("%s/a.so", folder);
    other = xasprintf("%s/a_cuda.so", folder);
    assert_int_equal(close(open(one, O_CREAT | O_WRONLY, 0600)), 0);
    assert_int_equal(close(open(other, O_CREAT | O_WRONLY, 0600)), 0);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        assert_int_equal(host_plugin_open(folder, "a", rows[i].device, &api, &err), ERR_DEPENDENCY);
        assert_non_null(strstr(err.text, rows[i].holds));
    }
    assert_int_equal(unlink(other), 0); /* then the engine's own is asked */
    assert_int_equal(host_plugin_open(folder, "a", "cuda", &api, &err), ERR_DEPENDENCY);
    assert_non_null(strstr(err.text, "/a.so: file too short"));
    assert_int_equal(unlink(one), 0);
    assert_int_equal(rmdir(folder), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_means),
        cmocka_unit_test(test_zero_time_ends_in_one_step),
        cmocka_unit_test(test_lanes_and_batches),
        cmocka_unit_test(test_capacity_deadline_cancel),
        cmocka_unit_test(test_failure_rate),
        cmocka_unit_test(test_pieces_types_and_routes),
        cmocka_unit_test(test_plugins_that_cannot_be_had),
        cmocka_unit_test(test_a_device_has_its_own_plugin),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
