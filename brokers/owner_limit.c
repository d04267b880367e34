/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Parties: the tenants and API keys that jobs belong to, how many of their jobs run, and how many
 * may.
 *
 * A job that gets a token counts, whoever gave it, until the token has ended: so what an earlier
 * owner had started is in the count from the moment it is adopted, and a limit holds over a
 * takeover. What is adopted is never sent back for a limit.
 *
 * A party at its limit parks the lane (tenant) or the flow (key) that the scheduler just named, so
 * that the scheduler names somebody else; each is parked at most once until the party has room
 * again, and then all of the party's are put back. Jobs that wait in what is parked still expire
 * and can be canceled.
 */

#include <stdlib.h>
#include <string.h>

#include "brokers/owner_int.h"

#define FLOWS_BEFORE_SWEEP 1024

static void party_key(char to[PARTY_KEY_SIZE], enum owner_party kind, struct wire_text name)
{
    size_t size = name.size < OWNER_NAME_SIZE - 1 ? name.size : OWNER_NAME_SIZE - 1;

    memset(to, 0, PARTY_KEY_SIZE);
    to[0] = (char)kind;
    if (size > 0)
        memcpy(to + 1, name.text, size);
}

static struct party *party_get(struct owner *owner, enum owner_party kind, struct wire_text name)
{
    char key[PARTY_KEY_SIZE];
    struct party *party;

    party_key(key, kind, name);
    HASH_FIND(hh, owner->parties, key, PARTY_KEY_SIZE, party);
    if (party != NULL)
        return party;
    party = xcalloc(1, sizeof(*party));
    memcpy(party->key, key, sizeof(party->key));
    party->running_max = UINT64_MAX;
    party->weight = SCHED_WEIGHT_ONE;
    TAILQ_INIT(&party->parked_lanes);
    TAILQ_INIT(&party->parked_flows);
    HASH_ADD(hh, owner->parties, key, PARTY_KEY_SIZE, party);
    return party;
}

static void party_unref(struct owner *owner, struct party **party_p)
{
    struct party *party = TAKE(*party_p);

    if (party == NULL)
        return;
    party->user_count--;
    if (party->user_count > 0 || party->listed)
        return;
    assert(party->running == 0);
    HASH_DEL(owner->parties, party);
    free(party);
}

/* ---- lanes and flows ---- */

void limit_join_lane(struct owner *owner, struct lane *lane, struct wire_text tenant)
{
    lane->party = party_get(owner, OWNER_PARTY_TENANT, tenant);
    lane->party->user_count++;
    lane->sched.weight = lane->party->weight;
}

static void flow_free(struct owner *owner, struct flow *flow)
{
    if (flow->sched.parked)
        TAILQ_REMOVE(&flow->party->parked_flows, flow, parked_link);
    LIST_REMOVE(flow, lane_link);
    HASH_DEL(owner->flows, flow);
    party_unref(owner, &flow->party);
    sched_flow_done(&flow->sched);
    free(flow);
}

void limit_leave_lane(struct owner *owner, struct lane *lane)
{
    struct flow *flow;

    while ((flow = LIST_FIRST(&lane->flows)) != NULL)
        flow_free(owner, flow);
    if (lane->sched.parked)
        TAILQ_REMOVE(&lane->party->parked_lanes, lane, parked_link);
    party_unref(owner, &lane->party);
}

/* Flows outlive their jobs, because the next one comes soon; too many idle ones go together. */
static void flows_sweep(struct owner *owner)
{
    struct flow *flow, *next;

    if (HASH_COUNT(owner->flows) < owner->flow_sweep_at)
        return;
    HASH_ITER(hh, owner->flows, flow, next)
    {
        if (flow->jobs == 0)
            flow_free(owner, flow);
    }
    owner->flow_sweep_at = 2 * HASH_COUNT(owner->flows) + FLOWS_BEFORE_SWEEP;
}

struct flow *limit_flow(struct owner *owner, struct lane *lane, struct wire_text key_prefix)
{
    struct flow_key key;
    struct flow *flow;

    memset(&key, 0, sizeof(key));
    key.lane = lane;
    party_key(key.party, OWNER_PARTY_KEY, key_prefix);
    HASH_FIND(hh, owner->flows, &key, sizeof(key), flow);
    if (flow != NULL)
        return flow;
    flows_sweep(owner);
    flow = xcalloc(1, sizeof(*flow));
    flow->key = key;
    flow->lane = lane;
    if (key_prefix.size > 0) {
        flow->party = party_get(owner, OWNER_PARTY_KEY, key_prefix);
        flow->party->user_count++;
    }
    sched_flow_init(&flow->sched, &lane->sched);
    LIST_INSERT_HEAD(&lane->flows, flow, lane_link);
    HASH_ADD(hh, owner->flows, key, sizeof(flow->key), flow);
    return flow;
}

/* ---- running jobs ---- */

static bool party_is_full(const struct party *party)
{
    return party != NULL && party->running >= party->running_max;
}

/* Puts back what was parked, when there is room. */
static void party_check(struct owner *owner, struct party *party)
{
    struct lane *lane;
    struct flow *flow;

    if (party_is_full(party))
        return;
    while ((lane = TAILQ_FIRST(&party->parked_lanes)) != NULL) {
        TAILQ_REMOVE(&party->parked_lanes, lane, parked_link);
        sched_park_lane(&lane->pool->sched, &lane->sched, false);
        pool_check_busy(owner, lane->pool);
    }
    while ((flow = TAILQ_FIRST(&party->parked_flows)) != NULL) {
        TAILQ_REMOVE(&party->parked_flows, flow, parked_link);
        sched_park_flow(&flow->lane->pool->sched, &flow->sched, false);
        pool_check_busy(owner, flow->lane->pool);
    }
}

static void party_count(struct owner *owner, struct party *party, int sign)
{
    if (party == NULL)
        return;
    assert(sign > 0 || party->running > 0);
    party->running += (uint64_t)(int64_t)sign;
    if (sign < 0)
        party_check(owner, party);
}

void limit_count(struct owner *owner, const struct job *job, int sign)
{
    party_count(owner, job->lane->party, sign);
    party_count(owner, job->flow->party, sign);
}

bool limit_park(struct job *job)
{
    struct lane *lane = job->lane;
    struct flow *flow = job->flow;

    if (party_is_full(lane->party)) {
        TAILQ_INSERT_TAIL(&lane->party->parked_lanes, lane, parked_link);
        sched_park_lane(&lane->pool->sched, &lane->sched, true);
        return true;
    }
    if (party_is_full(flow->party)) {
        TAILQ_INSERT_TAIL(&flow->party->parked_flows, flow, parked_link);
        sched_park_flow(&lane->pool->sched, &flow->sched, true);
        return true;
    }
    return false;
}

/* ---- changes of limits ---- */

static void lanes_take_weights(struct owner *owner)
{
    struct pool *pool;
    struct lane *lane;

    for (pool = owner->pools; pool != NULL; pool = pool->hh.next) {
        for (lane = pool->lanes; lane != NULL; lane = lane->hh.next)
            lane->sched.weight = lane->party->weight;
    }
}

void owner_on_limits(struct owner *owner, const struct owner_limit *limits, size_t limit_count)
{
    struct party *party, *next;

    if (owner->phase == OWNER_OVER)
        return;
    owner->limits_known = true;
    HASH_ITER(hh, owner->parties, party, next)
    {
        party->listed = false;
        party->running_max = UINT64_MAX;
        party->weight = SCHED_WEIGHT_ONE;
    }
    for (size_t i = 0; i < limit_count; i++) {
        party = party_get(owner, limits[i].kind, limits[i].name);
        party->listed = true;
        party->running_max = limits[i].running_max;
        party->weight = limits[i].weight == 0 ? SCHED_WEIGHT_ONE : limits[i].weight;
    }
    HASH_ITER(hh, owner->parties, party, next)
    {
        party_check(owner, party);
        party->user_count++;
        party_unref(owner, &party); /* nobody may need it any more */
    }
    lanes_take_weights(owner);
}

uint64_t owner_running(const struct owner *owner, enum owner_party kind, struct wire_text name)
{
    char key[PARTY_KEY_SIZE];
    const struct party *party;

    party_key(key, kind, name);
    HASH_FIND(hh, owner->parties, key, PARTY_KEY_SIZE, party);
    return party == NULL ? 0 : party->running;
}

void owner_each_pace(const struct owner *owner,
                     void (*visit)(void *opaque, struct wire_text pool, uint64_t service_us,
                                   uint64_t slots),
                     void *opaque)
{
    const struct worker *worker;
    const struct pool *pool;

    for (pool = owner->pools; pool != NULL; pool = pool->hh.next) {
        uint64_t slots = 0;

        if (!pool->sched.taught)
            continue;
        for (worker = pool->workers > 0 ? owner->workers : NULL; worker != NULL;
             worker = worker->hh.next)
            slots += worker->pool == pool && !worker->draining ? worker->slots : 0;
        visit(opaque, WIRE_TEXT_OF(pool->name), pool->sched.estimate_us, slots);
    }
}

void limit_free_all(struct owner *owner)
{
    struct party *party, *next;

    HASH_ITER(hh, owner->parties, party, next)
    {
        HASH_DEL(owner->parties, party);
        free(party);
    }
}
