/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Secrets of models: how they are called, how large they may be, and what they are sealed to.
 *
 *     headrace secrets set NAME -> sealed row (tenant, name) -> agent opens it for a worker whose
 *     deployment names it under `secrets` -> LOAD frame -> the host: a mapping, files
 *
 * On the way from an agent to a host they are one JSON object of names and texts.
 *
 * Pure. Thread: any.   Tests: tests/unit/test_secret.c
 */

#include <stdbool.h>

#include "base/err.h"

#define SECRET_NAME_SIZE_MAX 253
#define SECRET_VALUE_SIZE_MAX 65536 /* bytes of UTF-8 */
#define SECRET_COUNT_MAX 1000       /* of a tenant */
#define SECRETS_SIZE_MAX 262144     /* bytes of the JSON object of one deployment */
#define SECRET_CONTEXT_SIZE 340     /* "secret ", a tenant, a slash, a name */

/* ERR_RANGE: not 1 to 253 of a-z A-Z 0-9 - . _, or "." or "..", which are no files. */
int secret_name_check(const char *name, struct err *err) MUST_CHECK;

/* The context for seal_close() and seal_open(): a row that is copied to another does not open. */
void secret_context(const char *tenant, const char *name, char to[SECRET_CONTEXT_SIZE]);

/* Whether a deployment's settings name any: a non-empty object or list (of a chain) `secrets`, or
 * an object `truss.secrets`. */
bool secrets_are_named(const char *settings_json);
