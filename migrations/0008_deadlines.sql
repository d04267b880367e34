-- SPDX-License-Identifier: Apache-2.0
-- Deadlines of waiting jobs, so that their owner finds those that are due without reading the others.
--
-- Why: only a part of a long queue is in the memory of its owner; the rest expired when it was loaded.
-- Lock: SHARE on job and its days, so brokers cannot write the ledger while it is built: jobs are
-- accepted and answered late.
-- A million rows: 1 to 2 s when all of them wait, else the time to read the table once.
-- Undo: DROP INDEX headrace.job_deadline.

CREATE INDEX job_deadline ON job (shard, least(start_deadline_at, total_deadline_at), seq)
    WHERE state = 1 AND attempt_count = 0;
