/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What json_schema.c (which words there are) and json_schema_core.cc (the library) say to each
 * other. */

#include "schema/json_schema.h"

#ifdef __cplusplus
extern "C" {
#endif

/* From a schema in the library's own words, as JSON. */
int json_schema_compile(const char *text, size_t size, struct json_schema **ret_schema,
                        struct err *err) MUST_CHECK;

#ifdef __cplusplus
}
#endif
