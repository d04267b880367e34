-- SPDX-License-Identifier: Apache-2.0
-- What a training job can fail of, said of its column: its image, too.
--
-- Why: a job that names an image runs in a container of it, and the image may not be to be had.
-- Lock: none of what is there.
-- A million rows: nothing to rewrite.
-- Undo: the comment as in 0041.

COMMENT ON COLUMN headrace_v1.training_jobs.cause IS 'Why it ended: exit, signal, out_of_memory, time_limit, disk_quota, command_not_found, stopped, lost, store, image, workspace, restore or secret.';
