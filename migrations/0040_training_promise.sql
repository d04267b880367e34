-- SPDX-License-Identifier: Apache-2.0
-- Training jobs whose gateway was lost between their row and their Submit.
--
-- Why: such a row waited for ever, since no trainer holds what the ledger does not know. Gateways look for them and
-- submit them again.
-- Lock: training_job, ACCESS EXCLUSIVE for as long as an index over the jobs that wait takes.
-- A million rows: below a second; the columns have constant defaults.
-- Undo: DROP the function, the index and the columns.

ALTER TABLE training_job ADD COLUMN submit_at timestamptz NOT NULL DEFAULT now(); -- when its Submit was sent last
ALTER TABLE training_job ADD COLUMN promised boolean NOT NULL DEFAULT false; -- the ledger was seen to have it
CREATE INDEX training_job_unpromised ON training_job (submit_at) WHERE status = 'PENDING' AND token = 0 AND NOT promised;

-- Rows that the ledger does not have 10 seconds after they were made; those that are returned are the caller's to submit.
-- While nobody reads what is submitted, they come again after twice the time.
CREATE FUNCTION training_unpromised(p_limit integer)
    RETURNS TABLE (job_id uuid, tenant text, project_id text, deployment_id text, pool text, spec jsonb, created_by text,
                   created_at timestamptz) LANGUAGE sql AS $$
    WITH late AS (
        SELECT t.job_id FROM training_job t
         WHERE t.status = 'PENDING' AND t.token = 0 AND NOT t.promised AND t.submit_at < now() - interval '10 s'
           AND t.submit_at < now() - (t.submit_at - t.created_at)
         ORDER BY t.submit_at LIMIT p_limit FOR UPDATE SKIP LOCKED),
    looked AS (
        UPDATE training_job t SET submit_at = now(), promised = EXISTS (SELECT FROM job j WHERE j.id = t.job_id)
          FROM late l WHERE t.job_id = l.job_id
        RETURNING t.job_id, t.tenant, t.project_id, t.spec, t.created_by, t.created_at, t.promised)
    SELECT k.job_id, k.tenant, k.project_id, d.id, d.pool, k.spec, k.created_by, k.created_at
      FROM looked k JOIN deployment d ON d.model_id = k.project_id AND d.deleted_at IS NULL WHERE NOT k.promised
$$;
