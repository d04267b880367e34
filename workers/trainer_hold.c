/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Attempts of the ledger that are held here: whoever runs a job's nodes, one attempt says to the
 * ledger that the job is under way, and what it came to.
 *
 * The job's row of `training_job` is made if whoever accepted the job did not come to it. An
 * attempt that is over is canceled; a job that is over in the ledger (canceled there, or expired)
 * takes its nodes along.
 */

#include <stdlib.h>

#include "workers/trainer_int.h"

PG_STATEMENT(hold_begin, "SELECT training_begin($1, $2, $3)");
PG_STATEMENT(hold_ends,
             "SELECT job_id, status, coalesce(cause, ''), coalesce(exit_code, -1), "
             "coalesce(signal, 0), coalesce(error_message, ''), retry_count FROM training_job "
             "WHERE job_id = ANY($1) AND status IN ('COMPLETED', 'FAILED', 'DEPLOY_FAILED', "
             "'STOPPED')");
PG_STATEMENT(hold_leave, "SELECT training_stop_row(j.id, 'ledger') FROM job j "
                         "WHERE j.id = $1 AND j.state NOT IN (1, 2)");

static void hold_free(struct hold **hold_p)
{
    struct hold *hold = TAKE(*hold_p);

    HASH_DEL(hold->trainer->holds, hold);
    free(hold->input);
    free(hold);
}

static struct hold *hold_find(struct trainer *trainer, uint64_t id)
{
    struct hold *hold;

    HASH_FIND(hh, trainer->holds, &id, sizeof(id), hold);
    return hold;
}

/* ---- begin ---- */

struct asked {
    struct trainer *trainer;
    uint64_t id;
};

static void on_begun(void *opaque, const struct pg_answer *answer)
{
    OWNED(mem_free) struct asked *asked = opaque;
    struct hold *hold = hold_find(asked->trainer, asked->id);

    if (hold == NULL)
        return;
    if (answer->err.code != ERR_OK && err_class(answer->err.code) == ERR_CLASS_REJECT) {
        host_frames_error(asked->trainer->frames, hold->id, ERROR_CLASS_BAD_INPUT,
                          answer->err.text);
        hold_free(&hold);
        return;
    }
    if (answer->err.code != ERR_OK || pg_is_null(answer, 0, 0, 0))
        return; /* asked again with the next look: the ledger's row comes a moment later */
    hold->begun = true;
    trainer_look_soon(asked->trainer);
}

static void hold_ask(struct hold *hold)
{
    struct asked *asked = xcalloc(1, sizeof(*asked));
    struct pg_batch *batch = pg_batch_new();

    *asked = (struct asked){hold->trainer, hold->id};
    pg_add(batch, &hold_begin);
    pg_bind_id(batch, &hold->job);
    pg_bind_i64(batch, (int64_t)hold->id);
    pg_bind_json(batch, hold->input);
    trainer_send(hold->trainer, &batch, on_begun, asked);
}

void trainer_hold(struct trainer *trainer, uint64_t id, const struct wire_id *job,
                  struct wire_bytes input)
{
    struct hold *hold = xcalloc(1, sizeof(*hold));
    json_error_t where;
    json_t *json = json_loadb((const char *)input.bytes, input.size, 0, &where);

    if (!json_is_object(json)) {
        json_decref(json);
        free(hold);
        host_frames_error(trainer->frames, id, ERROR_CLASS_BAD_INPUT,
                          "the input is not the JSON object that a training job is made of");
        return;
    }
    json_decref(json);
    hold->trainer = trainer;
    hold->id = id;
    hold->job = *job;
    hold->input = xasprintf("%.*s", (int)input.size, (const char *)input.bytes);
    HASH_ADD(hh, trainer->holds, id, sizeof(hold->id), hold);
    hold_ask(hold);
}

/* ---- end ---- */

static void hold_finish(struct hold *hold, const struct pg_answer *answer, size_t row)
{
    const char *status = pg_c(answer, 0, row, 1), *cause = pg_c(answer, 0, row, 2);
    const char *message = pg_c(answer, 0, row, 5);
    struct host_frames *frames = hold->trainer->frames;
    json_t *output;
    char *text;

    if (strcmp(status, "STOPPED") == 0) {
        host_frames_error(frames, hold->id, ERROR_CLASS_CANCELED, "stopped");
        return;
    }
    if (strcmp(status, "COMPLETED") != 0) {
        OWNED(mem_free)
        char *why = xasprintf("%s%s%s", cause, message[0] == '\0' ? "" : ": ", message);

        host_frames_error(frames, hold->id, ERROR_CLASS_TRAINING_FAILED, why);
        return;
    }
    output = json_pack("{s:s, s:I, s:I}", "status", status, "exit_code",
                       (json_int_t)pg_i64(answer, 0, row, 3), "retries",
                       (json_int_t)pg_i64(answer, 0, row, 6));
    text = json_dumps(output, JSON_COMPACT);
    host_frames_output(frames, hold->id, text, strlen(text));
    free(text);
    json_decref(output);
}

static void on_ends(void *opaque, const struct pg_answer *answer)
{
    struct trainer *trainer = opaque;
    struct hold *hold, *next;

    if (answer->err.code != ERR_OK)
        return;
    for (size_t row = 0; row < pg_row_count(answer, 0); row++) {
        struct wire_id job = pg_id(answer, 0, row, 0);

        HASH_ITER(hh, trainer->holds, hold, next)
        {
            if (!hold->begun || !job_id_equal(&hold->job, &job))
                continue;
            hold_finish(hold, answer, row);
            hold_free(&hold);
        }
    }
}

void trainer_holds_look(struct trainer *trainer)
{
    size_t count = 0;
    struct pg_batch *batch;
    struct hold *hold, *next;

    HASH_ITER(hh, trainer->holds, hold, next)
    {
        if (hold->begun)
            count++;
        else
            hold_ask(hold);
    }
    if (count == 0)
        return;
    batch = pg_batch_new();
    pg_add(batch, &hold_ends);
    pg_bind_array(batch, PG_ID, count);
    HASH_ITER(hh, trainer->holds, hold, next)
    {
        if (hold->begun)
            pg_bind_id(batch, &hold->job);
    }
    trainer_send(trainer, &batch, on_ends, trainer);
}

static void on_left(void *opaque, const struct pg_answer *answer)
{
    struct trainer *trainer = opaque;

    if (answer->err.code == ERR_OK)
        trainer_look_soon(trainer);
}

bool trainer_let_go(struct trainer *trainer, uint64_t id)
{
    struct hold *hold = hold_find(trainer, id);
    struct pg_batch *batch;

    if (hold == NULL)
        return false;
    batch = pg_batch_new();
    pg_add(batch, &hold_leave);
    pg_bind_id(batch, &hold->job);
    trainer_send(trainer, &batch, on_left, trainer);
    hold_free(&hold);
    return true;
}

void trainer_holds_free(struct trainer *trainer)
{
    struct hold *hold, *next;

    HASH_ITER(hh, trainer->holds, hold, next)
    hold_free(&hold);
}
