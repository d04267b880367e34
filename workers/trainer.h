/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What a trainer does, behind its worker: host-training.
 *
 *   ledger    trainer_hold   a REQ is an attempt of a training job: it holds the job there, until
 *                            the job's row is final, whoever runs it
 *   rows      trainer.c      each second: I am here, what am I to run? (or at once, by NOTIFY)
 *             trainer_facts  what waits and runs anywhere ─▶ training_plan ─▶ placements
 *   nodes     trainer_node   PLACED ─▶ TAKEN: folders, workspace, checkpoint ─▶ READY: the gang
 *                            gathers ─▶ RUNNING ─▶ last checkpoint, last lines ─▶ ENDED
 *             trainer_setup  what is blocking in that, on threads     trainer_env its environment
 *             trainer_leftover   folders of a trainer that was killed
 *             trainer_container  docker and podman
 *             trainer_run    the process: its start, its limits, its end
 *             trainer_log    what it prints                   trainer_sync what it saves
 *             trainer_metric what it uses                     trainer_disk what it fills
 *
 * All that is written about a node names its placement, and a row that has ended or is of another
 * one refuses it: a trainer that was away learns so that it was replaced, and ends what it still
 * runs. While Postgres is away nodes run on; lines and checkpoints wait.
 *
 * Thread: the loop's.   Tests: tests/stack/test_training.py
 */

#include "schema/job.h"
#include "base/wire.h"

struct host_frames;
struct loop;
struct trainer;

struct trainer_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
#include "workers/trainer_settings.def"
#include "base/settings_end.def"
};

extern const struct settings_program trainer_program;

/* Fills in what follows from the machine. ERR_USAGE names the setting. */
int trainer_settings_check(struct trainer_settings *settings, struct err *err) MUST_CHECK;

/* Borrows the settings for life. */
int trainer_open(struct loop *loop, const struct trainer_settings *settings,
                 struct host_frames *frames, struct trainer **ret_trainer,
                 struct err *err) MUST_CHECK;
void trainer_close(struct trainer **trainer_p);

/* An attempt holds a job from now on; answered once by the frames. The input is copied. */
void trainer_hold(struct trainer *trainer, uint64_t id, const struct wire_id *job,
                  struct wire_bytes input);

/* Not any more; false: it does not. */
bool trainer_let_go(struct trainer *trainer, uint64_t id);

/* Takes nothing more, and asks what runs to end; host_frames_drained() when all has. */
void trainer_drain(struct trainer *trainer);
