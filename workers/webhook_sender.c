/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/webhook_sender.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/loop.h"
#include "base/rng.h"
#include "workers/webhook_results.h"

#define SOON_MS 1000
#define ENDPOINTS_KNOWN 10000 /* beyond those in use */
#define SERIES_MAX 24         /* tries 7, deliveries 3, put off 2, circuits 2 */
#define LINE_PER_PLACE 8      /* deliveries in a line for each place of its endpoint */

TAILQ_HEAD(deliveries, webhook_delivery);

struct series {
    enum webhook_metric row;
    const char *value; /* static storage; NULL: free */
    struct metric *metric;
};

struct webhook_sender {
    struct webhook_sender_options options;
    struct webhook_gate *gate;
    struct webhook_poster *poster;
    struct webhook_results *results;
    struct rng rng;
    struct webhook_delivery *table; /* all in memory, by key */
    struct deliveries wait_secrets;
    struct series series[SERIES_MAX];
    bool serving, stopped;
    bool soon; /* something was written that comes back within a second */
    void (*on_drained)(void *opaque);
    void *drained_opaque;
};

uint32_t webhook_sender_count(const struct webhook_sender *sender)
{
    return (uint32_t)HASH_COUNT(sender->table);
}

uint32_t webhook_sender_room(const struct webhook_sender *sender)
{
    uint32_t count = webhook_sender_count(sender);

    return sender->stopped || count >= sender->options.in_memory_max
               ? 0
               : sender->options.in_memory_max - count;
}

/* A metric with one label that has few values: each is looked up once. */
static void count_series(struct webhook_sender *sender, enum webhook_metric row, const char *value)
{
    struct series *series = sender->series, *end = sender->series + SERIES_MAX;

    while (series < end && series->value != NULL &&
           (series->row != row || strcmp(series->value, value) != 0))
        series++;
    assert(series < end);
    if (series->value == NULL)
        *series = (struct series){row, value, metrics_series(sender->options.metrics, row, &value)};
    metric_add(series->metric, 1);
}

static void set_gauges(struct webhook_sender *sender)
{
    struct metrics *metrics = sender->options.metrics;

    metric_set(metrics_of(metrics, WEBHOOK_METRIC_webhook_in_memory), webhook_sender_count(sender));
    metric_set(metrics_of(metrics, WEBHOOK_METRIC_webhook_in_flight),
               webhook_gate_in_flight(sender->gate));
    metric_set(metrics_of(metrics, WEBHOOK_METRIC_webhook_circuits_open),
               webhook_gate_open_count(sender->gate));
}

static void tell_drained(struct webhook_sender *sender)
{
    void (*call)(void *) = sender->on_drained;

    if (call == NULL || sender->table != NULL)
        return;
    sender->on_drained = NULL;
    call(sender->drained_opaque);
}

static void forget(struct webhook_sender *sender, struct webhook_delivery *delivery)
{
    HASH_DEL(sender->table, delivery);
    webhook_delivery_free(&delivery);
    set_gauges(sender);
    tell_drained(sender);
}

static void on_written(void *opaque, struct webhook_delivery *delivery)
{
    struct webhook_sender *sender = opaque;
    bool again = delivery->outcome == WEBHOOK_AGAIN || delivery->outcome == WEBHOOK_PUT_OFF;

    sender->soon = sender->soon || (again && delivery->delay_ms < SOON_MS);
    forget(sender, delivery);
}

static void on_results_room(void *opaque)
{
    struct webhook_sender *sender = opaque;
    bool soon = sender->soon;

    sender->soon = false;
    if (!sender->stopped)
        sender->options.on_room(sender->options.opaque, soon);
}

static void on_results_trouble(void *opaque, const struct webhook_delivery *delivery,
                               const struct err *err)
{
    struct webhook_sender *sender = opaque;

    sender->options.on_trouble(sender->options.opaque, delivery, err);
}

/* ---- what becomes of a delivery ---- */

/* `delivery` leaves the gate; its result is written soon. */
static void stage(struct webhook_sender *sender, struct webhook_delivery *delivery,
                  enum webhook_outcome outcome, uint64_t delay_ms)
{
    static const char *const names[] = {
        [WEBHOOK_DELIVERED] = "delivered",
        [WEBHOOK_GIVEN_UP] = "given_up",
        [WEBHOOK_GIVEN_UP_GONE] = "gone",
    };

    delivery->outcome = outcome;
    delivery->delay_ms = delay_ms;
    if (outcome != WEBHOOK_AGAIN && outcome != WEBHOOK_PUT_OFF)
        count_series(sender, WEBHOOK_METRIC_webhook_deliveries_total, names[outcome]);
    if (outcome != WEBHOOK_PUT_OFF)
        sender->options.on_try(sender->options.opaque, delivery);
    delivery->endpoint = NULL; /* the gate may forget it from here on */
    webhook_results_add(sender->results, delivery);
}

static const char *status_class(const struct webhook_delivery *delivery, bool blocked)
{
    static const char *const classes[] = {"1xx", "2xx", "3xx", "4xx", "5xx"};
    int class = delivery->http_status / 100;

    if (blocked)
        return "blocked";
    return class >= 1 && class <= 5 ? classes[class - 1] : "none";
}

/* Given up without a try: `why` becomes its last error. */
static void give_up(struct webhook_sender *sender, struct webhook_delivery *delivery,
                    const char *why)
{
    delivery->tried = false;
    webhook_delivery_set_error(delivery, why);
    stage(sender, delivery, WEBHOOK_GIVEN_UP, 0);
}

static void put_off(struct webhook_sender *sender, struct webhook_delivery *delivery,
                    uint64_t delay_ms)
{
    bool open = webhook_endpoint_circuit(delivery->endpoint) != WEBHOOK_CIRCUIT_CLOSED;

    if (open && webhook_plan_is_over(delivery->age_ms, sender->options.time_scale)) {
        give_up(sender, delivery, "its endpoint did not answer for as long as it was owed");
        return;
    }
    delivery->tried = false;
    if (open)
        webhook_results_touch(sender->results, delivery->endpoint, clock_mono_ms());
    count_series(sender, WEBHOOK_METRIC_webhook_put_off_total, open ? "circuit" : "busy");
    stage(sender, delivery, WEBHOOK_PUT_OFF, delay_ms);
}

/* ---- sending ---- */

/* The gate has counted it in. */
static void start(struct webhook_sender *sender, struct webhook_delivery *delivery)
{
    const struct webhook_secrets *secrets = webhook_secret_cache_get(
        sender->options.secrets, delivery->tenant, clock_mono_ms());

    delivery->tried = true;
    if (secrets == NULL)
        TAILQ_INSERT_TAIL(&sender->wait_secrets, delivery, next);
    else
        webhook_poster_send(sender->poster, delivery, secrets);
}

static void place(struct webhook_sender *sender, struct webhook_delivery *delivery)
{
    uint64_t delay_ms = 0;

    switch (webhook_gate_ask(sender->gate, delivery->endpoint, clock_mono_ms(),
                             rng_unit(&sender->rng), &delay_ms)) {
    case WEBHOOK_GO:
        start(sender, delivery);
        break;
    case WEBHOOK_LINE:
        TAILQ_INSERT_TAIL(&delivery->endpoint->line, delivery, next);
        webhook_gate_waits(sender->gate, delivery->endpoint);
        break;
    case WEBHOOK_LATER:
        put_off(sender, delivery, delay_ms);
        break;
    }
}

static struct webhook_delivery *line_pop(struct webhook_sender *sender,
                                         struct webhook_endpoint *endpoint)
{
    struct webhook_delivery *delivery = TAILQ_FIRST(&endpoint->line);

    assert(delivery != NULL);
    TAILQ_REMOVE(&endpoint->line, delivery, next);
    webhook_gate_left(sender->gate, endpoint);
    return delivery;
}

/* Gives free places to lines, by turns. What ends meanwhile leaves its place to this same loop. */
static void serve(struct webhook_sender *sender)
{
    struct webhook_endpoint *endpoint;
    bool drain;

    if (sender->serving)
        return;
    sender->serving = true;
    while ((endpoint = webhook_gate_next(sender->gate, clock_mono_ms(), &drain)) != NULL) {
        uint32_t left = endpoint->waiting;

        if (!drain)
            start(sender, line_pop(sender, endpoint));
        for (; drain && left > 0; left--)
            place(sender, line_pop(sender, endpoint));
    }
    sender->serving = false;
}

/* What is known of the endpoint now, and whether that is news. */
static void endpoint_tell(struct webhook_sender *sender, const struct webhook_delivery *delivery,
                          enum webhook_circuit before, uint64_t now_ms)
{
    struct webhook_endpoint *endpoint = delivery->endpoint;
    enum webhook_circuit after = webhook_endpoint_circuit(endpoint);
    uint64_t at_us = delivery->started_us + delivery->took_us;

    endpoint->seen_count += delivery->try_count == 0;
    endpoint->last_status = delivery->http_status;
    mem_copy_text(endpoint->last_error, delivery->error);
    if (delivery->http_status >= 200 && delivery->http_status < 300)
        endpoint->success_us = at_us;
    else
        endpoint->failure_us = at_us;
    webhook_results_touch(sender->results, endpoint, now_ms);
    if (after == before)
        return;
    count_series(sender, WEBHOOK_METRIC_webhook_circuit_changes_total,
                 after == WEBHOOK_CIRCUIT_CLOSED ? "closed" : "open");
    sender->options.on_circuit(sender->options.opaque, endpoint);
}

/* The try is over: decides what follows and stages it for the next write. */
static void on_posted(void *opaque, struct webhook_delivery *delivery, bool blocked,
                      const struct webhook_gate_result *result)
{
    struct webhook_sender *sender = opaque;
    enum webhook_circuit before = webhook_endpoint_circuit(delivery->endpoint);
    uint64_t now_ms = clock_mono_ms();
    const struct webhook_try try = {
        .number = delivery->try_count + 1 - delivery->try_base,
        .http_status = delivery->http_status,
        .blocked = blocked,
        .retry_after_ms = result->retry_after_ms,
        .jitter = rng_unit(&sender->rng),
        .time_scale = sender->options.time_scale,
    };
    struct webhook_next next = webhook_plan_next(&try);

    webhook_gate_end(sender->gate, delivery->endpoint, result, now_ms, rng_unit(&sender->rng));
    if (!result->neutral)
        endpoint_tell(sender, delivery, before, now_ms);
    delivery->try_count++;
    count_series(sender, WEBHOOK_METRIC_webhook_tries_total, status_class(delivery, blocked));
    stage(sender, delivery, next.outcome, next.delay_ms);
    set_gauges(sender);
    serve(sender);
}

/* Secrets could not be had: it leaves memory and comes back with its claim. */
static void drop(struct webhook_sender *sender, struct webhook_delivery *delivery,
                 const struct err *err)
{
    const struct webhook_gate_result result = {.neutral = true};

    sender->options.on_trouble(sender->options.opaque, delivery, err);
    webhook_gate_end(sender->gate, delivery->endpoint, &result, clock_mono_ms(),
                     rng_unit(&sender->rng));
    forget(sender, delivery);
}

/* Secrets arrived, or could not be had: those who wait ask again, or leave memory until later. */
static void on_secrets_ready(void *opaque, const struct err *err)
{
    struct webhook_sender *sender = opaque;
    struct deliveries line = TAILQ_HEAD_INITIALIZER(line);
    struct webhook_delivery *delivery;

    TAILQ_CONCAT(&line, &sender->wait_secrets, next);
    while ((delivery = TAILQ_FIRST(&line)) != NULL) {
        TAILQ_REMOVE(&line, delivery, next);
        if (err != NULL)
            drop(sender, delivery, err);
        else
            start(sender, delivery);
    }
    serve(sender);
}

void webhook_sender_put(struct webhook_sender *sender, struct webhook_delivery **delivery_p)
{
    OWNED(webhook_delivery_free) struct webhook_delivery *delivery = TAKE(*delivery_p);
    struct webhook_delivery *known, *put;

    assert(webhook_sender_room(sender) > 0);
    HASH_FIND(hh, sender->table, &delivery->key, sizeof(delivery->key), known);
    if (known != NULL)
        return;
    put = TAKE(delivery);
    HASH_ADD(hh, sender->table, key, sizeof(put->key), put);
    put->endpoint = webhook_gate_find(sender->gate, put->tenant, put->url, clock_mono_ms());
    if (put->disabled != NULL) {
        char why[sizeof(put->error)];

        (void)snprintf(why, sizeof(why), "endpoint is disabled: %s", put->disabled);
        give_up(sender, put, why);
    } else {
        place(sender, put);
    }
    set_gauges(sender);
}

/* ---- life ---- */

static int parts_open(struct webhook_sender *sender, struct loop *loop, struct err *err)
{
    const struct webhook_sender_options *options = &sender->options;
    const struct webhook_gate_options gate = {
        .total_max = options->poster.connections_max,
        .endpoint_max = options->per_endpoint_max,
        .origin_max = options->per_host_max,
        .waiting_max = options->in_memory_max / 2,
        .line_max = options->per_endpoint_max * LINE_PER_PLACE,
        .failures_max = options->failures_max,
        .known_max = options->in_memory_max + ENDPOINTS_KNOWN,
        .time_scale = options->time_scale,
    };
    const struct webhook_results_options results = {
        .pg = options->results_pg,
        .room = options->in_memory_max,
        .on_written = on_written,
        .on_room = on_results_room,
        .on_trouble = on_results_trouble,
        .opaque = sender,
    };
    struct webhook_poster_options poster = options->poster;

    poster.done = on_posted;
    poster.on_trouble = on_results_trouble;
    poster.opaque = sender;
    sender->gate = webhook_gate_new(&gate);
    sender->results = webhook_results_new(loop, &results);
    return webhook_poster_open(loop, &poster, &sender->poster, err);
}

int webhook_sender_new(struct loop *loop, const struct webhook_sender_options *options,
                       struct webhook_sender **ret_sender, struct err *err)
{
    OWNED(webhook_sender_free) struct webhook_sender *sender = xcalloc(1, sizeof(*sender));
    uint64_t seed;
    int r;

    sender->options = *options;
    rng_secret_bytes(&seed, sizeof(seed));
    rng_seed(&sender->rng, seed);
    TAILQ_INIT(&sender->wait_secrets);
    r = parts_open(sender, loop, err);
    if (r < 0)
        return r;
    webhook_secret_cache_on_ready(options->secrets, on_secrets_ready, sender);
    *ret_sender = TAKE(sender);
    return 0;
}

void webhook_sender_free(struct webhook_sender **sender_p)
{
    struct webhook_sender *sender = TAKE(*sender_p);
    struct webhook_delivery *delivery, *next;

    if (sender == NULL)
        return;
    sender->serving = true; /* what is canceled leaves its place to nobody */
    webhook_poster_close(&sender->poster);
    HASH_ITER(hh, sender->table, delivery, next)
    {
        HASH_DEL(sender->table, delivery);
        webhook_delivery_free(&delivery);
    }
    webhook_results_free(&sender->results);
    webhook_gate_free(&sender->gate);
    free(sender);
}

void webhook_sender_drain(struct webhook_sender *sender, void (*on_drained)(void *opaque),
                          void *opaque)
{
    struct webhook_delivery *delivery, *next;

    sender->stopped = true;
    HASH_ITER(hh, sender->table, delivery, next)
    {
        struct webhook_endpoint *endpoint = delivery->endpoint;

        while (endpoint != NULL && endpoint->waiting > 0)
            stage(sender, line_pop(sender, endpoint), WEBHOOK_PUT_OFF, 0);
    }
    sender->on_drained = on_drained;
    sender->drained_opaque = opaque;
    tell_drained(sender);
}
