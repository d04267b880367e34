-- SPDX-License-Identifier: Apache-2.0
-- Calls of URLs by steps of chains.
--
-- Why: a step with `http` is no job, so what it came to has to be written down elsewhere: whoever goes on with the
-- run must not call again what has answered, and must know how often it was tried.
-- Lock: none of what is there.
-- A million rows: nothing to rewrite.
-- Undo: DROP VIEW headrace_tenant_v1.chain_calls, headrace_v1.chain_calls; DROP TABLE chain_call; DROP FUNCTION
-- chain_call_open, chain_call_close, chain_call_reused, chain_call_sweep.

CREATE TABLE chain_call (
    run_id uuid NOT NULL,
    step text NOT NULL,
    item integer NOT NULL,   -- of a map or a loop; 0 else
    round smallint NOT NULL, -- of the run; negative: it does not count
    token bigint NOT NULL,   -- of the attempt of the run that calls
    attempts smallint NOT NULL DEFAULT 1,
    began_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    state smallint,  -- 3 succeeded, 4 failed; null: under way
    http_status smallint,
    output bytea,    -- JSON: the step's output
    error_class text,
    error_message text,
    PRIMARY KEY (run_id, step, item, round)
);
CREATE INDEX chain_call_began ON chain_call (began_at);

-- Of a run again: the answer that an earlier run had; a source may be a run again itself, ten deep.
CREATE FUNCTION chain_call_reused(p_run uuid, p_step text, p_item integer)
    RETURNS TABLE (output bytea) LANGUAGE sql STABLE AS $$
    WITH RECURSIVE source AS (
        SELECT r.source_run_id AS run_id, r.source_round AS round, 1 AS depth
          FROM chain_run r WHERE r.run_id = p_run AND r.source_run_id IS NOT NULL AND p_step = ANY (r.source_steps)
        UNION ALL
        SELECT r.source_run_id, r.source_round, s.depth + 1
          FROM source s JOIN chain_run r ON r.run_id = s.run_id
         WHERE r.source_run_id IS NOT NULL AND p_step = ANY (r.source_steps) AND s.depth < 10)
    SELECT c.output
      FROM source s JOIN chain_call c ON c.run_id = s.run_id
     WHERE c.step = p_step AND c.item = p_item AND c.state = 3 AND abs(c.round) BETWEEN 1 AND s.round
     ORDER BY s.depth, abs(c.round) DESC LIMIT 1
$$;

-- What a call has come to; else it is counted as tried once more, and state is null. No row: a newer attempt
-- has the run, or, with p_look, it has come to nothing. An answer of an earlier round counts, unless it was undone.
CREATE FUNCTION chain_call_open(p_run uuid, p_token bigint, p_step text, p_item integer, p_round smallint, p_undone smallint,
                                p_reuse boolean, p_look boolean)
    RETURNS TABLE (state smallint, attempts smallint, output bytea, error_class text, error_message text)
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM FROM chain_run r WHERE r.run_id = p_run AND r.token = p_token FOR SHARE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    RETURN QUERY
    SELECT c.state, c.attempts, c.output, c.error_class, c.error_message FROM chain_call c
     WHERE c.run_id = p_run AND c.step = p_step AND c.item = p_item AND c.state IS NOT NULL
       AND (c.round = p_round OR (c.state = 3 AND c.round > p_undone AND c.round < p_round))
     ORDER BY c.state, c.round DESC LIMIT 1;
    IF FOUND THEN
        RETURN;
    END IF;
    RETURN QUERY SELECT 3::smallint, 0::smallint, u.output, NULL::text, NULL::text
      FROM chain_call_reused(p_run, p_step, p_item) u WHERE p_reuse;
    IF FOUND OR p_look THEN
        RETURN;
    END IF;
    RETURN QUERY
    INSERT INTO chain_call AS c (run_id, step, item, round, token) VALUES (p_run, p_step, p_item, p_round, p_token)
    ON CONFLICT (run_id, step, item, round) DO UPDATE SET attempts = c.attempts + 1, token = excluded.token
    RETURNING c.state, c.attempts, c.output, c.error_class, c.error_message;
END
$$;

-- How it ended. False: a newer attempt calls.
CREATE FUNCTION chain_call_close(p_run uuid, p_token bigint, p_step text, p_item integer, p_round smallint, p_state smallint,
                                 p_status smallint, p_output bytea, p_class text, p_message text)
    RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    UPDATE chain_call c SET state = p_state, http_status = p_status, output = p_output, error_class = p_class,
           error_message = p_message, ended_at = now()
     WHERE c.run_id = p_run AND c.step = p_step AND c.item = p_item AND c.round = p_round AND c.token = p_token
       AND c.state IS NULL;
    RETURN EXISTS (SELECT FROM chain_call c WHERE c.run_id = p_run AND c.step = p_step AND c.item = p_item
                      AND c.round = p_round AND c.token = p_token AND c.state = p_state);
END
$$;

-- At most 10,000 a call.
CREATE FUNCTION chain_call_sweep(keep interval) RETURNS bigint LANGUAGE sql VOLATILE AS $$
    WITH old AS (
        DELETE FROM chain_call WHERE (run_id, step, item, round) IN
            (SELECT run_id, step, item, round FROM chain_call WHERE began_at < now() - keep - interval '1 day' LIMIT 10000)
        RETURNING 1)
    SELECT count(*) FROM old
$$;

CREATE VIEW headrace_v1.chain_calls AS
SELECT c.run_id,
       j.tenant,
       c.step,
       c.item,
       c.round,
       CASE c.state WHEN 3 THEN 'SUCCEEDED' WHEN 4 THEN 'FAILED' ELSE 'IN_PROGRESS' END AS status,
       c.attempts,
       c.http_status,
       c.began_at,
       c.ended_at,
       c.error_class,
       c.error_message
  FROM headrace.chain_call c
  JOIN headrace.job j ON j.id = c.run_id;
COMMENT ON VIEW headrace_v1.chain_calls IS 'Calls of URLs by steps of runs of chains (http).';
COMMENT ON COLUMN headrace_v1.chain_calls.run_id IS 'The run.';
COMMENT ON COLUMN headrace_v1.chain_calls.tenant IS 'Whose it is.';
COMMENT ON COLUMN headrace_v1.chain_calls.step IS 'Name of the step.';
COMMENT ON COLUMN headrace_v1.chain_calls.item IS 'Place in the list of a map, from 0; 0 of a step without one.';
COMMENT ON COLUMN headrace_v1.chain_calls.round IS 'Round of the run that made it; negative: it does not count any more.';
COMMENT ON COLUMN headrace_v1.chain_calls.status IS 'IN_PROGRESS, SUCCEEDED or FAILED.';
COMMENT ON COLUMN headrace_v1.chain_calls.attempts IS 'How often it was tried.';
COMMENT ON COLUMN headrace_v1.chain_calls.http_status IS 'Of the last answer; null without one.';
COMMENT ON COLUMN headrace_v1.chain_calls.began_at IS 'When it was tried first.';
COMMENT ON COLUMN headrace_v1.chain_calls.ended_at IS 'When it was over; null before.';
COMMENT ON COLUMN headrace_v1.chain_calls.error_class IS 'Why it failed, as steps.NAME.error.class.';
COMMENT ON COLUMN headrace_v1.chain_calls.error_message IS 'Why it failed.';

SELECT tenant_views();
