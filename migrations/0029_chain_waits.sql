-- SPDX-License-Identifier: Apache-2.0
-- What a run of a chain waits for that is no job: a time, or somebody's word.
--
-- Why: a step may wait and a step may ask for an approval, and both must be known to whoever goes on
-- with the run: when it is due, and what was decided.
-- Lock: none of what is there.
-- A million rows: nothing to rewrite.
-- Undo: DROP VIEW headrace_tenant_v1.chain_waits, headrace_v1.chain_waits; DROP TABLE chain_wait; DROP
-- FUNCTION chain_wait_open, chain_wait_decide; retention_sweep() as in 0018.

CREATE TABLE chain_wait (
    run_id uuid NOT NULL,
    step text NOT NULL,
    round smallint NOT NULL, -- of the run that opened it
    approval boolean NOT NULL, -- false: until due_at
    asked text,                -- JSON that the chain shows to who decides
    opened_at timestamptz NOT NULL DEFAULT now(),
    due_at timestamptz NOT NULL, -- of an approval: when it is too late
    approved boolean,            -- null: nobody has decided
    decided_at timestamptz,
    decided_by text, -- prefix of the API key
    payload text,    -- JSON: the step's output, or why not
    PRIMARY KEY (run_id, step)
);
CREATE INDEX chain_wait_opened ON chain_wait (opened_at);

-- Deletes what is over and old from tables that have no days, and from the DEFAULT partitions; at
-- most 10,000 rows a table and call. Returns the rows deleted.
CREATE OR REPLACE FUNCTION retention_sweep(keep interval DEFAULT interval '4 days') RETURNS bigint LANGUAGE plpgsql
    SET search_path = headrace AS $$
DECLARE
    old uuid[];
    swept bigint := 0;
    n bigint;
BEGIN
    old := ARRAY(SELECT j.id FROM job_default j
                  WHERE j.state NOT IN (1, 2) AND j.state_at < now() - keep
                    AND NOT EXISTS (SELECT FROM delivery d WHERE d.job_id = j.id AND d.state = 1)
                  LIMIT 10000);
    swept := cardinality(old);
    IF swept > 0 THEN
        DELETE FROM job WHERE id = ANY (old);
        DELETE FROM job_input WHERE job_id = ANY (old);
        DELETE FROM job_tag WHERE job_id = ANY (old);
        DELETE FROM chain_run WHERE run_id = ANY (old);
        DELETE FROM chain_step WHERE run_id = ANY (old);
        DELETE FROM topic_record WHERE job_id = ANY (old);
        DELETE FROM job_result WHERE job_id = ANY (old);
        DELETE FROM attempt WHERE job_id = ANY (old);
        DELETE FROM delivery WHERE job_id = ANY (old);
        DELETE FROM delivery_try WHERE job_id = ANY (old);
    END IF;
    DELETE FROM chain_wait WHERE (run_id, step) IN
        (SELECT run_id, step FROM chain_wait WHERE opened_at < now() - keep - interval '1 day' LIMIT 10000);
    GET DIAGNOSTICS n = ROW_COUNT;
    swept := swept + n;
    DELETE FROM idempotency WHERE (tenant, key) IN
        (SELECT tenant, key FROM idempotency WHERE expires_at < now() LIMIT 10000);
    GET DIAGNOSTICS n = ROW_COUNT;
    swept := swept + n;
    DELETE FROM topic_refusal WHERE (binding_id, number, record_offset) IN
        (SELECT binding_id, number, record_offset FROM topic_refusal WHERE at < now() - keep LIMIT 10000);
    GET DIAGNOSTICS n = ROW_COUNT;
    swept := swept + n;
    DELETE FROM topic_problem WHERE at < now() - keep;
    GET DIAGNOSTICS n = ROW_COUNT;
    swept := swept + n;
    WITH done AS (DELETE FROM command_done WHERE command_id IN
                   (SELECT command_id FROM command_done WHERE done_at < now() - keep LIMIT 10000)
                   RETURNING command_id)
    DELETE FROM command WHERE id IN (SELECT command_id FROM done);
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN swept + n;
END
$$;

-- A step begins to wait, or goes on with it: for so many seconds, or until a time. A yes of an earlier
-- round counts, and so does a time that was set; else a new round asks anew.
CREATE FUNCTION chain_wait_open(p_run uuid, p_step text, p_round smallint, p_approval boolean, p_asked text,
                                p_seconds double precision, p_until text)
    RETURNS TABLE (left_ms bigint, approved boolean, payload text) LANGUAGE sql VOLATILE AS $$
    INSERT INTO chain_wait AS w (run_id, step, round, approval, asked, due_at)
    VALUES (p_run, p_step, p_round, p_approval, p_asked,
            CASE WHEN p_until = '' THEN now() + p_seconds * interval '1 second' ELSE p_until::timestamptz END)
    ON CONFLICT (run_id, step) DO UPDATE SET
        due_at = CASE WHEN w.approval AND w.round < excluded.round AND w.approved IS NOT TRUE
                      THEN excluded.due_at ELSE w.due_at END,
        decided_at = CASE WHEN w.round < excluded.round AND w.approved IS NOT TRUE THEN NULL ELSE w.decided_at END,
        payload = CASE WHEN w.round < excluded.round AND w.approved IS NOT TRUE THEN NULL ELSE w.payload END,
        approved = CASE WHEN w.round < excluded.round AND w.approved IS NOT TRUE THEN NULL ELSE w.approved END,
        round = greatest(w.round, excluded.round)
    RETURNING (extract(epoch FROM w.due_at - now()) * 1000)::bigint, w.approved, w.payload
$$;

-- Somebody decides. No row: nobody is asked; `taken` false: it was decided before, or it is too late.
CREATE FUNCTION chain_wait_decide(p_tenant text, p_run uuid, p_step text, p_approved boolean, p_by text, p_payload text)
    RETURNS TABLE (taken boolean, approved boolean, due_at timestamptz) LANGUAGE sql VOLATILE AS $$
    WITH decided AS (
        UPDATE chain_wait w SET approved = p_approved, decided_at = now(), decided_by = p_by, payload = p_payload
          FROM job j
         WHERE w.run_id = p_run AND w.step = p_step AND w.approval AND w.approved IS NULL AND w.due_at > now()
           AND j.id = w.run_id AND j.tenant = p_tenant AND j.state IN (1, 2)
        RETURNING w.run_id)
    SELECT EXISTS (SELECT FROM decided), w.approved, w.due_at
      FROM chain_wait w JOIN job j ON j.id = w.run_id
     WHERE w.run_id = p_run AND w.step = p_step AND w.approval AND j.tenant = p_tenant
$$;

CREATE VIEW headrace_v1.chain_waits AS
SELECT w.run_id,
       j.tenant,
       w.step,
       w.approval,
       w.asked,
       w.opened_at,
       w.due_at,
       w.approved,
       w.decided_at,
       w.decided_by
  FROM headrace.chain_wait w
  JOIN headrace.job j ON j.id = w.run_id;
COMMENT ON VIEW headrace_v1.chain_waits IS 'What runs of chains wait for, or have waited for, besides jobs: times, and approvals.';
COMMENT ON COLUMN headrace_v1.chain_waits.run_id IS 'The run.';
COMMENT ON COLUMN headrace_v1.chain_waits.tenant IS 'Whose it is.';
COMMENT ON COLUMN headrace_v1.chain_waits.step IS 'Name of the step.';
COMMENT ON COLUMN headrace_v1.chain_waits.approval IS 'Whether somebody has to decide; else it waits for a time.';
COMMENT ON COLUMN headrace_v1.chain_waits.asked IS 'What the chain shows to who decides, as JSON.';
COMMENT ON COLUMN headrace_v1.chain_waits.opened_at IS 'When the step began.';
COMMENT ON COLUMN headrace_v1.chain_waits.due_at IS 'When the wait ends, or when it is too late to decide.';
COMMENT ON COLUMN headrace_v1.chain_waits.approved IS 'What was decided; null: nothing yet.';
COMMENT ON COLUMN headrace_v1.chain_waits.decided_at IS 'When.';
COMMENT ON COLUMN headrace_v1.chain_waits.decided_by IS 'Prefix of the API key that decided.';

SELECT tenant_views();
