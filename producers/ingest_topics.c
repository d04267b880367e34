/* SPDX-License-Identifier: Apache-2.0 */

#include <stdlib.h>

#include "base/seal.h"
#include "producers/ingest_topics.h"
#include "schema/message.h"

#define TICK_MS 100

static void on_tick(void *opaque)
{
    bindings_tick(opaque);
}

int topics_open(struct ingest *ingest, struct topics **ret_topics, struct err *err)
{
    const struct pg_options claims = {.url = ingest->settings.postgres,
                                      .application = "headrace ingest claims",
                                      .settings = "-c jit=off"};
    struct topics *topics = xcalloc(1, sizeof(*topics));
    int r = 0;

    *ret_topics = topics; /* topics_close() does with what there is */
    topics->settings = &ingest->settings;
    topics->boot = ingest->boot;
    topics->loop = ingest->loop;
    topics->metrics = ingest->metrics;
    topics->pg = ingest->pg;
    topics->producer = ingest->producer;
    topics->intake = ingest->intake;
    topics->blobs = ingest->blobs;
    TAILQ_INIT(&topics->bindings);
    LIST_INIT(&topics->orphans);
    topics->decoder = wire_decoder_new();
    topics->mapper = ingest_mapper_new();
    if (*ingest->settings.seal_key_file != '\0')
        r = seal_key_open(ingest->settings.seal_key_file, &topics->seal_key, err);
    if (r == 0)
        r = pg_open(topics->loop, &claims, &topics->pg_claims, err);
    if (r < 0)
        return r;
    topics->tick = loop_timer_new(topics->loop, on_tick, topics);
    loop_timer_start(topics->tick, TICK_MS, TICK_MS);
    pg_listen(topics->pg, "headrace_config", bindings_on_config, topics);
    return 0;
}

void topics_leave(struct topics *topics)
{
    topics->leaving = true;
    bindings_leave(topics);
}

size_t topics_busy(const struct topics *topics)
{
    return bindings_busy(topics);
}

void topics_close(struct topics **topics_p)
{
    struct topics *topics = TAKE(*topics_p);

    if (topics == NULL)
        return;
    pg_close(&topics->pg_claims);
    bindings_close(topics);
    loop_timer_free(&topics->tick);
    seal_key_close(&topics->seal_key);
    ingest_mapper_free(&topics->mapper);
    wire_decoder_free(&topics->decoder);
    free(topics);
}
