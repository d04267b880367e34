/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One owned shard, from Kafka's assignment to its end.
 *
 *   CHECKING ─▶ TAKING ─▶ ENDS ─▶ OWNED ─▶ (drain) ─▶ CLOSED
 *        ▲         │        │        │
 *        └──────── WAITING ◀┴────────┘   something failed; a second later it is tried again
 *
 * Happy path: raise the epoch in Postgres, which waits for the old owner's open flush; then ask
 * where intake and outcome end (asked before, a record that the old owner ran could pass for a new
 * one); make the owner; read both topics from the floors of the ledger. From then on each record,
 * answer and tick is an event of the owner, and the to-dos of a turn are carried out at its end.
 *
 * Failures: Postgres or Kafka away before the owner exists: tried again each second. A record at
 * the floor that is gone (retention, a new topic of the same name): named, tried again, never
 * skipped. Another owner: see broker_todo.c.
 *
 * Lost to another broker: shard_close() at once. Taken back by Kafka: shard_drain() first.
 *
 * Caught up: leases age only while outcome was read to its end a moment ago (PROTOCOL 9).
 * librdkafka tells the end once, so while nothing comes Kafka is asked for it.
 */

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "brokers/broker.h"
#include "brokers/fault.h"
#include "schema/topics.h"

#define RETRY_MS 1000
#define ENDS_TIMEOUT_MS 5000
#define PROBE_INTERVAL_MS 200
#define PROBE_TIMEOUT_MS 1000
#define TIMER_MS_MAX 100

static void shard_timer(void *opaque);
static void shard_probe(void *opaque);

struct shard *shard_ref(struct shard *shard)
{
    shard->ref_count++;
    return shard;
}

void shard_unref(struct shard **shard_p)
{
    struct shard *shard = TAKE(*shard_p);

    if (shard == NULL)
        return;
    assert(shard->ref_count > 0);
    if (--shard->ref_count > 0)
        return;
    assert(shard->phase == SHARD_CLOSED);
    LIST_REMOVE(shard, next);
    free(shard);
}

void shards_forget(struct broker *broker)
{
    struct shard *shard;

    while ((shard = LIST_FIRST(&broker->closed_shards)) != NULL) {
        shard->ref_count = 1;
        shard_unref(&shard);
    }
}

/* Everything that an ownership consists of; the shard itself stays. */
static void shard_let_go(struct shard *shard)
{
    queue_reader_close(&shard->intake);
    queue_reader_close(&shard->outcome);
    loop_timer_stop(shard->prober);
    publications_free(&shard->publications);
    watch_shard_left(shard);
    owner_free(&shard->owner);
    shard->takeover = NULL;
    store_close(&shard->store);
    shard->dirty = shard->held = shard->live_logged = false;
    shard->counted = (struct owner_stats){0};
}

struct shard *shard_open(struct broker *broker, uint32_t number)
{
    struct shard *shard = xcalloc(1, sizeof(*shard));

    shard->broker = broker;
    shard->number = number;
    shard->ref_count = 1;
    shard->timer = loop_timer_new(broker->loop, shard_timer, shard);
    shard->prober = loop_timer_new(broker->loop, shard_probe, shard);
    LIST_INSERT_HEAD(&broker->shards, shard, next);
    shard->phase = SHARD_CHECKING;
    ledger_check_cluster(shard);
    return shard;
}

void shard_close(struct shard **shard_p)
{
    struct shard *shard = TAKE(*shard_p);

    if (shard == NULL)
        return;
    log_info("shard_left", LOG_U64("shard", shard->number));
    shard_let_go(shard);
    shard->phase = SHARD_CLOSED;
    LIST_REMOVE(shard, next);
    LIST_INSERT_HEAD(&shard->broker->closed_shards, shard, next);
    loop_timer_free(&shard->timer);
    loop_timer_free(&shard->prober);
    shard_unref(&shard);
}

/* Called from answers of the very parts that must go: they are let go at the end of the turn. */
void shard_retry(struct shard *shard, const struct err *err)
{
    if (strcmp(shard->waits_for, err->text) != 0)
        log_warn("shard_waits", LOG_U64("shard", shard->number), LOG_ERR(err),
                 LOG_U64("retry_ms", RETRY_MS));
    mem_copy_text(shard->waits_for, err->text);
    shard->phase = SHARD_WAITING;
    shard->dirty = true;
    loop_timer_start(shard->timer, RETRY_MS, 0);
}

/* ---- Events of the owner */

void shard_touch(struct shard *shard)
{
    owner_tick(shard->owner, clock_mono_us(), clock_wall_us());
    shard->dirty = true;
}

static void on_intake(void *opaque, const struct queue_record *records, size_t record_count)
{
    struct shard *shard = opaque;

    if (shard->phase != SHARD_OWNED)
        return;
    fault_point(FAULT_broker_consumed);
    shard_touch(shard);
    for (size_t i = 0; i < record_count; i++)
        owner_on_intake(shard->owner, records[i].offset, records[i].append_us, records[i].bytes,
                        records[i].size);
}

static void on_intake_end(void *opaque, int64_t offset)
{
    struct shard *shard = opaque;

    (void)offset; /* says nothing of the time: a record may be on its way (shard_probe) */
    if (shard->phase == SHARD_OWNED)
        shard_touch(shard);
}

static void on_outcome(void *opaque, const struct queue_record *records, size_t record_count)
{
    struct shard *shard = opaque;

    if (shard->phase != SHARD_OWNED)
        return;
    shard_touch(shard);
    for (size_t i = 0; i < record_count; i++)
        owner_on_outcome(shard->owner, records[i].offset, records[i].bytes, records[i].size);
}

static void on_outcome_end(void *opaque, int64_t offset)
{
    struct shard *shard = opaque;

    (void)offset;
    if (shard->phase != SHARD_OWNED)
        return;
    shard_touch(shard);
    shard->outcome_end_us = clock_mono_us();
    owner_on_outcome_end(shard->owner, shard->outcome_end_us);
}

static void on_reader_error(void *opaque, const struct err *err)
{
    struct shard *shard = opaque;

    if (err_class(err->code) != ERR_CLASS_RETRY && shard->phase == SHARD_OWNED)
        shard_retry(shard, err);
}

static const struct queue_reader_calls intake_calls = {on_intake, on_intake_end, on_reader_error};
static const struct queue_reader_calls outcome_calls = {on_outcome, on_outcome_end,
                                                        on_reader_error};

static uint64_t due_ms(uint64_t due_us, uint64_t now_us)
{
    if (due_us <= now_us)
        return 1;
    if (due_us - now_us > TIMER_MS_MAX * 1000)
        return TIMER_MS_MAX;
    return (due_us - now_us + 999) / 1000;
}

void shard_turn(struct shard *shard)
{
    bool unsent;

    if (!shard->dirty)
        return;
    shard->dirty = false;
    if (shard->phase == SHARD_WAITING)
        shard_let_go(shard);
    if (shard->phase != SHARD_OWNED)
        return;
    unsent = publications_push(shard);
    shard_carry_out(shard);
    if (shard->phase != SHARD_OWNED)
        return;
    loop_timer_start(shard->timer,
                     unsent ? 10 : due_ms(owner_next_due_us(shard->owner), clock_mono_us()), 0);
    if (!shard->live_logged && owner_stats(shard->owner).live) {
        shard->live_logged = true;
        shard->waits_for[0] = 0;
        log_info("shard_live", LOG_U64("shard", shard->number));
    }
}

/* ---- Where the topics end while nothing comes */

static void on_intake_probed(void *opaque, int64_t begin, int64_t end, const struct err *err)
{
    struct shard *shard = opaque;

    (void)begin;
    shard->intake_probe_due = false;
    if (err == NULL && shard->phase == SHARD_OWNED && queue_reader_position(shard->intake) >= end) {
        shard_touch(shard);
        owner_on_intake_end(shard->owner, shard->probe_wall_us);
    }
    shard_unref(&shard);
}

static void on_outcome_probed(void *opaque, int64_t begin, int64_t end, const struct err *err)
{
    struct shard *shard = opaque;

    (void)begin;
    shard->outcome_probe_due = false;
    if (err == NULL && shard->phase == SHARD_OWNED &&
        queue_reader_position(shard->outcome) >= end) {
        shard_touch(shard);
        owner_on_outcome_end(shard->owner, shard->probe_mono_us);
    }
    shard_unref(&shard);
}

static void shard_probe(void *opaque)
{
    struct shard *shard = opaque;
    struct queue_admin *admin = shard->broker->admin;

    if (!shard->intake_probe_due) {
        shard->intake_probe_due = true;
        shard->probe_wall_us = clock_wall_us();
        queue_admin_ends(admin, topic_name(TOPIC_INTAKE), shard->number, PROBE_TIMEOUT_MS,
                         on_intake_probed, shard_ref(shard));
    }
    if (!shard->outcome_probe_due &&
        clock_mono_us() - shard->outcome_end_us > PROBE_INTERVAL_MS * 1000) {
        shard->outcome_probe_due = true;
        shard->probe_mono_us = clock_mono_us();
        queue_admin_ends(admin, topic_name(TOPIC_OUTCOME), shard->number, PROBE_TIMEOUT_MS,
                         on_outcome_probed, shard_ref(shard));
    }
}

/* ---- Taking over */

static struct owner_options owner_options_of(const struct broker *broker)
{
    struct owner_options options = owner_options_default;

    options.row_delay_us = broker->settings.row_delay_ms * 1000;
    if (options.row_delay_bulk_us < options.row_delay_us)
        options.row_delay_bulk_us = options.row_delay_us;
    options.lease_us = broker->settings.lease_ms * 1000;
    options.window_jobs = (uint32_t)broker->settings.window;
    options.ageing_percent = broker->settings.strict ? 0
                                                     : (uint32_t)broker->settings.ageing_percent;
    options.ageing_after_us = broker->settings.ageing_after_ms * 1000;
    options.await_limits = true;
    options.delayed_jobs = (uint64_t)broker->settings.delayed;
    options.seed = clock_wall_us();
    return options;
}

static int shard_read(struct shard *shard, struct err *err)
{
    struct broker *broker = shard->broker;
    int r = queue_reader_open(broker->consumer, topic_name(TOPIC_INTAKE), shard->number,
                              shard->intake_floor, &intake_calls, shard, &shard->intake, err);

    if (r == 0)
        r = queue_reader_open(broker->consumer, topic_name(TOPIC_OUTCOME), shard->number,
                              shard->outcome_floor, &outcome_calls, shard, &shard->outcome, err);
    return r;
}

static void shard_own(struct shard *shard)
{
    const struct owner_options options = owner_options_of(shard->broker);
    struct ledger_takeover *takeover = TAKE(shard->takeover);
    struct err err;

    log_info("shard_taken", LOG_U64("shard", shard->number), LOG_U64("epoch", takeover->epoch),
             LOG_I64("intake_floor", takeover->intake_floor),
             LOG_I64("intake_end", shard->ends.intake_end),
             LOG_I64("outcome_floor", takeover->outcome_floor),
             LOG_I64("outcome_end", shard->ends.outcome_end), LOG_U64("rows", takeover->row_count),
             LOG_U64("lanes", takeover->lane_count),
             LOG_U64("unpublished", takeover->unpublished_count));
    shard->publications = publications_new(shard);
    shard->owner = owner_new(&options, takeover, shard->ends, clock_mono_us(), clock_wall_us());
    shard->phase = SHARD_OWNED;
    broker_limits_apply(shard);
    shard->broker->takeover_count++;
    shard_listen(shard);
    owner_set_switches(shard->owner, shard->broker->switches, shard->broker->switch_count);
    if (shard_read(shard, &err) < 0) {
        shard_retry(shard, &err);
        return;
    }
    shard_touch(shard);
    loop_timer_start(shard->prober, PROBE_INTERVAL_MS, PROBE_INTERVAL_MS);
}

/* A floor before the beginning of the log: accepted jobs are gone, which nobody may skip silently.
 * A ledger without any flush starts where the log starts. */
static int floor_check(const char *topic, uint32_t partition, int64_t begin, int64_t end,
                       int64_t *floor_p, struct err *err)
{
    if (*floor_p < 0)
        *floor_p = begin;
    if (*floor_p < begin || *floor_p > end)
        return err_set(err, ERR_DEPENDENCY,
                       "the ledger continues %s[%u] at %lld, but the log holds %lld to %lld: "
                       "records were deleted before they were read, or the topic is a new one",
                       topic, partition, (long long)*floor_p, (long long)begin, (long long)end);
    return 0;
}

static void ends_known(struct shard *shard, const char *topic, int64_t begin, int64_t end,
                       int64_t *floor_p, const struct err *err)
{
    struct err own;

    shard->ends_due--;
    if (shard->phase != SHARD_ENDS)
        return;
    if (err == NULL && floor_check(topic, shard->number, begin, end, floor_p, &own) < 0)
        err = &own;
    if (err != NULL) {
        shard_retry(shard, err);
        return;
    }
    if (shard->ends_due == 0)
        shard_own(shard);
}

static void on_intake_ends(void *opaque, int64_t begin, int64_t end, const struct err *err)
{
    struct shard *shard = opaque;

    shard->ends.intake_end = end;
    ends_known(shard, topic_name(TOPIC_INTAKE), begin, end, &shard->intake_floor, err);
    shard_unref(&shard);
}

static void on_outcome_ends(void *opaque, int64_t begin, int64_t end, const struct err *err)
{
    struct shard *shard = opaque;

    shard->ends.outcome_end = end;
    ends_known(shard, topic_name(TOPIC_OUTCOME), begin, end, &shard->outcome_floor, err);
    shard_unref(&shard);
}

static void on_takeover(void *opaque, struct ledger_takeover *takeover, struct err *err)
{
    struct shard *shard = opaque;
    struct queue_admin *admin = shard->broker->admin;

    if (takeover == NULL) {
        shard_retry(shard, err);
        return;
    }
    fault_point(FAULT_broker_offsets_read);
    shard->takeover = takeover;
    shard->intake_floor = takeover->intake_floor;
    shard->outcome_floor = takeover->outcome_floor;
    shard->phase = SHARD_ENDS;
    shard->ends_due = 2;
    queue_admin_ends(admin, topic_name(TOPIC_INTAKE), shard->number, ENDS_TIMEOUT_MS,
                     on_intake_ends, shard_ref(shard));
    queue_admin_ends(admin, topic_name(TOPIC_OUTCOME), shard->number, ENDS_TIMEOUT_MS,
                     on_outcome_ends, shard_ref(shard));
}

void shard_take(struct shard *shard)
{
    const struct broker *broker = shard->broker;
    const struct store_options options = {.url = broker->settings.postgres,
                                          .application = broker->boot};
    struct err err;

    shard->phase = SHARD_TAKING;
    if (store_open(broker->loop, &options, &shard->store, &err) < 0) {
        shard_retry(shard, &err);
        return;
    }
    store_takeover(shard->store, shard->number, on_takeover, shard);
}

static void shard_timer(void *opaque)
{
    struct shard *shard = opaque;

    if (shard->phase == SHARD_OWNED) {
        shard_touch(shard);
    } else if (shard->phase == SHARD_WAITING && shard->ends_due > 0) {
        loop_timer_start(shard->timer, RETRY_MS, 0); /* answers to the last attempt are due */
    } else if (shard->phase == SHARD_WAITING) {
        shard->phase = SHARD_CHECKING;
        ledger_check_cluster(shard);
    }
}

/* ---- Leaving */

void shard_drain(struct shard *shard)
{
    if (shard->phase != SHARD_OWNED)
        return;
    shard_touch(shard);
    owner_drain(shard->owner);
}

bool shard_drained(const struct shard *shard)
{
    return shard->phase != SHARD_OWNED || !owner_stats(shard->owner).live ||
           owner_drained(shard->owner);
}
