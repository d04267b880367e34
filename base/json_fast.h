/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * JSON of requests, fast (simdjson): walks the fields of one top-level object and hands out each
 * value as typed access and as the raw bytes that the client sent, so that a large member can be
 * passed on verbatim.
 *
 *     r = json_fast_parse(parser, body, size, true, &err);
 *     while (r == 0 && json_fast_next(parser, &field)) …
 *
 * The whole document is checked before the first field is given: ERR_MALFORMED (with the byte's
 * position where it is known) for bad syntax, bad UTF-8, anything after the object, a top level
 * that is no object, a repeated key at the top level, a key that contains NUL; nesting past
 * JSON_FAST_DEPTH_MAX and documents past 4 GiB are ERR_TOO_BIG. Repeated keys deeper down are
 * handed on as they are, and so are numbers of any size: only the getters convert.
 *
 * Thread: one parser a thread.   Tests: tests/unit/test_json_fast.c, tests/fuzz/fuzz_json_body.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define JSON_FAST_DEPTH_MAX 64
#define JSON_FAST_FIELDS_MAX 256 /* of the top-level object */
#define JSON_FAST_PADDING 64     /* bytes behind the input that must be readable for padded=true */

struct json_fast;

enum json_type {
    JSON_TYPE_NULL,
    JSON_TYPE_BOOL,
    JSON_TYPE_NUMBER,
    JSON_TYPE_STRING,
    JSON_TYPE_ARRAY,
    JSON_TYPE_OBJECT,
};
const char *json_type_name(enum json_type type); /* "string"; static storage */

struct json_field {  /* everything is valid until the next parse, or until the input is freed */
    const char *key; /* unescaped, terminated */
    size_t key_size;
    enum json_type type;
    const char *raw; /* the value in the input, from its first to its last byte */
    size_t raw_size;
    size_t raw_start; /* raw's position in the input */
    size_t index;     /* of the field, for the getters' errors */
};

struct json_fast *json_fast_new(void);
void json_fast_free(struct json_fast **parser_p);

/* padded: JSON_FAST_PADDING bytes behind the input are readable (a collected HTTP body is so);
 * else the input is copied first, and raw points into the copy. */
int json_fast_parse(struct json_fast *parser, const void *bytes, size_t size, bool padded,
                    struct err *err) MUST_CHECK;

/* Is it one JSON value, of any type? The same errors, but for those of a top-level object. */
int json_fast_check(struct json_fast *parser, const void *bytes, size_t size, bool padded,
                    struct err *err) MUST_CHECK;
size_t json_fast_field_count(const struct json_fast *parser);
bool json_fast_next(struct json_fast *parser, struct json_field *ret_field); /* in input's order */
bool json_fast_find(struct json_fast *parser, const char *key, struct json_field *ret_field);

/* The value, or ERR_MALFORMED naming the field and what it is instead. Integers written as 1.0 or
 * 1e3 are no integers; ERR_RANGE outside 64 bits, or past a double. Strings are unescaped and
 * terminated, and may hold NUL: look at ret_size (may be NULL when that is an error: then NUL is
 * refused). */
int json_fast_int64(struct json_fast *parser, const struct json_field *field, int64_t *ret_number,
                    struct err *err) MUST_CHECK;
int json_fast_double(struct json_fast *parser, const struct json_field *field, double *ret_number,
                     struct err *err) MUST_CHECK;
int json_fast_bool(struct json_fast *parser, const struct json_field *field, bool *ret_yes,
                   struct err *err) MUST_CHECK;
int json_fast_string(struct json_fast *parser, const struct json_field *field,
                     const char **ret_text, size_t *ret_size, struct err *err) MUST_CHECK;

/* One value of a list. */
enum json_leaf_kind {
    JSON_LEAF_INT,
    JSON_LEAF_LARGE, /* a whole number above INT64_MAX */
    JSON_LEAF_DOUBLE,
    JSON_LEAF_BOOL,
    JSON_LEAF_TEXT,
};
struct json_leaf {
    enum json_leaf_kind kind;
    int64_t integer; /* INT; BOOL: 0 or 1 */
    uint64_t large;
    double number;
    const char *text; /* terminated */
};
typedef int json_leaf_call(void *opaque, const struct json_leaf *leaf, struct err *err);

#define JSON_FAST_RANK_MAX 8

struct json_list {
    uint32_t rank; /* 0: the field is a value and no list */
    uint64_t dims[JSON_FAST_RANK_MAX];
    uint64_t count; /* of values */
};

/* Hands out the values of a list, or of lists in lists of one shape, in the input's order; what
 * `take` returns ends it. ERR_MALFORMED where the shape is not one, or a value is null, an object
 * or a text with NUL; ERR_TOO_BIG past count_max values or JSON_FAST_RANK_MAX lists in one another;
 * ERR_RANGE where the document has a number past 64 bits. */
int json_fast_list(struct json_fast *parser, const struct json_field *field, uint64_t count_max,
                   json_leaf_call *take, void *opaque, struct json_list *ret_list,
                   struct err *err) MUST_CHECK;

#ifdef __cplusplus
}
#endif
