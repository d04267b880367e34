/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/webhook_results.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/loop.h"

#define AGAIN_MS 200   /* after a failed write */
#define GATHER_MS 10   /* a group waits for others; a row alone costs a commit */
#define GATHER_MAX 250 /* … unless so many wait */
#define HEALTH_MAX 200
#define SWEEP_MS 3600000
#define HEALTH_MS 30000   /* how often an endpoint is written without news */
#define HEALTH_SEEN_MIN 2 /* an address that is used once only gets no row, unless it breaks */

struct webhook_results {
    struct webhook_results_options options;
    struct loop_timer *gather, *tell, *again, *sweep;
    struct webhook_delivery **staged;
    uint32_t staged_count, writing_count;
    struct webhook_delivery *writing[WEBHOOK_RESULTS_MAX];
    TAILQ_HEAD(, webhook_endpoint) dirty;
    bool health_writing;
};

static void results_write(struct webhook_results *results);

static void on_written(void *opaque, const struct pg_answer *answer)
{
    struct webhook_results *results = opaque;
    uint32_t count = results->writing_count;

    results->writing_count = 0;
    if (answer->err.code != ERR_OK) {
        /* Perhaps written, perhaps not: writing it again changes nothing that was. */
        for (uint32_t i = 0; i < count; i++)
            results->staged[results->staged_count++] = results->writing[i];
        results->options.on_trouble(results->options.opaque, NULL, &answer->err);
        loop_timer_start(results->again, AGAIN_MS, 0);
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        results->options.on_written(results->options.opaque, results->writing[i]);
    if (results->staged_count >= GATHER_MAX)
        results_write(results);
    else if (results->staged_count > 0 && !loop_timer_is_running(results->gather))
        loop_timer_start(results->gather, GATHER_MS, 0);
    results->options.on_room(results->options.opaque);
}

static void results_write(struct webhook_results *results)
{
    uint32_t count = results->staged_count < WEBHOOK_RESULTS_MAX ? results->staged_count
                                                                 : WEBHOOK_RESULTS_MAX;
    struct err err;

    if (count == 0 || results->writing_count > 0 || loop_timer_is_running(results->again))
        return;
    memcpy(results->writing, results->staged, count * sizeof(struct webhook_delivery *));
    if (webhook_store_results(results->options.pg, results->writing, count, on_written, results,
                              &err) < 0) {
        loop_timer_start(results->again, AGAIN_MS, 0);
        return;
    }
    results->writing_count = count;
    results->staged_count -= count;
    memmove(results->staged, results->staged + count,
            results->staged_count * sizeof(struct webhook_delivery *));
}

/* ---- health ---- */

static void health_write(struct webhook_results *results);

static void on_health(void *opaque, const struct pg_answer *answer)
{
    struct webhook_results *results = opaque;

    results->health_writing = false;
    if (answer->err.code != ERR_OK) /* the next news is written with what is true then */
        results->options.on_trouble(results->options.opaque, NULL, &answer->err);
    else
        health_write(results);
}

static void health_write(struct webhook_results *results)
{
    struct webhook_endpoint *batch[HEALTH_MAX];
    uint64_t now_ms = clock_mono_ms();
    size_t count = 0;
    struct err err;

    if (results->health_writing)
        return;
    while (count < HEALTH_MAX && !TAILQ_EMPTY(&results->dirty)) {
        struct webhook_endpoint *endpoint = TAILQ_FIRST(&results->dirty);

        TAILQ_REMOVE(&results->dirty, endpoint, dirty_next);
        endpoint->dirty = false;
        endpoint->written_ms = now_ms;
        endpoint->written_circuit = webhook_endpoint_circuit(endpoint);
        batch[count++] = endpoint;
    }
    if (count == 0)
        return;
    /* The values are copied now: the endpoints may be forgotten before the answer. */
    results->health_writing = webhook_store_health(results->options.pg, batch, count, now_ms,
                                                   on_health, results, &err) == 0;
}

void webhook_results_touch(struct webhook_results *results, struct webhook_endpoint *endpoint,
                           uint64_t now_ms)
{
    enum webhook_circuit circuit = webhook_endpoint_circuit(endpoint);
    bool written = endpoint->written_ms != 0;
    bool urgent = circuit != (written ? endpoint->written_circuit : WEBHOOK_CIRCUIT_CLOSED);
    bool due = endpoint->seen_count >= HEALTH_SEEN_MIN &&
               (!written || now_ms >= endpoint->written_ms + HEALTH_MS);

    if (endpoint->dirty || (!urgent && !due))
        return;
    endpoint->dirty = true;
    TAILQ_INSERT_TAIL(&results->dirty, endpoint, dirty_next);
    if (!loop_timer_is_running(results->tell))
        loop_timer_start(results->tell, GATHER_MS, 0);
}

static void on_tell(void *opaque)
{
    health_write(opaque);
}

/* Endpoints that nobody uses any more; several senders may do it. */
static void on_swept(void *opaque, const struct pg_answer *answer)
{
    struct webhook_results *results = opaque;

    if (answer->err.code != ERR_OK)
        results->options.on_trouble(results->options.opaque, NULL, &answer->err);
}

static void on_sweep(void *opaque)
{
    struct webhook_results *results = opaque;
    struct err err;

    if (webhook_store_sweep(results->options.pg, on_swept, results, &err) < 0)
        results->options.on_trouble(results->options.opaque, NULL, &err);
}

/* ---- life ---- */

void webhook_results_add(struct webhook_results *results, struct webhook_delivery *delivery)
{
    assert(results->staged_count < results->options.room);
    results->staged[results->staged_count++] = delivery;
    if (results->staged_count >= GATHER_MAX)
        results_write(results);
    else if (!loop_timer_is_running(results->gather))
        loop_timer_start(results->gather, GATHER_MS, 0);
}

static void on_gathered(void *opaque)
{
    results_write(opaque);
}

struct webhook_results *webhook_results_new(struct loop *loop,
                                            const struct webhook_results_options *options)
{
    struct webhook_results *results = xcalloc(1, sizeof(*results));

    results->options = *options;
    results->staged = xcalloc(options->room, sizeof(struct webhook_delivery *));
    results->gather = loop_timer_new(loop, on_gathered, results);
    results->tell = loop_timer_new(loop, on_tell, results);
    results->again = loop_timer_new(loop, on_gathered, results);
    results->sweep = loop_timer_new(loop, on_sweep, results);
    loop_timer_start(results->sweep, SWEEP_MS, SWEEP_MS);
    TAILQ_INIT(&results->dirty);
    return results;
}

void webhook_results_free(struct webhook_results **results_p)
{
    struct webhook_results *results = TAKE(*results_p);

    if (results == NULL)
        return;
    loop_timer_free(&results->gather);
    loop_timer_free(&results->tell);
    loop_timer_free(&results->again);
    loop_timer_free(&results->sweep);
    free(results->staged);
    free(results);
}
