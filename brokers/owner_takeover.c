/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Evidence about attempts of earlier owners, and the way from takeover to dispatch.
 *
 * Started, Finished and heartbeats name tokens whose job may be in memory, in the ledger only, in
 * a part of intake that is not read yet, or final. The newest token of a job is kept until that is
 * known (PROTOCOL 2, 3):
 *
 *   in memory and certain   adopted, finished or fenced at once
 *   insert still out        waits for its answer
 *   else                    LOOKUP; not found: waits for intake up to the takeover's end, since
 *                           whoever dispatched it had read its record; then it is over, and a
 *                           worker that still holds it is told
 *
 * Dispatch begins when outcome was read to where it ended at takeover and nothing is asked any
 * more. Evidence that comes later, from a worker that was stopped, goes the same way.
 */

#include <stdlib.h>
#include <string.h>

#include "brokers/owner_int.h"

static struct evidence *evidence_find(struct owner *owner, const struct wire_id *id)
{
    struct evidence *evidence;

    HASH_FIND(hh, owner->evidence, id, sizeof(*id), evidence);
    return evidence;
}

bool evidence_exists(struct owner *owner, const struct wire_id *id)
{
    return evidence_find(owner, id) != NULL;
}

static void evidence_want(struct owner *owner, struct evidence *evidence)
{
    if (evidence->step != EVIDENCE_WANTED)
        owner->lookup_wanted++;
    evidence->step = EVIDENCE_WANTED;
}

void evidence_ask_again(struct owner *owner, const struct wire_id *id)
{
    struct evidence *evidence = evidence_find(owner, id);

    if (evidence != NULL)
        evidence_want(owner, evidence);
}

static void evidence_remove(struct owner *owner, struct evidence *evidence)
{
    if (evidence->step == EVIDENCE_WANTED)
        owner->lookup_wanted--;
    if (evidence->finish != NULL)
        owner->evidence_bytes -= evidence->finish->size;
    HASH_DEL(owner->evidence, evidence);
    pin_write(&evidence->pins);
    worker_unref(&evidence->worker);
    free(evidence->finish);
    free(evidence);
}

/* The job is final or was never accepted: whoever runs it runs it for nothing. */
static void evidence_give_up(struct owner *owner, struct evidence *evidence)
{
    if (evidence->finish != NULL)
        owner->stats.fenced++;
    else
        dispatch_revoke(owner, evidence->token, evidence->worker, &evidence->id);
    evidence_remove(owner, evidence);
}

/* What a token means for a job that is certain. Takes finish and pins. */
static void evidence_judge(struct owner *owner, struct job *job, uint64_t token,
                           struct worker *worker, uint64_t started_us, struct finish **finish_p,
                           struct pin **pins)
{
    bool current = job->place == JOB_RUNNING && token == job->token;

    if (job->place != JOB_ENDED && token > job->fence && token > job->token) {
        job_adopt(owner, job, token, worker);
        current = true;
    }
    if (!owner_guarded(owner, OWNER_GUARD_FENCE_MEMORY) && job->place == JOB_RUNNING)
        current = true;
    if (!current) {
        owner->stats.fenced += *finish_p != NULL;
        if (*finish_p == NULL && worker != NULL && !(job->told_end && token == job->fence))
            dispatch_revoke(owner, token, worker, &job->spec->submit.id);
        return;
    }
    if (*finish_p != NULL) {
        pin_move(&job->pins, pins);
        job_on_finish(owner, job, finish_p);
        return;
    }
    if (worker != NULL)
        job_attach(job, worker);
    if (started_us > 0 && job->started_us == 0) {
        job->started = true;
        job->started_us = started_us;
        job->run_us = owner->wall_us;
        job_changed(owner, job, STAGE_LAZY);
    }
}

/* Keeps the newest token of a job that cannot be judged yet. */
static void evidence_keep(struct owner *owner, const struct wire_id *id, uint64_t token,
                          struct worker *worker, uint64_t started_us, struct finish **finish_p,
                          struct pin **pins, bool ask)
{
    struct evidence *evidence = evidence_find(owner, id);
    size_t size = *finish_p != NULL ? (*finish_p)->size : 0;

    if ((evidence != NULL && token < evidence->token) ||
        (evidence == NULL && HASH_COUNT(owner->evidence) >= OWNER_EVIDENCE_MAX) ||
        owner->evidence_bytes + size > OWNER_EVIDENCE_BYTES_MAX)
        return; /* without it the job runs again: allowed, and never lost */
    if (evidence == NULL) {
        evidence = xcalloc(1, sizeof(*evidence));
        evidence->id = *id;
        evidence->step = EVIDENCE_WAITS;
        HASH_ADD(hh, owner->evidence, id, sizeof(evidence->id), evidence);
        if (ask)
            evidence_want(owner, evidence);
    }
    if (token > evidence->token && evidence->finish != NULL) {
        owner->evidence_bytes -= evidence->finish->size;
        mem_free(&evidence->finish);
        pin_write(&evidence->pins);
    }
    evidence->token = token;
    if (worker != NULL && evidence->worker != worker) {
        worker_unref(&evidence->worker);
        evidence->worker = worker_ref(worker);
    }
    if (started_us > 0)
        evidence->started_us = started_us;
    if (*finish_p != NULL && evidence->finish == NULL) {
        evidence->finish = TAKE(*finish_p);
        owner->evidence_bytes += size;
        pin_move(&evidence->pins, pins);
    }
}

void evidence_see(struct owner *owner, const struct wire_id *id, uint64_t token,
                  struct worker *worker, uint64_t started_us, struct finish **finish_p,
                  struct pin *pin)
{
    struct job *job = job_find(owner, id);
    struct finish *finish = finish_p != NULL ? TAKE(*finish_p) : NULL;
    struct pin *pins = NULL;

    pin_link(&pins, pin);
    if (token > TOKEN_MAKE(owner->epoch, owner->token_count))
        owner->stats.dead_records++; /* of nobody yet: a faulty worker, or we are not the newest */
    else if (job != NULL && job->certain)
        evidence_judge(owner, job, token, worker, started_us, &finish, &pins);
    else if (job != NULL)
        evidence_keep(owner, id, token, worker, started_us, &finish, &pins, false);
    else if (TOKEN_EPOCH(token) < owner->epoch) /* ours are in memory, or over */
        evidence_keep(owner, id, token, worker, started_us, &finish, &pins, true);
    else if (finish != NULL)
        owner->stats.fenced++;
    pin_write(&pins);
    free(finish);
}

void evidence_resolve(struct owner *owner, struct job *job)
{
    struct evidence *evidence = evidence_find(owner, &job->spec->submit.id);

    if (evidence == NULL)
        return;
    if (evidence->finish != NULL)
        owner->evidence_bytes -= evidence->finish->size;
    evidence_judge(owner, job, evidence->token, evidence->worker, evidence->started_us,
                   &evidence->finish, &evidence->pins);
    if (evidence->finish != NULL)
        owner->evidence_bytes += evidence->finish->size;
    evidence_remove(owner, evidence);
}

/* ---- lookups ---- */

static bool intake_is_read(const struct owner *owner)
{
    return owner->intake_at_end || owner->intake.next >= owner->ends.intake_end;
}

static void lookup_send(struct owner *owner)
{
    struct evidence *evidence, *next;
    struct cancel *cancel;
    struct todo_node *node;

    owner->lookup = xcalloc(OWNER_LOOKUP_MAX, sizeof(*owner->lookup));
    owner->lookup_count = 0;
    HASH_ITER(hh, owner->evidence, evidence, next)
    {
        if (evidence->step != EVIDENCE_WANTED || owner->lookup_count == OWNER_LOOKUP_MAX)
            continue;
        evidence->step = EVIDENCE_ASKED;
        owner->lookup_wanted--;
        owner->lookup[owner->lookup_count++] = evidence->id;
    }
    TAILQ_FOREACH(cancel, &owner->cancels, link)
    {
        if (owner->lookup_count == OWNER_LOOKUP_MAX)
            break;
        cancel->asked = true;
        owner->lookup[owner->lookup_count++] = cancel->id;
    }
    node = todo_add(owner, OWNER_TODO_LOOKUP);
    node->todo.lookup.ids = owner->lookup;
    node->todo.lookup.id_count = owner->lookup_count;
}

static const struct ledger_row *row_find(const struct ledger_row *rows, size_t row_count,
                                         const struct wire_id *id)
{
    for (size_t i = 0; i < row_count; i++) {
        if (memcmp(&rows[i].spec->submit.id, id, sizeof(*id)) == 0)
            return &rows[i];
    }
    return NULL;
}

/* Cancels that were asked about: decided now, one way or the other. */
static void lookup_settle_cancels(struct owner *owner, const struct ledger_row *finals,
                                  size_t final_count)
{
    struct cancel *cancel, *next;

    TAILQ_FOREACH_SAFE(cancel, &owner->cancels, link, next)
    {
        struct job *job = job_find(owner, &cancel->id);

        if (!cancel->asked)
            continue;
        TAILQ_REMOVE(&owner->cancels, cancel, link);
        owner->cancel_count--;
        if (job == NULL)
            cancel_give_up(owner, cancel, row_find(finals, final_count, &cancel->id));
        else
            TAILQ_INSERT_TAIL(&job->cancels, cancel, link);
        if (job != NULL && job->certain)
            cancel_apply_all(owner, job);
    }
}

static void lookup_settle_evidence(struct owner *owner)
{
    for (size_t i = 0; i < owner->lookup_count; i++) {
        struct evidence *evidence = evidence_find(owner, &owner->lookup[i]);
        struct job *job = job_find(owner, &owner->lookup[i]);

        if (evidence == NULL || evidence->step != EVIDENCE_ASKED)
            continue;
        evidence->step = EVIDENCE_WAITS;
        if (job != NULL && job->certain)
            evidence_resolve(owner, job);
        else if (job == NULL && intake_is_read(owner))
            evidence_give_up(owner, evidence);
    }
}

/* Takes the rows that are not final into memory; the others move to the front. */
static size_t lookup_take_rows(struct owner *owner, struct ledger_row *rows, size_t row_count)
{
    size_t final_count = 0;

    for (size_t i = 0; i < row_count; i++) {
        if (job_state_final(rows[i].state))
            rows[final_count++] = rows[i];
        else if (job_find(owner, &rows[i].spec->submit.id) != NULL || owner->phase == OWNER_OVER)
            job_spec_unref(&rows[i].spec);
        else
            (void)job_add_row(owner, &rows[i]);
    }
    return final_count;
}

void owner_on_lookup(struct owner *owner, struct ledger_row *rows, size_t row_count)
{
    size_t final_count = lookup_take_rows(owner, rows, row_count);

    if (owner->phase != OWNER_OVER && owner->lookup != NULL) {
        lookup_settle_cancels(owner, rows, final_count);
        lookup_settle_evidence(owner);
        for (size_t i = 0; i < owner->lookup_count; i++) {
            struct job *job = job_find(owner, &owner->lookup[i]);

            if (job != NULL && job->certain)
                job_settle(owner, job);
        }
        owner->lookup_count = 0;
        mem_free(&owner->lookup);
    }
    for (size_t i = 0; i < final_count; i++)
        job_spec_unref(&rows[i].spec);
}

/* Intake is read as far as an earlier owner can have read it: what is unknown now stays so. */
static void evidence_give_up_rest(struct owner *owner)
{
    struct evidence *evidence, *next;

    HASH_ITER(hh, owner->evidence, evidence, next)
    {
        if (evidence->step == EVIDENCE_WAITS && job_find(owner, &evidence->id) == NULL)
            evidence_give_up(owner, evidence);
    }
}

void takeover_step(struct owner *owner)
{
    if (owner->phase == OWNER_OUTCOME &&
        (owner->outcome_at_end || owner->outcome.next >= owner->ends.outcome_end))
        owner->phase = OWNER_LOOKUP;
    if (owner->phase == OWNER_OUTCOME)
        return;
    if (owner->lookup == NULL && (owner->lookup_wanted > 0 || owner->cancel_count > 0))
        lookup_send(owner);
    if (owner->phase == OWNER_LOOKUP && owner->lookup == NULL) {
        owner->phase = OWNER_LIVE;
        owner->outcome_end_us = owner->now_us;
        owner->outcome_known_us = owner->now_us;
    }
    if (!owner->intake_was_read && intake_is_read(owner)) {
        owner->intake_was_read = true;
        evidence_give_up_rest(owner);
    }
}

void takeover_free(struct owner *owner)
{
    struct evidence *evidence, *next;

    HASH_ITER(hh, owner->evidence, evidence, next)
    {
        evidence_remove(owner, evidence);
    }
    mem_free(&owner->lookup);
}
