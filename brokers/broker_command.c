/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Commands between the owner and the world: read from Postgres when a notification says so (the
 * owner also asks by itself, slowly), and their Places on the way into intake[s].
 *
 * Failures: a Place that Kafka does not take is the owner's to send again. A ledger read that fails
 * ends this ownership, like any other.
 */

#include "base/log.h"
#include "brokers/broker.h"
#include "schema/job_id.h"

#define PLACE_SIZE_MAX 256

static void on_notice(void *opaque)
{
    struct shard *shard = opaque;

    if (shard->phase != SHARD_OWNED)
        return;
    shard_touch(shard);
    owner_on_command_notice(shard->owner);
}

void shard_listen(struct shard *shard)
{
    store_on_commands(shard->store, shard->number, on_notice, shard);
}

static void on_commands(void *opaque, const struct ledger_command *commands, size_t command_count,
                        bool complete, struct err *err)
{
    struct shard *shard = opaque;

    if (shard->phase != SHARD_OWNED)
        return;
    if (err->code != ERR_OK) {
        shard_retry(shard, err);
        return;
    }
    if (command_count > 0)
        log_info("commands_read", LOG_U64("shard", shard->number), LOG_U64("count", command_count));
    shard_touch(shard);
    owner_on_commands(shard->owner, commands, command_count, complete);
}

void carry_out_commands(struct shard *shard, const struct owner_todo *todo)
{
    store_commands(shard->store, shard->number, todo->commands.from, todo->commands.limit,
                   on_commands, shard);
}

static void place_reported(struct shard *shard, uint64_t command, int code, const char *why)
{
    if (code != ERR_OK)
        log_warn("place_not_sent", LOG_U64("shard", shard->number), LOG_U64("command", command),
                 LOG_STR("code", err_name(code)), LOG_STR("error", why));
    owner_on_place_reported(shard->owner, command, code == ERR_OK);
}

static void on_place_reported(void *opaque, uint64_t tag, const struct queue_report *report)
{
    struct shard *shard = opaque;

    if (shard->phase == SHARD_OWNED) {
        shard_touch(shard);
        place_reported(shard, tag, report->code, report->why);
    }
    shard_unref(&shard);
}

void carry_out_place(struct shard *shard, const struct message_place *place)
{
    struct broker *broker = shard->broker;
    OWNED(buf_done) struct buf record = BUF_WITH_LIMIT(PLACE_SIZE_MAX);
    struct queue_message message = {
        .topic = broker->intake,
        .partition = shard->number,
        .done = on_place_reported,
        .opaque = shard_ref(shard),
        .tag = place->command,
    };
    struct err err;
    int r = message_encode(MESSAGE_PLACE, place, &record, &err);

    message.bytes = record.bytes;
    message.size = record.size;
    if (r == 0)
        r = queue_produce(broker->producer, &message, &err);
    if (r == 0)
        return;
    place_reported(shard, place->command, r, err.text);
    shard_unref(&shard);
}
