/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Tokens of approvals: who has one answers one approval, once, without an API key.
 *
 *   POST /v1/chain_runs/{run}/steps/{step}/token     by key: a new one, shown once; it replaces the
 *                                                    one before
 *   POST /v1/approvals/{token}/approve | reject      by nobody: as approve and reject of the step
 *
 * A token is "<prefix>.<secret>" as an API key is; what is kept is the prefix and the digest of the
 * whole. The digest is compared in SQL, where the answer is taken: how long that takes tells of a
 * hash, not of the secret. It is good until the approval is decided or too late, and in the round
 * of the run in which it was made. The same answer again is answered as the first time; another one
 * is 409.
 *
 * Who has no key may be wrong so often: each answer is a guess (gateway_guess.h) until its token
 * was found; too many are 429, before Postgres is asked.
 *
 * Failures: unknown (also: replaced, of another round) 404 approval_unknown, too late or of a run
 * that is over 410 approval_expired, answered otherwise 409 approval_answered. Two answers at once:
 * SQL takes one, and tells the other what that was.
 */

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/rng.h"
#include "brokers/pg.h"
#include "producers/gateway.h"
#include "producers/gateway_guess.h"
#include "schema/api_key.h"

PG_STATEMENT(
    token_make,
    "UPDATE chain_wait w SET token_prefix = $4, token_digest = $5, token_round = w.round FROM job "
    "j WHERE w.run_id = $1 AND w.step = $2 AND w.approval AND w.approved IS NULL AND w.due_at > "
    "now() AND j.id = w.run_id AND j.tenant = $3 AND j.state IN (1, 2) RETURNING w.due_at");
PG_STATEMENT(token_decide,
             "SELECT said, run_id::text, step, approved FROM chain_token_decide($1, $2, $3, $4)");

/* ---- making ---- */

static void token_free(struct call *call)
{
    free(call->state);
}

static void append_url(struct buf *to, const struct call *call, const char *token, const char *verb)
{
    gateway_append_base_url(call, to);
    buf_printf(to, "/v1/approvals/%s/%s", token, verb);
}

static void on_made(void *opaque, const struct pg_answer *answer)
{
    OWNED(buf_done) struct buf yes = BUF_WITH_LIMIT(4096), no = BUF_WITH_LIMIT(4096);
    struct call *call = opaque;
    const struct api_key *token = call->state;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        call_fail_as(&call, 409, "client_error",
                     "no step of that name of such a run asks for an approval now");
        return;
    }
    append_url(&yes, call, token->text, "approve");
    append_url(&no, call, token->text, "reject");
    body = json_pack("{s:s, s:s, s:s, s:s, s:s, s:o}", "run_id", call->job, "step",
                     call->match.param, "token", token->text, "approve_url", buf_text(&yes),
                     "reject_url", buf_text(&no), "expires_at", json_of_time(answer, 0, 0, 0));
    call_answer_json(&call, 201, &body);
}

void chain_token_begin(struct call *call)
{
    uint8_t random[API_KEY_RANDOM_SIZE];
    struct api_key *token;
    struct pg_batch *batch;
    struct wire_id id;

    if (!chain_step_in_path(call, &id))
        return;
    rng_secret_bytes(random, sizeof(random));
    call->state = token = xcalloc(1, sizeof(*token));
    call->on_freed = token_free;
    api_key_make(random, token);
    batch = pg_batch_new();
    pg_add(batch, &token_make);
    pg_bind_id(batch, &id);
    pg_bind_c(batch, call->match.param);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, token->prefix);
    pg_bind_bytes(batch, (struct wire_bytes){token->digest, sizeof(token->digest)});
    call_query(call, &batch, on_made);
}

/* ---- guesses ---- */

int gateway_guesses_open(struct gateway *gateway, struct err *err)
{
    uint8_t key[GUESS_KEY_SIZE];

    (void)err;
    rng_secret_bytes(key, sizeof(key));
    gateway->guesses = guesses_new((uint32_t)gateway->settings.approval_guesses, key);
    return 0;
}

static void token_prefix(const struct call *call, char to[API_KEY_PREFIX_SIZE])
{
    struct api_key token;
    struct err err;

    to[0] = '\0';
    if (api_key_parse(call->match.param, &token, &err) == 0)
        mem_copy_text_at(to, API_KEY_PREFIX_SIZE, token.prefix);
}

/* False: the call is refused. */
static bool guess_take(struct call *call)
{
    int64_t highest = call->gateway->settings.approval_guesses;
    char prefix[API_KEY_PREFIX_SIZE];
    struct refusal refusal = {.status = 429,
                              .limit = "approval-guesses",
                              .value = (double)highest,
                              .current = (double)highest};
    double wait_us;

    token_prefix(call, prefix);
    if (guesses_take(call->gateway->guesses, http_request_peer(call->request), prefix,
                     (double)clock_mono_us(), &wait_us))
        return true;
    refusal.retry_after_s = (uint32_t)fmax(1, ceil(wait_us / 1e6));
    (void)snprintf(refusal.text, sizeof(refusal.text),
                   "too many tokens of approvals were wrong; from an address, and of a token's "
                   "prefix, %lld a minute may be (approval-guesses)",
                   (long long)highest);
    call_refuse(&call, &refusal);
    return false;
}

static void guess_give_back(const struct call *call)
{
    char prefix[API_KEY_PREFIX_SIZE];

    token_prefix(call, prefix);
    guesses_give_back(call->gateway->guesses, http_request_peer(call->request), prefix);
}

/* ---- answering ---- */

static bool says_yes(const struct call *call)
{
    return call->match.route == ROUTE_APPROVAL_APPROVE;
}

static void answer_decided(struct call *call, const char *step)
{
    json_t *body = json_pack("{s:s, s:s, s:b}", "run_id", call->job, "step", step, "approved",
                             says_yes(call));

    call_answer_json(&call, 200, &body);
}

static void refuse_answered(struct call *call, bool approved)
{
    call_fail_as(&call, 409, "approval_answered",
                 approved ? "the step was approved before" : "the step was rejected before");
}

static void refuse_late(struct call *call)
{
    call_fail_as(&call, 410, "approval_expired",
                 "it is too late: the step is not asked for any more");
}

static void refuse_unknown(struct call *call)
{
    call_fail_as(&call, 404, "approval_unknown", "there is no such token of an approval");
}

static void on_decided(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    const char *said;

    if (answer->err.code != ERR_OK || pg_row_count(answer, 0) > 0)
        guess_give_back(call);
    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        refuse_unknown(call);
        return;
    }
    said = pg_c(answer, 0, 0, 0);
    mem_copy_text(call->job, pg_c(answer, 0, 0, 1));
    if (strcmp(said, "taken") == 0)
        answer_decided(call, pg_c(answer, 0, 0, 2));
    else if (strcmp(said, "answered") == 0)
        refuse_answered(call, pg_bool(answer, 0, 0, 3));
    else
        refuse_late(call);
}

static void on_answer_body(struct call *call)
{
    struct pg_batch *batch;
    struct api_key token;
    json_t *payload = NULL;
    struct err err;
    char *text;

    if (api_key_parse(call->match.param, &token, &err) < 0) {
        refuse_unknown(call);
        return;
    }
    if (chain_decision_read(call, says_yes(call), &payload, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    text = json_dumps(payload, JSON_COMPACT | JSON_ENCODE_ANY);
    json_decref(payload);
    batch = pg_batch_new();
    pg_add(batch, &token_decide);
    pg_bind_c(batch, token.prefix);
    pg_bind_bytes(batch, (struct wire_bytes){token.digest, sizeof(token.digest)});
    pg_bind_bool(batch, says_yes(call));
    pg_bind_c(batch, text);
    free(text);
    call_query(call, &batch, on_decided);
}

void chain_token_answer_begin(struct call *call)
{
    if (guess_take(call))
        call_collect_body(call, CHAIN_DECISION_SIZE_MAX, on_answer_body);
}
