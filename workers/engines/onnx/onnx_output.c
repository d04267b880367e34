/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/onnx/onnx_output.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "workers/engines/encoder/encoder_output.h"

static void write_text(const char *text, struct buf *to)
{
    json_t *json = json_string(text);
    char *quoted = json != NULL ? json_dumps(json, JSON_ENCODE_ANY) : NULL;

    buf_append_text(to, quoted != NULL ? quoted : "\"?\"");
    free(quoted);
    json_decref(json);
}

static bool write_float(float value, struct buf *to)
{
    uint8_t *room = buf_reserve(to, ENCODER_FLOAT_SIZE_MAX);

    if (!isfinite(value))
        return false;
    if (room != NULL)
        buf_commit(to, encoder_float_write(value, (char *)room));
    return true;
}

static bool write_double(double value, struct buf *to)
{
    if (isfinite(value))
        buf_printf(to, "%.17g", value);
    return isfinite(value);
}

/* False: it is not finite. */
static bool write_element(const struct onnx_tensor *tensor, uint64_t index, struct buf *to)
{
    const uint8_t *at = (const uint8_t *)tensor->data + index * onnx_type_size(tensor->type);
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
        float f32;
        double f64;
    } value = {.u64 = 0};

    memcpy(&value, at, onnx_type_size(tensor->type));
    switch ((enum onnx_type)tensor->type) {
    case ONNX_FLOAT32:
        return write_float(value.f32, to);
    case ONNX_FLOAT16:
        return write_float(onnx_half_to_float(value.u16), to);
    case ONNX_FLOAT64:
        return write_double(value.f64, to);
    case ONNX_BOOL:
        buf_append_text(to, value.u8 != 0 ? "true" : "false");
        return true;
    case ONNX_INT8:
        buf_printf(to, "%d", value.i8);
        return true;
    case ONNX_INT16:
        buf_printf(to, "%d", value.i16);
        return true;
    case ONNX_INT32:
        buf_printf(to, "%" PRId32, value.i32);
        return true;
    case ONNX_INT64:
        buf_printf(to, "%" PRId64, value.i64);
        return true;
    case ONNX_UINT8:
    case ONNX_UINT16:
    case ONNX_UINT32:
    case ONNX_UINT64:
    case ONNX_STRING:
        break;
    }
    buf_printf(to, "%" PRIu64, value.u64); /* the smaller ones are its low bytes */
    return true;
}

/* Writes brackets where an axis begins or ends, and a comma between. */
static int write_list(const struct onnx_tensor *tensor, uint64_t count, const char *name,
                      struct buf *to, struct err *err)
{
    uint64_t strides[ONNX_RANK_MAX];
    uint64_t stride = 1;

    for (uint32_t i = tensor->rank; i-- > 0;) {
        stride *= (uint64_t)tensor->dims[i];
        strides[i] = stride; /* elements in one list of this axis */
    }
    if (count == 0)
        buf_append_text(to, "[]");
    for (uint64_t at = 0; at < count && !to->failed; at++) {
        if (at > 0)
            buf_append_byte(to, ',');
        for (uint32_t i = 0; i < tensor->rank; i++) {
            if (at % strides[i] == 0)
                buf_append_byte(to, '[');
        }
        if (!write_element(tensor, at, to))
            return err_set(err, ERR_RANGE,
                           "output '%.80s' holds a number that is not finite at element %" PRIu64
                           ", which a list cannot say: ask with \"encoding\": \"base64\"",
                           name, at);
        for (uint32_t i = tensor->rank; i-- > 0;) {
            if ((at + 1) % strides[i] == 0)
                buf_append_byte(to, ']');
        }
    }
    return 0;
}

static int write_tensor(const struct onnx_tensor *tensor, const char *name, bool base64,
                        struct buf *to, struct err *err)
{
    int r = 0;

    write_text(name, to);
    buf_printf(to, ":{\"dtype\":\"%s\",\"shape\":[", onnx_type_name(tensor->type));
    for (uint32_t i = 0; i < tensor->rank; i++)
        buf_printf(to, "%s%" PRId64, i > 0 ? "," : "", tensor->dims[i]);
    buf_append_text(to, "],\"data\":");
    if (base64)
        encoder_base64_write(tensor->data, tensor->size, to);
    else
        r = write_list(tensor, tensor->size / onnx_type_size(tensor->type), name, to, err);
    buf_append_byte(to, '}');
    return r;
}

int onnx_output_write(const struct onnx_model *model, const struct onnx_tensor *tensors,
                      const bool *wanted, bool base64, struct buf *to, struct err *err)
{
    bool first = true;
    int r = 0;

    buf_append_text(to, "{\"outputs\":{");
    for (uint32_t i = 0; r == 0 && i < model->output_count; i++) {
        if (!wanted[i])
            continue;
        if (!first)
            buf_append_byte(to, ',');
        first = false;
        r = write_tensor(&tensors[i], model->outputs[i].name, base64, to, err);
    }
    buf_append_text(to, "}}");
    return r < 0 ? r : buf_check(to, "the answer", err);
}
