-- SPDX-License-Identifier: Apache-2.0
-- The newest dead jobs of a model, by an index that the view can use.
--
-- Why: expired jobs became dead jobs in 0015, and the view asks for both states; the index had only the
-- failed ones, so the planner could not use it and read every day of the ledger.
-- Lock: SHARE on job and its days, so brokers cannot write the ledger while it is built: jobs are
-- accepted and answered late.
-- A million rows: the time to read the table once; only dead jobs are in it.
-- Undo: DROP INDEX headrace.job_dead; CREATE INDEX job_failed as in 0001.

DROP INDEX job_failed; -- first, so that the new one's parts get the names that a new schema gives them
CREATE INDEX job_dead ON job (model, id) WHERE state IN (4, 5);
