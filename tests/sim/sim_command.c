/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Operators who append commands: they replay what is dead, cancel and move what is not, sometimes
 * twice; and the table of commands, of which each must be acknowledged, once.
 */

#include "base/assert.h"
#include "tests/sim/sim.h"

#define COMMANDS 24
#define SPAN_US (14 * SEC) /* the last ones come when the faults are over */

static void notice_arrives(struct sim *sim, void *opaque, uint64_t session)
{
    struct sim_seat *seat = opaque;

    if (seat->owner == NULL || seat->session != session)
        return;
    seat_now(sim, seat);
    owner_on_command_notice(seat->owner);
    seat_wake(sim, seat);
}

static void command_insert(struct sim *sim, int job, enum command_kind kind)
{
    struct sim_ledger *ledger = &sim->ledger;
    struct sim_command *command = &ledger->commands[ledger->command_count++];

    *command = (struct sim_command){
        .job = job,
        .kind = kind,
        .round = ledger->rows[job].round,
        .priority = (uint32_t)sim_between(sim, 0, 2),
    };
    sim->jobs[job].commanded |= kind == COMMAND_CANCEL;
    sim_trace(sim, "command %zu: kind %d, job %d, round %u", ledger->command_count, kind, job,
              command->round);
    for (int i = 0; i < SIM_BROKERS && sim_percent(sim, 80); i++) {
        struct sim_seat *seat = &sim->brokers[i].seats[sim->jobs[job].shard];

        sim_post(sim, &sim->brokers[i].process, sim_between(sim, 50, 5 * MS), notice_arrives, seat,
                 seat->session);
    }
}

static void operator_acts(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_ledger *ledger = &sim->ledger;
    int job = (int)sim_between(sim, 0, (uint64_t)sim->job_count - 1);
    int dead = -1;

    (void)opaque;
    (void)number;
    for (int i = 0; i < sim->job_count && dead < 0; i++) {
        int at = (job + i) % sim->job_count;

        if (ledger->rows[at].present && job_state_dead(ledger->rows[at].state) &&
            ledger->rows[at].round < SIM_ROUNDS_MAX)
            dead = at;
    }
    if (!ledger->up || ledger->command_count + 2 > SIM_COMMANDS_MAX)
        return;
    if (dead >= 0 && sim_percent(sim, 80)) {
        command_insert(sim, dead, COMMAND_REPLAY);
        if (sim_percent(sim, 20))
            command_insert(sim, dead, COMMAND_REPLAY);
    } else if (ledger->rows[job].present) {
        command_insert(sim, job,
                       sim_percent(sim, 30)     ? COMMAND_CANCEL
                       : sim->jobs[job].put_off ? COMMAND_WAKE
                                                : COMMAND_PRIORITY);
    }
}

void command_begin(struct sim *sim)
{
    for (int i = 0; i < COMMANDS; i++)
        sim_post(sim, NULL, sim_between(sim, 0, SPAN_US), operator_acts, NULL, 0);
}

/* What a read of the table gives: the count, and the ids in `numbers`. */
size_t command_read(const struct sim *sim, int shard, uint64_t from, uint32_t limit,
                    struct ledger_command *commands)
{
    size_t count = 0;

    for (size_t i = from > 0 ? from - 1 : 0; i < sim->ledger.command_count && count < limit; i++) {
        const struct sim_command *command = &sim->ledger.commands[i];

        if (command->done || sim->jobs[command->job].shard != shard)
            continue;
        commands[count++] = (struct ledger_command){
            .id = i + 1,
            .job = sim->jobs[command->job].id,
            .kind = command->kind,
            .round = command->kind == COMMAND_REPLAY ? command->round : 0,
            .priority = command->priority,
        };
    }
    return count;
}

/* Two moves of one job may share a flush: the row shows the last. */
static bool moved_again(const struct sim *sim, const struct flush_command *acks, size_t ack_count,
                        int job)
{
    size_t moves = 0;

    for (size_t i = 0; i < ack_count; i++) {
        const struct sim_command *command = &sim->ledger.commands[acks[i].id - 1];

        moves += command->job == job && command->kind == COMMAND_PRIORITY;
    }
    return moves > 1;
}

/* In the transaction, behind the rows. */
void command_commit(struct sim *sim, const struct flush_command *acks, size_t ack_count)
{
    for (size_t i = 0; i < ack_count; i++) {
        struct sim_command *command;
        const struct sim_row *row;

        assert(acks[i].id > 0 && acks[i].id <= sim->ledger.command_count);
        command = &sim->ledger.commands[acks[i].id - 1];
        row = &sim->ledger.rows[command->job];
        if (command->done)
            continue;
        command->done = true;
        sim_trace(sim, "  command %llu: %s%s", (unsigned long long)acks[i].id,
                  acks[i].applied ? "applied" : "refused: ", acks[i].applied ? "" : acks[i].reason);
        if (acks[i].applied && command->kind == COMMAND_CANCEL && row->state != JOB_CANCELED)
            sim_fail(sim, "command %llu is told canceled, job %d is %s",
                     (unsigned long long)acks[i].id, command->job, job_state_name(row->state));
        if (acks[i].applied && command->kind == COMMAND_REPLAY && row->round != command->round + 1)
            sim_fail(sim, "command %llu is told replayed, job %d is in round %u after %u",
                     (unsigned long long)acks[i].id, command->job, row->round, command->round);
        if (acks[i].applied && command->kind == COMMAND_PRIORITY &&
            row->rank != (enum job_rank)(JOB_RANK_PRIORITY_0 + command->priority) &&
            !moved_again(sim, acks, ack_count, command->job))
            sim_fail(sim, "command %llu is told moved, job %d has rank %d",
                     (unsigned long long)acks[i].id, command->job, row->rank);
    }
}

bool command_asked_for(const struct sim *sim, int job, uint32_t round)
{
    for (size_t i = 0; i < sim->ledger.command_count; i++) {
        const struct sim_command *command = &sim->ledger.commands[i];

        if (command->kind == COMMAND_REPLAY && command->job == job && command->round == round)
            return true;
    }
    return false;
}

/* The lowest command that is not acknowledged. */
uint64_t command_first_open(const struct sim *sim)
{
    for (size_t i = 0; i < sim->ledger.command_count; i++) {
        if (!sim->ledger.commands[i].done)
            return i + 1;
    }
    return UINT64_MAX;
}

void command_rewind(struct sim *sim, const struct sim_ledger *to)
{
    for (size_t i = 0; i < sim->ledger.command_count; i++)
        sim->ledger.commands[i].done = i < to->command_count && to->commands[i].done;
}
