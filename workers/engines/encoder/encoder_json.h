/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Reading the JSON files of a model directory: whole, bounded, and refused by name.
 *
 * A missing key is the caller's default, a key of the wrong type is a failure; both the file and
 * the key are in the text.
 *
 * Thread: any.   Tests: tests/unit/test_encoder_config.c
 */

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

/* Destructor for OWNED. */
void encoder_json_free(json_t **json_p);

/* dir/name as an object (or array). ERR_NOT_FOUND when there is no such file. */
int encoder_json_read(const char *dir, const char *name, size_t size_max, json_t **ret_json,
                      struct err *err) MUST_CHECK;

/* dir/name as bytes that the caller frees. ERR_NOT_FOUND when there is no such file. */
int encoder_json_read_bytes(const char *dir, const char *name, size_t size_max, char **ret_bytes,
                            size_t *ret_size, struct err *err) MUST_CHECK;

/* An engine's settings: one object, empty where text is NULL. ERR_USAGE, ERR_TOO_BIG. */
int encoder_json_read_settings(const char *text, json_t **ret_json, struct err *err) MUST_CHECK;

/* Each leaves *ret_value alone when the key is missing or null. */
int encoder_json_get_bool(const json_t *json, const char *key, bool *ret_value,
                          struct err *err) MUST_CHECK;
int encoder_json_get_u32(const json_t *json, const char *key, uint32_t min, uint32_t max,
                         uint32_t *ret_value, struct err *err) MUST_CHECK;
/* Borrowed from json. */
int encoder_json_get_text(const json_t *json, const char *key, const char **ret_value,
                          struct err *err) MUST_CHECK;
