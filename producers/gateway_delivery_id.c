/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/gateway_delivery_id.h"

#include <string.h>

#include "schema/job_id.h"

#define PREFIX "msg_"
#define ROUND_MAX 32767 /* smallint */
#define ROUND_DIGITS_MAX 5

static int refuse(const char *text, struct err *err)
{
    return err_set(err, ERR_MALFORMED,
                   "delivery is '%.80s'; it must be a webhook-id, msg_<request id>_<round>, or a "
                   "request id",
                   text);
}

int delivery_id_parse(const char *text, struct wire_id *ret_job, uint64_t *ret_round,
                      struct err *err)
{
    char id[JOB_ID_TEXT_SIZE];
    const char *begin = text, *end;
    uint64_t round = 0;
    size_t digits;

    if (strncmp(text, PREFIX, sizeof(PREFIX) - 1) != 0) {
        if (job_id_parse(text, ret_job, err) < 0)
            return refuse(text, err);
        *ret_round = 0;
        return 0;
    }
    begin += sizeof(PREFIX) - 1;
    end = strchr(begin, '_');
    if (end == NULL || (size_t)(end - begin) >= sizeof(id))
        return refuse(text, err);
    memcpy(id, begin, (size_t)(end - begin));
    id[end - begin] = '\0';
    digits = strspn(++end, "0123456789");
    if (digits == 0 || digits > ROUND_DIGITS_MAX || end[digits] != '\0')
        return refuse(text, err);
    for (; *end != '\0'; end++)
        round = 10 * round + (uint64_t)(*end - '0');
    if (round == 0 || round > ROUND_MAX || job_id_parse(id, ret_job, err) < 0)
        return refuse(text, err);
    *ret_round = round;
    return 0;
}

int endpoint_url_read(const char *text, char *to, size_t to_size, struct err *err)
{
    size_t size = strlen(text);

    if (strncmp(text, "https://", 8) != 0 && strncmp(text, "http://", 7) != 0)
        return err_set(err, ERR_RANGE,
                       "endpoint is '%.80s'; it must begin with https:// or http://", text);
    if (size >= to_size)
        return err_set(err, ERR_RANGE, "endpoint has %zu bytes; at most %zu are allowed", size,
                       to_size - 1);
    for (size_t i = 0; i < size; i++) {
        if (text[i] <= ' ' || text[i] > '~')
            return err_set(err, ERR_RANGE, "endpoint has a character of value %u at %zu",
                           (unsigned)(unsigned char)text[i], i);
    }
    size = strcspn(text, "?#");
    memcpy(to, text, size);
    to[size] = '\0';
    return 0;
}
