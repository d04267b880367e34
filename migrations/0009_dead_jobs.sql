-- SPDX-License-Identifier: Apache-2.0
-- Why a job is dead, and all that was tried: the attempt log as JSON, and a view of dead jobs.
--
-- Why: a job that was given up keeps its reason, its last error, worker and device, and every attempt.
-- Lock: none that anybody waits for, all objects are new.
-- A million rows: nothing to rewrite.
-- Undo: DROP VIEW headrace_v1.dead_jobs; DROP FUNCTION headrace.attempt_log, headrace.fail_reason,
-- headrace.time_text.

-- As error_class_reason() in schema/job.c says; a test compares.
CREATE FUNCTION fail_reason(class smallint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN class IN (2, 3, 4, 5) THEN 'attempts_used' WHEN class = 7 THEN 'out_of_memory'
        WHEN class IN (8, 9) THEN 'poison' WHEN class IN (1, 6, 13) THEN error_class_name(class) END;

-- A time as the HTTP API writes it.
CREATE FUNCTION time_text(at timestamptz) RETURNS text LANGUAGE sql STABLE STRICT PARALLEL SAFE
    RETURN to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"');

-- The attempts of one round of a job, oldest first, the running one included.
CREATE FUNCTION attempt_log(of_job uuid, of_round smallint) RETURNS jsonb LANGUAGE sql STABLE PARALLEL SAFE
    RETURN (SELECT coalesce(jsonb_agg(jsonb_build_object(
            'number', a.number, 'status', a.status, 'worker', a.worker, 'device', a.device,
            'dispatched_at', time_text(a.dispatched_at), 'started_at', time_text(a.started_at),
            'ended_at', time_text(a.ended_at),
            'run_seconds', round(extract(epoch FROM a.ended_at - a.started_at), 6),
            'batch_size', a.batch_count, 'error_class', error_class_name(a.error_class),
            'error_code', error_class_wire(a.error_class), 'error_message', a.error_message)
            ORDER BY a.token), '[]')
        FROM (SELECT t.number, CASE t.error_class WHEN 0 THEN 'SUCCEEDED' ELSE 'FAILED' END AS status, t.worker,
                     t.device, t.dispatched_at, t.started_at, t.ended_at, t.batch_count, t.error_class,
                     t.error_message, t.token
                FROM attempt t WHERE t.job_id = of_job AND t.round = of_round
              UNION ALL
              SELECT j.attempt_count, 'RUNNING', j.worker, NULL, NULL, j.started_at, NULL, NULL, NULL, NULL, j.token
                FROM job j WHERE j.id = of_job AND j.round = of_round AND j.state = 2) a);

CREATE VIEW headrace_v1.dead_jobs AS
SELECT j.id,
       j.tenant,
       j.model AS model_id,
       m.name AS model_name,
       j.deployment AS deployment_id,
       j.pool,
       fail_reason(j.error_class) AS reason,
       error_class_name(j.error_class) AS error_class,
       error_class_wire(j.error_class) AS error_code,
       j.error_message,
       j.worker,
       (SELECT a.device FROM attempt a WHERE a.job_id = j.id AND a.round = j.round
         ORDER BY a.token DESC LIMIT 1) AS device,
       j.round,
       j.attempt_count AS attempts,
       j.user_failures AS model_errors,
       j.max_attempts,
       j.oom_failures AS out_of_memory,
       j.lost_failures AS lost_workers,
       j.accepted_at,
       j.state_at AS failed_at,
       attempt_log(j.id, j.round) AS attempt_log
  FROM job j
  LEFT JOIN model m ON m.id = j.model
 WHERE j.state = 4;
COMMENT ON VIEW headrace_v1.dead_jobs IS 'Jobs that were given up, with why and all that was tried. What kills workers again and again is here with reason poison: quarantined.';
COMMENT ON COLUMN headrace_v1.dead_jobs.id IS 'Id of the job.';
COMMENT ON COLUMN headrace_v1.dead_jobs.tenant IS 'Who pays.';
COMMENT ON COLUMN headrace_v1.dead_jobs.model_id IS 'Model that the request named.';
COMMENT ON COLUMN headrace_v1.dead_jobs.model_name IS 'Name of that model now.';
COMMENT ON COLUMN headrace_v1.dead_jobs.deployment_id IS 'Deployment that ran it.';
COMMENT ON COLUMN headrace_v1.dead_jobs.pool IS 'Pool of workers that ran it.';
COMMENT ON COLUMN headrace_v1.dead_jobs.reason IS 'attempts_used, out_of_memory, poison (it cost five workers or engine hosts), bad_input, model_missing or unstorable.';
COMMENT ON COLUMN headrace_v1.dead_jobs.error_class IS 'Class of its last error.';
COMMENT ON COLUMN headrace_v1.dead_jobs.error_code IS 'Code that clients see.';
COMMENT ON COLUMN headrace_v1.dead_jobs.error_message IS 'Its last error.';
COMMENT ON COLUMN headrace_v1.dead_jobs.worker IS 'Worker of its last attempt.';
COMMENT ON COLUMN headrace_v1.dead_jobs.device IS 'Device of its last attempt.';
COMMENT ON COLUMN headrace_v1.dead_jobs.round IS '1, and one more at each replay.';
COMMENT ON COLUMN headrace_v1.dead_jobs.attempts IS 'Attempts of this round.';
COMMENT ON COLUMN headrace_v1.dead_jobs.model_errors IS 'Those that the retry policy of the request paid for.';
COMMENT ON COLUMN headrace_v1.dead_jobs.max_attempts IS 'How many of those it allows.';
COMMENT ON COLUMN headrace_v1.dead_jobs.out_of_memory IS 'Those that ran out of memory; three end the job.';
COMMENT ON COLUMN headrace_v1.dead_jobs.lost_workers IS 'Those that lost their worker or engine host; five end the job.';
COMMENT ON COLUMN headrace_v1.dead_jobs.accepted_at IS 'When Kafka took the request.';
COMMENT ON COLUMN headrace_v1.dead_jobs.failed_at IS 'When it was given up.';
COMMENT ON COLUMN headrace_v1.dead_jobs.attempt_log IS 'Its attempts, oldest first: number, status, worker, device, times, error.';
