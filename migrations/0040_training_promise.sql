-- SPDX-License-Identifier: Apache-2.0
-- Training jobs whose gateway was lost between their row and their Submit.
--
-- Why: such a row waited for ever, since no trainer holds what the ledger does not know. Gateways look for them and
-- submit them again.
-- Lock: training_job, ACCESS EXCLUSIVE for as long as an index over the jobs that wait takes.
-- A million rows: below a second; the columns have constant defaults.
-- Undo: DROP the function, the index and the columns; training_job_put() as in 0030.

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

-- What there was of its hardware when it was accepted: how long a job waited means little without it.
ALTER TABLE training_job ADD COLUMN capacity jsonb; -- GPUs of its type then: limit, usage_count; null: it wants none

-- Unless it is there already: by who accepts it, and by who holds it first.
CREATE OR REPLACE FUNCTION training_job_put(p_job uuid, p_project text, p_tenant text, p_spec jsonb, p_by text) RETURNS boolean
    LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO training_job (job_id, project_id, tenant, name, spec, archive_digest, priority, node_count, accelerator,
                              gpu_count, cpu_count, memory_bytes, created_by, max_attempts, capacity)
    VALUES (p_job, p_project, p_tenant, coalesce(p_spec->>'name', ''), p_spec,
            decode(nullif(p_spec->>'archive', ''), 'hex'), coalesce((p_spec->>'priority')::bigint, 0),
            coalesce((p_spec->>'node_count')::integer, 1), coalesce(p_spec->>'accelerator', ''),
            coalesce((p_spec->>'gpu_count')::integer, 0), coalesce((p_spec->>'cpu_count')::integer, 1),
            coalesce((p_spec->>'memory_bytes')::bigint, 0), p_by, coalesce((p_spec->>'max_attempts')::integer, 1),
            (SELECT jsonb_build_object('limit', coalesce(sum(r.gpu_count), 0), 'usage_count', coalesce(sum(r.gpus_used), 0))
               FROM headrace_v1.training_trainers r
              WHERE r.alive AND NOT r.draining AND r.accelerator = p_spec->>'accelerator'
             HAVING coalesce((p_spec->>'gpu_count')::integer, 0) > 0))
    ON CONFLICT (job_id) DO NOTHING;
    IF FOUND THEN
        PERFORM training_tell(p_job, 'PENDING');
        RETURN true;
    END IF;
    RETURN false;
END
$$;
