/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/webhook_gate.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"

#define LATENCY_SHARE 0.1 /* of the newest answer in the smoothed one */
#define LATENCY_MS_FIRST 50.0
#define FORGET_LOOK_MAX 64 /* idle endpoints looked at for one that is well */

TAILQ_HEAD(endpoints, webhook_endpoint);

struct webhook_origin {
    char *key; /* tenant, newline, scheme://host:port */
    struct webhook_valve valve;
    uint32_t endpoint_count;
    struct endpoints blocked; /* endpoints with a line that found no place for their host */
    UT_hash_handle hh;
};

struct webhook_gate {
    struct webhook_gate_options options;
    struct webhook_endpoint *endpoints; /* by key */
    struct webhook_origin *origins;
    struct endpoints used; /* longest unused first */
    struct endpoints ring; /* those with a line that may move */
    uint32_t in_flight, waiting, open_count;
};

/* ---- URLs ---- */

size_t webhook_url_endpoint_size(const char *url)
{
    return strcspn(url, "?#");
}

size_t webhook_url_origin_size(const char *url)
{
    const char *host = strstr(url, "://");

    if (host == NULL)
        return strcspn(url, "/?#");
    host += 3;
    return (size_t)(host - url) + strcspn(host, "/?#");
}

static char *key_make(const char *tenant, const char *url, size_t url_size)
{
    return xasprintf("%s\n%.*s", tenant, (int)url_size, url);
}

/* ---- valves: the circuit ---- */

static bool status_is_failure(int http_status)
{
    return http_status == 0 || http_status == 408 || http_status == 425 || http_status == 429 ||
           http_status >= 500;
}

static bool valve_is_well(const struct webhook_valve *valve)
{
    return valve->circuit == WEBHOOK_CIRCUIT_CLOSED;
}

static void valve_set(struct webhook_gate *gate, struct webhook_valve *valve,
                      enum webhook_circuit circuit)
{
    bool was_well = valve_is_well(valve);

    valve->circuit = circuit;
    valve->probing = false;
    if (was_well && !valve_is_well(valve))
        gate->open_count++;
    else if (!was_well && valve_is_well(valve))
        gate->open_count--;
}

static void valve_open(struct webhook_gate *gate, struct webhook_valve *valve, uint64_t open_ms,
                       uint64_t now_ms)
{
    valve->open_ms = open_ms;
    valve->until_ms = now_ms + open_ms;
    valve->held = false;
    valve_set(gate, valve, WEBHOOK_CIRCUIT_OPEN);
}

/* Twice as long as last time, within bounds, spread by a tenth to both sides. */
static uint64_t next_open_ms(const struct webhook_gate *gate, const struct webhook_valve *valve,
                             double jitter)
{
    double first_ms = WEBHOOK_OPEN_MS_FIRST * gate->options.time_scale;
    double longest_ms = WEBHOOK_OPEN_MS_MAX * gate->options.time_scale;
    double open_ms = valve->open_ms == 0 ? first_ms : 2.0 * (double)valve->open_ms;

    if (open_ms < first_ms)
        open_ms = first_ms;
    if (open_ms > longest_ms)
        open_ms = longest_ms;
    return (uint64_t)(open_ms * (0.9 + 0.2 * jitter)) + 1;
}

static void valve_tell(struct webhook_gate *gate, struct webhook_valve *valve, bool failed,
                       uint64_t retry_after_ms, uint64_t now_ms, double jitter)
{
    bool half_open = valve->circuit == WEBHOOK_CIRCUIT_HALF_OPEN;

    if (!failed && valve->circuit == WEBHOOK_CIRCUIT_OPEN && valve->held)
        return;
    if (!failed) {
        valve->failure_count = 0;
        valve->open_ms = 0;
        valve_set(gate, valve, WEBHOOK_CIRCUIT_CLOSED);
        return;
    }
    if (valve->failure_count < UINT32_MAX)
        valve->failure_count++;
    if (retry_after_ms > WEBHOOK_OPEN_MS_MAX)
        retry_after_ms = WEBHOOK_OPEN_MS_MAX;
    if (gate->options.failures_max == 0)
        return;
    if (retry_after_ms > 0 && valve->circuit != WEBHOOK_CIRCUIT_OPEN) {
        valve_open(gate, valve, retry_after_ms, now_ms);
        valve->held = true;
        return;
    }
    if (half_open || (valve_is_well(valve) && valve->failure_count >= gate->options.failures_max))
        valve_open(gate, valve, next_open_ms(gate, valve, jitter), now_ms);
}

/* Moves on with the time; true when one may try, as far as the circuit goes. */
static bool valve_admits(struct webhook_gate *gate, struct webhook_valve *valve, uint64_t now_ms)
{
    if (valve->circuit == WEBHOOK_CIRCUIT_OPEN && now_ms >= valve->until_ms)
        valve_set(gate, valve, WEBHOOK_CIRCUIT_HALF_OPEN);
    return valve_is_well(valve) || (valve->circuit == WEBHOOK_CIRCUIT_HALF_OPEN && !valve->probing);
}

/* ---- valves: places ---- */

/* All of `most` while half or more is free, then ever fewer, at least one. */
static uint32_t share(uint32_t most, uint32_t free, uint32_t total)
{
    if (most == 0 || (uint64_t)free * 2 >= total)
        return most;
    return 1 + (uint32_t)((uint64_t)(most - 1) * free * 2 / total);
}

static bool valve_has_place(const struct webhook_gate *gate, const struct webhook_valve *valve,
                            uint32_t most)
{
    uint32_t total = gate->options.total_max;

    return gate->in_flight < total &&
           valve->in_flight < share(most, total - gate->in_flight, total);
}

static void count_in(struct webhook_gate *gate, struct webhook_endpoint *endpoint)
{
    struct webhook_valve *valves[] = {&endpoint->valve, &endpoint->origin->valve};

    for (size_t i = 0; i < COUNT_OF(valves); i++) {
        valves[i]->in_flight++;
        valves[i]->probing = valves[i]->circuit == WEBHOOK_CIRCUIT_HALF_OPEN;
    }
    gate->in_flight++;
}

/* ---- lines ---- */

static void place_leave(struct webhook_gate *gate, struct webhook_endpoint *endpoint)
{
    if (endpoint->place == WEBHOOK_IN_RING)
        TAILQ_REMOVE(&gate->ring, endpoint, place_next);
    else if (endpoint->place == WEBHOOK_IN_ORIGIN)
        TAILQ_REMOVE(&endpoint->origin->blocked, endpoint, place_next);
    endpoint->place = WEBHOOK_NOWHERE;
}

static void ring_join(struct webhook_gate *gate, struct webhook_endpoint *endpoint)
{
    if (endpoint->place == WEBHOOK_IN_RING || endpoint->waiting == 0)
        return;
    place_leave(gate, endpoint);
    TAILQ_INSERT_TAIL(&gate->ring, endpoint, place_next);
    endpoint->place = WEBHOOK_IN_RING;
}

void webhook_gate_waits(struct webhook_gate *gate, struct webhook_endpoint *endpoint)
{
    endpoint->waiting++;
    gate->waiting++;
    ring_join(gate, endpoint);
}

void webhook_gate_left(struct webhook_gate *gate, struct webhook_endpoint *endpoint)
{
    assert(endpoint->waiting > 0 && gate->waiting > 0);
    endpoint->waiting--;
    gate->waiting--;
    if (endpoint->waiting == 0)
        place_leave(gate, endpoint);
}

/* Both are asked: a circuit moves on with the time also when the other one is open. */
static bool circuits_admit(struct webhook_gate *gate, struct webhook_endpoint *endpoint,
                           uint64_t now_ms)
{
    bool host = valve_admits(gate, &endpoint->origin->valve, now_ms);
    bool own = valve_admits(gate, &endpoint->valve, now_ms);

    return host && own;
}

struct webhook_endpoint *webhook_gate_next(struct webhook_gate *gate, uint64_t now_ms,
                                           bool *ret_drain)
{
    struct webhook_endpoint *endpoint;

    *ret_drain = false;
    while (gate->in_flight < gate->options.total_max &&
           (endpoint = TAILQ_FIRST(&gate->ring)) != NULL) {
        place_leave(gate, endpoint);
        if (!circuits_admit(gate, endpoint, now_ms)) {
            *ret_drain = true;
            return endpoint;
        }
        if (!valve_has_place(gate, &endpoint->origin->valve, gate->options.origin_max)) {
            TAILQ_INSERT_TAIL(&endpoint->origin->blocked, endpoint, place_next);
            endpoint->place = WEBHOOK_IN_ORIGIN;
            continue;
        }
        if (!valve_has_place(gate, &endpoint->valve, gate->options.endpoint_max))
            continue; /* one of its own is under way and brings it back */
        count_in(gate, endpoint);
        ring_join(gate, endpoint);
        return endpoint;
    }
    return NULL;
}

/* ---- asking ---- */

/* Spread behind the time of the circuit, so that not everything comes back at once. */
static uint64_t delay_of_circuit(const struct webhook_gate *gate,
                                 const struct webhook_endpoint *endpoint, uint64_t now_ms,
                                 double jitter)
{
    const struct webhook_valve *valve = valve_is_well(&endpoint->origin->valve)
                                            ? &endpoint->valve
                                            : &endpoint->origin->valve;
    uint64_t left_ms = valve->circuit == WEBHOOK_CIRCUIT_OPEN && valve->until_ms > now_ms
                           ? valve->until_ms - now_ms
                           : 0;
    double least_ms = 1000.0 * gate->options.time_scale;
    double spread_ms = (double)valve->open_ms / 2;

    return left_ms + (uint64_t)(least_ms + spread_ms * jitter) + 1;
}

/* When its turn should come, by what answers take and how many are ahead of it. */
static uint64_t delay_of_line(const struct webhook_gate *gate, struct webhook_endpoint *endpoint,
                              uint64_t now_ms, double jitter)
{
    double each_ms = endpoint->latency_ms / gate->options.endpoint_max;
    double now = (double)now_ms, soonest = now + each_ms * endpoint->waiting;

    if (endpoint->slot_ms < soonest)
        endpoint->slot_ms = soonest;
    if (endpoint->slot_ms > now + WEBHOOK_BUSY_MS_MAX)
        endpoint->slot_ms = now + WEBHOOK_BUSY_MS_MAX * (0.5 + 0.5 * jitter);
    endpoint->slot_ms += each_ms;
    return (uint64_t)(endpoint->slot_ms - now) + 1;
}

enum webhook_verdict webhook_gate_ask(struct webhook_gate *gate, struct webhook_endpoint *endpoint,
                                      uint64_t now_ms, double jitter, uint64_t *ret_delay_ms)
{
    uint32_t waiting_max = gate->options.waiting_max;
    uint32_t free = gate->waiting < waiting_max ? waiting_max - gate->waiting : 0;

    if (!circuits_admit(gate, endpoint, now_ms)) {
        *ret_delay_ms = delay_of_circuit(gate, endpoint, now_ms, jitter);
        return WEBHOOK_LATER;
    }
    if (endpoint->waiting == 0 &&
        valve_has_place(gate, &endpoint->origin->valve, gate->options.origin_max) &&
        valve_has_place(gate, &endpoint->valve, gate->options.endpoint_max)) {
        count_in(gate, endpoint);
        return WEBHOOK_GO;
    }
    if (free > 0 && endpoint->waiting < share(gate->options.line_max, free, waiting_max))
        return WEBHOOK_LINE;
    *ret_delay_ms = delay_of_line(gate, endpoint, now_ms, jitter);
    return WEBHOOK_LATER;
}

void webhook_gate_end(struct webhook_gate *gate, struct webhook_endpoint *endpoint,
                      const struct webhook_gate_result *result, uint64_t now_ms, double jitter)
{
    struct webhook_origin *origin = endpoint->origin;
    struct webhook_endpoint *blocked;

    assert(gate->in_flight > 0 && endpoint->valve.in_flight > 0 && origin->valve.in_flight > 0);
    gate->in_flight--;
    endpoint->valve.in_flight--;
    origin->valve.in_flight--;
    if (result->neutral) {
        endpoint->valve.probing = origin->valve.probing = false;
    } else {
        valve_tell(gate, &origin->valve, result->http_status == 0, 0, now_ms, jitter);
        valve_tell(gate, &endpoint->valve, status_is_failure(result->http_status),
                   result->retry_after_ms, now_ms, jitter);
        endpoint->latency_ms += LATENCY_SHARE * ((double)result->took_ms - endpoint->latency_ms);
    }
    ring_join(gate, endpoint);
    /* A place at the host is for one more; a host that is not well lets all go elsewhere. */
    while ((blocked = TAILQ_FIRST(&origin->blocked)) != NULL) {
        ring_join(gate, blocked);
        if (valve_is_well(&origin->valve))
            break;
    }
}

/* ---- what is known ---- */

enum webhook_circuit webhook_endpoint_circuit(const struct webhook_endpoint *endpoint)
{
    enum webhook_circuit own = endpoint->valve.circuit, host = endpoint->origin->valve.circuit;

    if (own == WEBHOOK_CIRCUIT_OPEN || host == WEBHOOK_CIRCUIT_OPEN)
        return WEBHOOK_CIRCUIT_OPEN;
    return own == WEBHOOK_CIRCUIT_CLOSED ? host : own;
}

uint64_t webhook_endpoint_until_ms(const struct webhook_endpoint *endpoint)
{
    const struct webhook_valve *own = &endpoint->valve, *host = &endpoint->origin->valve;
    uint64_t until_ms = own->circuit == WEBHOOK_CIRCUIT_OPEN ? own->until_ms : 0;

    if (host->circuit == WEBHOOK_CIRCUIT_OPEN && host->until_ms > until_ms)
        until_ms = host->until_ms;
    return until_ms;
}

uint32_t webhook_gate_open_count(const struct webhook_gate *gate)
{
    return gate->open_count;
}

uint32_t webhook_gate_waiting(const struct webhook_gate *gate)
{
    return gate->waiting;
}

uint32_t webhook_gate_in_flight(const struct webhook_gate *gate)
{
    return gate->in_flight;
}

static void origin_forget(struct webhook_gate *gate, struct webhook_origin *origin)
{
    if (!valve_is_well(&origin->valve))
        gate->open_count--;
    HASH_DEL(gate->origins, origin);
    free(origin->key);
    free(origin);
}

static void endpoint_forget(struct webhook_gate *gate, struct webhook_endpoint *endpoint)
{
    if (!valve_is_well(&endpoint->valve))
        gate->open_count--;
    if (--endpoint->origin->endpoint_count == 0)
        origin_forget(gate, endpoint->origin);
    place_leave(gate, endpoint);
    TAILQ_REMOVE(&gate->used, endpoint, used_next);
    HASH_DEL(gate->endpoints, endpoint);
    free(endpoint->key);
    free(endpoint->tenant);
    free(endpoint);
}

/* Makes room for one: the longest unused that is idle; one that is well if there is any. */
static void forget_one(struct webhook_gate *gate)
{
    struct webhook_endpoint *endpoint, *idle = NULL;
    uint32_t looked = 0;

    TAILQ_FOREACH(endpoint, &gate->used, used_next)
    {
        if (idle != NULL && ++looked > FORGET_LOOK_MAX)
            break;
        if (endpoint->valve.in_flight > 0 || endpoint->waiting > 0 || endpoint->dirty)
            continue;
        if (idle == NULL)
            idle = endpoint;
        if (webhook_endpoint_circuit(endpoint) == WEBHOOK_CIRCUIT_CLOSED) {
            idle = endpoint;
            break;
        }
    }
    if (idle != NULL)
        endpoint_forget(gate, idle);
}

static struct webhook_origin *origin_find(struct webhook_gate *gate, const char *tenant,
                                          const char *url)
{
    char *key = key_make(tenant, url, webhook_url_origin_size(url));
    struct webhook_origin *origin;

    HASH_FIND_STR(gate->origins, key, origin);
    if (origin != NULL) {
        free(key);
        return origin;
    }
    origin = xcalloc(1, sizeof(*origin));
    origin->key = key;
    origin->valve.circuit = WEBHOOK_CIRCUIT_CLOSED;
    TAILQ_INIT(&origin->blocked);
    HASH_ADD_KEYPTR(hh, gate->origins, origin->key, strlen(origin->key), origin);
    return origin;
}

struct webhook_endpoint *webhook_gate_find(struct webhook_gate *gate, const char *tenant,
                                           const char *url, uint64_t now_ms)
{
    char *key = key_make(tenant, url, webhook_url_endpoint_size(url));
    struct webhook_endpoint *endpoint;

    HASH_FIND_STR(gate->endpoints, key, endpoint);
    if (endpoint != NULL) {
        free(key);
        TAILQ_REMOVE(&gate->used, endpoint, used_next);
    } else {
        if (HASH_COUNT(gate->endpoints) >= gate->options.known_max)
            forget_one(gate);
        endpoint = xcalloc(1, sizeof(*endpoint));
        endpoint->key = key;
        endpoint->tenant = xstrdup(tenant);
        endpoint->url = key + strlen(tenant) + 1;
        endpoint->origin = origin_find(gate, tenant, url);
        endpoint->origin->endpoint_count++;
        endpoint->valve.circuit = WEBHOOK_CIRCUIT_CLOSED;
        endpoint->latency_ms = LATENCY_MS_FIRST;
        TAILQ_INIT(&endpoint->line);
        HASH_ADD_KEYPTR(hh, gate->endpoints, endpoint->key, strlen(endpoint->key), endpoint);
    }
    endpoint->used_ms = now_ms;
    TAILQ_INSERT_TAIL(&gate->used, endpoint, used_next);
    return endpoint;
}

struct webhook_gate *webhook_gate_new(const struct webhook_gate_options *options)
{
    struct webhook_gate *gate = xcalloc(1, sizeof(*gate));

    assert(options->total_max > 0 && options->endpoint_max > 0 && options->origin_max > 0);
    gate->options = *options;
    TAILQ_INIT(&gate->used);
    TAILQ_INIT(&gate->ring);
    return gate;
}

void webhook_gate_free(struct webhook_gate **gate_p)
{
    struct webhook_gate *gate = TAKE(*gate_p);
    struct webhook_endpoint *endpoint;

    if (gate == NULL)
        return;
    while ((endpoint = TAILQ_FIRST(&gate->used)) != NULL)
        endpoint_forget(gate, endpoint);
    free(gate);
}
