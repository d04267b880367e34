-- SPDX-License-Identifier: Apache-2.0
-- Requests that are to run at a time.
--
-- Why: until then nobody but their client has anything to do with them, and an owner's memory is for what can
-- run. What Kafka would have got lies in a row, and a gateway puts it there when its time has come: under the id
-- that the client has, so that one that dies in between costs nothing.
-- Lock: none that anybody waits for, all objects are new.
-- A million rows: nothing to rewrite.
-- Undo: DROP VIEW headrace_tenant_v1.planned_jobs, headrace_v1.planned_jobs; DROP FUNCTION planned_claim; DROP TABLE planned.

CREATE TABLE planned (
    job_id uuid PRIMARY KEY, -- of the time at which it is to run, so that it belongs to that day
    tenant text NOT NULL,
    model text NOT NULL,
    deployment text NOT NULL,
    environment text NOT NULL,
    key_prefix text NOT NULL,
    run_at timestamptz NOT NULL,
    record bytea NOT NULL, -- its Submit, marked as a repeat: it may be sent more than once
    created_at timestamptz NOT NULL DEFAULT now(),
    canceled_at timestamptz, -- then it stays for a day, to say so
    claimed_until timestamptz
);
CREATE INDEX planned_due ON planned (run_at) WHERE canceled_at IS NULL;
CREATE INDEX planned_over ON planned (run_at) WHERE canceled_at IS NOT NULL;
CREATE INDEX planned_tenant ON planned (tenant) WHERE canceled_at IS NULL;

-- What is to be sent now, claimed for half a minute. Whoever has sent it deletes the row.
CREATE FUNCTION planned_claim(p_now timestamptz, p_most integer) RETURNS TABLE (job_id uuid, tenant text, record bytea)
    LANGUAGE sql VOLATILE AS $$
    DELETE FROM planned WHERE canceled_at IS NOT NULL AND run_at < p_now - interval '1 day';
    UPDATE planned p SET claimed_until = p_now + interval '30 seconds'
     WHERE p.job_id IN (SELECT d.job_id FROM planned d
                         WHERE d.run_at <= p_now AND d.canceled_at IS NULL
                           AND (d.claimed_until IS NULL OR d.claimed_until < p_now)
                         ORDER BY d.run_at LIMIT p_most FOR UPDATE SKIP LOCKED)
    RETURNING p.job_id, p.tenant, p.record
$$;

CREATE VIEW headrace_v1.planned_jobs AS
SELECT p.job_id AS id,
       p.tenant,
       p.model AS model_id,
       m.name AS model_name,
       p.deployment AS deployment_id,
       p.environment,
       p.run_at,
       CASE WHEN p.canceled_at IS NULL THEN 'QUEUED' ELSE 'CANCELED' END AS status,
       p.created_at,
       p.canceled_at,
       p.key_prefix AS api_key_prefix
  FROM headrace.planned p
  LEFT JOIN headrace.model m ON m.id = p.model;
COMMENT ON VIEW headrace_v1.planned_jobs IS 'Requests whose run_at has not come: from then on they are in jobs, under the same id.';
COMMENT ON COLUMN headrace_v1.planned_jobs.id IS 'Id of the job.';
COMMENT ON COLUMN headrace_v1.planned_jobs.tenant IS 'Who pays.';
COMMENT ON COLUMN headrace_v1.planned_jobs.model_id IS 'Model that the request named.';
COMMENT ON COLUMN headrace_v1.planned_jobs.model_name IS 'Name of that model now.';
COMMENT ON COLUMN headrace_v1.planned_jobs.deployment_id IS 'Deployment that it was resolved to as it was accepted.';
COMMENT ON COLUMN headrace_v1.planned_jobs.environment IS 'Environment that the request named.';
COMMENT ON COLUMN headrace_v1.planned_jobs.run_at IS 'When it is to run: its queue and its deadlines begin then.';
COMMENT ON COLUMN headrace_v1.planned_jobs.status IS 'QUEUED, or for a day CANCELED.';
COMMENT ON COLUMN headrace_v1.planned_jobs.created_at IS 'When it was accepted.';
COMMENT ON COLUMN headrace_v1.planned_jobs.canceled_at IS 'When it was canceled; null: it was not.';
COMMENT ON COLUMN headrace_v1.planned_jobs.api_key_prefix IS 'Prefix of the API key that it came with.';

SELECT tenant_views();
