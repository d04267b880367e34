/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Who is asking: API keys by their prefix, remembered for a few seconds.
 *
 * Happy path: the prefix is remembered and young: compare digests in constant time, go on.
 * Otherwise one question to Postgres per prefix, however many calls wait for it. A prefix that is
 * unknown is remembered too, in a table of its own, so that guessing keys neither reaches Postgres
 * each time nor pushes good keys out. A change of a key in Postgres (headrace_config) forgets it at
 * once; the time to live is for notifications that were lost.
 *
 * Failures: with Postgres away a remembered key is believed on, up to STALE_MS_MAX; an unknown one
 * is answered 503, for we cannot say that it is bad.
 */

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/loop.h"
#include "base/metrics.h"
#include "brokers/pg.h"
#include "producers/gateway.h"

#define SLOTS 4096 /* of each table; a power of two; a slot is simply taken over */
#define STALE_MS_MAX (60ull * 60 * 1000)
#define WAITING_MAX 20000

PG_STATEMENT(key_find, "SELECT k.digest, k.tenant, k.role FROM api_key k JOIN tenant t ON "
                       "t.id = k.tenant WHERE k.prefix = $1 AND k.revoked_at IS NULL AND "
                       "t.deleted_at IS NULL");
PG_STATEMENT(key_used, "UPDATE api_key SET last_used_at = now() WHERE prefix = $1 AND "
                       "(last_used_at IS NULL OR last_used_at < now() - interval '1 minute')");

struct key_slot {
    char prefix[API_KEY_PREFIX_SIZE]; /* "": free */
    uint8_t digest[API_KEY_DIGEST_SIZE];
    char tenant[CONFIG_NAME_SIZE];
    enum api_key_role role;
    uint64_t asked_ms;
};

struct key_waiter {
    STAILQ_ENTRY(key_waiter) link;
    struct call *call;
    struct api_key key;
    void (*on_known)(struct call *call);
};

/* One question to Postgres, and who waits for it. */
struct key_question {
    LIST_ENTRY(key_question) link;
    struct keys *keys;
    char prefix[API_KEY_PREFIX_SIZE];
    STAILQ_HEAD(, key_waiter) waiters;
};

struct keys {
    struct gateway *gateway;
    struct key_slot good[SLOTS];
    struct key_slot unknown[SLOTS];
    LIST_HEAD(, key_question) questions;
    uint32_t waiting_count;
};

int gateway_keys_open(struct gateway *gateway, struct err *err)
{
    (void)err;
    gateway->keys = xcalloc(1, sizeof(*gateway->keys));
    gateway->keys->gateway = gateway;
    return 0;
}

static void question_free(struct key_question *question)
{
    struct key_waiter *waiter;

    LIST_REMOVE(question, link);
    while ((waiter = STAILQ_FIRST(&question->waiters)) != NULL) {
        STAILQ_REMOVE_HEAD(&question->waiters, link);
        free(waiter);
    }
    free(question);
}

void gateway_keys_close(struct keys **keys_p)
{
    struct keys *keys = TAKE(*keys_p);
    struct key_question *question;

    if (keys == NULL)
        return;
    while ((question = LIST_FIRST(&keys->questions)) != NULL)
        question_free(question);
    free(keys);
}

static struct key_slot *slot_of(struct key_slot *table, const char *prefix)
{
    uint32_t hash = 2166136261u; /* FNV-1a */

    for (const char *c = prefix; *c != '\0'; c++)
        hash = (hash ^ (uint8_t)*c) * 16777619u;
    return &table[(hash ^ hash >> 16) & (SLOTS - 1)];
}

static struct key_slot *slot_find(struct key_slot *table, const char *prefix)
{
    struct key_slot *slot = slot_of(table, prefix);

    return strcmp(slot->prefix, prefix) == 0 ? slot : NULL;
}

void gateway_keys_forget(struct keys *keys, const char *prefix)
{
    struct key_slot *slots[] = {slot_find(keys->good, prefix), slot_find(keys->unknown, prefix)};

    for (size_t i = 0; i < COUNT_OF(slots); i++) {
        if (slots[i] != NULL)
            *slots[i] = (struct key_slot){.asked_ms = 0};
    }
}

static void refuse(struct call *call, int status)
{
    call_fail_as(&call, status, "unauthorized",
                 status == 401 ? "please check the api-key you provided"
                               : "this api-key may not use this route");
}

/* slot NULL: there is no such key. */
static void decide(struct call *call, const struct api_key *key, const struct key_slot *slot,
                   void (*on_known)(struct call *call))
{
    if (slot == NULL || !api_key_digest_equal(slot->digest, key->digest)) {
        refuse(call, 401);
        return;
    }
    mem_copy_text(call->tenant, slot->tenant);
    mem_copy_text(call->key_prefix, slot->prefix);
    call->role = slot->role;
    if (!route_is_open_to(call->match.route, call->role))
        refuse(call, 403);
    else
        on_known(call);
}

static void count_lookup(struct keys *keys, const char *outcome)
{
    metric_add(
        metrics_series(keys->gateway->metrics, GATEWAY_METRIC_gateway_key_lookups_total, &outcome),
        1);
}

static void remember(struct keys *keys, const char *prefix, const struct pg_answer *answer)
{
    bool known = pg_row_count(answer, 0) == 1;
    struct key_slot *slot = slot_of(known ? keys->good : keys->unknown, prefix);
    struct wire_bytes digest;
    struct err err;

    gateway_keys_forget(keys, prefix);
    *slot = (struct key_slot){.asked_ms = loop_now_ms(keys->gateway->loop)};
    if (known) {
        digest = pg_bytes(answer, 0, 0, 0);
        if (digest.size != API_KEY_DIGEST_SIZE ||
            api_key_role_parse(pg_c(answer, 0, 0, 2), &slot->role, &err) < 0)
            return; /* a row that SQL's checks do not allow */
        memcpy(slot->digest, digest.bytes, API_KEY_DIGEST_SIZE);
        mem_copy_text(slot->tenant, pg_c(answer, 0, 0, 1));
    }
    mem_copy_text(slot->prefix, prefix);
    count_lookup(keys, known ? "known" : "unknown");
}

static bool is_young(const struct keys *keys, const struct key_slot *slot, uint64_t age_ms_max)
{
    return slot != NULL && loop_now_ms(keys->gateway->loop) - slot->asked_ms < age_ms_max;
}

static void on_key(void *opaque, const struct pg_answer *answer)
{
    struct key_question *question = opaque;
    struct keys *keys = question->keys;
    struct key_slot found, *slot;
    struct key_waiter *waiter;

    if (answer->err.code == ERR_OK)
        remember(keys, question->prefix, answer);
    else
        count_lookup(keys, "failed");
    slot = slot_find(keys->good, question->prefix);
    if (!is_young(keys, slot, STALE_MS_MAX))
        slot = NULL;
    if (slot != NULL)
        found = *slot; /* a waiter's own work may take the slot over */
    while ((waiter = STAILQ_FIRST(&question->waiters)) != NULL) {
        struct call *call = waiter->call;

        STAILQ_REMOVE_HEAD(&question->waiters, link);
        keys->waiting_count--;
        if (slot == NULL && answer->err.code != ERR_OK)
            (void)call_take_answer(&call, answer);
        else
            decide(call, &waiter->key, slot == NULL ? NULL : &found, waiter->on_known);
        free(waiter);
    }
    question_free(question);
}

static int question_send(struct key_question *question, struct err *err)
{
    struct pg_batch *batch = pg_batch_new();
    int r;

    pg_add(batch, &key_find);
    pg_bind_c(batch, question->prefix);
    pg_add(batch, &key_used);
    pg_bind_c(batch, question->prefix);
    r = pg_send(question->keys->gateway->pg_control, &batch, 1000, on_key, question, err);
    pg_batch_free(&batch);
    return r;
}

/* The open question about this prefix, or a new one. */
static int question_find(struct keys *keys, const char *prefix, struct key_question **ret_question,
                         struct err *err)
{
    struct key_question *question;
    int r;

    LIST_FOREACH(question, &keys->questions, link)
    {
        if (strcmp(question->prefix, prefix) == 0) {
            *ret_question = question;
            return 0;
        }
    }
    question = xcalloc(1, sizeof(*question));
    question->keys = keys;
    mem_copy_text(question->prefix, prefix);
    STAILQ_INIT(&question->waiters);
    LIST_INSERT_HEAD(&keys->questions, question, link);
    r = question_send(question, err);
    if (r < 0)
        question_free(question);
    else
        *ret_question = question;
    return r;
}

static int ask(struct keys *keys, struct call *call, const struct api_key *key,
               void (*on_known)(struct call *call), struct err *err)
{
    struct key_question *question;
    struct key_waiter *waiter;
    int r;

    if (!pg_connected(keys->gateway->pg_control))
        return err_set(err, ERR_UNAVAILABLE, "this key cannot be checked now: Postgres is away");
    if (keys->waiting_count >= WAITING_MAX)
        return err_set(err, ERR_FULL, "%d requests wait for their key to be checked", WAITING_MAX);
    r = question_find(keys, key->prefix, &question, err);
    if (r < 0)
        return r;
    waiter = xcalloc(1, sizeof(*waiter));
    waiter->call = call;
    waiter->key = *key;
    waiter->on_known = on_known;
    STAILQ_INSERT_TAIL(&question->waiters, waiter, link);
    keys->waiting_count++;
    return 0;
}

void gateway_keys_check(struct call *call, void (*on_known)(struct call *call))
{
    struct keys *keys = call->gateway->keys;
    const char *text = api_key_of_header(http_request_header(call->request, "Authorization"));
    uint64_t ttl_ms = call->gateway->settings.key_ttl_ms;
    const struct key_slot *slot;
    struct api_key key;
    struct err err;

    if (text == NULL || api_key_parse(text, &key, &err) < 0) {
        refuse(call, 401);
        return;
    }
    slot = slot_find(keys->good, key.prefix);
    if (is_young(keys, slot, ttl_ms))
        decide(call, &key, slot, on_known);
    else if (slot == NULL && is_young(keys, slot_find(keys->unknown, key.prefix), ttl_ms))
        refuse(call, 401);
    else if (ask(keys, call, &key, on_known, &err) == 0)
        return;
    else if (is_young(keys, slot, STALE_MS_MAX))
        decide(call, &key, slot, on_known);
    else
        call_fail(&call, &err);
}
