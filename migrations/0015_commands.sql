-- SPDX-License-Identifier: Apache-2.0
-- Commands: cancel, replay and priority asked for in SQL; replays as rounds; tags and kill switches;
-- who may ask.
--
-- Why: only the owner of a shard writes a job's row, so a function appends a command, and the flush
-- that makes its effect durable acknowledges it. The owner reads commands by a cursor that only
-- moves forward. That is right only if ids become visible in their order, so inserts stand in line
-- (command_line). How far it has come, command_floor, is in the flush row.
-- Lock: ALTER TABLE of job, flush and command, ACCESS EXCLUSIVE for milliseconds; new columns are
-- null or have a constant default.
-- A million rows: nothing to rewrite.
-- Undo: DROP the functions, views and columns named here; DROP ROLE headrace_operator.

-- When its newest round began, by Kafka's append time; null in round 1.
ALTER TABLE job ADD COLUMN replayed_at timestamptz;

-- Words that a client gave its jobs; at most eight a job.
CREATE TABLE job_tag (
    job_id uuid NOT NULL,
    tag text NOT NULL,
    PRIMARY KEY (job_id, tag)
) PARTITION BY RANGE (job_id);
CREATE TABLE job_tag_default PARTITION OF job_tag DEFAULT;
CREATE INDEX job_tag_tag ON job_tag (tag, job_id);

-- Tables with a partition a day, in the order in which they are locked.
CREATE OR REPLACE FUNCTION day_tables() RETURNS TABLE (name text, key text) LANGUAGE sql IMMUTABLE AS $$
    VALUES ('job', 'id'), ('job_input', 'job_id'), ('job_tag', 'job_id'), ('job_result', 'job_id'),
           ('attempt', 'job_id'), ('delivery', 'job_id'), ('delivery_try', 'job_id'), ('flush', 'at')
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
                  LIMIT 10000);
    swept := cardinality(old);
    IF swept > 0 THEN
        DELETE FROM job WHERE id = ANY (old);
        DELETE FROM job_input WHERE job_id = ANY (old);
        DELETE FROM job_tag WHERE job_id = ANY (old);
        DELETE FROM job_result WHERE job_id = ANY (old);
        DELETE FROM attempt WHERE job_id = ANY (old);
        DELETE FROM delivery WHERE job_id = ANY (old);
        DELETE FROM delivery_try WHERE job_id = ANY (old);
    END IF;
    DELETE FROM idempotency WHERE (tenant, key) IN
        (SELECT tenant, key FROM idempotency WHERE expires_at < now() LIMIT 10000);
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

-- All commands of the shard below are acknowledged.
ALTER TABLE flush ADD COLUMN command_floor bigint NOT NULL DEFAULT 0;

ALTER TABLE command DROP CONSTRAINT command_kind_check;
ALTER TABLE command ADD CONSTRAINT command_kind_check CHECK (kind IN ('cancel', 'replay', 'priority'));
ALTER TABLE command ADD COLUMN round smallint NOT NULL DEFAULT 0; -- to be replayed
ALTER TABLE command ADD COLUMN priority smallint NOT NULL DEFAULT 0
    CONSTRAINT command_priority_check CHECK (priority BETWEEN 0 AND 2);
ALTER TABLE command ADD COLUMN tenant text NOT NULL DEFAULT ''; -- who pays for the job
ALTER TABLE command ADD COLUMN operation uuid; -- one request may ask for many
CREATE INDEX command_operation ON command (operation) WHERE operation IS NOT NULL;

-- A reference would lock each command's row at its acknowledgement, and an operator who deletes one
-- would make a flush fail.
ALTER TABLE command_done DROP CONSTRAINT command_done_command_id_fkey;
ALTER TABLE command_done ADD COLUMN reason text NOT NULL DEFAULT ''; -- why not

-- Whoever inserts holds this lock until its transaction ends, and ids are drawn behind it: so a
-- reader never sees an id before all lower ones. Nobody waits long for a session that sits idle.
CREATE FUNCTION command_line() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(4851712031984);
    RETURN NULL;
END
$$;
CREATE TRIGGER command_line BEFORE INSERT ON command FOR EACH STATEMENT EXECUTE FUNCTION command_line();

CREATE FUNCTION command_tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('headrace_command', s.shard::text) FROM (SELECT DISTINCT shard FROM added) s;
    RETURN NULL;
END
$$;
CREATE TRIGGER command_tell AFTER INSERT ON command REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION command_tell();

-- Whether a job is dead: over without having been asked to end, and without a result. Dead jobs can
-- be replayed.
CREATE FUNCTION state_is_dead(state smallint) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN state IN (4, 5);

-- Kill switches: while one is on, submits that it matches are refused, and waiting jobs are held.
CREATE TABLE switch (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant text NOT NULL,
    kind text NOT NULL CONSTRAINT switch_kind_check CHECK (kind IN ('tenant', 'model', 'tag')),
    value text NOT NULL, -- id of the model, the tag; of a tenant: itself
    reason text NOT NULL DEFAULT '',
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant, kind, value)
);
CREATE TRIGGER switch_notify AFTER INSERT OR UPDATE OR DELETE ON switch
    FOR EACH ROW EXECUTE FUNCTION config_notify('id');

-- One command and its audit row. Refuses at once what the owner would refuse for certain.
CREATE FUNCTION command_add(p_kind text, p_job uuid, p_priority smallint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    j record;
    added bigint;
BEGIN
    SELECT job.id, job.shard, job.state, job.round, job.tenant, job.input_blob,
           (SELECT count(*) FROM job_input i WHERE i.job_id = job.id) AS inputs
      INTO j FROM job WHERE job.id = p_job;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no job %', p_job USING ERRCODE = 'no_data_found';
    ELSIF p_kind = 'replay' AND NOT state_is_dead(j.state) THEN
        RAISE EXCEPTION 'job % is %: only FAILED and EXPIRED jobs are replayed', p_job, state_name(j.state)
            USING ERRCODE = 'object_not_in_prerequisite_state';
    ELSIF p_kind = 'replay' AND j.inputs = 0 AND j.input_blob IS NULL THEN
        RAISE EXCEPTION 'the input of job % is gone', p_job USING ERRCODE = 'object_not_in_prerequisite_state';
    ELSIF p_kind <> 'replay' AND j.state NOT IN (1, 2) THEN
        RAISE EXCEPTION 'job % is % already', p_job, state_name(j.state)
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    INSERT INTO command (shard, kind, job_id, round, priority, tenant, asked_by)
    VALUES (j.shard, p_kind, p_job, CASE WHEN p_kind = 'replay' THEN j.round ELSE 0 END, p_priority, j.tenant,
            session_user)
    RETURNING id INTO added;
    INSERT INTO audit (tenant, actor, action, target, details)
    VALUES (j.tenant, session_user, 'JOB_' || upper(p_kind) || '_ASKED', p_job::text,
            jsonb_build_object('command', added));
    RETURN added;
END
$$;

CREATE FUNCTION headrace_v1.cancel(job_id uuid) RETURNS bigint LANGUAGE sql SECURITY DEFINER
    SET search_path = headrace, pg_temp AS $$ SELECT command_add('cancel', job_id, 0::smallint) $$;
COMMENT ON FUNCTION headrace_v1.cancel(uuid) IS
    'Asks the owner of the job to cancel it. Returns the number of the command: headrace_v1.commands tells what came of it.';

CREATE FUNCTION headrace_v1.replay(job_id uuid) RETURNS bigint LANGUAGE sql SECURITY DEFINER
    SET search_path = headrace, pg_temp AS $$ SELECT command_add('replay', job_id, 0::smallint) $$;
COMMENT ON FUNCTION headrace_v1.replay(uuid) IS
    'Asks the owner of a dead job (FAILED, EXPIRED) to run it again, as its next round. Returns the number of the command.';

CREATE FUNCTION headrace_v1.set_priority(job_id uuid, priority integer) RETURNS bigint LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = headrace, pg_temp AS $$
BEGIN
    IF priority IS NULL OR priority NOT BETWEEN 0 AND 2 THEN
        RAISE EXCEPTION 'priority is %; it must be 0, 1 or 2', priority USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN command_add('priority', job_id, priority::smallint);
END
$$;
COMMENT ON FUNCTION headrace_v1.set_priority(uuid, integer) IS
    'Asks the owner of a waiting job to serve it at another priority (0, 1 or 2; lower runs first). Returns the number of the command.';

CREATE OR REPLACE VIEW headrace_v1.jobs AS
SELECT j.id,
       j.tenant,
       j.model AS model_id,
       m.name AS model_name,
       j.deployment AS deployment_id,
       j.environment,
       j.pool,
       CASE WHEN j.state = 3 AND d.state = 3 THEN 'WEBHOOK_FAILED' ELSE state_name(j.state) END AS status,
       webhook_status(j.webhook_url, j.state, d.state) AS webhook_status,
       rank_name(j.rank) AS class,
       j.accepted_at,
       j.started_at,
       j.state_at AS status_at,
       CASE WHEN j.state IN (1, 2) THEN NULL ELSE j.state_at END AS finished_at,
       extract(epoch FROM coalesce(j.started_at, CASE WHEN j.state IN (1, 2) THEN now() ELSE j.state_at END)
               - coalesce(j.replayed_at, j.accepted_at))::double precision AS wait_seconds,
       CASE WHEN j.started_at IS NOT NULL THEN
           extract(epoch FROM CASE WHEN j.state IN (1, 2) THEN now() ELSE j.state_at END - j.started_at)::double precision
       END AS run_seconds,
       j.attempt_count AS attempts,
       j.max_attempts,
       j.due_at AS retry_at,
       j.round,
       error_class_wire(j.error_class) AS error_code,
       error_class_name(j.error_class) AS error_class,
       j.error_message,
       j.input_size,
       encode(j.input_digest, 'hex') AS input_digest,
       j.input_blob,
       j.webhook_url,
       j.idempotency_key,
       j.start_deadline_at,
       j.total_deadline_at,
       j.worker,
       j.shard,
       split_part(j.trace, '-', 2) AS trace_id,
       j.key_prefix AS api_key_prefix,
       j.replayed_at,
       (SELECT array_agg(t.tag ORDER BY t.tag) FROM headrace.job_tag t WHERE t.job_id = j.id) AS tags
  FROM job j
  LEFT JOIN model m ON m.id = j.model
  LEFT JOIN delivery d ON d.job_id = j.id AND d.round = j.round AND d.endpoint = 'job';
COMMENT ON COLUMN headrace_v1.jobs.wait_seconds IS 'From acceptance, or its last replay, to the start of its newest attempt, or to its end, or to now.';
COMMENT ON COLUMN headrace_v1.jobs.replayed_at IS 'When its newest round began; null in the first. Deadlines of a replayed job count from here.';
COMMENT ON COLUMN headrace_v1.jobs.tags IS 'Words that the client gave it (X-Headrace-Tags, tags).';

CREATE VIEW headrace_v1.switches AS
SELECT s.id,
       s.tenant,
       s.kind,
       s.value,
       nullif(s.reason, '') AS reason,
       s.created_by,
       s.created_at
  FROM headrace.switch s;
COMMENT ON VIEW headrace_v1.switches IS 'Kill switches that are on: submits that they match are refused, waiting jobs are held.';
COMMENT ON COLUMN headrace_v1.switches.id IS 'Id of the switch.';
COMMENT ON COLUMN headrace_v1.switches.tenant IS 'Whose jobs it is about.';
COMMENT ON COLUMN headrace_v1.switches.kind IS 'tenant, model or tag.';
COMMENT ON COLUMN headrace_v1.switches.value IS 'Id of the model, or the tag; for a tenant itself.';
COMMENT ON COLUMN headrace_v1.switches.reason IS 'Why it was switched, in a person''s words.';
COMMENT ON COLUMN headrace_v1.switches.created_by IS 'Prefix of the API key, or the role.';
COMMENT ON COLUMN headrace_v1.switches.created_at IS 'Since when.';

CREATE VIEW headrace_v1.commands AS
SELECT c.id,
       c.kind,
       c.job_id,
       c.tenant,
       CASE WHEN d.command_id IS NULL THEN 'PENDING' WHEN d.applied THEN 'APPLIED' ELSE 'REFUSED' END AS status,
       nullif(d.reason, '') AS reason,
       CASE WHEN c.kind = 'replay' THEN c.round END AS round,
       CASE WHEN c.kind = 'priority' THEN c.priority END AS priority,
       c.operation AS operation_id,
       c.asked_by,
       c.asked_at,
       d.done_at
  FROM headrace.command c
  LEFT JOIN headrace.command_done d ON d.command_id = c.id;
COMMENT ON VIEW headrace_v1.commands IS 'What the owners of shards were asked to do with jobs, and what came of it.';
COMMENT ON COLUMN headrace_v1.commands.id IS 'Number of the command.';
COMMENT ON COLUMN headrace_v1.commands.kind IS 'cancel, replay or priority.';
COMMENT ON COLUMN headrace_v1.commands.job_id IS 'The job.';
COMMENT ON COLUMN headrace_v1.commands.tenant IS 'Who pays for the job.';
COMMENT ON COLUMN headrace_v1.commands.status IS 'PENDING, APPLIED or REFUSED.';
COMMENT ON COLUMN headrace_v1.commands.reason IS 'Why it was refused.';
COMMENT ON COLUMN headrace_v1.commands.round IS 'replay: the round that ended badly.';
COMMENT ON COLUMN headrace_v1.commands.priority IS 'priority: the one asked for.';
COMMENT ON COLUMN headrace_v1.commands.operation_id IS 'Request that asked for it, when it asked for many.';
COMMENT ON COLUMN headrace_v1.commands.asked_by IS 'Prefix of the API key, or the role.';
COMMENT ON COLUMN headrace_v1.commands.asked_at IS 'When.';
COMMENT ON COLUMN headrace_v1.commands.done_at IS 'When it was decided; null before.';

-- Expired jobs are dead too, and a dead job says whether it can be replayed.
CREATE OR REPLACE VIEW headrace_v1.dead_jobs AS
SELECT j.id,
       j.tenant,
       j.model AS model_id,
       m.name AS model_name,
       j.deployment AS deployment_id,
       j.pool,
       CASE WHEN j.state = 5 THEN 'expired' ELSE fail_reason(j.error_class) END AS reason,
       error_class_name(j.error_class) AS error_class,
       error_class_wire(j.error_class) AS error_code,
       j.error_message,
       j.worker,
       (SELECT a.device FROM headrace.attempt a WHERE a.job_id = j.id AND a.round = j.round
         ORDER BY a.token DESC LIMIT 1) AS device,
       j.round,
       j.attempt_count AS attempts,
       j.user_failures AS model_errors,
       j.max_attempts,
       j.oom_failures AS out_of_memory,
       j.lost_failures AS lost_workers,
       j.accepted_at,
       j.state_at AS failed_at,
       attempt_log(j.id, j.round) AS attempt_log,
       state_name(j.state) AS status,
       j.environment,
       j.input_blob IS NOT NULL OR EXISTS (SELECT FROM headrace.job_input i WHERE i.job_id = j.id) AS replayable,
       j.idempotency_key,
       split_part(j.trace, '-', 2) AS trace_id,
       (SELECT array_agg(t.tag ORDER BY t.tag) FROM headrace.job_tag t WHERE t.job_id = j.id) AS tags
  FROM headrace.job j
  LEFT JOIN headrace.model m ON m.id = j.model
 WHERE j.state IN (4, 5);
COMMENT ON VIEW headrace_v1.dead_jobs IS 'Jobs that ended without a result and without having been canceled, FAILED or EXPIRED, with why and all that was tried. They can be replayed. What kills workers again and again is here with reason poison: quarantined.';
COMMENT ON COLUMN headrace_v1.dead_jobs.reason IS 'attempts_used, out_of_memory, poison (it cost five workers or engine hosts), bad_input, model_missing, unstorable, expired or input_lost (the blob of its input is missing or not what was submitted).';
COMMENT ON COLUMN headrace_v1.dead_jobs.failed_at IS 'When it was given up, or expired.';
COMMENT ON COLUMN headrace_v1.dead_jobs.status IS 'FAILED or EXPIRED.';
COMMENT ON COLUMN headrace_v1.dead_jobs.environment IS 'Environment that the request named; null when it named a deployment.';
COMMENT ON COLUMN headrace_v1.dead_jobs.replayable IS 'Whether its input is still there.';
COMMENT ON COLUMN headrace_v1.dead_jobs.idempotency_key IS 'Idempotency-Key of the request.';
COMMENT ON COLUMN headrace_v1.dead_jobs.trace_id IS 'Trace id of its W3C traceparent.';
COMMENT ON COLUMN headrace_v1.dead_jobs.tags IS 'Words that the client gave it.';

-- Who may write: the functions above and what a reader may do, nothing else. Like headrace_reader it
-- belongs to the whole server.
REVOKE ALL ON FUNCTION headrace_v1.cancel(uuid), headrace_v1.replay(uuid), headrace_v1.set_priority(uuid, integer)
    FROM PUBLIC;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'headrace_operator') THEN
        BEGIN
            CREATE ROLE headrace_operator NOLOGIN;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL;
            WHEN insufficient_privilege THEN
                RAISE NOTICE 'role headrace_operator has to be created by an administrator';
        END;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'headrace_operator') THEN
        IF NOT pg_has_role(current_user, 'headrace_operator', 'MEMBER') THEN
            GRANT headrace_operator TO CURRENT_USER;
        END IF;
        GRANT USAGE ON SCHEMA headrace_v1 TO headrace_operator;
        GRANT SELECT ON ALL TABLES IN SCHEMA headrace_v1 TO headrace_operator;
        ALTER DEFAULT PRIVILEGES IN SCHEMA headrace_v1 GRANT SELECT ON TABLES TO headrace_operator;
        GRANT EXECUTE ON FUNCTION headrace_v1.cancel(uuid), headrace_v1.replay(uuid),
            headrace_v1.set_priority(uuid, integer) TO headrace_operator;
    END IF;
END
$$;
