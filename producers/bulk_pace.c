/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/bulk_pace.h"

#define WINDOW_MIN ((uint64_t)2 * BULK_PACE_CHUNK) /* one runs, one is next */

void bulk_pace_init(struct bulk_pace *pace)
{
    *pace = (struct bulk_pace){.window = WINDOW_MIN};
}

uint64_t bulk_pace_window(const struct bulk_pace *pace, uint64_t window_max)
{
    if (pace->yields)
        return BULK_PACE_CHUNK < window_max ? BULK_PACE_CHUNK : window_max;
    return pace->window < window_max ? pace->window : window_max;
}

void bulk_pace_ended(struct bulk_pace *pace, uint64_t lines, uint64_t took_us, uint64_t window_max)
{
    if (lines > BULK_PACE_CHUNK)
        lines = BULK_PACE_CHUNK;
    if (took_us < BULK_PACE_HORIZON_US)
        pace->window += lines; /* doubles with each windowful */
    else if (took_us > 2 * BULK_PACE_HORIZON_US)
        pace->window -= lines / 4; /* to three quarters with each windowful */
    if (pace->window > window_max)
        pace->window = window_max;
    if (pace->window < WINDOW_MIN)
        pace->window = WINDOW_MIN;
}

void bulk_pace_measured(struct bulk_pace *pace, bool online_waits)
{
    if (online_waits) {
        pace->window /= 2;
        if (pace->window < WINDOW_MIN)
            pace->window = WINDOW_MIN;
    }
    pace->yields = online_waits;
}
