/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Workers, each a boot of a name: what they may be sent, whether they live, what they hold.
 *
 * Credit is cumulative ("up to N" since the boot), so a repeated or lost heartbeat neither doubles
 * nor leaks a slot (PROTOCOL 24). Once a worker has read past our newest Attempt, what it counted
 * is the truth, and what an earlier owner sent is in it.
 *
 * A lease ages only while outcome is read to its end; a gap in our own loop or a takeover restarts
 * all of them, and many lapsing together are taken for our own fault once (PROTOCOL 9), unless they
 * are all of one machine while the workers of others are heard.
 *
 * A boot that the agent reported dead may still have records under way; its name is remembered for
 * a while, so that they do not bring it back to life.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "brokers/owner_int.h"

#define MASS_LAPSE_LEAST 3    /* more than so many workers… */
#define MASS_LAPSE_SHARE 3    /* …and at least a third of all… */
#define MASS_LAPSE_US 1000000 /* …within a second */
#define GONE_REMEMBERED_US 10000000

struct worker_key worker_key_of(struct wire_text name, uint64_t boot)
{
    struct worker_key key;

    memset(&key, 0, sizeof(key));
    key.boot = boot;
    if (name.size < OWNER_NAME_SIZE && name.size > 0)
        memcpy(key.name, name.text, name.size);
    return key;
}

struct worker *worker_new(struct owner *owner, struct wire_text name, uint64_t boot)
{
    struct worker *worker = xcalloc(1, sizeof(*worker));

    (void)owner;
    worker->ref_count = 1;
    worker->key = worker_key_of(name, boot);
    worker->last_offset = -1;
    TAILQ_INIT(&worker->jobs);
    return worker;
}

struct worker *worker_ref(struct worker *worker)
{
    worker->ref_count++;
    return worker;
}

void worker_unref(struct worker **worker_p)
{
    struct worker *worker = TAKE(*worker_p);

    if (worker == NULL || --worker->ref_count > 0)
        return;
    assert(!worker->listed && TAILQ_EMPTY(&worker->jobs));
    free(worker);
}

static struct worker *worker_find(struct owner *owner, const struct worker_key *key)
{
    struct worker *worker;

    HASH_FIND(hh, owner->workers, key, sizeof(*key), worker);
    return worker;
}

void worker_check_ready(struct owner *owner, struct worker *worker)
{
    bool ready = worker->listed && !worker->draining && worker->granted > worker->sent;

    if (ready && !worker->ready)
        TAILQ_INSERT_TAIL(&worker->pool->ready, worker, ready_link);
    if (!ready && worker->ready)
        TAILQ_REMOVE(&worker->pool->ready, worker, ready_link);
    worker->ready = ready;
    pool_check_busy(owner, worker->pool);
}

static bool worker_is_gone(const struct owner *owner, const struct worker_key *key)
{
    for (size_t i = 0; i < OWNER_GONE_MAX; i++) {
        if (owner->gone[i].until_us > owner->now_us &&
            memcmp(&owner->gone[i].key, key, sizeof(*key)) == 0)
            return true;
    }
    return false;
}

static void worker_hand_back_jobs(struct owner *owner, struct worker *worker, const char *why)
{
    struct job *job;

    while ((job = TAILQ_FIRST(&worker->jobs)) != NULL)
        job_on_handed_back(owner, job, why);
}

/* Takes the worker off the table; its jobs are no longer its own. */
static void worker_remove(struct owner *owner, struct worker *worker)
{
    worker_hand_back_jobs(owner, worker, "its worker has left");
    worker->listed = false;
    worker_check_ready(owner, worker);
    worker->pool->workers--;
    HASH_DEL(owner->workers, worker);
    owner->stats.workers--;
    worker_unref(&worker);
}

/* All attempts of the worker end as lost. */
static void worker_lose_jobs(struct owner *owner, struct worker *worker, bool counts,
                             const char *why)
{
    struct job *job;

    while ((job = TAILQ_FIRST(&worker->jobs)) != NULL)
        job_on_lost(owner, job, counts && (job->started || job->mark > 0 || job->adopted), why);
}

/* Finds the worker or makes it known. NULL: it is dead, or there are too many. */
static struct worker *worker_get(struct owner *owner, struct wire_text name, uint64_t boot,
                                 struct wire_text pool_name, uint64_t partition)
{
    struct worker_key key = worker_key_of(name, boot);
    struct worker *worker = worker_find(owner, &key);
    struct pool *pool;

    if (worker_is_gone(owner, &key))
        return NULL;
    pool = pool_get(owner, pool_name);
    if (worker != NULL && worker->pool == pool)
        return worker;
    if (worker != NULL) /* one boot serves one pool; a second is a fault of the worker */
        return NULL;
    if (owner->stats.workers >= owner->options.workers_max)
        return NULL;
    worker = worker_new(owner, name, boot);
    worker->pool = pool;
    worker->partition = (uint32_t)partition;
    worker->listed = true;
    pool->workers++;
    HASH_ADD(hh, owner->workers, key, sizeof(worker->key), worker);
    owner->stats.workers++;
    return worker;
}

/* Where it runs, and on what: for lapses and for the log of attempts. */
static void worker_describe(struct worker *worker, struct wire_text machine,
                            struct wire_text device)
{
    uint64_t hash = 14695981039346656037u; /* FNV-1a */

    for (size_t i = 0; i < machine.size; i++)
        hash = (hash ^ (uint8_t)machine.text[i]) * 1099511628211u;
    worker->machine = machine.size > 0 ? hash : 0;
    if (device.size > 0 && device.size < sizeof(worker->device)) {
        memcpy(worker->device, device.text, device.size);
        worker->device[device.size] = '\0';
    }
}

/* A new boot says Hello: the older ones of its name are dead. */
void worker_on_hello(struct owner *owner, const struct message_hello *hello)
{
    struct worker *worker = worker_get(owner, hello->worker, hello->boot, hello->pool,
                                       hello->partition);
    struct worker *other, *next;

    if (worker == NULL)
        return;
    worker->slots = hello->slots;
    worker->resumes = hello->resumes;
    worker->silent_us = 0;
    worker_describe(worker, hello->host, hello->device);
    HASH_ITER(hh, owner->workers, other, next)
    {
        if (other == worker || strcmp(other->key.name, worker->key.name) != 0)
            continue;
        worker_lose_jobs(owner, other, true, "its worker has started again");
        worker_remove(owner, other);
    }
}

static void worker_take_credit(struct owner *owner, struct worker *worker,
                               const struct message_heartbeat *beat)
{
    bool is_new = !worker->heard;

    worker->heard = true;
    worker->slots = beat->slots;
    worker->resumes = beat->resumes;
    worker->draining = beat->draining;
    worker->position = beat->position;
    if (beat->granted > worker->granted)
        worker->granted = beat->granted;
    if (is_new || (worker->unreported == 0 && (int64_t)beat->position > worker->last_offset))
        worker->sent = beat->received;
    worker_check_ready(owner, worker);
}

/* Those that the worker should hold by now, and does not, are lost: at once, without a lease. */
static void worker_check_held(struct owner *owner, struct worker *worker, uint64_t mark)
{
    struct job *job, *next;

    TAILQ_FOREACH_SAFE(job, &worker->jobs, worker_link, next)
    {
        bool was_held = job->mark > 0;
        bool read = job->dispatch_offset >= 0 && (int64_t)worker->position > job->dispatch_offset;

        if (job->mark != mark && (was_held || read))
            job_on_lost(owner, job, false, "its worker does not know the attempt");
    }
}

void worker_on_heartbeat(struct owner *owner, const struct message_heartbeat *beat)
{
    struct worker *worker = worker_get(owner, beat->worker, beat->boot, beat->pool,
                                       beat->partition);
    size_t count = beat->tokens.count;

    if (worker == NULL)
        return;
    worker->silent_us = 0;
    worker->spared = false;
    if (worker->machine == 0)
        worker_describe(worker, beat->host, beat->device);
    worker_take_credit(owner, worker, beat);
    if (beat->jobs.size != count * WIRE_ID_SIZE) {
        owner->stats.dead_records++;
        return;
    }
    worker->mark++;
    for (size_t i = 0; i < count; i++) {
        struct wire_id id;
        struct job *job;

        memcpy(&id, beat->jobs.bytes + i * WIRE_ID_SIZE, sizeof(id));
        job = job_find(owner, &id);
        if (job == NULL || job->token != beat->tokens.values[i] || job->worker != worker)
            evidence_see(owner, &id, beat->tokens.values[i], worker, 0, NULL, NULL);
        job = job_find(owner, &id);
        if (job != NULL && job->token == beat->tokens.values[i] && job->worker == worker)
            job->mark = worker->mark;
    }
    worker_check_held(owner, worker, worker->mark);
}

void worker_on_bye(struct owner *owner, const struct message_bye *bye)
{
    struct worker_key key = worker_key_of(bye->worker, bye->boot);
    struct worker *worker = worker_find(owner, &key);

    if (worker != NULL)
        worker_remove(owner, worker);
}

static void worker_end_text(struct worker *worker, struct wire_text reason)
{
    (void)snprintf(worker->why, sizeof(worker->why), "its worker's process has ended%s%.*s",
                   reason.size > 0 ? ": " : "", (int)reason.size,
                   reason.size > 0 ? reason.text : "");
}

void worker_on_gone(struct owner *owner, const struct message_gone *gone)
{
    struct worker_key key = worker_key_of(gone->worker, gone->boot);
    struct worker *worker = worker_find(owner, &key);

    owner->gone[owner->gone_next].key = key;
    owner->gone[owner->gone_next].until_us = owner->now_us + GONE_REMEMBERED_US;
    owner->gone_next = (owner->gone_next + 1) % OWNER_GONE_MAX;
    if (worker == NULL)
        return;
    worker_end_text(worker, gone->reason);
    if (gone->left) /* what it said of them at last may still be on its way, or nowhere */
        worker_hand_back_jobs(owner, worker, worker->why);
    else
        worker_lose_jobs(owner, worker, true, worker->why);
    worker_remove(owner, worker);
}

void worker_on_life(struct owner *owner, struct wire_text name, uint64_t boot)
{
    struct worker_key key = worker_key_of(name, boot);
    struct worker *worker = worker_find(owner, &key);

    if (worker != NULL)
        worker->silent_us = 0;
}

/* The silent ones are all workers of one machine, and others are heard: it has vanished, and our
 * own reading works. */
static bool lapse_is_machine(const struct owner *owner, uint64_t silent)
{
    const struct worker *worker;
    uint64_t machine = 0;
    bool others = false;

    for (worker = owner->workers; worker != NULL; worker = worker->hh.next) {
        if (worker->silent_us < silent)
            continue;
        if (worker->machine == 0 || (machine != 0 && machine != worker->machine))
            return false;
        machine = worker->machine;
    }
    for (worker = owner->workers; worker != NULL; worker = worker->hh.next) {
        if (worker->silent_us >= silent)
            continue;
        if (worker->machine == machine)
            return false;
        others = true;
    }
    return others;
}

/* When so many lapse together that the fault is rather ours, each of them gets one more lease. */
static void lapse_spare_many(struct owner *owner)
{
    uint64_t silent = owner->options.lease_us > MASS_LAPSE_US
                          ? owner->options.lease_us - MASS_LAPSE_US
                          : owner->options.lease_us;
    struct worker *worker, *next;
    uint32_t count = 0;

    HASH_ITER(hh, owner->workers, worker, next)
    {
        count += worker->silent_us >= silent;
    }
    if (count <= MASS_LAPSE_LEAST || count * MASS_LAPSE_SHARE < owner->stats.workers ||
        lapse_is_machine(owner, silent))
        return;
    HASH_ITER(hh, owner->workers, worker, next)
    {
        if (worker->silent_us < silent || worker->spared)
            continue;
        worker->spared = true;
        worker->silent_us = 0;
    }
}

static void worker_lapse(struct owner *owner, struct worker *worker)
{
    /* With one job on it, that job may be what killed it; with several, nobody knows. */
    worker_lose_jobs(owner, worker, worker->running == 1, "its worker's lease has lapsed");
    worker_remove(owner, worker);
}

/* Its slot is free, and what comes next need not wait for a heartbeat. What was sent before us only
 * a heartbeat tells. */
void worker_on_credit(struct owner *owner, struct worker *worker, uint64_t granted)
{
    if (!worker->listed || !worker->heard || granted <= worker->granted)
        return;
    worker->granted = granted;
    worker_check_ready(owner, worker);
}

bool worker_words_are_known(const struct owner *owner)
{
    return owner->now_us - owner->outcome_end_us <= owner->options.caught_up_us;
}

bool worker_words_stay_known(const struct owner *owner)
{
    return worker_words_are_known(owner) &&
           owner->now_us - owner->outcome_known_us >= owner->options.lease_us;
}

void worker_age_leases(struct owner *owner, uint64_t elapsed_us)
{
    bool caught_up = worker_words_are_known(owner);
    bool gap = elapsed_us > owner->options.caught_up_us;
    struct worker *worker, *next;

    if (!owner_guarded(owner, OWNER_GUARD_CAUGHT_UP)) {
        caught_up = true;
        gap = false;
    }
    if (!caught_up || owner->phase != OWNER_LIVE)
        elapsed_us = 0;
    HASH_ITER(hh, owner->workers, worker, next)
    {
        worker->silent_us = gap ? 0 : worker->silent_us + elapsed_us;
    }
    HASH_ITER(hh, owner->workers, worker, next)
    {
        if (worker->silent_us >= owner->options.lease_us &&
            owner_guarded(owner, OWNER_GUARD_CAUGHT_UP))
            lapse_spare_many(owner);
        if (worker->silent_us >= owner->options.lease_us)
            worker_lapse(owner, worker);
    }
    owner->unknown->silent_us = gap ? 0 : owner->unknown->silent_us + elapsed_us;
    if (owner->unknown->silent_us >= owner->options.lease_us)
        worker_lose_jobs(owner, owner->unknown, false, "no worker holds the attempt");
}

void worker_free_all(struct owner *owner)
{
    struct worker *worker, *next;

    HASH_ITER(hh, owner->workers, worker, next)
    {
        worker->listed = false;
        worker_check_ready(owner, worker);
        HASH_DEL(owner->workers, worker);
        worker_unref(&worker);
    }
    worker_unref(&owner->unknown);
}
