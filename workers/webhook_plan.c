/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/webhook_plan.h"

#include <string.h>

#include "base/assert.h"
#include "base/http_client.h"

#define SECOND_MS 1000u
#define MINUTE_MS (60 * SECOND_MS)
#define HOUR_MS (60 * MINUTE_MS)

/* Delay behind try 1, 2, … 9; together 75 h 35 min, the schedule of Standard Webhooks' examples. */
static const uint64_t delays_ms[WEBHOOK_TRIES_MAX - 1] = {
    5 * SECOND_MS, 5 * MINUTE_MS, 30 * MINUTE_MS, 2 * HOUR_MS,  5 * HOUR_MS,
    10 * HOUR_MS,  14 * HOUR_MS,  20 * HOUR_MS,   24 * HOUR_MS,
};

static int worth_repeating(int http_status)
{
    return http_status == 0 || http_status == 408 || http_status == 425 || http_status == 429 ||
           http_status >= 500;
}

/* The delay of the schedule, spread by a fifth to both sides so that a receiver that comes back
 * is not met by everyone at once. */
static uint64_t delay_after(const struct webhook_try *try)
{
    double base_ms = (double)delays_ms[try->number - 1] * try->time_scale;
    uint64_t delay_ms = (uint64_t)(base_ms * (0.8 + 0.4 * try->jitter));
    uint64_t asked_ms = try->retry_after_ms;

    if (asked_ms > WEBHOOK_RETRY_AFTER_MS_MAX)
        asked_ms = WEBHOOK_RETRY_AFTER_MS_MAX;
    return delay_ms > asked_ms ? delay_ms : asked_ms;
}

struct webhook_next webhook_plan_next(const struct webhook_try *try)
{
    uint32_t tries_max = WEBHOOK_TRIES_MAX;

    assert(try->number > 0);
    if (try->http_status >= 200 && try->http_status < 300)
        return (struct webhook_next){WEBHOOK_DELIVERED, 0};
    if (try->http_status == 410)
        return (struct webhook_next){WEBHOOK_GIVEN_UP_GONE, 0};
    if (try->blocked || !worth_repeating(try->http_status))
        tries_max = WEBHOOK_REFUSALS_MAX;
    if (try->number >= tries_max)
        return (struct webhook_next){WEBHOOK_GIVEN_UP, 0};
    return (struct webhook_next){WEBHOOK_AGAIN, delay_after(try)};
}

uint64_t webhook_plan_retry_after(const char *text, uint64_t now_s)
{
    const uint64_t most_s = WEBHOOK_RETRY_AFTER_MS_MAX / 1000;
    uint64_t seconds = 0;
    int64_t date_s;

    if (*text != '\0' && text[strspn(text, "0123456789")] == '\0') {
        for (; *text != '\0' && seconds < most_s; text++)
            seconds = seconds * 10 + (uint64_t)(*text - '0');
    } else {
        date_s = http_date_parse(text);
        if (date_s > 0 && (uint64_t)date_s > now_s)
            seconds = (uint64_t)date_s - now_s;
    }
    return (seconds < most_s ? seconds : most_s) * 1000;
}

bool webhook_plan_is_over(uint64_t age_ms, double time_scale)
{
    uint64_t total_ms = 0;

    for (int i = 0; i < WEBHOOK_TRIES_MAX - 1; i++)
        total_ms += delays_ms[i];
    return (double)age_ms >= (double)total_ms * 1.2 * time_scale;
}
