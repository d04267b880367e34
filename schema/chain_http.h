/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The `http` of a step: what of it is checked when a chain is pushed, and read again by who calls.
 *
 *     http:
 *       method: POST
 *       url: "https://api.example.com/things/{{input.id}}"
 *       headers: {Authorization: {secret: API_TOKEN, prefix: "Bearer "}, X-Kind: "{{input.kind}}"}
 *       body: {text: "{{steps.write.output.text}}"}
 *       statuses: [200, 404]
 *       max_bytes: 65536
 *
 * All of it is a template. A header with a secret is none: only the file says which secret goes
 * where, and then the URL says its host in plain text, so that no input of a run can send a secret
 * elsewhere.
 *
 * Pure, but for memory. Thread: any.   Tests: tests/unit/test_chain.c
 */

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define CHAIN_HTTP_HEADERS_MAX 32
#define CHAIN_HTTP_STATUSES_MAX 32
#define CHAIN_HTTP_BYTES_MAX 1048576u
#define CHAIN_HTTP_BYTES_DEFAULT 262144u
#define CHAIN_SECRETS_MAX 32

struct chain_http {
    const char *method;
    size_t host_size;    /* bytes of the URL up to its path, which are plain; 0: they are not */
    uint32_t answer_max; /* bytes */
    uint16_t statuses[CHAIN_HTTP_STATUSES_MAX];
    size_t status_count; /* 0: 200 to 299 */
};

/* `json` is the value of the key http; `where` names the step. */
int chain_http_read(const json_t *json, const char *where, struct chain_http *ret_http,
                    struct err *err) MUST_CHECK;

/* Each secret that it names must be among those of the chain; NULL: there are none. */
int chain_http_check_secrets(const json_t *json, const char *where, const json_t *secrets,
                             struct err *err) MUST_CHECK;

bool chain_http_takes(const struct chain_http *http, int status);
