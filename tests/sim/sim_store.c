/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The ledger in Postgres and the store of each broker, as DESIGN 3.2 has them: requests of one
 * connection run in order and are answered in order; a flush is one transaction that locks the
 * shard row (FOR SHARE) while it is open; a takeover's raise waits for those locks.
 *
 * A connection may be cut at any time, with the server going on; the server may die, with its open
 * transactions. The store then connects again and looks for the number of its flush; an open
 * transaction of the same number makes it wait, as the unique key of `flush` does.
 */

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "tests/sim/sim.h"

static void store_next(struct sim *sim, struct sim_seat *seat);

/* ---- what a flush is made of ---- */

static struct wire_text copy_text(struct sim *sim, struct wire_text text)
{
    return (struct wire_text){(const char *)sim_copy(sim, text.text, text.size).bytes, text.size};
}

static void copy_change(struct sim *sim, struct sim_change *to, const struct flush_job *from)
{
    const struct job_spec *spec = from->spec;
    int job = sim_job_of(sim, &spec->submit.id);

    to->job = job;
    to->action = from->action;
    to->final_token = from->final_token;
    to->placed = from->placed;
    to->refused = sim->jobs[job].bad_submit || (sim->jobs[job].bad_output && from->output_size > 0);
    to->row = (struct sim_row){
        .present = true,
        .seq = spec->seq,
        .accepted_us = spec->accepted_us,
        .queued_us = spec->queued_us,
        .round = spec->round,
        .rank = spec->rank,
        .state = from->state,
        .token = from->token,
        .fence = from->fence,
        .due_us = from->due_us,
        .state_us = from->state_us,
        .attempt_count = from->attempt_count,
        .user_failures = from->user_failures,
        .oom_failures = from->oom_failures,
        .lost_failures = from->lost_failures,
        .error_class = from->error_class,
        .submit = sim_copy(sim, spec + 1, spec->record_size),
        .output = sim_copy(sim, from->output.bytes, from->output.size),
        .output_size = from->output_size,
        .output_blob = copy_text(sim, from->output_blob),
        .output_type = copy_text(sim, from->output_type),
        .http_status = from->http_status,
        .error_message = copy_text(sim, from->error_message),
    };
}

struct sim_flush *ledger_copy_flush(struct sim *sim, const struct flush *from)
{
    struct sim_flush *flush = sim_alloc(sim, sizeof(*flush));

    *flush = (struct sim_flush){
        .epoch = from->epoch,
        .number = from->number,
        .intake_floor = from->intake_floor,
        .outcome_floor = from->outcome_floor,
        .floor_us = from->floor_us,
        .published_epoch = from->published_epoch,
        .published_number = from->published_number,
        .change_count = from->job_count,
        .changes = sim_alloc(sim, (from->job_count + 1) * sizeof(*flush->changes)),
        .applied = sim_alloc(sim, from->job_count + 1),
        .finals = sim_alloc(sim, (from->job_count + 1) * sizeof(int)),
        .command_floor = from->command_floor,
        .acks = sim_alloc(sim, (from->command_count + 1) * sizeof(*flush->acks)),
        .ack_count = from->command_count,
    };
    for (size_t i = 0; i < from->job_count; i++)
        copy_change(sim, &flush->changes[i], &from->jobs[i]);
    if (from->command_count > 0)
        memcpy(flush->acks, from->commands, from->command_count * sizeof(*flush->acks));
    for (size_t i = 0; i < from->attempt_count; i++)
        flush->lost_attempts += from->attempts[i].error_class == ERROR_CLASS_LOST_WORKER;
    return flush;
}

static struct sim_shard *shard_of(struct sim *sim, int shard)
{
    return &sim->ledger.shards[shard];
}

static struct sim_flush *flush_find(struct sim *sim, const struct sim_flush *like)
{
    const struct sim_shard *shard = shard_of(sim, like->shard);

    for (size_t i = shard->flush_count; i > 0; i--) {
        struct sim_flush *flush = shard->flushes[i - 1];

        if (flush->epoch == like->epoch && flush->number == like->number)
            return flush;
    }
    return NULL;
}

/* ---- one transaction ---- */

/* INSERT … ON CONFLICT DO NOTHING, or UPDATE … WHERE the state is not final AND fence < token. */
static bool change_applies(const struct sim *sim, const struct sim_change *change)
{
    const struct sim_row *row = &sim->ledger.rows[change->job];

    if (!sim_guarded(sim, OWNER_GUARD_FENCE_SQL))
        return true;
    if (change->action == FLUSH_INSERT)
        return !row->present;
    if (change->action == FLUSH_REPLAY)
        return row->present && job_state_dead(row->state) && row->round + 1 == change->row.round;
    if (!row->present || job_state_final(row->state) || row->round != change->row.round)
        return false;
    return change->final_token == 0 ? row->fence <= change->row.fence
                                    : row->fence < change->final_token;
}

static void change_apply(struct sim *sim, struct sim_flush *flush, size_t index)
{
    struct sim_change *change = &flush->changes[index];
    struct sim_row *row = &sim->ledger.rows[change->job];

    change->before = *row;
    flush->applied[index] = change_applies(sim, change);
    if (!flush->applied[index])
        return;
    *row = change->row;
    if (change->before.present) {
        row->submit = change->before.submit;
        row->accepted_us = change->before.accepted_us;
    }
    if (change->before.present && change->action != FLUSH_REPLAY) {
        row->queued_us = change->before.queued_us;
        row->seq = change->placed ? row->seq : change->before.seq;
        row->rank = change->placed ? row->rank : change->before.rank;
    }
    if (job_state_final(row->state)) {
        row->final_at_us = sim->now_us;
        flush->finals[flush->final_count++] = change->job;
    }
}

static void flush_keep(struct sim_shard *shard, struct sim_flush *flush)
{
    const struct sim_flush *newest = shard->newest;

    if (shard->flush_count == shard->flush_room) {
        shard->flush_room = shard->flush_room == 0 ? 64 : 2 * shard->flush_room;
        shard->flushes = xrealloc(shard->flushes, shard->flush_room, sizeof(struct sim_flush *));
    }
    shard->flushes[shard->flush_count++] = flush;
    if (newest == NULL || flush->epoch > newest->epoch ||
        (flush->epoch == newest->epoch && flush->number > newest->number))
        shard->newest = flush;
}

static void transaction_apply(struct sim *sim, struct sim_flush *flush)
{
    for (size_t i = 0; i < flush->change_count; i++)
        change_apply(sim, flush, i);
    for (size_t i = 0; i < flush->change_count; i++)
        sim_trace(sim, "  job %d: %s %s, round %u, token %u/%u%s", flush->changes[i].job,
                  flush->changes[i].action == FLUSH_INSERT   ? "insert"
                  : flush->changes[i].action == FLUSH_REPLAY ? "replay"
                                                             : "update",
                  job_state_name(flush->changes[i].row.state), flush->changes[i].row.round,
                  TOKEN_EPOCH(flush->changes[i].row.token), (uint32_t)flush->changes[i].row.token,
                  flush->applied[i] ? "" : ": not applied");
    command_commit(sim, flush->acks, flush->ack_count);
    sim->lost_attempts += flush->lost_attempts;
    sim_trace(sim, "ledger commits %d: %u/%llu: %zu rows, %zu final, floors %lld %lld",
              flush->shard, flush->epoch, (unsigned long long)flush->number, flush->change_count,
              flush->final_count, (long long)flush->intake_floor, (long long)flush->outcome_floor);
    check_commit(sim, flush);
    flush_keep(shard_of(sim, flush->shard), flush);
}

/* ---- answers ---- */

static bool request_is_current(const struct sim_request *request)
{
    const struct process *process = &request->seat->broker->process;
    const struct sim_store *store = &request->seat->store;

    return process->alive && process->incarnation == request->incarnation &&
           store->requests == request && store->connection == request->connection;
}

static void request_pop(struct sim_store *store)
{
    store->requests = store->requests->next;
    if (store->requests == NULL)
        store->requests_tail = &store->requests;
    store->asking = false;
}

struct answer {
    struct sim_request *request;
    enum flush_verdict verdict;
    size_t refused_index;
    struct sim_flush *flush; /* COMMITTED: whose applied counts */
    struct sim_takeover *takeover;
    struct sim_row *rows;
    struct ledger_command *commands;
    size_t command_count;
    bool complete;
};

struct sim_takeover {
    struct ledger_takeover found;
    struct sim_row rows[SIM_JOBS_MAX];
    int unpublished[SIM_JOBS_MAX];
    size_t unpublished_count;
};

static struct ledger_row row_load(struct sim *sim, const struct sim_row *row)
{
    struct ledger_row loaded = {
        .state = row->state,
        .token = row->token,
        .fence = row->fence,
        .attempt_count = row->attempt_count,
        .user_failures = row->user_failures,
        .oom_failures = row->oom_failures,
        .lost_failures = row->lost_failures,
        .due_us = row->due_us,
    };
    struct err err;

    if (job_spec_new(sim->decoder, row->submit.bytes, row->submit.size, row->seq, row->queued_us,
                     &loaded.spec, &err) < 0)
        NEVER("a stored Submit cannot be decoded");
    loaded.spec->accepted_us = row->accepted_us;
    loaded.spec->round = row->round;
    loaded.spec->rank = row->rank;
    return loaded;
}

static struct message_completed row_completed(struct sim *sim, const struct sim_row *row)
{
    struct message message = {0};
    struct err err;
    const struct message_submit *submit = &message.submit;

    if (message_decode(sim->decoder, row->submit.bytes, row->submit.size, &message, &err) < 0)
        NEVER("a stored Submit cannot be decoded");
    return (struct message_completed){
        .id = submit->id,
        .round = row->round,
        .tenant = submit->tenant,
        .model = submit->model,
        .deployment = submit->deployment,
        .environment = submit->environment,
        .state = row->state,
        .error_class = row->error_class,
        .error_message = row->error_message,
        .output = row->output,
        .output_blob = row->output_blob,
        .output_size = row->output_size,
        .output_type = row->output_type,
        .http_status = row->http_status,
        .webhook_url = submit->webhook_url,
        .accepted_us = row->accepted_us,
        .finished_us = row->state_us,
        .trace = submit->trace,
        .attempts = row->attempt_count,
    };
}

struct message_completed ledger_completed(struct sim *sim, int job)
{
    return row_completed(sim, &sim->ledger.rows[job]);
}

static bool lane_seen(const struct ledger_lane *lanes, size_t count, const struct job_spec *spec)
{
    for (size_t i = 0; i < count; i++) {
        if (lanes[i].rank == spec->rank && wire_text_equal(spec->submit.pool, lanes[i].pool) &&
            wire_text_equal(spec->submit.tenant, lanes[i].tenant))
            return true;
    }
    return false;
}

static void lane_name(struct ledger_lane *lane, const struct job_spec *spec)
{
    *lane = (struct ledger_lane){.rank = spec->rank, .after_seq = -1};
    memcpy(lane->pool, spec->submit.pool.text, spec->submit.pool.size);
    memcpy(lane->tenant, spec->submit.tenant.text, spec->submit.tenant.size);
}

static void answer_takeover(struct sim *sim, struct answer *answer)
{
    struct sim_takeover *takeover = answer->takeover;
    struct ledger_takeover *found = &takeover->found;

    found->rows = sim_alloc(sim, SIM_JOBS_MAX * sizeof(*found->rows));
    found->lanes = sim_alloc(sim, SIM_JOBS_MAX * sizeof(*found->lanes));
    found->unpublished = sim_alloc(sim, SIM_JOBS_MAX * sizeof(*found->unpublished));
    for (int job = 0; job < SIM_JOBS_MAX; job++) {
        const struct sim_row *row = &takeover->rows[job];
        struct ledger_row loaded;

        if (!row->present || job_state_final(row->state) ||
            sim->jobs[job].shard != answer->request->seat->shard)
            continue;
        loaded = row_load(sim, row);
        if (row->state == JOB_IN_PROGRESS || row->attempt_count > 0) {
            found->rows[found->row_count++] = loaded;
            continue;
        }
        if (!lane_seen(found->lanes, found->lane_count, loaded.spec))
            lane_name(&found->lanes[found->lane_count++], loaded.spec);
        job_spec_unref(&loaded.spec);
    }
    for (size_t i = 0; i < takeover->unpublished_count; i++) {
        const struct sim_row *row = &takeover->rows[takeover->unpublished[i]];

        if (!job_state_final(row->state))
            continue; /* replayed since, thus told */
        found->unpublished[found->unpublished_count++] = (struct ledger_final){
            .completed = row_completed(sim, row)};
    }
    seat_on_takeover(sim, answer->request->seat, found);
}

static void answer_rows(struct sim *sim, struct answer *answer)
{
    struct sim_request *request = answer->request;
    struct ledger_row *rows = sim_alloc(sim, SIM_JOBS_MAX * sizeof(*rows));
    size_t count = 0;

    for (uint32_t i = 0; i < request->limit && answer->rows[i].present; i++)
        rows[count++] = row_load(sim, &answer->rows[i]);
    seat_on_rows(sim, request->seat, request, rows, count, answer->complete);
}

static void answer_arrives(struct sim *sim, void *opaque, uint64_t number)
{
    struct answer *answer = opaque;
    struct sim_request *request = answer->request;
    struct sim_seat *seat = request->seat;
    struct flush_result result = {.verdict = answer->verdict,
                                  .number = request->flush != NULL ? request->flush->number : 0,
                                  .applied = answer->flush != NULL ? answer->flush->applied : NULL,
                                  .refused_index = answer->refused_index,
                                  .refused_why = "invalid byte sequence"};

    (void)number;
    if (!request_is_current(request))
        return;
    request_pop(&seat->store);
    switch (request->type) {
    case SIM_TAKEOVER:
        answer_takeover(sim, answer);
        break;
    case SIM_FLUSH:
        seat_on_flush(sim, seat, &result);
        break;
    case SIM_LOAD:
    case SIM_DUE:
    case SIM_LOOKUP:
        answer_rows(sim, answer);
        break;
    case SIM_READ_COMMANDS:
        seat_on_commands(sim, seat, answer->commands, answer->command_count, answer->complete);
        break;
    }
    store_next(sim, seat);
}

static void answer_send(struct sim *sim, const struct answer *answer)
{
    struct answer *copy = sim_alloc(sim, sizeof(*copy));

    *copy = *answer;
    sim_post(sim, &answer->request->seat->broker->process, sim_between(sim, 50, 1 * MS),
             answer_arrives, copy, 0);
}

/* ---- the server's side ---- */

/* A transaction that is open on the server, whatever becomes of its client. */
struct open_flush {
    struct sim_request *request;
    struct sim_flush *flush;
    uint64_t life; /* of the server */
    bool abandoned;
};

static void flush_commits(struct sim *sim, void *opaque, uint64_t number)
{
    struct open_flush *open = opaque;
    struct answer answer = {.request = open->request, .flush = open->flush};

    (void)number;
    if (open->life != sim->ledger.life)
        return; /* it died with the server */
    shard_of(sim, open->flush->shard)->share_locks--;
    if (open->abandoned)
        return; /* its client is gone and it was never finished: rolled back */
    transaction_apply(sim, open->flush);
    answer.verdict = FLUSH_COMMITTED;
    answer_send(sim, &answer);
}

/* The flush before it is not there: a failover has lost it. */
static bool flush_has_gap(struct sim *sim, const struct sim_flush *flush)
{
    const struct sim_flush before = {
        .shard = flush->shard, .epoch = flush->epoch, .number = flush->number - 1};

    return flush->number > 1 && flush_find(sim, &before) == NULL;
}

static void server_flush(struct sim *sim, struct sim_request *request)
{
    struct sim_flush *flush = request->flush;
    struct sim_shard *shard = shard_of(sim, flush->shard);
    struct sim_flush *found = flush_find(sim, flush);
    struct answer answer = {.request = request, .flush = found};
    struct open_flush *open;
    uint64_t takes_us = sim_between(sim, 200, 3 * MS);

    if (found != NULL) { /* an earlier sending of it was committed after all */
        answer.verdict = FLUSH_COMMITTED;
        answer_send(sim, &answer);
        return;
    }
    if ((flush->epoch != shard->epoch && sim_guarded(sim, OWNER_GUARD_EPOCH)) ||
        (flush_has_gap(sim, flush) && sim_guarded(sim, OWNER_GUARD_CHAIN))) {
        answer.verdict = FLUSH_STALE;
        answer_send(sim, &answer);
        return;
    }
    for (size_t i = 0; i < flush->change_count; i++) {
        if (!flush->changes[i].refused)
            continue;
        sim_hit(sim, FAULT_BAD_ROW);
        answer.verdict = FLUSH_REFUSED;
        answer.refused_index = i;
        answer_send(sim, &answer);
        return;
    }
    if (sim->faults.ledger_slow && !sim->faults_over && sim_percent(sim, 5)) {
        sim_hit(sim, FAULT_LEDGER_SLOW);
        takes_us = sim_between(sim, 100 * MS, 2 * SEC);
    }
    shard->share_locks++;
    open = sim_alloc(sim, sizeof(*open));
    *open = (struct open_flush){request, flush, sim->ledger.life, false};
    if (sim->faults.ledger_left_open && !sim->faults_over && sim_percent(sim, 2)) {
        open->abandoned = true; /* half of it arrived; the server's timeout ends it */
        takes_us = 2 * SEC;
        sim_hit(sim, FAULT_LEFT_OPEN);
        ledger_cut(sim, request->seat);
    }
    sim_post(sim, NULL, takes_us, flush_commits, open, 0);
}

static void takeover_snapshot(struct sim *sim, int index, struct sim_takeover *takeover)
{
    const struct sim_shard *shard = shard_of(sim, index);
    const struct sim_flush *newest = shard->newest;
    struct ledger_takeover *found = &takeover->found;

    memcpy(takeover->rows, sim->ledger.rows, sizeof(takeover->rows));
    *found = (struct ledger_takeover){
        .shard = SIM_SHARD_FIRST + (uint32_t)index,
        .epoch = shard->epoch,
        .intake_floor = newest == NULL ? -1 : newest->intake_floor,
        .outcome_floor = newest == NULL ? -1 : newest->outcome_floor,
        .published_epoch = newest == NULL ? 0 : newest->published_epoch,
        .published_number = newest == NULL ? 0 : newest->published_number,
        .command_floor = newest == NULL ? 0 : newest->command_floor,
    };
    for (size_t i = 0; i < shard->flush_count; i++) {
        const struct sim_flush *flush = shard->flushes[i];

        if (flush->epoch < found->published_epoch ||
            (flush->epoch == found->published_epoch && flush->number <= found->published_number))
            continue;
        for (size_t j = 0; j < flush->final_count; j++)
            takeover->unpublished[takeover->unpublished_count++] = flush->finals[j];
    }
}

/* As the statement has it: the clock keeps a failover that lost a raise from giving the same epoch
 * out twice. */
static void shard_raise(const struct sim *sim, struct sim_shard *shard)
{
    uint32_t clock = SIM_EPOCH_FIRST + (uint32_t)((sim->now_us - SIM_START_US) / (10 * MS));

    shard->epoch = shard->epoch + 1 > clock ? shard->epoch + 1 : clock;
    assert(shard->takeover_count < SIM_TAKEOVERS_MAX);
    shard->takeovers[shard->takeover_count].epoch = shard->epoch;
    shard->takeovers[shard->takeover_count++].at_us = sim->now_us;
}

static void server_takeover(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_request *request = opaque;
    struct answer answer = {.request = request};
    struct sim_shard *shard = shard_of(sim, request->seat->shard);

    if (!request_is_current(request) || !sim->ledger.up)
        return;
    if (shard->share_locks > 0 && sim_guarded(sim, OWNER_GUARD_EPOCH_WAIT)) {
        sim_post(sim, NULL, 1 * MS, server_takeover, request, number);
        return;
    }
    shard_raise(sim, shard);
    answer.takeover = sim_alloc(sim, sizeof(*answer.takeover));
    takeover_snapshot(sim, request->seat->shard, answer.takeover);
    sim_trace(sim, "%s raises the epoch of shard %d to %u", request->seat->broker->process.name,
              request->seat->shard, shard->epoch);
    if (broker_passes(sim, request->seat->broker, POINT_EPOCH_RAISED))
        answer_send(sim, &answer);
}

/* The waiting row of the lane with the lowest seq above `after`; -1: none. */
static int lane_next(struct sim *sim, int shard, const struct ledger_lane *lane, int64_t after)
{
    int next = -1;

    for (int job = 0; job < sim->job_count; job++) {
        const struct sim_row *row = &sim->ledger.rows[job];
        struct ledger_lane own;
        struct ledger_row loaded;

        if (!row->present || row->state != JOB_QUEUED || row->attempt_count > 0 ||
            (int64_t)row->seq <= after || sim->jobs[job].shard != shard)
            continue;
        if (next >= 0 && row->seq > sim->ledger.rows[next].seq)
            continue;
        loaded = row_load(sim, row);
        lane_name(&own, loaded.spec);
        job_spec_unref(&loaded.spec);
        if (own.rank == lane->rank && strcmp(own.pool, lane->pool) == 0 &&
            strcmp(own.tenant, lane->tenant) == 0)
            next = job;
    }
    return next;
}

static void server_load(struct sim *sim, struct sim_request *request)
{
    struct answer answer = {.request = request};
    int64_t after = request->lane.after_seq;
    int job = -1;

    answer.rows = sim_alloc(sim, (request->limit + 1) * sizeof(*answer.rows));
    for (uint32_t i = 0; i < request->limit; i++) {
        job = lane_next(sim, request->seat->shard, &request->lane, after);
        if (job < 0)
            break;
        answer.rows[i] = sim->ledger.rows[job];
        after = (int64_t)answer.rows[i].seq;
    }
    answer.complete = lane_next(sim, request->seat->shard, &request->lane, after) < 0;
    answer_send(sim, &answer);
}

uint64_t ledger_deadline_us(struct sim *sim, const struct sim_row *row)
{
    struct ledger_row loaded = row_load(sim, row);
    uint64_t start_us = loaded.spec->start_deadline_us, total_us = loaded.spec->total_deadline_us;

    job_spec_unref(&loaded.spec);
    return start_us < total_us ? start_us : total_us;
}

/* The waiting row behind the cursor with the earliest deadline; -1: none is due. */
static int due_next(struct sim *sim, int shard, const struct ledger_due *due, uint64_t *ret_us)
{
    int next = -1;

    for (int job = 0; job < sim->job_count; job++) {
        const struct sim_row *row = &sim->ledger.rows[job];
        uint64_t at_us;

        if (sim->jobs[job].shard != shard || !row->present || row->state != JOB_QUEUED ||
            row->attempt_count > 0)
            continue;
        at_us = ledger_deadline_us(sim, row);
        if (at_us > due->upto_us || at_us < due->after_us ||
            (at_us == due->after_us && (int64_t)row->seq <= due->after_seq))
            continue;
        if (next >= 0 &&
            (at_us > *ret_us || (at_us == *ret_us && row->seq > sim->ledger.rows[next].seq)))
            continue;
        next = job;
        *ret_us = at_us;
    }
    return next;
}

static void server_due(struct sim *sim, struct sim_request *request)
{
    struct answer answer = {.request = request};
    struct ledger_due due = request->due;

    answer.rows = sim_alloc(sim, (request->limit + 1) * sizeof(*answer.rows));
    for (uint32_t i = 0; i < request->limit; i++) {
        uint64_t at_us = 0;
        int job = due_next(sim, request->seat->shard, &due, &at_us);

        if (job < 0)
            break;
        answer.rows[i] = sim->ledger.rows[job];
        due.after_us = at_us;
        due.after_seq = (int64_t)answer.rows[i].seq;
    }
    answer.complete = !answer.rows[request->limit - 1].present;
    answer_send(sim, &answer);
}

static void server_lookup(struct sim *sim, struct sim_request *request)
{
    struct answer answer = {.request = request};
    size_t count = 0;

    request->limit = (uint32_t)request->id_count;
    answer.rows = sim_alloc(sim, (request->id_count + 1) * sizeof(*answer.rows));
    for (size_t i = 0; i < request->id_count; i++) {
        const struct sim_row *row = &sim->ledger.rows[sim_job_of(sim, &request->ids[i])];

        if (row->present)
            answer.rows[count++] = *row;
    }
    answer_send(sim, &answer);
}

static void server_commands(struct sim *sim, struct sim_request *request)
{
    struct answer answer = {.request = request};

    answer.commands = sim_alloc(sim, (request->limit + 1) * sizeof(*answer.commands));
    answer.command_count = command_read(sim, request->seat->shard, request->from, request->limit,
                                        answer.commands);
    answer.complete = answer.command_count < request->limit;
    answer_send(sim, &answer);
}

static void server_begins(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_request *request = opaque;

    (void)number;
    if (!sim->ledger.up || request->connection != request->seat->store.connection)
        return; /* it was lost on the way; the store asks again once it is connected */
    switch (request->type) {
    case SIM_TAKEOVER:
        server_takeover(sim, request, 0);
        return;
    case SIM_FLUSH:
        server_flush(sim, request);
        return;
    case SIM_LOAD:
        server_load(sim, request);
        return;
    case SIM_DUE:
        server_due(sim, request);
        return;
    case SIM_LOOKUP:
        server_lookup(sim, request);
        return;
    case SIM_READ_COMMANDS:
        server_commands(sim, request);
        return;
    }
}

/* ---- the store's side ---- */

static void store_next(struct sim *sim, struct sim_seat *seat)
{
    struct sim_store *store = &seat->store;
    struct sim_request *request = store->requests;

    if (request == NULL || store->asking || !store->connected || !sim->ledger.up)
        return;
    store->asking = true;
    request->connection = store->connection;
    sim_post(sim, NULL, sim_between(sim, 50, 500), server_begins, request, 0);
}

void ledger_ask(struct sim *sim, struct sim_seat *seat, struct sim_request *request)
{
    struct sim_store *store = &seat->store;

    request->seat = seat;
    request->incarnation = seat->broker->process.incarnation;
    *store->requests_tail = request;
    store->requests_tail = &request->next;
    store_next(sim, seat);
}

void ledger_client_dies(struct sim *sim, struct sim_seat *seat)
{
    struct sim_store *store = &seat->store;

    (void)sim;
    store->requests = NULL;
    store->requests_tail = &store->requests;
    store->connection++;
    store->asking = false;
    store->connected = true;
}

/* The store is connected again. Its first request may have been carried out. */
static void store_reconnects(struct sim *sim, void *opaque, uint64_t connection)
{
    struct sim_seat *seat = opaque;
    struct sim_store *store = &seat->store;
    struct sim_request *request = store->requests;

    if (connection != store->connection || !sim->ledger.up)
        return;
    if (request == NULL) {
        store->connected = true;
        return;
    }
    if (request->type == SIM_FLUSH && shard_of(sim, seat->shard)->share_locks > 0) {
        /* Perhaps our own: the unique key of its flush row would make us wait. */
        sim_post(sim, &seat->broker->process, 20 * MS, store_reconnects, seat, connection);
        return;
    }
    store->connected = true;
    if (request->type == SIM_FLUSH && flush_find(sim, request->flush) == NULL &&
        sim_percent(sim, 50)) {
        struct answer answer = {.request = request, .verdict = FLUSH_RETRY};

        store->asking = true;
        request->connection = store->connection;
        answer_send(sim, &answer);
        return;
    }
    store_next(sim, seat);
}

void ledger_cut(struct sim *sim, struct sim_seat *seat)
{
    struct sim_store *store = &seat->store;

    store->connection++;
    store->asking = store->connected = false;
    if (seat->broker->process.alive)
        sim_post(sim, &seat->broker->process, sim_between(sim, 10 * MS, 300 * MS), store_reconnects,
                 seat, store->connection);
}

static void ledger_cut_all(struct sim *sim)
{
    for (int i = 0; i < SIM_BROKERS; i++) {
        for (int shard = 0; shard < sim->shard_count; shard++)
            ledger_cut(sim, &sim->brokers[i].seats[shard]);
    }
}

void ledger_go_down(struct sim *sim)
{
    sim->ledger.up = false;
    sim->ledger.life++;
    for (int shard = 0; shard < SIM_SHARDS_MAX; shard++)
        sim->ledger.shards[shard].share_locks = 0;
    ledger_cut_all(sim);
}

void ledger_come_up(struct sim *sim)
{
    sim->ledger.up = true;
    ledger_cut_all(sim);
}
