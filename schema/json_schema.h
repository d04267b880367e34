/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * JSON Schema: whether a document is what somebody says that it must be (RapidJSON's validator).
 *
 * Draft 4, and of later drafts what can be said in it: true and false as schemas, `const`,
 * exclusive limits that are numbers, `$defs`, words beside `$ref`. References are "#",
 * "#/definitions/NAME" and "#/$defs/NAME"; nothing is fetched. Texts about a schema (title,
 * description, default, examples, format, …) are allowed and check nothing. All other words are
 * refused by name and place, since one that nobody checks would be a promise: also pattern,
 * patternProperties and uniqueItems, whose cost a schema's author could make anything. Values of
 * enum and const are no lists and no objects.
 *
 * What refers to itself without going into a value is refused, and so is what would look at one
 * value over JSON_SCHEMA_PLACES_MAX times.
 *
 * Thread: any, one at a time for a schema.   Tests: tests/unit/test_json_schema.c
 */

#include <jansson.h>
#include <stddef.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define JSON_SCHEMA_PLACES_MAX 1000 /* that one value is looked at from */
#define JSON_SCHEMA_DEPTH_MAX 64    /* of schemas in one another */
#define JSON_SCHEMA_COUNT_MAX 500   /* of schemas */

struct json_schema;

/* ERR_MALFORMED, ERR_RANGE or ERR_UNSUPPORTED says where and what: "properties.a: type must be …"
 */
int json_schema_new(const json_t *json, struct json_schema **ret_schema,
                    struct err *err) MUST_CHECK;
void json_schema_free(struct json_schema **schema_p);

/* ERR_MISMATCH names the first place and the word: "'required' does not hold at /items/0". The
 * bytes are one JSON value; ERR_MALFORMED when they are not. */
int json_schema_check(const struct json_schema *schema, const char *bytes, size_t size,
                      struct err *err) MUST_CHECK;

#ifdef __cplusplus
}
#endif
