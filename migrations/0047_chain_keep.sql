-- SPDX-License-Identifier: Apache-2.0
-- What a run of a chain has come to lives as long as the run, and what it waits for until it was due.
--
-- Why: a run that waits holds no slot and so no limit of an hour; it may live for longer than finished jobs are
-- kept. It is planned again from its steps' jobs and calls, so those must be there, and a wait of a week that was
-- forgotten after five days would begin anew.
-- Lock: none of what is there.
-- A million rows: nothing to rewrite.
-- Undo: day_stragglers() as in 0004, retention_sweep() as in 0029, chain_call_sweep() as in 0046.

-- Ids of a table of jobs that must outlive their day; jobs of steps are of their run's day.
CREATE OR REPLACE FUNCTION day_stragglers(day date) RETURNS TABLE (id uuid) LANGUAGE sql STABLE
    SET search_path = headrace AS $$
    SELECT j.id FROM job j
     WHERE j.id >= day_id(day) AND j.id < day_id(day + 1) AND j.state = 1 AND j.attempt_count = 0
    UNION
    SELECT j.id FROM job j
     WHERE j.id >= day_id(day) AND j.id < day_id(day + 1)
       AND (j.state = 2 OR (j.state = 1 AND j.attempt_count > 0))
    UNION
    SELECT s.job_id FROM job r JOIN chain_step s ON s.run_id = r.id
     WHERE r.id >= day_id(day) AND r.id < day_id(day + 1)
       AND (r.state = 2 OR (r.state = 1 AND r.attempt_count > 0))
    UNION -- what a run has taken over from another one's job
    SELECT s.job_id FROM chain_step s JOIN job r ON r.id = s.run_id
     WHERE s.job_id >= day_id(day) AND s.job_id < day_id(day + 1) AND s.taken_at IS NOT NULL
       AND (r.state = 2 OR (r.state = 1 AND r.attempt_count > 0))
    UNION
    SELECT d.job_id FROM delivery d
     WHERE d.job_id >= day_id(day) AND d.job_id < day_id(day + 1) AND d.state = 1
$$;

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
                    AND NOT EXISTS (SELECT FROM chain_step s JOIN job r ON r.id = s.run_id AND r.state IN (1, 2)
                                     WHERE s.job_id = j.id)
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
        (SELECT run_id, step FROM chain_wait WHERE opened_at < now() - keep - interval '1 day'
            AND due_at < now() - keep - interval '1 day' LIMIT 10000);
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

-- At most 10,000 a call.
CREATE OR REPLACE FUNCTION chain_call_sweep(keep interval) RETURNS bigint LANGUAGE sql VOLATILE AS $$
    WITH old AS (
        DELETE FROM chain_call WHERE (run_id, step, item, round) IN
            (SELECT c.run_id, c.step, c.item, c.round FROM chain_call c WHERE c.began_at < now() - keep - interval '1 day'
                AND NOT EXISTS (SELECT FROM job r WHERE r.id = c.run_id AND r.state IN (1, 2)) LIMIT 10000)
        RETURNING 1)
    SELECT count(*) FROM old
$$;
