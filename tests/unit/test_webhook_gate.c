/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: a receiver that hangs, fails or is slow takes nothing from the others; one that comes back
 * is found; nothing is counted twice or forgotten while it is in use.
 * Method: tables of what happens and what the gate must then say, with a clock of their own; and a
 * long random walk with the counts checked after each step.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "workers/webhook_gate.h"

#define URL "https://a.example/hook"
#define SIBLING "https://a.example/other"
#define STRANGER "https://b.example/hook"

static struct webhook_gate_options options_of(void)
{
    return (struct webhook_gate_options){.total_max = 100,
                                         .endpoint_max = 4,
                                         .origin_max = 6,
                                         .waiting_max = 100,
                                         .line_max = 3,
                                         .failures_max = 3,
                                         .known_max = 50,
                                         .time_scale = 1.0};
}

static enum webhook_verdict ask(struct webhook_gate *gate, const char *url, uint64_t now_ms)
{
    uint64_t delay_ms = 0;

    return webhook_gate_ask(gate, webhook_gate_find(gate, "t", url, now_ms), now_ms, 0.5,
                            &delay_ms);
}

static void end(struct webhook_gate *gate, const char *url, int status, uint64_t retry_after_ms,
                uint64_t now_ms)
{
    const struct webhook_gate_result result = {
        .http_status = status, .retry_after_ms = retry_after_ms, .took_ms = 20};

    webhook_gate_end(gate, webhook_gate_find(gate, "t", url, now_ms), &result, now_ms, 0.5);
}

static enum webhook_circuit circuit(struct webhook_gate *gate, const char *url)
{
    return webhook_endpoint_circuit(webhook_gate_find(gate, "t", url, 0));
}

/* ---- the circuit ---- */

enum { CLOSED = WEBHOOK_CIRCUIT_CLOSED, OPEN, HALF };

/* One try at a time, each asked for and ended at once; status -1: asked for only. */
static const struct {
    const char *what;
    struct {
        uint64_t at_ms;
        const char *url;
        int status;
        uint64_t retry_after_ms;
        enum webhook_verdict want;
        int circuit; /* of the same URL behind it */
    } steps[8];
} tales[] = {
    {"three failures open it, an endpoint of the same host stays",
     {{0, URL, 500, 0, WEBHOOK_GO, CLOSED},
      {1, URL, 503, 0, WEBHOOK_GO, CLOSED},
      {2, URL, 429, 0, WEBHOOK_GO, OPEN},
      {3, URL, -1, 0, WEBHOOK_LATER, OPEN},
      {4, SIBLING, 200, 0, WEBHOOK_GO, CLOSED}}},
    {"a success between starts the count anew",
     {{0, URL, 500, 0, WEBHOOK_GO, CLOSED},
      {1, URL, 500, 0, WEBHOOK_GO, CLOSED},
      {2, URL, 204, 0, WEBHOOK_GO, CLOSED},
      {3, URL, 500, 0, WEBHOOK_GO, CLOSED},
      {4, URL, 500, 0, WEBHOOK_GO, CLOSED}}},
    {"a refusal is an answer: somebody is there",
     {{0, URL, 500, 0, WEBHOOK_GO, CLOSED},
      {1, URL, 500, 0, WEBHOOK_GO, CLOSED},
      {2, URL, 404, 0, WEBHOOK_GO, CLOSED},
      {3, URL, 401, 0, WEBHOOK_GO, CLOSED},
      {4, URL, 302, 0, WEBHOOK_GO, CLOSED}}},
    {"a host without an answer is shut for all of its endpoints and no others",
     {{0, URL, 0, 0, WEBHOOK_GO, CLOSED},
      {1, SIBLING, 0, 0, WEBHOOK_GO, CLOSED},
      {2, "https://a.example/third", 0, 0, WEBHOOK_GO, OPEN},
      {3, SIBLING, -1, 0, WEBHOOK_LATER, OPEN},
      {4, "https://a.example/new", -1, 0, WEBHOOK_LATER, OPEN},
      {5, STRANGER, 200, 0, WEBHOOK_GO, CLOSED},
      {6, "https://a.example:444/hook", 200, 0, WEBHOOK_GO, CLOSED}}},
    {"half open lets one through; its success closes",
     {{0, URL, 500, 0, WEBHOOK_GO, CLOSED},
      {0, URL, 500, 0, WEBHOOK_GO, CLOSED},
      {0, URL, 500, 0, WEBHOOK_GO, OPEN},
      {14999, URL, -1, 0, WEBHOOK_LATER, OPEN},
      {15001, URL, 200, 0, WEBHOOK_GO, CLOSED},
      {15002, URL, 200, 0, WEBHOOK_GO, CLOSED}}},
    {"its failure opens for twice as long",
     {{0, URL, 500, 0, WEBHOOK_GO, CLOSED},
      {0, URL, 500, 0, WEBHOOK_GO, CLOSED},
      {0, URL, 500, 0, WEBHOOK_GO, OPEN},
      {15001, URL, 500, 0, WEBHOOK_GO, OPEN},
      {30002, URL, -1, 0, WEBHOOK_LATER, OPEN},
      {45004, URL, 200, 0, WEBHOOK_GO, CLOSED}}},
    {"Retry-After shuts at once, for as long as it says",
     {{0, URL, 429, 7000, WEBHOOK_GO, OPEN},
      {6999, URL, -1, 0, WEBHOOK_LATER, OPEN},
      {6999, SIBLING, 200, 0, WEBHOOK_GO, CLOSED},
      {7000, URL, 200, 0, WEBHOOK_GO, CLOSED}}},
    {"Retry-After has a bound",
     {{0, URL, 503, 86400000, WEBHOOK_GO, OPEN},
      {WEBHOOK_OPEN_MS_MAX - 1, URL, -1, 0, WEBHOOK_LATER, OPEN},
      {WEBHOOK_OPEN_MS_MAX, URL, 503, 86400000, WEBHOOK_GO, OPEN},
      {WEBHOOK_OPEN_MS_MAX + 1, URL, -1, 0, WEBHOOK_LATER, OPEN}}},
    {"a query does not make another endpoint",
     {{0, URL "?job=1", 500, 0, WEBHOOK_GO, CLOSED},
      {0, URL "?job=2", 500, 0, WEBHOOK_GO, CLOSED},
      {0, URL "#3", 500, 0, WEBHOOK_GO, OPEN},
      {1, URL, -1, 0, WEBHOOK_LATER, OPEN}}},
};

static void test_circuit(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(tales); i++) {
        struct webhook_gate_options options = options_of();
        OWNED(webhook_gate_free) struct webhook_gate *gate = webhook_gate_new(&options);

        for (size_t s = 0; s < COUNT_OF(tales[i].steps) && tales[i].steps[s].url != NULL; s++) {
            uint64_t at_ms = 1000 + tales[i].steps[s].at_ms;
            const char *url = tales[i].steps[s].url;

            if (ask(gate, url, at_ms) != tales[i].steps[s].want)
                fail_msg("%s: step %zu has another verdict", tales[i].what, s);
            if (tales[i].steps[s].status >= 0)
                end(gate, url, tales[i].steps[s].status, tales[i].steps[s].retry_after_ms, at_ms);
            if ((int)circuit(gate, url) != tales[i].steps[s].circuit)
                fail_msg("%s: step %zu: circuit %d", tales[i].what, s, (int)circuit(gate, url));
        }
    }
}

static void test_half_open_lets_one_through(void **state)
{
    struct webhook_gate_options options = options_of();
    OWNED(webhook_gate_free) struct webhook_gate *gate = webhook_gate_new(&options);

    (void)state;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(ask(gate, URL, 0), WEBHOOK_GO);
        end(gate, URL, 500, 0, 0);
    }
    assert_int_equal(webhook_gate_open_count(gate), 1);
    assert_int_equal(ask(gate, URL, 20000), WEBHOOK_GO);
    assert_int_equal(circuit(gate, URL), HALF);
    for (int i = 0; i < 5; i++)
        assert_int_equal(ask(gate, URL, 20001), WEBHOOK_LATER);
    end(gate, URL, 200, 0, 20002);
    assert_int_equal(webhook_gate_open_count(gate), 0);
    for (int i = 0; i < 4; i++)
        assert_int_equal(ask(gate, URL, 20003), WEBHOOK_GO);
    for (int i = 0; i < 4; i++)
        end(gate, URL, 200, 0, 20004);
}

/* Those that were under way when it was shut tell later; one that arrives shows that it is back,
 * unless the receiver itself named the time. */
static void test_what_was_under_way(void **state)
{
    static const struct {
        uint64_t retry_after_ms;
        int want;
    } cases[] = {{0, CLOSED}, {9000, OPEN}};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct webhook_gate_options options = options_of();
        OWNED(webhook_gate_free) struct webhook_gate *gate = webhook_gate_new(&options);

        for (int n = 0; n < 4; n++)
            assert_int_equal(ask(gate, URL, 0), WEBHOOK_GO);
        for (int n = 0; n < 3; n++)
            end(gate, URL, 503, cases[i].retry_after_ms, 1);
        assert_int_equal(circuit(gate, URL), OPEN);
        end(gate, URL, 200, 0, 2);
        assert_int_equal(circuit(gate, URL), cases[i].want);
    }
}

static void test_never_opens_when_told_so(void **state)
{
    struct webhook_gate_options options = options_of();
    OWNED(webhook_gate_free) struct webhook_gate *gate = NULL;

    (void)state;
    options.failures_max = 0;
    gate = webhook_gate_new(&options);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(ask(gate, URL, 0), WEBHOOK_GO);
        end(gate, URL, 0, 60000, 0);
    }
}

/* ---- places ---- */

static void test_an_endpoint_has_four_places_and_a_line(void **state)
{
    struct webhook_gate_options options = options_of();
    OWNED(webhook_gate_free) struct webhook_gate *gate = webhook_gate_new(&options);
    struct webhook_endpoint *endpoint;
    uint64_t first_ms, second_ms;
    bool drain;

    (void)state;
    for (int i = 0; i < 4; i++)
        assert_int_equal(ask(gate, URL, 0), WEBHOOK_GO);
    endpoint = webhook_gate_find(gate, "t", URL, 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(ask(gate, URL, 0), WEBHOOK_LINE);
        webhook_gate_waits(gate, endpoint);
    }
    assert_int_equal(webhook_gate_ask(gate, endpoint, 0, 0.5, &first_ms), WEBHOOK_LATER);
    assert_int_equal(webhook_gate_ask(gate, endpoint, 0, 0.5, &second_ms), WEBHOOK_LATER);
    assert_true(first_ms > 0 && second_ms > first_ms &&
                second_ms < 1000); /* one behind the other */
    assert_null(webhook_gate_next(gate, 0, &drain));
    end(gate, URL, 200, 0, 10);
    assert_ptr_equal(webhook_gate_next(gate, 10, &drain), endpoint);
    assert_false(drain);
    webhook_gate_left(gate, endpoint);
    assert_null(webhook_gate_next(gate, 10, &drain));
    assert_int_equal(ask(gate, STRANGER, 10), WEBHOOK_GO);
}

static void test_a_host_has_six_places(void **state)
{
    struct webhook_gate_options options = options_of();
    OWNED(webhook_gate_free) struct webhook_gate *gate = webhook_gate_new(&options);
    struct webhook_endpoint *sibling;
    bool drain;

    (void)state;
    for (int i = 0; i < 4; i++)
        assert_int_equal(ask(gate, URL, 0), WEBHOOK_GO);
    for (int i = 0; i < 2; i++)
        assert_int_equal(ask(gate, SIBLING, 0), WEBHOOK_GO);
    assert_int_equal(ask(gate, SIBLING, 0), WEBHOOK_LINE);
    sibling = webhook_gate_find(gate, "t", SIBLING, 0);
    webhook_gate_waits(gate, sibling);
    assert_null(webhook_gate_next(gate, 0, &drain));
    end(gate, URL, 200, 0, 1); /* not its own: the host's place */
    assert_ptr_equal(webhook_gate_next(gate, 1, &drain), sibling);
    webhook_gate_left(gate, sibling);
    /* Another tenant's at the same host has places of its own. */
    assert_int_equal(
        webhook_gate_ask(gate, webhook_gate_find(gate, "u", URL, 1), 1, 0.5, &(uint64_t){0}),
        WEBHOOK_GO);
}

/* Fifty endpoints that hang take most places, never the last ones. */
static void test_what_hangs_leaves_places(void **state)
{
    struct webhook_gate_options options = options_of();
    OWNED(webhook_gate_free) struct webhook_gate *gate = NULL;
    char url[64];
    uint32_t quick = 0;

    (void)state;
    options.known_max = 1000;
    gate = webhook_gate_new(&options);
    for (int i = 0; i < 30; i++) {
        (void)snprintf(url, sizeof(url), "https://h%d.example/", i);
        while (ask(gate, url, 0) == WEBHOOK_GO)
            ;
    }
    assert_in_range(webhook_gate_in_flight(gate), 60, 95);
    for (int i = 0; i < 5; i++)
        quick += ask(gate, STRANGER, 0) == WEBHOOK_GO;
    assert_true(quick >= 1);
}

static void test_a_circuit_that_opens_sends_the_line_away(void **state)
{
    struct webhook_gate_options options = options_of();
    OWNED(webhook_gate_free) struct webhook_gate *gate = webhook_gate_new(&options);
    struct webhook_endpoint *endpoint, *sibling;
    uint64_t delay_ms;
    bool drain;

    (void)state;
    for (int i = 0; i < 4; i++)
        assert_int_equal(ask(gate, URL, 0), WEBHOOK_GO);
    for (int i = 0; i < 2; i++)
        assert_int_equal(ask(gate, SIBLING, 0), WEBHOOK_GO);
    endpoint = webhook_gate_find(gate, "t", URL, 0);
    sibling = webhook_gate_find(gate, "t", SIBLING, 0);
    webhook_gate_waits(gate, endpoint);
    webhook_gate_waits(gate, sibling);
    assert_null(webhook_gate_next(gate, 0, &drain));
    for (int i = 0; i < 3; i++)
        end(gate, URL, 0, 0, 10000);
    for (int i = 0; i < 2; i++) { /* both lines, by turns */
        struct webhook_endpoint *next = webhook_gate_next(gate, 10000, &drain);

        assert_true(drain && (next == endpoint || next == sibling));
        webhook_gate_left(gate, next);
        assert_int_equal(webhook_gate_ask(gate, next, 10000, 0.5, &delay_ms), WEBHOOK_LATER);
        assert_in_range(delay_ms, 15000, 30000);
    }
    assert_null(webhook_gate_next(gate, 10000, &drain));
}

/* ---- memory ---- */

static void test_forgets_what_is_idle_and_well(void **state)
{
    struct webhook_gate_options options = options_of();
    OWNED(webhook_gate_free) struct webhook_gate *gate = webhook_gate_new(&options);
    char url[64];

    (void)state;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(ask(gate, URL, 0), WEBHOOK_GO);
        end(gate, URL, 500, 0, 0);
    }
    assert_int_equal(ask(gate, STRANGER, 0), WEBHOOK_GO); /* stays under way */
    for (int i = 0; i < 500; i++) {
        (void)snprintf(url, sizeof(url), "https://h%d.example/", i);
        assert_int_equal(ask(gate, url, 1), WEBHOOK_GO);
        end(gate, url, 200, 0, 1);
    }
    assert_int_equal(ask(gate, URL, 2), WEBHOOK_LATER); /* still known to be open */
    assert_int_equal(webhook_gate_open_count(gate), 1);
    end(gate, STRANGER, 200, 0, 3);
}

static void test_parts_of_urls(void **state)
{
    static const struct {
        const char *url, *endpoint, *origin;
    } rows[] = {
        {"https://a.example/h?q=1#f", "https://a.example/h", "https://a.example"},
        {"https://a.example#f", "https://a.example", "https://a.example"},
        {"https://a.example:8443/?x", "https://a.example:8443/", "https://a.example:8443"},
        {"http://127.0.0.1:1/a/b", "http://127.0.0.1:1/a/b", "http://127.0.0.1:1"},
        {"odd", "odd", "odd"},
        {"", "", ""},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        assert_int_equal(webhook_url_endpoint_size(rows[i].url), strlen(rows[i].endpoint));
        assert_int_equal(webhook_url_origin_size(rows[i].url), strlen(rows[i].origin));
    }
}

/* ---- a walk ---- */

#define WALK_URLS 40
#define WALK_STEPS 50000

struct walk {
    struct webhook_gate *gate;
    struct rng rng;
    uint32_t flying[WALK_URLS], in_line[WALK_URLS];
    uint64_t now_ms;
};

static struct webhook_endpoint *walk_find(struct walk *walk, uint32_t number)
{
    char url[64];
    struct webhook_endpoint *endpoint;

    (void)snprintf(url, sizeof(url), "https://h%u.example/%u", number / 4, number);
    endpoint = webhook_gate_find(walk->gate, "t", url, walk->now_ms);
    endpoint->seen_count = number; /* the caller's to use */
    return endpoint;
}

static void walk_put(struct walk *walk)
{
    uint32_t number = (uint32_t)rng_below(&walk->rng, WALK_URLS);
    struct webhook_endpoint *endpoint = walk_find(walk, number);
    uint64_t delay_ms = 0;

    switch (webhook_gate_ask(walk->gate, endpoint, walk->now_ms, rng_unit(&walk->rng), &delay_ms)) {
    case WEBHOOK_GO:
        walk->flying[number]++;
        break;
    case WEBHOOK_LINE:
        webhook_gate_waits(walk->gate, endpoint);
        walk->in_line[number]++;
        break;
    case WEBHOOK_LATER:
        assert_in_range(delay_ms, 1, 2 * WEBHOOK_OPEN_MS_MAX);
        break;
    }
}

static void walk_end(struct walk *walk)
{
    static const int statuses[] = {200, 200, 200, 500, 0, 429, 404};
    uint32_t number = (uint32_t)rng_below(&walk->rng, WALK_URLS);
    const struct webhook_gate_result result = {
        .neutral = rng_below(&walk->rng, 20) == 0,
        .http_status = statuses[rng_below(&walk->rng, COUNT_OF(statuses))],
        .retry_after_ms = rng_below(&walk->rng, 10) == 0 ? 1000 : 0,
        .took_ms = rng_below(&walk->rng, 10000),
    };

    if (walk->flying[number] == 0)
        return;
    walk->flying[number]--;
    webhook_gate_end(walk->gate, walk_find(walk, number), &result, walk->now_ms,
                     rng_unit(&walk->rng));
}

/* What the sender does behind each end: hands out places, empties lines of circuits. */
static void walk_serve(struct walk *walk)
{
    struct webhook_endpoint *endpoint;
    bool drain;

    while ((endpoint = webhook_gate_next(walk->gate, walk->now_ms, &drain)) != NULL) {
        uint32_t number = (uint32_t)endpoint->seen_count;

        assert_true(walk->in_line[number] > 0);
        do {
            webhook_gate_left(walk->gate, endpoint);
            walk->in_line[number]--;
        } while (drain && walk->in_line[number] > 0);
        walk->flying[number] += !drain;
    }
}

static void walk_check(const struct walk *walk)
{
    uint32_t flying = 0, waiting = 0;

    for (uint32_t i = 0; i < WALK_URLS; i++) {
        flying += walk->flying[i];
        waiting += walk->in_line[i];
        assert_true(walk->flying[i] <= 4);
    }
    assert_int_equal(webhook_gate_in_flight(walk->gate), flying);
    assert_int_equal(webhook_gate_waiting(walk->gate), waiting);
    assert_true(flying <= 100 && waiting <= 100);
}

static void test_walk(void **state)
{
    struct webhook_gate_options options = options_of();
    OWNED(webhook_gate_free) struct webhook_gate *gate = webhook_gate_new(&options);
    struct walk walk = {.gate = gate};

    (void)state;
    rng_seed(&walk.rng, 7);
    for (int step = 0; step < WALK_STEPS; step++) {
        walk.now_ms += rng_below(&walk.rng, 50);
        if (rng_below(&walk.rng, 2) == 0)
            walk_put(&walk);
        else
            walk_end(&walk);
        walk_serve(&walk);
        walk_check(&walk);
    }
    /* Nobody is left behind: with everybody answering, every line empties. */
    for (uint32_t round = 0; round < 1000 && webhook_gate_in_flight(gate) > 0; round++) {
        for (uint32_t number = 0; number < WALK_URLS; number++) {
            for (; walk.flying[number] > 0; walk.flying[number]--)
                webhook_gate_end(gate, walk_find(&walk, number),
                                 &(struct webhook_gate_result){.http_status = 200}, walk.now_ms,
                                 0.5);
            walk_serve(&walk);
        }
    }
    assert_int_equal(webhook_gate_waiting(gate), 0);
    assert_int_equal(webhook_gate_in_flight(gate), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_circuit),
        cmocka_unit_test(test_half_open_lets_one_through),
        cmocka_unit_test(test_what_was_under_way),
        cmocka_unit_test(test_never_opens_when_told_so),
        cmocka_unit_test(test_an_endpoint_has_four_places_and_a_line),
        cmocka_unit_test(test_a_host_has_six_places),
        cmocka_unit_test(test_what_hangs_leaves_places),
        cmocka_unit_test(test_a_circuit_that_opens_sends_the_line_away),
        cmocka_unit_test(test_forgets_what_is_idle_and_well),
        cmocka_unit_test(test_parts_of_urls),
        cmocka_unit_test(test_walk),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
