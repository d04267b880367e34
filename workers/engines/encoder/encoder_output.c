/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/encoder_output.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"

#define DIGITS 9
#define DIGITS_LOW 100000000u /* the least number of nine digits */
#define SCALE_MAX 14

/* Nine digits of a value in [1e-5, 1e9): value * 10^scale has nine digits before the point. The
 * double product is off by 1e-16 of its value, a thousandth of what nine digits can be off
 * by before another f32 is nearer. */
static uint32_t nine_digits(double value, int *ret_scale)
{
    static const double powers[SCALE_MAX + 1] = {1,   1e1, 1e2,  1e3,  1e4,  1e5,  1e6, 1e7,
                                                 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14};
    int scale = DIGITS;
    uint32_t digits;

    while (scale > 0 && value * powers[scale] >= 10.0 * DIGITS_LOW)
        scale--;
    while (scale < SCALE_MAX && value * powers[scale] < DIGITS_LOW)
        scale++;
    digits = (uint32_t)(value * powers[scale] + 0.5);
    if (digits == 10 * DIGITS_LOW) {
        digits = DIGITS_LOW;
        scale--;
    }
    *ret_scale = scale;
    return digits;
}

size_t encoder_float_write(float value, char *to)
{
    char text[DIGITS];
    int scale, count = DIGITS;
    uint32_t digits;
    char *at = to;

    if (value == 0 || !(fabsf(value) >= 1e-5f && fabsf(value) < 1e8f)) {
        int size = snprintf(to, ENCODER_FLOAT_SIZE_MAX, "%.9g", (double)value);

        assert(size > 0 && size < (int)ENCODER_FLOAT_SIZE_MAX);
        return (size_t)size;
    }
    digits = nine_digits(fabs((double)value), &scale);
    for (int i = DIGITS; i-- > 0; digits /= 10)
        text[i] = (char)('0' + digits % 10);
    while (count > 1 && count > DIGITS - scale && text[count - 1] == '0')
        count--;
    if (value < 0)
        *at++ = '-';
    if (scale >= DIGITS) {
        *at++ = '0';
        *at++ = '.';
        for (int i = DIGITS; i < scale; i++)
            *at++ = '0';
        memcpy(at, text, (size_t)count);
        return (size_t)(at + count - to);
    }
    memcpy(at, text, (size_t)(DIGITS - scale));
    at += DIGITS - scale;
    if (count > DIGITS - scale) {
        *at++ = '.';
        memcpy(at, text + DIGITS - scale, (size_t)(count - (DIGITS - scale)));
        at += count - (DIGITS - scale);
    }
    return (size_t)(at - to);
}

static void write_numbers(const float *vector, uint32_t count, struct buf *to)
{
    buf_append_byte(to, '[');
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *room = buf_reserve(to, ENCODER_FLOAT_SIZE_MAX + 1);
        size_t size = 0;

        if (room == NULL)
            return;
        if (i > 0)
            room[size++] = ',';
        size += encoder_float_write(vector[i], (char *)room + size);
        buf_commit(to, size);
    }
    buf_append_byte(to, ']');
}

void encoder_base64_write(const void *data, size_t size, struct buf *to)
{
    static const char alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const size_t out_size = (size + 2) / 3 * 4;
    const uint8_t *bytes = data;
    uint8_t *out;

    _Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "vectors go out as they are");
    buf_append_byte(to, '"');
    out = buf_reserve(to, out_size);
    if (out == NULL)
        return;
    for (size_t i = 0, o = 0; i < size; i += 3, o += 4) {
        uint32_t three = (uint32_t)bytes[i] << 16;

        three |= i + 1 < size ? (uint32_t)bytes[i + 1] << 8 : 0;
        three |= i + 2 < size ? bytes[i + 2] : 0;
        out[o] = (uint8_t)alphabet[three >> 18];
        out[o + 1] = (uint8_t)alphabet[three >> 12 & 63];
        out[o + 2] = (uint8_t)(i + 1 < size ? alphabet[three >> 6 & 63] : '=');
        out[o + 3] = (uint8_t)(i + 2 < size ? alphabet[three & 63] : '=');
    }
    buf_commit(to, out_size);
    buf_append_byte(to, '"');
}

static int check_finite(const struct encoder_output *output, struct err *err)
{
    const size_t count = (size_t)output->text_count * output->dimension_count;

    for (size_t i = 0; i < count; i++) {
        if (!isfinite(output->vectors[i]))
            return err_set(err, ERR_INTERNAL,
                           "the vector of input[%zu] holds a number that is not finite: the "
                           "weights are broken, or too large for this dtype",
                           i / output->dimension_count);
    }
    return 0;
}

static void write_flags(const struct encoder_output *output, struct buf *to)
{
    for (uint32_t i = 0; i < output->text_count; i++) {
        if (i > 0)
            buf_append_byte(to, ',');
        buf_append_text(to, output->truncated[i] ? "true" : "false");
    }
}

static void write_warnings(const json_t *warnings, struct buf *to)
{
    const size_t size = json_dumpb(warnings, NULL, 0, JSON_COMPACT);
    uint8_t *room;

    buf_append_text(to, ",\"warnings\":");
    room = buf_reserve(to, size);
    if (room != NULL && json_dumpb(warnings, (char *)room, size, JSON_COMPACT) == size)
        buf_commit(to, size);
}

int encoder_output_write(const struct encoder_output *output, struct buf *to, struct err *err)
{
    int r;

    r = check_finite(output, err);
    if (r < 0)
        return r;
    buf_append_text(to, "{\"object\":\"list\",\"data\":[");
    for (uint32_t i = 0; i < output->text_count; i++) {
        const float *vector = output->vectors + (size_t)i * output->dimension_count;

        buf_printf(to, "%s{\"object\":\"embedding\",\"index\":%u,\"embedding\":", i > 0 ? "," : "",
                   i);
        if (output->base64)
            encoder_base64_write(vector, output->dimension_count * sizeof(float), to);
        else
            write_numbers(vector, output->dimension_count, to);
        buf_append_byte(to, '}');
    }
    buf_append_text(to, "],\"model\":");
    buf_append_text(to, output->model_json);
    buf_printf(to, ",\"usage\":{\"prompt_tokens\":%llu,\"total_tokens\":%llu},\"truncated\":[",
               (unsigned long long)output->token_count, (unsigned long long)output->token_count);
    write_flags(output, to);
    buf_append_byte(to, ']');
    if (output->warnings != NULL)
        write_warnings(output->warnings, to);
    buf_append_byte(to, '}');
    return buf_check(to, "the answer", err);
}

uint64_t encoder_output_size_max(uint32_t text_count, uint32_t dimension_count)
{
    /* sign, "0.", four zeros, nine digits, comma; and what surrounds a vector */
    return (uint64_t)text_count * ((uint64_t)dimension_count * 17 + 80) + 256;
}
