/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Commands in Postgres: read behind a cursor over the flush connection, and told about by a
 * notification on it. Ids become visible in their order (trigger command_line), so what lies below
 * the highest one that was read is read too. Acknowledgements: store_postgres_write.c.
 */

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "brokers/store_postgres.h"

PG_STATEMENT(commands_read,
             "SELECT c.id, c.kind, c.job_id, c.round, c.priority FROM command c "
             "WHERE c.shard = $1 AND c.id >= $2 AND NOT EXISTS "
             "(SELECT FROM command_done d WHERE d.command_id = c.id) ORDER BY c.id LIMIT $3");

static void commands_ask(struct store *store);

/* False: a kind of a newer program. It stays unacknowledged and is passed over: the next owner that
 * knows it finds it behind its floor, or it is asked for again. */
static bool kind_of(const char *name, enum command_kind *ret_kind)
{
    static const char *const names[] = {[COMMAND_CANCEL] = "cancel",
                                        [COMMAND_REPLAY] = "replay",
                                        [COMMAND_PRIORITY] = "priority",
                                        [COMMAND_WAKE] = "wake"};

    for (size_t i = 0; i < COUNT_OF(names); i++) {
        if (strcmp(names[i], name) == 0) {
            *ret_kind = (enum command_kind)i;
            return true;
        }
    }
    return false;
}

static size_t commands_take(const struct pg_answer *answer, struct ledger_command *commands)
{
    size_t count = 0;

    for (size_t i = 0; i < pg_row_count(answer, 0); i++) {
        struct ledger_command *command = &commands[count];

        *command = (struct ledger_command){
            .id = pg_u64(answer, 0, i, 0),
            .job = pg_id(answer, 0, i, 2),
            .round = (uint32_t)pg_u64(answer, 0, i, 3),
            .priority = (uint32_t)pg_u64(answer, 0, i, 4),
        };
        count += kind_of(pg_c(answer, 0, i, 1), &command->kind);
    }
    return count;
}

static void on_commands(void *opaque, const struct pg_answer *answer)
{
    struct store *store = opaque;
    struct store_commands asked = store->commands;
    OWNED(mem_free) struct ledger_command *commands = NULL;
    struct err err = answer->err;
    size_t row_count = 0, count = 0;

    if (store_connection_lost(&err)) {
        commands_ask(store);
        return;
    }
    store->commands.done = NULL;
    if (err.code == ERR_OK) {
        row_count = pg_row_count(answer, 0);
        commands = xcalloc(row_count + 1, sizeof(*commands));
        count = commands_take(answer, commands);
    }
    asked.done(asked.opaque, commands, count, row_count < asked.limit || count == 0, &err);
}

static void commands_ask(struct store *store)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &commands_read);
    pg_bind_i16(batch, (int64_t)store->commands.shard);
    pg_bind_i64(batch, (int64_t)store->commands.from);
    pg_bind_i64(batch, (int64_t)store->commands.limit);
    store_send(store, &batch, on_commands, store);
}

void store_commands(struct store *store, uint32_t shard, uint64_t from, uint32_t limit,
                    store_commands_fn *done, void *opaque)
{
    assert(store->commands.done == NULL);
    store->commands.shard = shard;
    store->commands.from = from;
    store->commands.limit = limit;
    store->commands.done = done;
    store->commands.opaque = opaque;
    commands_ask(store);
}

static void on_notify(void *opaque, const char *payload)
{
    struct store *store = opaque;
    char shard[12];

    (void)snprintf(shard, sizeof(shard), "%u", store->commands.listened);
    if (payload == NULL || strcmp(payload, shard) == 0)
        store->commands.notice(store->commands.notice_opaque);
}

void store_on_commands(struct store *store, uint32_t shard, store_notice_fn *call, void *opaque)
{
    assert(store->commands.notice == NULL);
    store->commands.listened = shard;
    store->commands.notice = call;
    store->commands.notice_opaque = opaque;
    pg_listen(store->pg, "headrace_command", on_notify, store);
}
