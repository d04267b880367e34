/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/gateway_time.h"

#include <stdbool.h>
#include <string.h>

/* Takes exactly `count` digits whose number lies in [lowest, highest]. */
static bool take_number(const char **at, size_t count, int lowest, int highest, int *ret_number)
{
    int number = 0;

    for (size_t i = 0; i < count; i++) {
        char c = (*at)[i];

        if (c < '0' || c > '9')
            return false;
        number = 10 * number + (c - '0');
    }
    *at += count;
    *ret_number = number;
    return number >= lowest && number <= highest;
}

static bool take_char(const char **at, const char *any)
{
    if (**at == '\0' || strchr(any, **at) == NULL)
        return false;
    (*at)++;
    return true;
}

/* Days from 1970-01-01 in the proleptic Gregorian calendar.
 * Source: H. Hinnant, chrono-Compatible Low-Level Date Algorithms, days_from_civil. */
static int64_t days_of(int year, int month, int day)
{
    int64_t y = month <= 2 ? year - 1 : year;
    int64_t era = y / 400, year_of_era = y - era * 400;
    int64_t day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    int64_t day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;

    return era * 146097 + day_of_era - 719468;
}

static int days_in_month(int year, int month)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);

    return month == 2 && leap ? 29 : days[month - 1];
}

static bool take_day(const char **at, int64_t *ret_days)
{
    int year, month, day;

    if (!take_number(at, 4, 1, 9999, &year) || !take_char(at, "-") ||
        !take_number(at, 2, 1, 12, &month) || !take_char(at, "-") ||
        !take_number(at, 2, 1, days_in_month(year, month), &day))
        return false;
    *ret_days = days_of(year, month, day);
    return true;
}

/* ".123456789": digits behind the sixth are cut. */
static bool take_fraction(const char **at, int64_t *ret_us)
{
    int64_t us = 0, unit = 100000;

    if (!take_char(at, "."))
        return true;
    if (**at < '0' || **at > '9')
        return false;
    for (; **at >= '0' && **at <= '9'; (*at)++) {
        us += unit * (**at - '0');
        unit /= 10;
    }
    *ret_us = us;
    return true;
}

static bool take_offset(const char **at, int64_t *ret_minutes)
{
    int sign = **at == '-' ? -1 : 1;
    int hours, minutes;

    if (take_char(at, "Zz"))
        return true;
    /* A '+' in a query means a space to those who forgot to escape it. */
    if (!take_char(at, "+- ") || !take_number(at, 2, 0, 23, &hours) || !take_char(at, ":") ||
        !take_number(at, 2, 0, 59, &minutes))
        return false;
    *ret_minutes = sign * (60 * hours + minutes);
    return true;
}

int gateway_time_parse(const char *text, uint64_t *ret_us, struct err *err)
{
    const char *at = text;
    int64_t days = 0, fraction_us = 0, offset_minutes = 0, seconds;
    int hour = 0, minute = 0, second = 0;
    bool ok = take_day(&at, &days);

    if (ok && *at != '\0')
        ok = take_char(&at, "Tt ") && take_number(&at, 2, 0, 23, &hour) && take_char(&at, ":") &&
             take_number(&at, 2, 0, 59, &minute) && take_char(&at, ":") &&
             take_number(&at, 2, 0, 60, &second) && take_fraction(&at, &fraction_us) &&
             take_offset(&at, &offset_minutes);
    seconds = days * 86400 + hour * 3600 + minute * 60 + second - offset_minutes * 60;
    if (!ok || *at != '\0')
        return err_set(err, ERR_MALFORMED,
                       "time is '%.40s'; it must be like 2026-01-31 or 2026-01-31T12:34:56Z", text);
    *ret_us = seconds < 0 ? 0 : (uint64_t)(seconds * 1000000 + fraction_us);
    return 0;
}
