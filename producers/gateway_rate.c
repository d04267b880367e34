/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Rate limits of tenants and API keys, exact over all gateways: Redis keeps one number for each
 * (gateway_rate_core.h) and moves it on in one step of its own, by its own clock.
 *
 * A submit of somebody without a rate limit passes at once and costs Redis nothing. The others
 * wait in a line of their tenant and key; a line asks for all that wait as soon as its last
 * question is answered, so a busy one asks for many at a time.
 *
 * Failures: with Redis away, or silent, a line decides by its own copy of the numbers, which it
 * keeps in step with what Redis lets pass: then each gateway lets the whole rate pass. After a
 * flush of Redis at most one burst passes extra.
 *
 * At shutdown: lines are forgotten; calls are ended by their owner.
 */

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/metrics.h"
#include "brokers/cache.h"
#include "producers/gateway.h"
#include "producers/gateway_rate_core.h"

#define uthash_fatal(text) NEVER(text)
#define uthash_malloc(size) xmalloc(size)
#include <uthash.h>

#define BUCKETS_MAX 2 /* of the tenant, of the key */
#define WAITING_MAX 20000
#define LINES_BEFORE_SWEEP 1024
#define NUMBER_SIZE 40
#define KEY_SIZE (CONFIG_NAME_SIZE + 24)

/* KEYS: the buckets. ARGV: how many submits ask, then interval in microseconds and burst of each
 * bucket. All buckets let as many pass as the narrowest. Answers "passed wait_us". The SET's time
 * to live ends when the bucket is full again anyway. */
static const char script[] =
    "local now = redis.call('TIME') "
    "local t = now[1] * 1000000 + now[2] "
    "local n, wait, tats = tonumber(ARGV[1]), 0, {} "
    "for i = 1, #KEYS do "
    "  local interval, burst = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1]) "
    "  local tat = math.max(tonumber(redis.call('GET', KEYS[i]) or 0) or 0, t) "
    "  tat = math.min(tat, t + interval * burst) "
    "  tats[i] = tat "
    "  local room = math.max(0, math.floor((t + interval * burst - tat) / interval + 0.000001)) "
    "  if room < n then "
    "    n = room "
    "    wait = math.max(wait, tat + interval * (room + 1) - interval * burst - t) "
    "  end "
    "end "
    "if n > 0 then "
    "  for i = 1, #KEYS do "
    "    local tat = tats[i] + n * tonumber(ARGV[2 * i]) "
    "    redis.call('SET', KEYS[i], string.format('%.0f', tat), 'PX', "
    "      string.format('%.0f', math.ceil((tat - t) / 1000) + 1000)) "
    "  end "
    "end "
    "return string.format('%d %.0f', n, wait)";

struct rate_waiter {
    STAILQ_ENTRY(rate_waiter) link;
    struct call *call;
    void (*on_passed)(struct call *call);
};
STAILQ_HEAD(rate_waiters, rate_waiter);

struct rate_bucket {
    char key[KEY_SIZE]; /* in Redis */
    struct rate rate;
    double tat_us; /* our copy */
};

struct line_key {
    char tenant[CONFIG_NAME_SIZE], prefix[API_KEY_PREFIX_SIZE]; /* "": that one has no rate */
};

struct line {
    UT_hash_handle hh;
    struct line_key key;
    struct gateway *gateway;
    struct rate_bucket buckets[BUCKETS_MAX];
    size_t bucket_count;
    struct rate_waiters waiting; /* the first `asked` of them are in the question that is out */
    uint32_t waiting_count, asked;
};

struct rates {
    struct gateway *gateway;
    struct line *lines;
    size_t sweep_at;
    uint32_t waiting_count;
};

static void line_ask(struct line *line);

int gateway_rates_open(struct gateway *gateway, struct err *err)
{
    (void)err;
    gateway->rates = xcalloc(1, sizeof(*gateway->rates));
    gateway->rates->gateway = gateway;
    gateway->rates->sweep_at = LINES_BEFORE_SWEEP;
    return 0;
}

static void line_free(struct rates *rates, struct line *line)
{
    struct rate_waiter *waiter;

    while ((waiter = STAILQ_FIRST(&line->waiting)) != NULL) {
        STAILQ_REMOVE_HEAD(&line->waiting, link);
        free(waiter);
    }
    HASH_DEL(rates->lines, line);
    free(line);
}

void gateway_rates_close(struct rates **rates_p)
{
    struct rates *rates = TAKE(*rates_p);
    struct line *line, *next;

    if (rates == NULL)
        return;
    HASH_ITER(hh, rates->lines, line, next)
    {
        line_free(rates, line);
    }
    free(rates);
}

/* ---- lines ---- */

/* An idle line whose copies say "full" knows nothing that a new one would not. */
static void lines_sweep(struct rates *rates)
{
    double now_us = (double)clock_mono_us();
    struct line *line, *next;

    if (HASH_COUNT(rates->lines) < rates->sweep_at)
        return;
    HASH_ITER(hh, rates->lines, line, next)
    {
        bool full = line->waiting_count == 0;

        for (size_t i = 0; i < line->bucket_count; i++)
            full = full && line->buckets[i].tat_us <= now_us;
        if (full)
            line_free(rates, line);
    }
    rates->sweep_at = 2 * HASH_COUNT(rates->lines) + LINES_BEFORE_SWEEP;
}

static struct line *line_get(struct gateway *gateway, const struct line_key *key)
{
    struct rates *rates = gateway->rates;
    struct line *line;

    HASH_FIND(hh, rates->lines, key, sizeof(*key), line);
    if (line != NULL)
        return line;
    lines_sweep(rates);
    line = xcalloc(1, sizeof(*line));
    line->key = *key;
    line->gateway = gateway;
    STAILQ_INIT(&line->waiting);
    HASH_ADD(hh, rates->lines, key, sizeof(line->key), line);
    return line;
}

static void line_bucket(struct line *line, const char *kind, const char *name, struct rate rate)
{
    struct rate_bucket *bucket = &line->buckets[line->bucket_count++];

    bucket->rate = rate;
    (void)snprintf(bucket->key, sizeof(bucket->key), "headrace:rate:%s:%s", kind, name);
}

/* ---- answers ---- */

static void refuse(struct line *line, struct call *call, double wait_us)
{
    const struct rate *rate = &line->buckets[0].rate;
    double wait_s = ceil(wait_us / 1e6);
    struct refusal refusal = {.status = 429, .limit = limit_name(LIMIT_rate_per_second)};

    if (line->bucket_count > 1 && line->buckets[1].rate.interval_us > rate->interval_us)
        rate = &line->buckets[1].rate;
    refusal.value = 1e6 / rate->interval_us;
    refusal.current = rate->burst;
    refusal.retry_after_s = wait_s < 1 ? 1 : wait_s > 86400 ? 86400 : (uint32_t)wait_s;
    (void)snprintf(refusal.text, sizeof(refusal.text),
                   "%s '%s' may submit %.6g requests a second, %.6g at once (rate_per_second, "
                   "rate_burst): that many came; the next may come in %.3f s",
                   rate == &line->buckets[0].rate && line->key.tenant[0] != '\0' ? "tenant"
                                                                                 : "API key",
                   rate == &line->buckets[0].rate && line->key.tenant[0] != '\0' ? line->key.tenant
                                                                                 : line->key.prefix,
                   refusal.value, rate->burst, wait_us / 1e6);
    call_refuse(&call, &refusal);
}

static void line_answer(struct line *line, uint32_t passed, double wait_us)
{
    struct rates *rates = line->gateway->rates;
    struct rate_waiters done = STAILQ_HEAD_INITIALIZER(done);
    struct rate_waiter *waiter;
    uint32_t asked = line->asked;

    for (uint32_t i = 0; i < asked; i++) {
        waiter = STAILQ_FIRST(&line->waiting);
        STAILQ_REMOVE_HEAD(&line->waiting, link);
        STAILQ_INSERT_TAIL(&done, waiter, link);
    }
    line->waiting_count -= asked;
    rates->waiting_count -= asked;
    line->asked = 0;
    for (uint32_t i = 0; i < asked; i++) {
        waiter = STAILQ_FIRST(&done);
        STAILQ_REMOVE_HEAD(&done, link);
        if (i < passed)
            waiter->on_passed(waiter->call);
        else
            refuse(line, waiter->call, wait_us);
        free(waiter);
    }
}

static void decide_here(struct line *line)
{
    double now_us = (double)clock_mono_us(), wait_us = 0;
    uint32_t passed = line->asked;

    for (size_t i = 0; i < line->bucket_count; i++) {
        struct rate_bucket *bucket = &line->buckets[i];
        double tat_us = bucket->tat_us, wait; /* of a try: what passes here may be held there */
        uint32_t here = rate_take(&bucket->rate, &tat_us, now_us, passed, &wait);

        if (here < passed)
            wait_us = wait;
        passed = here;
    }
    for (size_t i = 0; i < line->bucket_count; i++) {
        double wait;

        (void)rate_take(&line->buckets[i].rate, &line->buckets[i].tat_us, now_us, passed, &wait);
    }
    metric_add(metrics_of(line->gateway->metrics, GATEWAY_METRIC_gateway_rates_local_total),
               line->asked);
    line_answer(line, passed, wait_us);
}

static void on_verdict(void *opaque, int code, const void *bytes, size_t size)
{
    struct line *line = opaque;
    double now_us = (double)clock_mono_us(), wait_us = 0, ignored;
    uint32_t passed = 0;
    char text[64] = "";

    if (code == ERR_OK && size < sizeof(text))
        memcpy(text, bytes, size);
    if (sscanf(text, "%" SCNu32 " %lf", &passed, &wait_us) != 2 || passed > line->asked) {
        decide_here(line);
    } else {
        for (size_t i = 0; i < line->bucket_count; i++)
            (void)rate_take(&line->buckets[i].rate, &line->buckets[i].tat_us, now_us, passed,
                            &ignored);
        line_answer(line, passed, wait_us);
    }
    if (line->waiting_count > 0 && line->asked == 0)
        line_ask(line);
}

static void line_ask(struct line *line)
{
    const char *arguments[3 + 3 * BUCKETS_MAX + 1];
    size_t sizes[COUNT_OF(arguments)], count = 0;
    char numbers[2 + 2 * BUCKETS_MAX][NUMBER_SIZE];
    size_t number = 0;

    line->asked = line->waiting_count;
    arguments[count++] = "EVAL";
    arguments[count++] = script;
    (void)snprintf(numbers[number], NUMBER_SIZE, "%zu", line->bucket_count);
    arguments[count++] = numbers[number++];
    for (size_t i = 0; i < line->bucket_count; i++)
        arguments[count++] = line->buckets[i].key;
    (void)snprintf(numbers[number], NUMBER_SIZE, "%" PRIu32, line->asked);
    arguments[count++] = numbers[number++];
    for (size_t i = 0; i < line->bucket_count; i++) {
        (void)snprintf(numbers[number], NUMBER_SIZE, "%.6f", line->buckets[i].rate.interval_us);
        arguments[count++] = numbers[number++];
        (void)snprintf(numbers[number], NUMBER_SIZE, "%.0f", line->buckets[i].rate.burst);
        arguments[count++] = numbers[number++];
    }
    for (size_t i = 0; i < count; i++)
        sizes[i] = strlen(arguments[i]);
    if (cache_command(line->gateway->cache, count, arguments, sizes, on_verdict, line) < 0)
        decide_here(line);
}

/* ---- who asks ---- */

static void line_join(struct line *line, struct call *call, void (*on_passed)(struct call *call))
{
    struct rate_waiter *waiter = xcalloc(1, sizeof(*waiter));

    waiter->call = call;
    waiter->on_passed = on_passed;
    STAILQ_INSERT_TAIL(&line->waiting, waiter, link);
    line->waiting_count++;
    line->gateway->rates->waiting_count++;
    if (line->asked == 0)
        line_ask(line);
}

void gateway_rates_check(struct call *call, void (*on_passed)(struct call *call))
{
    struct gateway *gateway = call->gateway;
    const struct config *config = gateway_watch_config(gateway->watch);
    struct rate tenant = {0}, key = {0};
    struct line_key name;
    struct line *line;
    struct err err;

    if (config != NULL) {
        tenant = rate_of(gateway_config_limits(config, LIMIT_ON_TENANT, call->tenant));
        key = rate_of(gateway_config_limits(config, LIMIT_ON_KEY, call->key_prefix));
    }
    if (tenant.interval_us <= 0 && key.interval_us <= 0) {
        on_passed(call);
        return;
    }
    if (gateway->rates->waiting_count >= WAITING_MAX) {
        (void)err_set(&err, ERR_FULL, "%d requests wait for their rate limit", WAITING_MAX);
        call_fail(&call, &err);
        return;
    }
    memset(&name, 0, sizeof(name));
    if (tenant.interval_us > 0)
        mem_copy_text(name.tenant, call->tenant);
    if (key.interval_us > 0)
        mem_copy_text(name.prefix, call->key_prefix);
    line = line_get(gateway, &name);
    if (line->asked == 0) /* else the answer that is due goes with the numbers of its question */
        line->bucket_count = 0;
    if (line->bucket_count == 0 && tenant.interval_us > 0)
        line_bucket(line, "t", name.tenant, tenant);
    if (line->bucket_count == (size_t)(tenant.interval_us > 0) && key.interval_us > 0)
        line_bucket(line, "k", name.prefix, key);
    line_join(line, call, on_passed);
}
