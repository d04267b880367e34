/* SPDX-License-Identifier: Apache-2.0 */

/*
 * headrace gateway: opens its parts in the order in which they lean on one another, runs the loop,
 * drains on SIGTERM, closes in reverse.
 *
 * Servers that are away do not stop it from starting: it says on /readyz what it waits for, and
 * goes on as each of them comes. Exit codes: 0 drained, 1 wrong settings, 2 something that it needs
 * cannot be had, 3 a fault while running.
 *
 * Drain: for --lame-duck everything goes on, but /readyz says 503 and each answer ends its
 * connection, so that clients move elsewhere; then no new connections; requests under way are
 * answered; submits that were produced are reported; spans are posted; all within the setting
 * `drain`. A second signal ends it at once.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/metrics.h"
#include "base/seal.h"
#include "base/settings.h"
#include "brokers/blob.h"
#include "brokers/cache.h"
#include "brokers/pg.h"
#include "brokers/queue.h"
#include "producers/gateway.h"
#include "producers/gateway_guess.h"
#include "schema/message.h"
#include "producers/gateway_body.h"

int gateway_main(int argc, char **argv);

#define TICK_MS 1000
#define DRAIN_STEP_MS 20
#define LISTEN_STEP_MS 20
#define TRACE_FLUSH_MS 1000

enum { EXIT_DRAINED, EXIT_USAGE, EXIT_DEPENDENCY, EXIT_FAULT };

static const struct setting gateway_rows[] = {
#define SETTINGS_ROWS struct gateway_settings
#include "base/settings_rows.def"
#include "producers/gateway_settings.def"
#include "base/settings_end.def"
};

static const struct metric_row gateway_metric_rows[] = {
#define METRICS_ROWS
#include "base/metrics_rows.def"
#include "producers/gateway_metrics.def"
#include "base/metrics_end.def"
};

static const struct settings_program program = {
    .command = "gateway",
    .wire_version = MESSAGE_WIRE_VERSION,
    .purpose = "Takes requests over HTTP, promises each with a 201 once Kafka has it, and answers "
               "what people ask about them and about models.",
    .rows = gateway_rows,
    .row_count = COUNT_OF(gateway_rows),
};

/* ---- is it ready ---- */

const char *gateway_not_ready(const struct gateway *gateway)
{
    double skew_s;

    if (gateway->draining)
        return "draining";
    if (gateway_watch_config(gateway->watch) == NULL)
        return "no models are known yet: Postgres was not reached";
    if (gateway_watch_shard_count(gateway->watch) == 0)
        return "Kafka has no topic 'intake' yet, or was not reached";
    if (!gateway_submits_clock_is_good(gateway->submits, &skew_s))
        return "our clock and Kafka's differ by more than clock-skew-max";
    return NULL;
}

/* ---- time ---- */

static void on_tick(void *opaque)
{
    struct gateway *gateway = opaque;

    gateway_watch_tick(gateway->watch, loop_now_ms(gateway->loop));
    gateway_caps_tick(gateway->caps, loop_now_ms(gateway->loop));
    gateway_websockets_tick(gateway->websockets, loop_now_ms(gateway->loop));
    gateway_ticks_look(gateway->ticks);
    gateway_trainings_look(gateway->trainings);
    gateway_plans_look(gateway->plans);
    metric_set(metrics_of(gateway->metrics, GATEWAY_METRIC_gateway_connections),
               gateway->server == NULL ? 0 : http_server_counts(gateway->server).connections);
    metric_set(metrics_of(gateway->metrics, GATEWAY_METRIC_gateway_ready),
               gateway_not_ready(gateway) == NULL ? 1 : 0);
    metric_set(metrics_of(gateway->metrics, GATEWAY_METRIC_gateway_spans_dropped),
               (double)tracer_counts(gateway->tracer).dropped);
}

/* ---- wake-ups ---- */

static void on_wake(void *opaque, const void *bytes, size_t size)
{
    struct gateway *gateway = opaque;

    gateway_cancels_on_wake(gateway->cancels, bytes, size);
    gateway_follows_on_wake(gateway->follows, bytes, size);
}

static void on_subscribed(void *opaque)
{
    struct gateway *gateway = opaque;

    gateway_cancels_look(gateway->cancels);
    gateway_follows_look(gateway->follows);
}

static void on_joined(void *opaque, const char *name)
{
    gateway_follows_on_joined(((struct gateway *)opaque)->follows, name);
}

/* ---- drain ---- */

static void on_spans_flushed(void *opaque)
{
    loop_stop(((struct gateway *)opaque)->loop);
}

static void on_server_drained(void *opaque)
{
    ((struct gateway *)opaque)->drained = true;
}

static void on_drain_step(void *opaque)
{
    struct gateway *gateway = opaque;
    uint32_t unreported = queue_producer_unreported(gateway->producer);
    uint64_t now_ms = loop_now_ms(gateway->loop);
    bool late = now_ms >= gateway->drain_by_ms;

    if (now_ms >= gateway->lame_by_ms && !gateway->deaf) {
        gateway->deaf = true;
        gateway_event_streams_end(gateway->event_streams);
        gateway_websockets_end(gateway->websockets);
        if (gateway->server == NULL)
            gateway->drained = true;
        else
            http_server_drain(gateway->server, on_server_drained, gateway);
    }
    if (!late &&
        (!gateway->drained || unreported > 0 || gateway_submits_waiting(gateway->submits) > 0))
        return;
    log_info("drained", LOG_BOOL("in_time", !late), LOG_U64("unreported", unreported));
    loop_timer_stop(gateway->drain_step);
    tracer_flush(gateway->tracer, TRACE_FLUSH_MS, on_spans_flushed, gateway);
}

static void on_signal(void *opaque)
{
    struct gateway *gateway = opaque;

    if (gateway->draining) { /* the second one means haste */
        loop_stop(gateway->loop);
        return;
    }
    gateway->draining = true;
    loop_end_within(gateway->settings.drain_ms + LOOP_END_EXTRA_MS, EXIT_FAULT);
    gateway->drain_by_ms = loop_now_ms(gateway->loop) + gateway->settings.drain_ms;
    gateway->lame_by_ms = loop_now_ms(gateway->loop) + gateway->settings.lame_duck_ms;
    if (gateway->lame_by_ms > gateway->drain_by_ms)
        gateway->lame_by_ms = gateway->drain_by_ms;
    log_info("draining", LOG_U64("submits", gateway_submits_waiting(gateway->submits)));
    loop_timer_start(gateway->drain_step, 0, DRAIN_STEP_MS);
    if (gateway->server != NULL)
        http_server_lame(gateway->server);
}

static void on_reload(void *opaque)
{
    struct err err;

    (void)opaque;
    if (log_reopen(&err) < 0)
        log_warn("log_not_reopened", LOG_ERR(&err));
}

/* ---- opening, in order ---- */

static int open_log(struct gateway *gateway, struct err *err)
{
    struct log_options options = {.program = "gateway"};
    int r = log_level_parse(gateway->settings.log_level, &options.level, err);

    if (gateway->settings.log_file[0] != '\0')
        options.path = gateway->settings.log_file;
    return r < 0 ? r : log_open(&options, err);
}

static int open_inside(struct gateway *gateway, struct err *err)
{
    const struct gateway_settings *settings = &gateway->settings;
    const struct metrics_options metrics = {
        .prefix = "headrace_",
        .prefix_again = settings->metrics_prefix[0] != '\0' ? settings->metrics_prefix : NULL,
        .rows = gateway_metric_rows,
        .row_count = COUNT_OF(gateway_metric_rows),
    };
    const struct tracer_options tracer = {
        .endpoint = settings->otlp_endpoint,
        .service_name = "headrace-gateway",
        .service_version = HEADRACE_VERSION,
        .service_instance = gateway->boot,
        .sample_share = (double)settings->otlp_sample_percent / 100,
    };
    int r = metrics_open(&metrics, &gateway->metrics, err);

    return r < 0 ? r : tracer_open(gateway->loop, &tracer, &gateway->tracer, err);
}

static int open_postgres(struct gateway *gateway, struct err *err)
{
    const struct pg_options options = {.url = gateway->settings.postgres,
                                       .application = "headrace gateway",
                                       .settings = "-c jit=off"}; /* of use to long queries */
    int r = pg_open(gateway->loop, &options, &gateway->pg_control, err);

    return r < 0
               ? r
               : pg_pool_open(gateway->loop, &options,
                              (uint32_t)gateway->settings.postgres_connections, &gateway->pg, err);
}

static int open_kafka(struct gateway *gateway, struct err *err)
{
    const struct gateway_settings *settings = &gateway->settings;
    const struct queue_options queue = {
        .bootstrap = settings->kafka,
        .client_id = gateway->boot,
        .properties = settings->kafka_properties[0] != '\0' ? settings->kafka_properties : NULL,
    };
    const struct queue_producer_options producer = {
        .queue = queue,
        .record_count_max = 2 * (uint32_t)settings->submits_max,
        .record_size_max = settings->submits_bytes_max_size,
    };
    int r = queue_admin_open(gateway->loop, &queue, &gateway->queue_admin, err);

    return r < 0 ? r : queue_producer_open(gateway->loop, &producer, &gateway->producer, err);
}

static int open_redis(struct gateway *gateway, struct err *err)
{
    static const struct cache_listener_calls calls = {
        .on_message = on_wake, .on_subscribed = on_subscribed, .on_joined = on_joined};
    const struct cache_options options = {.url = gateway->settings.redis};
    int r = cache_open(gateway->loop, &options, &gateway->cache, err);

    return r < 0 ? r
                 : cache_listen(gateway->cache, gateway->boot, &calls, gateway, &gateway->listener,
                                err);
}

static int open_blobs(struct gateway *gateway, struct err *err)
{
    const char *seal_path = gateway->settings.seal_key_file;
    int r = blob_store_open(gateway->loop, gateway->settings.blobs, &gateway->blobs, err);

    if (r == 0 && seal_path[0] != '\0')
        r = seal_key_open(seal_path, &gateway->seal_key, err);
    return r;
}

static int gateway_listen(struct gateway *gateway, struct err *err)
{
    const struct gateway_settings *settings = &gateway->settings;
    const struct http_server_options options = {
        .address = settings->listen,
        .port = (uint16_t)settings->port,
        .reuse_port = settings->reuse_port,
        .tls_cert_path = settings->tls_cert[0] != '\0' ? settings->tls_cert : NULL,
        .tls_key_path = settings->tls_key[0] != '\0' ? settings->tls_key : NULL,
        .connection_count_max = (uint32_t)settings->connections_max,
        .header_timeout_ms = (uint32_t)settings->header_timeout_ms,
        .body_timeout_ms = (uint32_t)settings->body_timeout_ms,
        .server_name = "headrace",
        .render_error = call_render_error,
    };

    return http_server_open(gateway->loop, &options, call_begin, gateway, &gateway->server, err);
}

static int exit_code_of(const struct err *err)
{
    switch (err->code) {
    case ERR_USAGE:
    case ERR_RANGE:
    case ERR_MALFORMED:
        return EXIT_USAGE;
    default:
        return EXIT_DEPENDENCY;
    }
}

/* Who shares a port is sent requests from the moment that it listens: it must be ready by then. */
static int open_server(struct gateway *gateway, struct err *err)
{
    return gateway->settings.reuse_port ? 0 : gateway_listen(gateway, err);
}

static void log_started(const struct gateway *gateway)
{
    log_info("started", LOG_U64("wire", MESSAGE_WIRE_VERSION), LOG_STR("boot", gateway->boot),
             LOG_STR("address", gateway->settings.listen),
             LOG_U64("port", http_server_port(gateway->server)));
}

static void on_late_listen(void *opaque)
{
    struct gateway *gateway = opaque;
    struct err err;

    if (gateway->draining || gateway_not_ready(gateway) != NULL || !pg_pool_connected(gateway->pg))
        return;
    loop_timer_stop(gateway->late_listen);
    if (gateway_listen(gateway, &err) == 0) {
        log_started(gateway);
        return;
    }
    log_error("not_started", LOG_ERR(&err));
    gateway->exit_code = exit_code_of(&err);
    loop_stop(gateway->loop);
}

static int gateway_open(struct gateway *gateway, struct err *err)
{
    static int (*const opens[])(struct gateway * gateway, struct err * err) = {
        open_inside,
        open_postgres,
        open_kafka,
        open_redis,
        open_blobs,
        gateway_keys_open,
        gateway_watch_open,
        gateway_submits_open,
        gateway_ticks_open,
        gateway_plans_open,
        gateway_peers_open,
        gateway_trainings_open,
        gateway_cancels_open,
        gateway_caps_open,
        gateway_rates_open,
        gateway_guesses_open,
        gateway_follows_open,
        gateway_syncs_open,
        gateway_event_streams_open,
        gateway_websockets_open,
        gateway_tunnels_open,
        open_server,
    };
    uint64_t seed;
    int r = loop_open(&gateway->loop, err);

    if (r < 0)
        return r;
    LIST_INIT(&gateway->calls);
    rng_secret_bytes(&seed, sizeof(seed));
    rng_seed(&gateway->rng, seed);
    (void)snprintf(gateway->boot, sizeof(gateway->boot), "gw-%016llx", (unsigned long long)seed);
    gateway->reader = body_reader_new();
    gateway->decoder = wire_decoder_new();
    for (size_t i = 0; r == 0 && i < COUNT_OF(opens); i++)
        r = opens[i](gateway, err);
    if (r == 0)
        r = loop_on_signals(gateway->loop, on_signal, on_reload, gateway, err);
    if (r < 0)
        return r;
    gateway->tick = loop_timer_new(gateway->loop, on_tick, gateway);
    loop_timer_start(gateway->tick, 0, TICK_MS);
    gateway->drain_step = loop_timer_new(gateway->loop, on_drain_step, gateway);
    gateway->late_listen = loop_timer_new(gateway->loop, on_late_listen, gateway);
    if (gateway->server == NULL)
        loop_timer_start(gateway->late_listen, LISTEN_STEP_MS, LISTEN_STEP_MS);
    return 0;
}

/* In reverse; every part may be missing. Calls end after the parts that could call back. */
static void gateway_close(struct gateway *gateway)
{
    loop_timer_free(&gateway->tick);
    loop_timer_free(&gateway->drain_step);
    loop_timer_free(&gateway->late_listen);
    gateway_websockets_close(gateway);
    gateway_tunnels_close(&gateway->tunnels);
    http_server_close(&gateway->server);
    if (gateway->syncs != NULL)
        gateway_syncs_close(&gateway->syncs);
    if (gateway->event_streams != NULL)
        gateway_event_streams_close(&gateway->event_streams);
    cache_listener_close(&gateway->listener);
    cache_close(&gateway->cache);
    pg_pool_close(&gateway->pg);
    pg_close(&gateway->pg_control);
    queue_producer_close(&gateway->producer);
    queue_admin_close(&gateway->queue_admin);
    blob_store_close(&gateway->blobs);
    gateway_contents_close(gateway);
    gateway_follows_close(&gateway->follows);
    gateway_cancels_close(&gateway->cancels);
    gateway_ticks_close(&gateway->ticks);
    gateway_plans_close(&gateway->plans);
    gateway_peers_close(&gateway->peers);
    gateway_trainings_close(&gateway->trainings);
    if (gateway->submits != NULL)
        gateway_submits_close(&gateway->submits);
    gateway_rates_close(&gateway->rates);
    guesses_free(&gateway->guesses);
    gateway_caps_close(&gateway->caps);
    gateway_watch_close(&gateway->watch);
    gateway_keys_close(&gateway->keys);
    if (gateway->loop != NULL)
        calls_close(gateway);
    tracer_close(&gateway->tracer);
    metrics_close(&gateway->metrics);
    seal_key_close(&gateway->seal_key);
    wire_decoder_free(&gateway->decoder);
    body_reader_free(&gateway->reader);
    loop_close(&gateway->loop);
}

static int gateway_run(struct gateway *gateway)
{
    struct err err;
    int code = EXIT_DRAINED;

    if (open_log(gateway, &err) < 0 || gateway_open(gateway, &err) < 0) {
        log_error("not_started", LOG_ERR(&err));
        code = exit_code_of(&err);
    } else {
        if (gateway->server != NULL)
            log_started(gateway);
        loop_run(gateway->loop);
        code = gateway->exit_code;
    }
    gateway_close(gateway);
    log_close();
    return code;
}

int gateway_main(int argc, char **argv)
{
    struct gateway *gateway = xcalloc(1, sizeof(*gateway));
    enum settings_outcome outcome;
    int code = EXIT_DRAINED;
    struct err err;

    if (settings_parse(&program, argc, argv, &gateway->settings, NULL, &outcome, &err) < 0) {
        (void)fprintf(stderr, "headrace gateway: %s\n", err.text);
        code = EXIT_USAGE;
    } else if (outcome == SETTINGS_RUN) {
        code = gateway_run(gateway);
    }
    settings_free(&program, &gateway->settings);
    free(gateway);
    return code;
}
