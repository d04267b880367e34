/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Batches and answers: values in and out of Postgres' binary formats.
 *
 * All numbers are big-endian. A timestamptz is microseconds since 2000-01-01. An array of one
 * dimension is int32 dimensions (1, or 0 when empty), int32 flags, uint32 element oid, int32
 * length, int32 lower bound (1), then int32 size and bytes of each element (size -1: null). A jsonb
 * is the byte 1 and the text. Source: PostgreSQL 15, the …recv functions of
 * src/backend/utils/adt.
 */

#include <string.h>

#include "base/assert.h"
#include "brokers/pg_int.h"

#define EPOCH_2000_US 946684800000000ll

/* PG_TYPE(name, oid, oid of its array) */
static const struct {
    Oid oid, array_oid;
} types[PG_TYPE_COUNT] = {
    [PG_BOOL] = {16, 1000},   [PG_I16] = {21, 1005},     [PG_I32] = {23, 1007},
    [PG_I64] = {20, 1016},    [PG_DOUBLE] = {701, 1022}, [PG_ID] = {2950, 2951},
    [PG_TEXT] = {25, 1009},   [PG_BYTES] = {17, 1001},   [PG_TIME] = {1184, 1185},
    [PG_JSON] = {3802, 3807},
};

struct pg_batch *pg_batch_new(void)
{
    struct pg_batch *batch = xcalloc(1, sizeof(*batch));

    buf_init(&batch->values, PG_BATCH_BYTES_MAX);
    return batch;
}

void pg_batch_free(struct pg_batch **batch_p)
{
    struct pg_batch *batch = TAKE(*batch_p);

    if (batch == NULL)
        return;
    buf_done(&batch->values);
    mem_free(&batch->params);
    mem_free(&batch);
}

void pg_add(struct pg_batch *batch, const struct pg_statement *statement)
{
    assert(batch->call_count < PG_STATEMENTS_MAX);
    assert(batch->array_left == 0);
    batch->calls[batch->call_count++] = (struct pg_call){.statement = statement,
                                                         .param_first = batch->param_count};
}

static void put_u32(struct buf *buf, uint32_t number)
{
    const uint8_t bytes[4] = {(uint8_t)(number >> 24), (uint8_t)(number >> 16),
                              (uint8_t)(number >> 8), (uint8_t)number};

    buf_append(buf, bytes, sizeof(bytes));
}

static void param_add(struct pg_batch *batch, Oid oid, bool null)
{
    struct pg_call *call = &batch->calls[batch->call_count - 1];

    assert(batch->call_count > 0);
    assert(call->param_count < PG_PARAMS_MAX);
    if (batch->param_count == batch->param_room) {
        batch->param_room = batch->param_room == 0 ? 16 : batch->param_room * 2;
        batch->params = xrealloc(batch->params, batch->param_room, sizeof(*batch->params));
    }
    batch->params[batch->param_count++] = (struct pg_param){
        .oid = oid, .null = null, .offset = batch->values.size};
    call->param_count++;
}

/* A parameter, or the next item of the array that was begun. bytes NULL: null. head_size: bytes
 * that jsonb puts in front. */
static void put_value(struct pg_batch *batch, enum pg_type type, const void *bytes, size_t size)
{
    static const uint8_t json_version = 1;
    size_t whole = size + (type == PG_JSON ? 1 : 0);

    assert(size < PG_BATCH_BYTES_MAX || bytes == NULL);
    if (batch->array_left > 0) {
        assert(batch->array_type == type);
        batch->array_left--;
        put_u32(&batch->values, bytes == NULL ? UINT32_MAX : (uint32_t)whole);
    } else {
        param_add(batch, types[type].oid, bytes == NULL);
    }
    if (bytes != NULL) {
        if (type == PG_JSON)
            buf_append(&batch->values, &json_version, 1);
        buf_append(&batch->values, bytes, size);
    }
    batch->params[batch->param_count - 1].size = batch->values.size -
                                                 batch->params[batch->param_count - 1].offset;
}

static void put_number(struct pg_batch *batch, enum pg_type type, uint64_t number, size_t size)
{
    uint8_t bytes[8];

    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(number >> (8 * (size - 1 - i)));
    put_value(batch, type, bytes, size);
}

void pg_bind_array(struct pg_batch *batch, enum pg_type type, size_t count)
{
    assert(batch->array_left == 0);
    assert(count <= INT32_MAX);
    param_add(batch, types[type].array_oid, false);
    put_u32(&batch->values, count == 0 ? 0 : 1);
    put_u32(&batch->values, 0);
    put_u32(&batch->values, types[type].oid);
    if (count > 0) {
        put_u32(&batch->values, (uint32_t)count);
        put_u32(&batch->values, 1);
    }
    batch->params[batch->param_count - 1].size = batch->values.size -
                                                 batch->params[batch->param_count - 1].offset;
    batch->array_type = type;
    batch->array_left = count;
}

void pg_bind_bool(struct pg_batch *batch, bool value)
{
    put_number(batch, PG_BOOL, value, 1);
}

void pg_bind_i16(struct pg_batch *batch, int64_t value)
{
    assert(value >= INT16_MIN && value <= INT16_MAX);
    put_number(batch, PG_I16, (uint64_t)value, 2);
}

void pg_bind_i32(struct pg_batch *batch, int64_t value)
{
    assert(value >= INT32_MIN && value <= INT32_MAX);
    put_number(batch, PG_I32, (uint64_t)value, 4);
}

void pg_bind_i64(struct pg_batch *batch, int64_t value)
{
    put_number(batch, PG_I64, (uint64_t)value, 8);
}

void pg_bind_double(struct pg_batch *batch, double value)
{
    uint64_t bits;

    memcpy(&bits, &value, sizeof(bits));
    put_number(batch, PG_DOUBLE, bits, 8);
}

void pg_bind_id(struct pg_batch *batch, const struct wire_id *id)
{
    put_value(batch, PG_ID, id == NULL ? NULL : id->bytes, WIRE_ID_SIZE);
}

void pg_bind_text(struct pg_batch *batch, struct wire_text text)
{
    put_value(batch, PG_TEXT, text.text, text.size);
}

void pg_bind_c(struct pg_batch *batch, const char *text)
{
    put_value(batch, PG_TEXT, text, text == NULL ? 0 : strlen(text));
}

void pg_bind_bytes(struct pg_batch *batch, struct wire_bytes bytes)
{
    put_value(batch, PG_BYTES, bytes.bytes, bytes.size);
}

void pg_bind_time(struct pg_batch *batch, uint64_t unix_us)
{
    /* Past year 294276 it is no timestamp; such values stand for "none" here. */
    if (unix_us == 0 || unix_us > INT64_MAX / 2)
        put_value(batch, PG_TIME, NULL, 0);
    else
        put_number(batch, PG_TIME, (uint64_t)((int64_t)unix_us - EPOCH_2000_US), 8);
}

void pg_bind_json(struct pg_batch *batch, const char *json)
{
    put_value(batch, PG_JSON, json, json == NULL ? 0 : strlen(json));
}

size_t pg_batch_size(const struct pg_batch *batch)
{
    return batch->values.size;
}

void pg_batch_set_fault(struct pg_batch *batch, enum fault point)
{
    batch->has_fault = true;
    batch->fault = point;
}

int pg_batch_check(const struct pg_batch *batch, struct err *err)
{
    assert(batch->call_count > 0);
    assert(batch->array_left == 0);
    return buf_check(&batch->values, "values of a Postgres batch", err);
}

void pg_batch_params(const struct pg_batch *batch, size_t call_index,
                     struct pg_wire_params *ret_params)
{
    const struct pg_call *call = &batch->calls[call_index];

    ret_params->count = (int)call->param_count;
    for (size_t i = 0; i < call->param_count; i++) {
        const struct pg_param *param = &batch->params[call->param_first + i];
        const char *empty = "";

        ret_params->oids[i] = param->oid;
        ret_params->formats[i] = 1;
        ret_params->sizes[i] = (int)param->size;
        if (param->null)
            ret_params->values[i] = NULL;
        else if (param->size == 0)
            ret_params->values[i] = empty;
        else
            ret_params->values[i] = (const char *)batch->values.bytes + param->offset;
    }
}

/* ---- answers ---- */

void pg_result_clear(struct pg_result *result)
{
    for (size_t i = 0; i < result->count; i++)
        PQclear(result->of[i]);
    result->count = 0;
}

void pg_answer_take(const struct pg_answer *answer, struct pg_answer *to)
{
    *to = *answer;
    to->result = xcalloc(1, sizeof(*to->result));
    if (answer->result == NULL)
        return;
    *to->result = *answer->result;
    answer->result->count = 0;
}

void pg_answer_done(struct pg_answer *answer)
{
    if (answer->result != NULL)
        pg_result_clear(answer->result);
    mem_free(&answer->result);
}

static const PGresult *result_at(const struct pg_answer *answer, size_t at)
{
    assert(answer->result != NULL && at < answer->result->count);
    return answer->result->of[at];
}

size_t pg_row_count(const struct pg_answer *answer, size_t at)
{
    return (size_t)PQntuples(result_at(answer, at));
}

static uint64_t digits(const char *text)
{
    uint64_t number = 0;

    for (; *text >= '0' && *text <= '9'; text++)
        number = number * 10 + (uint64_t)(*text - '0');
    return number;
}

uint64_t pg_changed_count(const struct pg_answer *answer, size_t at)
{
    /* The command tag's number; PQcmdTuples takes no const result. */
    return digits(PQcmdTuples((PGresult *)(uintptr_t)result_at(answer, at)));
}

size_t pg_column_count(const struct pg_answer *answer, size_t at)
{
    return (size_t)PQnfields(result_at(answer, at));
}

const char *pg_column_name(const struct pg_answer *answer, size_t at, size_t column)
{
    return PQfname(result_at(answer, at), (int)column);
}

enum pg_kind pg_column_kind(const struct pg_answer *answer, size_t at, size_t column)
{
    switch (PQftype(result_at(answer, at), (int)column)) {
    case 20:   /* int8 */
    case 21:   /* int2 */
    case 23:   /* int4 */
    case 26:   /* oid */
    case 700:  /* float4 */
    case 701:  /* float8 */
    case 1700: /* numeric */
        return PG_KIND_NUMBER;
    case 16:
        return PG_KIND_BOOL;
    case 114:  /* json */
    case 3802: /* jsonb */
        return PG_KIND_JSON;
    default:
        return PG_KIND_TEXT;
    }
}

/* The bytes of a value; NULL when it is null. Asks for a column that exists: our own statement. */
static const uint8_t *value_at(const struct pg_answer *answer, size_t at, size_t row, size_t column,
                               size_t *ret_size)
{
    const PGresult *result = result_at(answer, at);

    assert(row < (size_t)PQntuples(result) && column < (size_t)PQnfields(result));
    if (PQgetisnull(result, (int)row, (int)column))
        return NULL;
    *ret_size = (size_t)PQgetlength(result, (int)row, (int)column);
    return (const uint8_t *)PQgetvalue(result, (int)row, (int)column);
}

bool pg_is_null(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    size_t size;

    return value_at(answer, at, row, column, &size) == NULL;
}

bool pg_bool(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    size_t size;
    const uint8_t *bytes = value_at(answer, at, row, column, &size);

    return bytes != NULL && size == 1 && bytes[0] != 0;
}

int64_t pg_i64(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    size_t size;
    const uint8_t *bytes = value_at(answer, at, row, column, &size);
    uint64_t number;

    if (bytes == NULL)
        return 0;
    assert(size == 2 || size == 4 || size == 8); /* else the statement selects no integer */
    number = bytes[0] & 0x80 ? UINT64_MAX : 0;
    for (size_t i = 0; i < size; i++)
        number = number << 8 | bytes[i];
    return (int64_t)number;
}

uint64_t pg_u64(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    return (uint64_t)pg_i64(answer, at, row, column);
}

double pg_double(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    uint64_t bits = (uint64_t)pg_i64(answer, at, row, column);
    double value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

struct wire_id pg_id(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    size_t size;
    const uint8_t *bytes = value_at(answer, at, row, column, &size);
    struct wire_id id = {0};

    if (bytes != NULL) {
        assert(size == WIRE_ID_SIZE);
        memcpy(id.bytes, bytes, WIRE_ID_SIZE);
    }
    return id;
}

struct wire_text pg_text(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    size_t size;
    const uint8_t *bytes = value_at(answer, at, row, column, &size);

    if (bytes == NULL || size == 0)
        return (struct wire_text){0};
    return (struct wire_text){(const char *)bytes, size};
}

const char *pg_c(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    size_t size;
    const uint8_t *bytes = value_at(answer, at, row, column, &size);

    return bytes == NULL ? "" : (const char *)bytes;
}

struct wire_bytes pg_bytes(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    size_t size;
    const uint8_t *bytes = value_at(answer, at, row, column, &size);

    if (bytes == NULL || size == 0)
        return (struct wire_bytes){0};
    return (struct wire_bytes){bytes, size};
}

uint64_t pg_time_us(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    if (pg_is_null(answer, at, row, column))
        return 0;
    return (uint64_t)(pg_i64(answer, at, row, column) + EPOCH_2000_US);
}

/* ---- errors ---- */

/* Longest prefix first: the first row that fits decides. */
static const struct {
    const char *prefix;
    int code;
} codes[] = {
    {"HR001", ERR_STALE},     {"23505", ERR_CONFLICT},  {"23503", ERR_NOT_FOUND},
    {"23", ERR_RANGE},        {"22", ERR_RANGE},        {"40", ERR_CONFLICT},
    {"55P03", ERR_TIMEOUT},   {"57014", ERR_TIMEOUT},   {"25P03", ERR_TIMEOUT},
    {"08", ERR_UNAVAILABLE},  {"53", ERR_UNAVAILABLE},  {"57P", ERR_UNAVAILABLE},
    {"28", ERR_UNAUTHORIZED}, {"42501", ERR_FORBIDDEN}, {"25006", ERR_FORBIDDEN},
    {"P0001", ERR_CONFLICT},  {"58", ERR_IO},           {"", ERR_INTERNAL},
};

int pg_code(const char *sqlstate)
{
    for (size_t i = 0; i < COUNT_OF(codes); i++) {
        if (strncmp(sqlstate, codes[i].prefix, strlen(codes[i].prefix)) == 0)
            return codes[i].code;
    }
    NEVER("the last row fits everything");
}

void pg_copy_message(char *to, size_t to_size, const char *message)
{
    size_t size = 0;

    for (; *message != '\0' && size + 1 < to_size; message++) {
        if (*message == '\n' || *message == '\t' || *message == '\r') {
            if (size > 0 && to[size - 1] != ' ')
                to[size++] = ' ';
        } else {
            to[size++] = *message;
        }
    }
    while (size > 0 && to[size - 1] == ' ')
        size--;
    to[size] = '\0';
}

void pg_answer_refuse(struct pg_answer *answer, const PGresult *refusal, const char *statement)
{
    const char *sqlstate = PQresultErrorField(refusal, PG_DIAG_SQLSTATE);
    const char *constraint = PQresultErrorField(refusal, PG_DIAG_CONSTRAINT_NAME);
    const char *primary = PQresultErrorField(refusal, PG_DIAG_MESSAGE_PRIMARY);
    const char *position = PQresultErrorField(refusal, PG_DIAG_STATEMENT_POSITION);
    char message[ERR_TEXT_SIZE / 2];

    mem_copy_text(answer->sqlstate, sqlstate == NULL ? "" : sqlstate);
    mem_copy_text(answer->constraint, constraint == NULL ? "" : constraint);
    answer->position = position == NULL ? 0 : digits(position);
    pg_copy_message(message, sizeof(message),
                    primary != NULL ? primary : PQresultErrorMessage(refusal));
    (void)err_set(&answer->err, sqlstate == NULL ? ERR_UNAVAILABLE : pg_code(sqlstate),
                  "%s: %s%s%s%s", statement, message, sqlstate == NULL ? "" : " (",
                  answer->sqlstate, sqlstate == NULL ? "" : ")");
}
