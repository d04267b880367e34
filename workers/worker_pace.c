/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/worker_pace.h"

#include <math.h>

#define MEMORY_OF_HOLD 10 /* of so many parts of hold_us one counts, about */

static struct worker_pace aged(const struct worker_pace *pace, uint64_t now_us)
{
    struct worker_pace now = *pace;
    double past_us, keep;

    if (!pace->is_busy || now_us <= pace->mark_us)
        return now;
    past_us = (double)(now_us - pace->mark_us);
    keep = exp(-past_us / ((double)pace->hold_us / MEMORY_OF_HOLD));
    now.busy_us = now.busy_us * keep + past_us;
    now.slot_count *= keep;
    now.mark_us = now_us;
    return now;
}

void worker_pace_begin(struct worker_pace *pace, uint64_t now_us)
{
    if (pace->hold_us == 0 || pace->is_busy)
        return;
    pace->is_busy = true;
    pace->mark_us = now_us;
}

void worker_pace_note(struct worker_pace *pace, uint64_t now_us, uint32_t slot_count, bool is_empty)
{
    if (pace->hold_us == 0)
        return;
    *pace = aged(pace, now_us);
    pace->slot_count += slot_count;
    pace->is_busy = !is_empty;
}

uint32_t worker_pace_slots(const struct worker_pace *pace, uint64_t now_us)
{
    const struct worker_pace now = aged(pace, now_us);
    uint32_t slots = WORKER_PACE_SLOTS_FIRST;
    double held;

    if (pace->hold_us == 0)
        return pace->slot_max;
    /* Before the first answer there is no pace, but for how long it has taken. */
    if (now.slot_count > 0 || now.busy_us >= (double)pace->hold_us) {
        held = ceil(now.slot_count / (now.busy_us > 1 ? now.busy_us : 1) * (double)pace->hold_us);
        slots = held < pace->slot_max ? (uint32_t)held : pace->slot_max;
        slots = slots < WORKER_PACE_SLOTS_LEAST ? WORKER_PACE_SLOTS_LEAST : slots;
    }
    return slots < pace->slot_max ? slots : pace->slot_max;
}
