/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Kill switches. A job is looked up under its tenant, its model and its tags when its turn has
 * come: a few hashes a job, and nothing while no switch is on. One that is held is PARKED: out of
 * the heaps, still a waiting job of its lane, with its deadlines running. Turning a switch off
 * costs a walk over what is parked, at most the window.
 *
 * A lane that is parked as deep as its share of the window loads no more rows: jobs of the same
 * tenant, pool and class that no switch matches then wait behind it.
 */

#include <stdlib.h>
#include <string.h>

#include "brokers/owner_int.h"

struct switch_key {
    char kind;
    char tenant[OWNER_NAME_SIZE], value[OWNER_NAME_SIZE];
};

struct switch_on {
    UT_hash_handle hh;
    struct switch_key key;
};

static void text_copy(char to[OWNER_NAME_SIZE], const char *text, size_t size)
{
    if (size > 0 && size < OWNER_NAME_SIZE)
        memcpy(to, text, size);
}

static bool is_on(const struct owner *owner, enum switch_kind kind, struct wire_text tenant,
                  const char *value, size_t value_size)
{
    struct switch_key key;
    struct switch_on *on;

    memset(&key, 0, sizeof(key));
    key.kind = (char)kind;
    text_copy(key.tenant, tenant.text, tenant.size);
    text_copy(key.value, value, value_size);
    HASH_FIND(hh, owner->switches, &key, sizeof(key), on);
    return on != NULL;
}

bool switch_holds(const struct owner *owner, const struct job *job)
{
    const struct message_submit *submit = &job->spec->submit;
    const char *tag = submit->tags.text;
    size_t left = submit->tags.size;

    if (owner->switches == NULL)
        return false;
    if (is_on(owner, SWITCH_TENANT, submit->tenant, NULL, 0) ||
        is_on(owner, SWITCH_MODEL, submit->tenant, submit->model.text, submit->model.size))
        return true;
    while (left > 0) {
        const char *comma = memchr(tag, ',', left);
        size_t size = comma == NULL ? left : (size_t)(comma - tag);

        if (size > 0 && is_on(owner, SWITCH_TAG, submit->tenant, tag, size))
            return true;
        left -= comma == NULL ? size : size + 1;
        tag += comma == NULL ? size : size + 1;
    }
    return false;
}

void switch_free_all(struct owner *owner)
{
    struct switch_on *on, *next;

    HASH_ITER(hh, owner->switches, on, next)
    {
        HASH_DEL(owner->switches, on);
        free(on);
    }
}

void owner_set_switches(struct owner *owner, const struct ledger_switch *switches,
                        size_t switch_count)
{
    struct job *job, *next;

    switch_free_all(owner);
    for (size_t i = 0; i < switch_count; i++) {
        struct switch_on *on = xcalloc(1, sizeof(*on)), *old;

        on->key.kind = (char)switches[i].kind;
        text_copy(on->key.tenant, switches[i].tenant, strlen(switches[i].tenant));
        if (switches[i].kind != SWITCH_TENANT)
            text_copy(on->key.value, switches[i].value, strlen(switches[i].value));
        HASH_FIND(hh, owner->switches, &on->key, sizeof(on->key), old);
        if (old == NULL)
            HASH_ADD(hh, owner->switches, key, sizeof(on->key), on);
        else
            free(on);
    }
    if (owner->phase == OWNER_OVER)
        return;
    TAILQ_FOREACH_SAFE(job, &owner->parked, parked_link, next)
    {
        if (!switch_holds(owner, job))
            job_wait(owner, job);
    }
}
