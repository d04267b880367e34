/* SPDX-License-Identifier: Apache-2.0 */

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/settings.h"
#include "brokers/pg.h"
#include "producers/gateway_file.h"
#include "schema/job_id.h"

static const char *const purposes[] = {"assistants", "batch",     "evals",
                                       "fine-tune",  "user_data", "vision"};

void openai_id_format(const char *prefix, const struct wire_id *id, char to[OPENAI_ID_SIZE])
{
    size_t size = (size_t)snprintf(to, OPENAI_ID_SIZE, "%.6s", prefix);

    for (size_t i = 0; i < WIRE_ID_SIZE; i++)
        size += (size_t)snprintf(to + size, OPENAI_ID_SIZE - size, "%02x", id->bytes[i]);
}

bool openai_id_parse(const char *prefix, const char *text, struct wire_id *ret_id)
{
    size_t size = strlen(prefix);
    struct err err;

    return strncmp(text, prefix, size) == 0 && strlen(text) == size + (size_t)2 * WIRE_ID_SIZE &&
           job_id_parse(text + size, ret_id, &err) == 0;
}

int file_id_parse(const char *text, struct wire_id *ret_id, struct err *err)
{
    if (openai_id_parse(FILE_ID_PREFIX, text, ret_id))
        return 0;
    return err_set(err, ERR_NOT_FOUND, "there is no file '%.60s'", text);
}

static int take_text(char *to, size_t to_size, const struct http_form_piece *piece, struct err *err)
{
    if (piece->offset + piece->size >= to_size)
        return err_set(err, ERR_RANGE, "%.40s is longer than %zu bytes", piece->name, to_size - 1);
    memcpy(to + piece->offset, piece->bytes, piece->size);
    to[piece->offset + piece->size] = '\0';
    return 0;
}

static int take_file(struct file_fields *fields, const struct http_form_piece *piece,
                     struct err *err)
{
    if (piece->offset != fields->file_size)
        return err_set(err, ERR_MALFORMED, "there are two fields 'file'; one upload is one file");
    fields->file_size += piece->size;
    if (piece->offset > 0)
        return 0;
    if (piece->filename == NULL || piece->filename[0] == '\0')
        return err_set(err, ERR_MALFORMED, "the field 'file' has no file name");
    if (strlen(piece->filename) >= sizeof(fields->filename))
        return err_set(err, ERR_RANGE, "the file's name has %zu bytes; at most %d are allowed",
                       strlen(piece->filename), FILE_NAME_SIZE - 1);
    for (const char *c = piece->filename; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return err_set(err, ERR_MALFORMED, "the file's name has a control character");
    }
    mem_copy_text(fields->filename, piece->filename);
    fields->has_file = true;
    return 0;
}

int file_fields_take(struct file_fields *fields, const struct http_form_piece *piece,
                     bool *ret_is_file, struct err *err)
{
    *ret_is_file = strcmp(piece->name, "file") == 0;
    if (*ret_is_file)
        return take_file(fields, piece, err);
    if (strcmp(piece->name, "purpose") == 0) {
        fields->has_purpose = true;
        return take_text(fields->purpose, sizeof(fields->purpose), piece, err);
    }
    if (strcmp(piece->name, "expires_after[anchor]") == 0)
        return take_text(fields->anchor, sizeof(fields->anchor), piece, err);
    if (strcmp(piece->name, "expires_after[seconds]") == 0)
        return take_text(fields->seconds, sizeof(fields->seconds), piece, err);
    return 0;
}

static int check_purpose(const char *purpose, struct err *err)
{
    for (size_t i = 0; i < COUNT_OF(purposes); i++) {
        if (strcmp(purposes[i], purpose) == 0)
            return 0;
    }
    return err_set(err, ERR_RANGE,
                   "purpose is '%.40s'; it must be batch (or assistants, evals, fine-tune, "
                   "user_data, vision)",
                   purpose);
}

static int check_expiry(const struct file_fields *fields, uint64_t *ret_expiry_s, struct err *err)
{
    struct err mine;
    int64_t seconds;

    *ret_expiry_s = 0;
    if (fields->anchor[0] == '\0' && fields->seconds[0] == '\0')
        return 0;
    if (strcmp(fields->anchor, "created_at") != 0)
        return err_set(err, ERR_RANGE, "expires_after[anchor] is '%s'; it must be created_at",
                       fields->anchor);
    if (settings_parse_int("expires_after[seconds]", fields->seconds, &seconds, &mine) < 0 ||
        seconds < FILE_EXPIRY_S_MIN || seconds > FILE_EXPIRY_S_MAX)
        return err_set(err, ERR_RANGE, "expires_after[seconds] is '%s'; it must be %d to %d",
                       fields->seconds, FILE_EXPIRY_S_MIN, FILE_EXPIRY_S_MAX);
    *ret_expiry_s = (uint64_t)seconds;
    return 0;
}

int file_fields_check(const struct file_fields *fields, uint64_t *ret_expiry_s, struct err *err)
{
    int r;

    if (!fields->has_file)
        return err_set(err, ERR_MALFORMED, "the form has no field 'file'");
    if (!fields->has_purpose)
        return err_set(err, ERR_MALFORMED, "the form has no field 'purpose'");
    r = check_purpose(fields->purpose, err);
    return r < 0 ? r : check_expiry(fields, ret_expiry_s, err);
}

json_t *json_of_second(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    return pg_is_null(answer, at, row, column)
               ? json_null()
               : json_integer((json_int_t)(pg_time_us(answer, at, row, column) / 1000000));
}

json_t *file_json(const struct pg_answer *answer, size_t at, size_t row)
{
    const struct wire_id id = pg_id(answer, at, row, 0);
    char text[OPENAI_ID_SIZE];

    openai_id_format(FILE_ID_PREFIX, &id, text);
    return json_pack("{s:s, s:s, s:I, s:o, s:o, s:s, s:s, s:s, s:n}", "id", text, "object", "file",
                     "bytes", (json_int_t)pg_i64(answer, at, row, 3), "created_at",
                     json_of_second(answer, at, row, 4), "expires_at",
                     json_of_second(answer, at, row, 5), "filename", pg_c(answer, at, row, 2),
                     "purpose", pg_c(answer, at, row, 1), "status", "processed", "status_details");
}
