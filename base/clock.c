/* SPDX-License-Identifier: Apache-2.0 */

#include "base/clock.h"

#include <stdio.h>
#include <time.h>

static uint64_t clock_read_us(clockid_t id)
{
    struct timespec now;

    (void)clock_gettime(id, &now); /* cannot fail for the clocks that we name */
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

uint64_t clock_mono_us(void)
{
    return clock_read_us(CLOCK_MONOTONIC);
}

uint64_t clock_mono_ms(void)
{
    return clock_mono_us() / 1000;
}

uint64_t clock_thread_us(void)
{
    return clock_read_us(CLOCK_THREAD_CPUTIME_ID);
}

uint64_t clock_wall_us(void)
{
    return clock_read_us(CLOCK_REALTIME);
}

uint64_t clock_wall_ms(void)
{
    return clock_wall_us() / 1000;
}

void clock_format_iso(uint64_t wall_us, char *to)
{
    time_t seconds = (time_t)(wall_us / 1000000);
    struct tm parts;
    size_t n;

    (void)gmtime_r(&seconds, &parts);
    n = strftime(to, CLOCK_TEXT_SIZE, "%Y-%m-%dT%H:%M:%S", &parts);
    (void)snprintf(to + n, CLOCK_TEXT_SIZE - n, ".%06u+00:00", (unsigned)(wall_us % 1000000));
}
