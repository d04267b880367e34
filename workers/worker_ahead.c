/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/worker_ahead.h"

#define PATIENCE 20 /* times ahead_us */

uint32_t worker_ahead_count(uint32_t slot_count, uint64_t ahead_us, uint64_t service_us)
{
    if (service_us == 0 || ahead_us == 0)
        return 0;
    return service_us <= ahead_us ? slot_count : (uint32_t)(slot_count * ahead_us / service_us);
}

uint64_t worker_ahead_mean(uint64_t mean_us, uint64_t service_us)
{
    return mean_us == 0 ? service_us + 1 : (mean_us * 7 + service_us + 7) / 8;
}

bool worker_ahead_takes(uint32_t busy, uint32_t cost, uint32_t slot_count, bool granted)
{
    uint32_t room = cost == 1 && granted ? 2 * slot_count : slot_count;

    return busy == 0 || busy + cost <= room;
}

uint64_t worker_ahead_until_us(uint64_t since_us, uint64_t ahead_us)
{
    return ahead_us == 0 ? UINT64_MAX : since_us + PATIENCE * ahead_us;
}
