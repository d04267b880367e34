/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/gateway_rate_core.h"

#include <math.h>

#define ROUNDING 1e-6 /* of an interval: what doubles lose on microseconds since 1970 */

struct rate rate_of(const struct limits *limits)
{
    double per_second = limits_get(limits, LIMIT_rate_per_second, 0);

    if (per_second <= 0)
        return (struct rate){0};
    return (struct rate){
        .interval_us = 1e6 / per_second,
        .burst = limits_get(limits, LIMIT_rate_burst, fmax(1, ceil(per_second))),
    };
}

uint32_t rate_take(const struct rate *rate, double *tat_us, double now_us, uint32_t count,
                   double *ret_wait_us)
{
    double depth_us = rate->interval_us * rate->burst;
    double tat = *tat_us, room;
    uint32_t passed;

    *ret_wait_us = 0;
    if (rate->interval_us <= 0)
        return count;
    if (tat < now_us)
        tat = now_us;
    if (tat > now_us + depth_us) /* the limit was another one, or the clock went back */
        tat = now_us + depth_us;
    room = floor((now_us + depth_us - tat) / rate->interval_us + ROUNDING);
    passed = room >= count ? count : (uint32_t)fmax(room, 0);
    tat += passed * rate->interval_us;
    if (passed < count)
        *ret_wait_us = fmax(0, tat + rate->interval_us - depth_us - now_us);
    *tat_us = tat;
    return passed;
}
