/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What every user verb needs: where the gateway is, a key, one call, one way to say what failed.
 *
 * Address and key come from, first match wins: --url and --api-key, HEADRACE_URL and
 * HEADRACE_API_KEY, the client file. The client file is --client, HEADRACE_CLIENT,
 * .headrace/client.json here or in a parent directory (`headrace dev` writes it), or
 * ~/.config/headrace/client.json:
 *
 *     {"url": "http://127.0.0.1:8080", "api_key": "…", "postgres": "postgresql://…"}
 *
 * It must belong to its reader and be readable by nobody else, because it holds a key.
 *
 * Exit codes of verbs: 0 done, 1 wrong use, 2 the platform cannot be reached or refused, 3 the job
 * or the model failed, 4 a filter matched nothing.
 *
 * Thread: the only one of a command.   Tests: tests/unit/test_cli_client.c, tests/stack/test_cli.py
 */

#include <jansson.h>
#include <stdbool.h>

#include "base/buf.h"
#include "base/http_client.h"

#define CLI_EXIT_OK 0
#define CLI_EXIT_USAGE 1
#define CLI_EXIT_REFUSED 2
#define CLI_EXIT_FAILED 3
#define CLI_EXIT_NOTHING 4 /* a filter matched no job */

#define CLI_ANSWER_SIZE_MAX (128u << 20)

struct client {
    char *url;      /* without a slash at its end */
    char *api_key;  /* may be empty */
    char *postgres; /* may be empty */
};

/* Each of the three overrides may be NULL. ERR_USAGE says where it looked. */
int client_open(const char *url, const char *api_key, const char *file, struct client *ret_client,
                struct err *err) MUST_CHECK;
void client_done(struct client *client);

struct client_call {
    const char *method;
    const char *path;      /* "/v1/models" */
    json_t *body;          /* borrowed; NULL: none */
    struct http_send send; /* further fields of a raw call: body_fd, headers, progress */
};

/* One exchange. A status of 400 and above is an error whose text is the gateway's own; its status
 * is in *ret_status all the same. *ret_json may be NULL when the answer is no JSON. */
int client_exchange(const struct client *client, const struct client_call *call, int *ret_status,
                    json_t **ret_json, struct err *err) MUST_CHECK;

/* The same for an answer that stays bytes. */
int client_fetch(const struct client *client, const char *path, struct buf *ret_body,
                 struct err *err) MUST_CHECK;

/* An answer of the gateway or of a model, whatever its status. */
struct client_answer {
    int status;
    char request_id[64]; /* "": it names none */
    char type[128];
    bool of_model;   /* a failure that the model, or what runs it, has answered with */
    struct buf body; /* of a failure, or when nobody takes the bytes as they come */
};
void client_answer_done(struct client_answer *answer);

/* One exchange whose answer comes piece by piece: bytes of a success go to on_bytes as they come
 * (NULL: they are collected); false from it ends the exchange with ERR_CANCELED. ERR_UNAVAILABLE:
 * no answer, or it was cut off. */
typedef bool client_bytes_call(const void *bytes, size_t size, void *opaque);
int client_stream(const struct client *client, const struct client_call *call,
                  client_bytes_call *on_bytes, void *opaque, struct client_answer *ret_answer,
                  struct err *err) MUST_CHECK;

/* The error that such an answer of 400 and above says. */
int client_answer_refusal(struct client_answer *answer, struct err *err);

/* Appends a path segment or query value, percent-encoded. */
void client_append_escaped(struct buf *path, const char *text);

/* Destructor for OWNED. */
void client_json_free(json_t **json_p);

/* Says "headrace jobs: …" on standard error and returns the exit code for err->code. */
int client_complain(const char *verb, const struct err *err);
