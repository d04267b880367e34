/* SPDX-License-Identifier: Apache-2.0 */

#include "brokers/ledger.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

#define US_PER_MS 1000u

/* from + span, where "later than time goes" stays UINT64_MAX. */
static uint64_t deadline_us(uint64_t from_us, uint64_t span_ms)
{
    if (span_ms >= (UINT64_MAX - from_us) / US_PER_MS)
        return UINT64_MAX;
    return from_us + span_ms * US_PER_MS;
}

static enum job_rank submit_rank(const struct message_submit *submit)
{
    if (submit->sync)
        return JOB_RANK_SYNC;
    if (submit->priority >= JOB_PRIORITY_BULK)
        return JOB_RANK_BULK;
    return (enum job_rank)(JOB_RANK_PRIORITY_0 + submit->priority);
}

int job_spec_new(struct wire_decoder *decoder, const void *record, size_t record_size, uint64_t seq,
                 uint64_t append_us, struct job_spec **ret_spec, struct err *err)
{
    OWNED(job_spec_unref) struct job_spec *spec = xmalloc(sizeof(*spec) + record_size);
    struct message message;
    const struct message_submit *submit = &message.submit;
    int r;

    spec->ref_count = 1;
    memcpy(spec + 1, record, record_size);
    r = message_decode(decoder, spec + 1, record_size, &message, err);
    if (r < 0)
        return r;
    if (message.type != MESSAGE_SUBMIT)
        return err_set(err, ERR_MALFORMED, "%s stands where a submit is expected",
                       message_type_name(message.type));
    spec->submit = message.submit;
    spec->seq = seq;
    spec->accepted_us = spec->queued_us = append_us;
    spec->start_deadline_us = deadline_us(append_us, submit->queue_limit_ms);
    spec->total_deadline_us = submit->total_limit_ms == 0
                                  ? UINT64_MAX
                                  : deadline_us(append_us, submit->total_limit_ms);
    spec->rank = submit_rank(submit);
    spec->slot_count = submit->slot_count == 0           ? 1
                       : submit->slot_count > UINT16_MAX ? UINT16_MAX
                                                         : (uint32_t)submit->slot_count;
    spec->round = 1;
    spec->record_size = record_size;
    *ret_spec = TAKE(spec);
    return 0;
}

struct job_spec *job_spec_placed(struct wire_decoder *decoder, const struct job_spec *from,
                                 uint64_t seq, uint64_t queued_us)
{
    struct job_spec *spec = NULL;
    struct err err;

    if (job_spec_new(decoder, from + 1, from->record_size, seq, queued_us, &spec, &err) < 0)
        NEVER("a Submit that was decoded cannot be decoded again");
    spec->accepted_us = from->accepted_us;
    spec->rank = from->rank;
    spec->submit.priority = from->submit.priority;
    spec->submit.sync = from->submit.sync;
    spec->round = from->round;
    return spec;
}

struct job_spec *job_spec_ref(struct job_spec *spec)
{
    assert(spec->ref_count > 0);
    spec->ref_count++;
    return spec;
}

void job_spec_unref(struct job_spec **spec_p)
{
    struct job_spec *spec = TAKE(*spec_p);

    if (spec == NULL)
        return;
    assert(spec->ref_count > 0);
    if (--spec->ref_count == 0)
        free(spec);
}

size_t job_spec_size(const struct job_spec *spec)
{
    return sizeof(*spec) + spec->record_size;
}
