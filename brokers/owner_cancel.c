/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Cancels. A Cancel stands behind its Submit in intake, so its job is in memory, in the ledger, or
 * final. The owner's order decides against start, finish and retry; the verdict is told after the
 * flush that makes it so (PROTOCOL 22).
 *
 *   in memory, certain   decided at once
 *   insert still out     waits for it, since the row may be there already, even final
 *   not in memory        LOOKUP: the row may be spilled, or final; none: it was never accepted
 *
 * Commands (owner_command.c) take the same ways. They are acknowledged in the flush of their
 * effect, so they wait until the job has a row: an insert may turn out to have been there before.
 */

#include <stdlib.h>
#include <string.h>

#include "brokers/owner_int.h"

static void text_copy(char to[OWNER_NAME_SIZE], struct wire_text text)
{
    size_t size = text.size < OWNER_NAME_SIZE - 1 ? text.size : OWNER_NAME_SIZE - 1;

    if (size > 0)
        memcpy(to, text.text, size);
    to[size] = '\0';
}

void verdict_free(struct verdict **list)
{
    while (*list != NULL) {
        struct verdict *verdict = *list;

        *list = verdict->next;
        free(verdict);
    }
}

void verdict_tell(struct owner *owner, struct verdict **list, bool applied)
{
    while (*list != NULL) {
        struct verdict *verdict = *list;
        struct todo_node *node;

        *list = verdict->next;
        if (verdict->gateway[0] == '\0') {
            free(verdict);
            continue;
        }
        node = todo_add(owner, OWNER_TODO_VERDICT);
        node->memory = verdict;
        node->todo.verdict.gateway = WIRE_TEXT_OF(verdict->gateway);
        node->todo.verdict.message = (struct message_wake){
            .id = verdict->id,
            .state = applied && verdict->canceled ? JOB_CANCELED : JOB_QUEUED,
            .request = verdict->request,
            .canceled = applied && verdict->canceled,
        };
    }
}

static void verdict_add(struct verdict **list, const struct cancel *cancel, bool canceled)
{
    struct verdict *verdict = xcalloc(1, sizeof(*verdict));

    verdict->id = cancel->id;
    verdict->request = cancel->request;
    verdict->append_us = cancel->append_us;
    verdict->canceled = canceled;
    memcpy(verdict->gateway, cancel->gateway, sizeof(verdict->gateway));
    verdict->next = *list;
    *list = verdict;
}

/* Nothing is left to cancel: that is committed already, no flush makes it so. The row, when there
 * is one, says whether it was a cancel, perhaps this one, that ended the job. */
void cancel_give_up(struct owner *owner, struct cancel *cancel, const struct ledger_row *row)
{
    struct verdict *verdict = NULL;
    bool canceled;

    if (cancel->command != 0) {
        command_give_up(owner, cancel, row);
        return;
    }
    if (row != NULL && job_state_dead(row->state) && command_is_awaited(owner, cancel))
        return;
    canceled = row != NULL && row->state == JOB_CANCELED &&
               wire_text_equal(row->spec->submit.tenant, cancel->tenant);

    verdict_add(&verdict, cancel, canceled);
    verdict_tell(owner, &verdict, true);
    pin_write(&cancel->pin);
    free(cancel);
}

/* It came while an earlier round was the newest one, and was told that this one is over; a takeover
 * that reads it again must not cancel what was replayed since. */
static bool cancel_is_past(const struct job *job, const struct cancel *cancel)
{
    return job->spec->round > 1 && cancel->append_us < job->spec->queued_us;
}

/* Decides one cancel of a job that is certain. Takes the cancel. */
static void cancel_apply(struct owner *owner, struct job *job, struct cancel *cancel)
{
    if (cancel->command != 0) {
        command_apply(owner, job, cancel);
        return;
    }
    if (!wire_text_equal(job->spec->submit.tenant, cancel->tenant) || cancel_is_past(job, cancel)) {
        cancel_give_up(owner, cancel, NULL);
        return;
    }
    if (job->place != JOB_ENDED) {
        owner->stats.canceled++;
        job_end_final(owner, job, JOB_CANCELED, ERROR_CLASS_CANCELED, "canceled by its owner");
    }
    verdict_add(&job->verdicts, cancel, job->state == JOB_CANCELED);
    pin_move(&job->pins, &cancel->pin);
    free(cancel);
    if (!owner_guarded(owner, OWNER_GUARD_VERDICT))
        verdict_tell(owner, &job->verdicts, true);
}

static bool cancel_must_wait(const struct job *job, const struct cancel *cancel)
{
    return !job->certain || (cancel->command != 0 && !job->row);
}

void cancel_apply_all(struct owner *owner, struct job *job)
{
    struct cancel *cancel, *next;

    TAILQ_FOREACH_SAFE(cancel, &job->cancels, link, next)
    {
        if (cancel_must_wait(job, cancel))
            continue;
        TAILQ_REMOVE(&job->cancels, cancel, link);
        cancel_apply(owner, job, cancel);
    }
}

void cancel_look_up(struct owner *owner, struct cancel *cancel)
{
    if (owner->cancel_count == OWNER_CANCELS_MAX && cancel->command != 0) {
        command_refuse(owner, cancel, "too many commands wait; ask again");
        return;
    }
    if (owner->cancel_count == OWNER_CANCELS_MAX) {
        cancel_give_up(owner, cancel, NULL); /* "not canceled" is true; the caller may ask again */
        return;
    }
    cancel->asked = false;
    TAILQ_INSERT_TAIL(&owner->cancels, cancel, link);
    owner->cancel_count++;
}

void cancel_postpone_all(struct owner *owner, struct job *job)
{
    struct cancel *cancel;

    while ((cancel = TAILQ_FIRST(&job->cancels)) != NULL) {
        TAILQ_REMOVE(&job->cancels, cancel, link);
        cancel_look_up(owner, cancel);
    }
}

/* The insert that would have made the job CANCELED met a row that nobody knew of, from a record
 * that came twice: the cancels are decided again, by that row. */
void cancel_ask_again(struct owner *owner, struct verdict **list, const struct job_spec *spec)
{
    while (*list != NULL) {
        struct verdict *verdict = *list;
        struct cancel *cancel = xcalloc(1, sizeof(*cancel));

        *list = verdict->next;
        cancel->id = verdict->id;
        cancel->request = verdict->request;
        cancel->append_us = verdict->append_us;
        text_copy(cancel->tenant, spec->submit.tenant);
        memcpy(cancel->gateway, verdict->gateway, sizeof(cancel->gateway));
        free(verdict);
        cancel_look_up(owner, cancel);
    }
}

void cancel_on_record(struct owner *owner, const struct message_cancel *message, struct pin *pin)
{
    struct cancel *cancel = xcalloc(1, sizeof(*cancel));

    cancel->id = message->id;
    cancel->request = message->request;
    cancel->pin = pin;
    cancel->append_us = pin->append_us;
    text_copy(cancel->tenant, message->tenant);
    text_copy(cancel->gateway, message->gateway);
    cancel_decide(owner, &cancel);
}

void cancel_decide(struct owner *owner, struct cancel **cancel_p)
{
    struct cancel *cancel = TAKE(*cancel_p);
    struct job *job = job_find(owner, &cancel->id);

    if (job == NULL)
        cancel_look_up(owner, cancel);
    else if (cancel_must_wait(job, cancel))
        TAILQ_INSERT_TAIL(&job->cancels, cancel, link);
    else
        cancel_apply(owner, job, cancel);
}

void cancel_free_all(struct owner *owner)
{
    struct cancel *cancel;
    struct job *job, *next;

    HASH_ITER(hh, owner->jobs, job, next)
    {
        cancel_postpone_all(owner, job);
    }
    TAILQ_CONCAT(&owner->cancels, &owner->unpublished_cancels, link);
    while ((cancel = TAILQ_FIRST(&owner->cancels)) != NULL) {
        TAILQ_REMOVE(&owner->cancels, cancel, link);
        free(cancel);
    }
}
