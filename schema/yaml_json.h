/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * One YAML document as JSON, from somebody whom we do not trust.
 *
 * Plain scalars are what PyYAML's safe_load makes of them (YAML 1.1: yes, off, 0x1f, ~), but for
 * dates and sexagesimal numbers, which stay texts. Anchors are copied, and count each time; `<<`
 * merges. Refused by line: a second document, duplicate keys, keys that are no scalars, tags
 * outside of the core schema, and what passes a limit below.
 *
 * Pure, but for memory. Source: yaml.org/spec/1.1, pyyaml's resolver.py. Thread: any.
 * Tests: tests/unit/test_truss_config.c, tests/fuzz/fuzz_truss_config.c
 */

#include <jansson.h>

#include "base/err.h"

#define YAML_SIZE_MAX (256u << 10)
#define YAML_DEPTH_MAX 32
#define YAML_NODES_MAX 20000
#define YAML_ANCHORS_MAX 64

/* An empty document is an empty object. The caller frees *ret_json with json_decref(). */
int yaml_json_parse(const char *what, const char *text, size_t size, json_t **ret_json,
                    struct err *err) MUST_CHECK;
