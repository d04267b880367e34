/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/limits.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "cli/client.h"

static double factor_of(const char *suffix)
{
    static const struct {
        const char *suffix;
        double factor;
    } factors[] = {{"", 1}, {"k", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12}};

    for (size_t i = 0; i < COUNT_OF(factors); i++) {
        if (strcmp(factors[i].suffix, suffix) == 0)
            return factors[i].factor;
    }
    return 0;
}

static int limit_of_operand(const char *operand, json_t *limits, struct err *err)
{
    const char *text = strchr(operand, '=');
    OWNED(mem_free) char *name = NULL;
    char *end;
    double value;

    if (text == NULL || text == operand)
        return err_set(err, ERR_USAGE, "'%.60s' is no NAME=NUMBER", operand);
    name = xmemdup(operand, (size_t)(text - operand) + 1);
    name[text - operand] = '\0';
    text++;
    if (*text == '\0') {
        (void)json_object_set_new(limits, name, json_null());
        return 0;
    }
    value = strtod(text, &end);
    if (end == text || factor_of(end) == 0 || !isfinite(value))
        return err_set(err, ERR_USAGE, "%.40s is '%.40s'; it must be a number, like 10, 2.5 or 4G",
                       name, text);
    value *= factor_of(end);
    (void)json_object_set_new(limits, name,
                              value == floor(value) && fabs(value) < 1e15
                                  ? json_integer((json_int_t)value)
                                  : json_real(value));
    return 0;
}

int limits_of_operands(char **operands, int operand_count, json_t **ret_limits, struct err *err)
{
    OWNED(client_json_free) json_t *limits = json_object();
    int r = 0;

    for (int i = 0; i < operand_count && r == 0; i++)
        r = limit_of_operand(operands[i], limits, err);
    if (r == 0)
        *ret_limits = TAKE(limits);
    return r;
}
