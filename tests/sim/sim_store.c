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

static void store_next(struct sim *sim, struct sim_broker *broker);

/* ---- what a flush is made of ---- */

static void copy_change(struct sim *sim, struct sim_change *to, const struct flush_job *from)
{
    const struct job_spec *spec = from->spec;
    int job = sim_job_of(sim, &spec->submit.id);

    to->job = job;
    to->action = from->action;
    to->final_token = from->final_token;
    to->refused = sim->jobs[job].bad_submit || (sim->jobs[job].bad_output && from->output.size > 0);
    to->row = (struct sim_row){
        .present = true,
        .seq = spec->seq,
        .accepted_us = spec->accepted_us,
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
    };
    to->row.error_message.text =
        (const char *)sim_copy(sim, from->error_message.text, from->error_message.size).bytes;
    to->row.error_message.size = from->error_message.size;
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
    };
    for (size_t i = 0; i < from->job_count; i++)
        copy_change(sim, &flush->changes[i], &from->jobs[i]);
    for (size_t i = 0; i < from->attempt_count; i++)
        flush->lost_attempts += from->attempts[i].error_class == ERROR_CLASS_LOST_WORKER;
    return flush;
}

const struct sim_flush *ledger_newest(const struct sim *sim)
{
    const struct sim_flush *newest = NULL;

    for (size_t i = 0; i < sim->ledger.flush_count; i++) {
        const struct sim_flush *flush = sim->ledger.flushes[i];

        if (newest == NULL || flush->epoch > newest->epoch ||
            (flush->epoch == newest->epoch && flush->number > newest->number))
            newest = flush;
    }
    return newest;
}

static struct sim_flush *flush_find(const struct sim *sim, uint32_t epoch, uint64_t number)
{
    for (size_t i = 0; i < sim->ledger.flush_count; i++) {
        struct sim_flush *flush = sim->ledger.flushes[i];

        if (flush->epoch == epoch && flush->number == number)
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
    if (!row->present || job_state_final(row->state))
        return false;
    return change->final_token == 0 || row->fence < change->final_token;
}

static void change_apply(struct sim *sim, struct sim_flush *flush, size_t index)
{
    struct sim_change *change = &flush->changes[index];
    struct sim_row *row = &sim->ledger.rows[change->job];
    struct sim_row before = *row;

    flush->applied[index] = change_applies(sim, change);
    if (!flush->applied[index])
        return;
    *row = change->row;
    if (before.present) {
        row->seq = before.seq;
        row->submit = before.submit;
        row->accepted_us = before.accepted_us;
    }
    if (job_state_final(row->state)) {
        row->final_at_us = sim->now_us;
        flush->finals[flush->final_count++] = change->job;
    }
}

static void transaction_apply(struct sim *sim, struct sim_flush *flush)
{
    struct sim_ledger *ledger = &sim->ledger;
    struct sim_row *before = sim_alloc(sim, sizeof(ledger->rows));

    memcpy(before, ledger->rows, sizeof(ledger->rows));
    for (size_t i = 0; i < flush->change_count; i++)
        change_apply(sim, flush, i);
    if (ledger->flush_count == ledger->flush_room) {
        ledger->flush_room = ledger->flush_room == 0 ? 64 : 2 * ledger->flush_room;
        ledger->flushes = xrealloc(ledger->flushes, ledger->flush_room, sizeof(struct sim_flush *));
    }
    ledger->flushes[ledger->flush_count++] = flush;
    for (size_t i = 0; i < flush->change_count; i++)
        sim_trace(sim, "  job %d: %s %s, token %u/%u%s", flush->changes[i].job,
                  flush->changes[i].action == FLUSH_INSERT ? "insert" : "update",
                  job_state_name(flush->changes[i].row.state),
                  TOKEN_EPOCH(flush->changes[i].row.token), (uint32_t)flush->changes[i].row.token,
                  flush->applied[i] ? "" : ": not applied");
    sim->lost_attempts += flush->lost_attempts;
    sim_trace(sim, "ledger commits %u/%llu: %zu rows, %zu final, floors %lld %lld", flush->epoch,
              (unsigned long long)flush->number, flush->change_count, flush->final_count,
              (long long)flush->intake_floor, (long long)flush->outcome_floor);
    check_commit(sim, flush, before);
}

/* ---- answers ---- */

static bool request_is_current(const struct sim_request *request)
{
    const struct sim_broker *broker = request->broker;

    return broker->process.alive && broker->process.incarnation == request->incarnation &&
           broker->requests == request && broker->connection == request->connection;
}

static void request_pop(struct sim_broker *broker)
{
    broker->requests = broker->requests->next;
    if (broker->requests == NULL)
        broker->requests_tail = &broker->requests;
    broker->asking = false;
}

struct answer {
    struct sim_request *request;
    enum flush_verdict verdict;
    size_t refused_index;
    struct sim_flush *flush; /* COMMITTED: whose applied counts */
    struct sim_takeover *takeover;
    struct sim_row *rows;
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

    if (job_spec_new(sim->decoder, row->submit.bytes, row->submit.size, row->seq, row->accepted_us,
                     &loaded.spec, &err) < 0)
        NEVER("a stored Submit cannot be decoded");
    return loaded;
}

struct message_completed ledger_completed(struct sim *sim, int job)
{
    const struct sim_row *row = &sim->ledger.rows[job];
    struct message message = {0};
    struct err err;
    const struct message_submit *submit = &message.submit;

    if (message_decode(sim->decoder, row->submit.bytes, row->submit.size, &message, &err) < 0)
        NEVER("a stored Submit cannot be decoded");
    return (struct message_completed){
        .id = submit->id,
        .round = 1,
        .tenant = submit->tenant,
        .model = submit->model,
        .deployment = submit->deployment,
        .environment = submit->environment,
        .state = row->state,
        .error_class = row->error_class,
        .error_message = row->error_message,
        .output = row->output,
        .output_size = row->output.size,
        .webhook_url = submit->webhook_url,
        .accepted_us = row->accepted_us,
        .finished_us = row->state_us,
        .trace = submit->trace,
        .attempts = row->attempt_count,
    };
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

        if (!row->present || job_state_final(row->state))
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
    for (size_t i = 0; i < takeover->unpublished_count; i++)
        found->unpublished[found->unpublished_count++] = (struct ledger_final){
            .completed = ledger_completed(sim, takeover->unpublished[i])};
    broker_on_takeover(sim, answer->request->broker, found);
}

static void answer_rows(struct sim *sim, struct answer *answer)
{
    struct sim_request *request = answer->request;
    struct ledger_row *rows = sim_alloc(sim, SIM_JOBS_MAX * sizeof(*rows));
    size_t count = 0;

    for (uint32_t i = 0; i < request->limit && answer->rows[i].present; i++)
        rows[count++] = row_load(sim, &answer->rows[i]);
    broker_on_rows(sim, request->broker, request, rows, count, answer->complete);
}

static void answer_arrives(struct sim *sim, void *opaque, uint64_t number)
{
    struct answer *answer = opaque;
    struct sim_request *request = answer->request;
    struct sim_broker *broker = request->broker;
    struct flush_result result = {.verdict = answer->verdict,
                                  .number = request->flush != NULL ? request->flush->number : 0,
                                  .applied = answer->flush != NULL ? answer->flush->applied : NULL,
                                  .refused_index = answer->refused_index,
                                  .refused_why = "invalid byte sequence"};

    (void)number;
    if (!request_is_current(request))
        return;
    request_pop(broker);
    switch (request->type) {
    case SIM_TAKEOVER:
        answer_takeover(sim, answer);
        break;
    case SIM_FLUSH:
        broker_on_flush(sim, broker, &result);
        break;
    case SIM_LOAD:
    case SIM_LOOKUP:
        answer_rows(sim, answer);
        break;
    }
    store_next(sim, broker);
}

static void answer_send(struct sim *sim, const struct answer *answer)
{
    struct answer *copy = sim_alloc(sim, sizeof(*copy));

    *copy = *answer;
    sim_post(sim, &answer->request->broker->process, sim_between(sim, 50, 1 * MS), answer_arrives,
             copy, 0);
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
    sim->ledger.share_locks--;
    if (open->abandoned)
        return; /* its client is gone and it was never finished: rolled back */
    transaction_apply(sim, open->flush);
    answer.verdict = FLUSH_COMMITTED;
    answer_send(sim, &answer);
}

static void server_flush(struct sim *sim, struct sim_request *request)
{
    struct sim_flush *flush = request->flush;
    struct sim_flush *found = flush_find(sim, flush->epoch, flush->number);
    struct answer answer = {.request = request, .flush = found};
    struct open_flush *open;
    uint64_t takes_us = sim_between(sim, 200, 3 * MS);

    if (found != NULL) { /* an earlier sending of it was committed after all */
        answer.verdict = FLUSH_COMMITTED;
        answer_send(sim, &answer);
        return;
    }
    if (flush->epoch != sim->ledger.epoch && sim_guarded(sim, OWNER_GUARD_EPOCH)) {
        answer.verdict = FLUSH_STALE;
        answer_send(sim, &answer);
        return;
    }
    for (size_t i = 0; i < flush->change_count; i++) {
        if (!flush->changes[i].refused)
            continue;
        answer.verdict = FLUSH_REFUSED;
        answer.refused_index = i;
        answer_send(sim, &answer);
        return;
    }
    if (sim->faults.ledger_slow && !sim->faults_over && sim_percent(sim, 5))
        takes_us = sim_between(sim, 100 * MS, 2 * SEC);
    sim->ledger.share_locks++;
    open = sim_alloc(sim, sizeof(*open));
    *open = (struct open_flush){request, flush, sim->ledger.life, false};
    if (sim->faults.ledger_left_open && !sim->faults_over && sim_percent(sim, 2)) {
        open->abandoned = true; /* half of it arrived; the server's timeout ends it */
        takes_us = 2 * SEC;
        ledger_cut(sim, request->broker);
    }
    sim_post(sim, NULL, takes_us, flush_commits, open, 0);
}

static void takeover_snapshot(struct sim *sim, struct sim_takeover *takeover)
{
    const struct sim_flush *newest = ledger_newest(sim);
    struct ledger_takeover *found = &takeover->found;

    memcpy(takeover->rows, sim->ledger.rows, sizeof(takeover->rows));
    *found = (struct ledger_takeover){
        .shard = SIM_SHARD,
        .epoch = sim->ledger.epoch,
        .intake_floor = newest == NULL ? -1 : newest->intake_floor,
        .outcome_floor = newest == NULL ? -1 : newest->outcome_floor,
        .published_epoch = newest == NULL ? 0 : newest->published_epoch,
        .published_number = newest == NULL ? 0 : newest->published_number,
    };
    for (size_t i = 0; i < sim->ledger.flush_count; i++) {
        const struct sim_flush *flush = sim->ledger.flushes[i];

        if (flush->epoch < found->published_epoch ||
            (flush->epoch == found->published_epoch && flush->number <= found->published_number))
            continue;
        for (size_t j = 0; j < flush->final_count; j++)
            takeover->unpublished[takeover->unpublished_count++] = flush->finals[j];
    }
}

static void server_takeover(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_request *request = opaque;
    struct answer answer = {.request = request};

    if (!request_is_current(request) || !sim->ledger.up)
        return;
    if (sim->ledger.share_locks > 0 && sim_guarded(sim, OWNER_GUARD_EPOCH_WAIT)) {
        sim_post(sim, NULL, 1 * MS, server_takeover, request, number);
        return;
    }
    sim->ledger.epoch++;
    sim->ledger.epoch_at_us[sim->ledger.epoch - sim->ledger.first_epoch] = sim->now_us;
    answer.takeover = sim_alloc(sim, sizeof(*answer.takeover));
    takeover_snapshot(sim, answer.takeover);
    sim_trace(sim, "%s raises the epoch to %u", request->broker->process.name, sim->ledger.epoch);
    answer_send(sim, &answer);
}

/* The waiting row of the lane with the lowest seq above `after`; -1: none. */
static int lane_next(struct sim *sim, const struct ledger_lane *lane, int64_t after)
{
    int next = -1;

    for (int job = 0; job < sim->job_count; job++) {
        const struct sim_row *row = &sim->ledger.rows[job];
        struct ledger_lane own;
        struct ledger_row loaded;

        if (!row->present || row->state != JOB_QUEUED || row->attempt_count > 0 ||
            (int64_t)row->seq <= after)
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
        job = lane_next(sim, &request->lane, after);
        if (job < 0)
            break;
        answer.rows[i] = sim->ledger.rows[job];
        after = (int64_t)answer.rows[i].seq;
    }
    answer.complete = lane_next(sim, &request->lane, after) < 0;
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

static void server_begins(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_request *request = opaque;

    (void)number;
    if (!sim->ledger.up || request->connection != request->broker->connection)
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
    case SIM_LOOKUP:
        server_lookup(sim, request);
        return;
    }
}

/* ---- the store's side ---- */

static void store_next(struct sim *sim, struct sim_broker *broker)
{
    struct sim_request *request = broker->requests;

    if (request == NULL || broker->asking || !broker->connected || !sim->ledger.up)
        return;
    broker->asking = true;
    request->connection = broker->connection;
    sim_post(sim, NULL, sim_between(sim, 50, 500), server_begins, request, 0);
}

void ledger_ask(struct sim *sim, struct sim_broker *broker, struct sim_request *request)
{
    request->broker = broker;
    request->incarnation = broker->process.incarnation;
    *broker->requests_tail = request;
    broker->requests_tail = &request->next;
    store_next(sim, broker);
}

void ledger_client_dies(struct sim *sim, struct sim_broker *broker)
{
    (void)sim;
    broker->requests = NULL;
    broker->requests_tail = &broker->requests;
    broker->connection++;
    broker->asking = false;
    broker->connected = true;
}

/* The store is connected again. Its first request may have been carried out. */
static void store_reconnects(struct sim *sim, void *opaque, uint64_t connection)
{
    struct sim_broker *broker = opaque;
    struct sim_request *request = broker->requests;

    if (connection != broker->connection || !sim->ledger.up)
        return;
    if (request == NULL) {
        broker->connected = true;
        return;
    }
    if (request->type == SIM_FLUSH && sim->ledger.share_locks > 0) {
        /* Perhaps our own: the unique key of its flush row would make us wait. */
        sim_post(sim, &broker->process, 20 * MS, store_reconnects, broker, connection);
        return;
    }
    broker->connected = true;
    if (request->type == SIM_FLUSH &&
        flush_find(sim, request->flush->epoch, request->flush->number) == NULL &&
        sim_percent(sim, 50)) {
        struct answer answer = {.request = request, .verdict = FLUSH_RETRY};

        broker->asking = true;
        request->connection = broker->connection;
        answer_send(sim, &answer);
        return;
    }
    store_next(sim, broker);
}

void ledger_cut(struct sim *sim, struct sim_broker *broker)
{
    broker->connection++;
    broker->asking = broker->connected = false;
    if (broker->process.alive)
        sim_post(sim, &broker->process, sim_between(sim, 10 * MS, 300 * MS), store_reconnects,
                 broker, broker->connection);
}

void ledger_go_down(struct sim *sim)
{
    sim->ledger.up = false;
    sim->ledger.life++;
    sim->ledger.share_locks = 0;
    for (int i = 0; i < SIM_BROKERS; i++)
        ledger_cut(sim, &sim->brokers[i]);
}

void ledger_come_up(struct sim *sim)
{
    sim->ledger.up = true;
    for (int i = 0; i < SIM_BROKERS; i++)
        ledger_cut(sim, &sim->brokers[i]);
}
