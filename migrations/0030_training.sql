-- SPDX-License-Identifier: Apache-2.0
-- Training: projects, jobs, what runs where, checkpoints, logs, metrics.
--
-- Why: a training job is a job of the ledger, held there by whichever trainer has it. What the ledger does
-- not know is which machines its nodes run on, and what came out while they ran: that is here. A
-- *placement* puts all nodes of a job on trainers, or none; its number is the fence of all that a trainer
-- writes about it.
-- Lock: two CHECKs are replaced under ACCESS EXCLUSIVE of job and attempt for as long as it takes to
-- read them once.
-- A million rows: 0.2 s for the two CHECKs.
-- Undo: DROP the tables and functions named here; the CHECKs and functions of error classes as in 0019.

-- A new error class: the commands of a training job have failed.
ALTER TABLE job DROP CONSTRAINT job_error_class_check;
ALTER TABLE job ADD CONSTRAINT job_error_class_check
    CHECK (error_class IN (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18));
ALTER TABLE attempt DROP CONSTRAINT attempt_error_class_check;
ALTER TABLE attempt ADD CONSTRAINT attempt_error_class_check
    CHECK (error_class IN (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18));

CREATE OR REPLACE FUNCTION error_class_name(class smallint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE class WHEN 1 THEN 'bad_input' WHEN 2 THEN 'model_error' WHEN 3 THEN 'model_unavailable'
        WHEN 4 THEN 'model_timeout' WHEN 5 THEN 'model_not_ready' WHEN 6 THEN 'model_missing'
        WHEN 7 THEN 'oom' WHEN 8 THEN 'device_fault' WHEN 9 THEN 'lost_worker' WHEN 10 THEN 'expired'
        WHEN 11 THEN 'canceled' WHEN 12 THEN 'handed_back' WHEN 13 THEN 'unstorable'
        WHEN 14 THEN 'input_lost' WHEN 15 THEN 'step_failed' WHEN 16 THEN 'lost_coordinator'
        WHEN 17 THEN 'run_stuck' WHEN 18 THEN 'training_failed' END;

CREATE OR REPLACE FUNCTION error_class_wire(class smallint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE class WHEN 1 THEN 'MODEL_INVALID_INPUT' WHEN 2 THEN 'MODEL_PREDICT_ERROR'
        WHEN 3 THEN 'MODEL_UNAVAILABLE' WHEN 4 THEN 'MODEL_PREDICT_TIMEOUT' WHEN 5 THEN 'MODEL_NOT_READY'
        WHEN 6 THEN 'MODEL_DOES_NOT_EXIST' WHEN 7 THEN 'MODEL_PREDICT_ERROR' WHEN 10 THEN 'EXPIRED'
        WHEN 11 THEN 'CANCELED' WHEN 8 THEN 'INTERNAL_SERVER_ERROR' WHEN 9 THEN 'INTERNAL_SERVER_ERROR'
        WHEN 12 THEN 'INTERNAL_SERVER_ERROR' WHEN 13 THEN 'INTERNAL_SERVER_ERROR'
        WHEN 14 THEN 'INTERNAL_SERVER_ERROR' WHEN 15 THEN 'CHAIN_STEP_FAILED'
        WHEN 16 THEN 'INTERNAL_SERVER_ERROR' WHEN 17 THEN 'INTERNAL_SERVER_ERROR'
        WHEN 18 THEN 'TRAINING_JOB_FAILED' END;

-- As error_class_reason() in schema/job.c says; a test compares.
CREATE OR REPLACE FUNCTION fail_reason(class smallint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN class IN (2, 3, 4, 5) THEN 'attempts_used' WHEN class = 7 THEN 'out_of_memory'
        WHEN class IN (8, 9, 17) THEN 'poison' WHEN class IN (1, 6, 13, 14, 15, 18) THEN error_class_name(class) END;
COMMENT ON COLUMN headrace_v1.dead_jobs.reason IS 'attempts_used, out_of_memory, poison (it cost five workers or engine hosts), bad_input, model_missing, unstorable, step_failed (of a run of a chain), training_failed, expired or input_lost (the blob of its input is missing or not what was submitted).';

-- A project is a model that nobody calls: its id is the model's.
CREATE TABLE training_project (
    id text PRIMARY KEY REFERENCES model,
    tenant text NOT NULL REFERENCES tenant,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 64),
    checkpoint_keep integer NOT NULL DEFAULT 0 CHECK (checkpoint_keep >= 0), -- newest of each job; 0: all
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz
);
CREATE UNIQUE INDEX training_project_name ON training_project (tenant, name) WHERE deleted_at IS NULL;

CREATE TABLE training_job (
    job_id uuid PRIMARY KEY, -- in the ledger
    project_id text NOT NULL REFERENCES training_project,
    tenant text NOT NULL,
    name text NOT NULL DEFAULT '',
    spec jsonb NOT NULL, -- what was asked for; the input of its job
    archive_digest bytea, -- of its workspace; null: none
    priority bigint NOT NULL DEFAULT 0, -- higher first
    node_count integer NOT NULL CHECK (node_count BETWEEN 1 AND 1024),
    accelerator text NOT NULL DEFAULT '',
    gpu_count integer NOT NULL CHECK (gpu_count BETWEEN 0 AND 1024),   -- of each node, as are the next two
    cpu_count integer NOT NULL CHECK (cpu_count BETWEEN 0 AND 65536),
    memory_bytes bigint NOT NULL CHECK (memory_bytes >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by text NOT NULL DEFAULT '',
    round smallint NOT NULL DEFAULT 1,  -- of its job
    token bigint NOT NULL DEFAULT 0,    -- of the attempt that holds it in the ledger
    status text NOT NULL DEFAULT 'PENDING' CONSTRAINT training_job_status_check CHECK (status IN (
        'PENDING', 'CREATED', 'DEPLOYING', 'RUNNING', 'COMPLETED', 'FAILED', 'DEPLOY_FAILED', 'STOPPED')),
    status_at timestamptz NOT NULL DEFAULT now(),
    placement integer NOT NULL DEFAULT 0,       -- the newest one
    retry_count integer NOT NULL DEFAULT 0,     -- placements behind it that had begun
    lost_count integer NOT NULL DEFAULT 0,      -- lost ones since the last complete checkpoint
    preempted_count integer NOT NULL DEFAULT 0,
    failed_count integer NOT NULL DEFAULT 0,    -- ended by the job's own fault
    max_attempts integer NOT NULL DEFAULT 1,
    stop_asked_at timestamptz,
    stop_by text,
    started_at timestamptz, -- first time that its commands ran
    ended_at timestamptz,
    cause text,
    exit_code integer,
    signal integer,
    error_message text
);
CREATE INDEX training_job_project ON training_job (project_id, created_at);
CREATE INDEX training_job_open ON training_job (job_id)
    WHERE status IN ('PENDING', 'CREATED', 'DEPLOYING', 'RUNNING');

-- One node of a placement: what runs on one trainer.
CREATE TABLE training_node (
    job_id uuid NOT NULL REFERENCES training_job ON DELETE CASCADE,
    placement integer NOT NULL,
    rank integer NOT NULL,
    trainer text NOT NULL,
    boot bigint NOT NULL,
    state text NOT NULL DEFAULT 'PLACED'
        CONSTRAINT training_node_state_check CHECK (state IN ('PLACED', 'TAKEN', 'READY', 'RUNNING', 'ENDED')),
    stop_cause text, -- it is to end: stop, preempt, gang, drain
    placed_at timestamptz NOT NULL DEFAULT now(),
    ready_at timestamptz,
    started_at timestamptz,
    ended_at timestamptz,
    cause text, -- why it ended: as of training_job, and preempted, gang, drained
    exit_code integer,
    signal integer,
    message text,
    PRIMARY KEY (job_id, placement, rank)
);
CREATE INDEX training_node_open ON training_node (trainer) WHERE state <> 'ENDED';

-- Trainers that are there; alive when seen lately.
CREATE TABLE training_trainer (
    name text PRIMARY KEY,
    boot bigint NOT NULL,
    machine text NOT NULL,
    address text NOT NULL,
    accelerator text NOT NULL DEFAULT '',
    gpu_count integer NOT NULL,
    cpu_count integer NOT NULL,
    memory_bytes bigint NOT NULL,
    draining boolean NOT NULL DEFAULT false,
    version text NOT NULL DEFAULT '',
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now()
);

-- Raised by each plan that is carried out: who planned by an older one plans anew.
CREATE TABLE training_plan (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version bigint NOT NULL DEFAULT 0
);
INSERT INTO training_plan DEFAULT VALUES;

CREATE TABLE training_event (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id uuid NOT NULL REFERENCES training_job ON DELETE CASCADE,
    at timestamptz NOT NULL DEFAULT now(),
    placement integer NOT NULL DEFAULT 0,
    status text NOT NULL,
    message text,
    exit_code integer
);
CREATE INDEX training_event_job ON training_event (job_id, id);

CREATE TABLE training_checkpoint (
    job_id uuid NOT NULL REFERENCES training_job ON DELETE CASCADE,
    rank integer NOT NULL,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 255),
    placement integer NOT NULL,
    state text NOT NULL DEFAULT 'SYNCING'
        CONSTRAINT training_checkpoint_state_check CHECK (state IN ('SYNCING', 'COMPLETE', 'DELETED')),
    type text NOT NULL DEFAULT 'full',
    base_model text,
    lora jsonb,
    size_bytes bigint NOT NULL DEFAULT 0,
    file_count integer NOT NULL DEFAULT 0,
    uploaded_bytes bigint NOT NULL DEFAULT 0, -- of these: not in the store before
    files jsonb, -- the manifest: path, size, digest and mode of each file; null: never complete
    created_at timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz,
    PRIMARY KEY (job_id, rank, name)
);

-- Files that the blob store has, of all checkpoints of a project.
CREATE TABLE training_file (
    project_id text NOT NULL REFERENCES training_project,
    digest bytea NOT NULL CHECK (octet_length(digest) = 32),
    size_bytes bigint NOT NULL,
    used_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, digest)
);

-- What a node has printed: a row has line_count whole lines, the first one is `number`.
CREATE TABLE training_log (
    job_id uuid NOT NULL REFERENCES training_job ON DELETE CASCADE,
    rank integer NOT NULL,
    number bigint NOT NULL, -- from 1, over all placements
    line_count integer NOT NULL,
    placement integer NOT NULL,
    at timestamptz NOT NULL,
    at_last timestamptz NOT NULL,
    text text NOT NULL, -- each line ends in a newline
    PRIMARY KEY (job_id, rank, number)
);

CREATE TABLE training_metric (
    job_id uuid NOT NULL REFERENCES training_job ON DELETE CASCADE,
    rank integer NOT NULL,
    name text NOT NULL,
    at timestamptz NOT NULL,
    step bigint, -- of the user's own
    value double precision NOT NULL
);
CREATE INDEX training_metric_name ON training_metric (job_id, name, at);

-- ---- jobs ----

CREATE FUNCTION training_tell(p_job uuid, p_status text, p_message text DEFAULT NULL, p_exit_code integer DEFAULT NULL)
    RETURNS void LANGUAGE sql AS $$
    INSERT INTO training_event (job_id, placement, status, message, exit_code)
    SELECT p_job, placement, p_status, p_message, p_exit_code FROM training_job WHERE job_id = p_job;
    SELECT pg_notify('headrace_training', p_job::text)
$$;

-- Unless it is there already: by who accepts it, and by who holds it first.
CREATE FUNCTION training_job_put(p_job uuid, p_project text, p_tenant text, p_spec jsonb, p_by text) RETURNS boolean
    LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO training_job (job_id, project_id, tenant, name, spec, archive_digest, priority, node_count, accelerator,
                              gpu_count, cpu_count, memory_bytes, created_by, max_attempts)
    VALUES (p_job, p_project, p_tenant, coalesce(p_spec->>'name', ''), p_spec,
            decode(nullif(p_spec->>'archive', ''), 'hex'), coalesce((p_spec->>'priority')::bigint, 0),
            coalesce((p_spec->>'node_count')::integer, 1), coalesce(p_spec->>'accelerator', ''),
            coalesce((p_spec->>'gpu_count')::integer, 0), coalesce((p_spec->>'cpu_count')::integer, 1),
            coalesce((p_spec->>'memory_bytes')::bigint, 0), p_by, coalesce((p_spec->>'max_attempts')::integer, 1))
    ON CONFLICT (job_id) DO NOTHING;
    IF FOUND THEN
        PERFORM training_tell(p_job, 'PENDING');
        RETURN true;
    END IF;
    RETURN false;
END
$$;

-- An attempt holds the job. No row: the ledger does not have it yet. 'STALE': a newer attempt has it.
CREATE FUNCTION training_begin(p_job uuid, p_token bigint, p_input jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    j record;
    t record;
BEGIN
    SELECT model, tenant, round INTO j FROM job WHERE id = p_job;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM training_job_put(p_job, j.model, j.tenant, p_input, '');
    SELECT token, round, status INTO t FROM training_job WHERE job_id = p_job FOR UPDATE;
    IF t.token > p_token THEN
        RETURN 'STALE';
    END IF;
    UPDATE training_job SET token = p_token WHERE job_id = p_job;
    IF j.round > t.round THEN -- a replay: it begins again where its checkpoints are
        UPDATE training_job SET round = j.round, status = 'PENDING', status_at = now(), lost_count = 0, failed_count = 0,
               stop_asked_at = NULL, stop_by = NULL, ended_at = NULL, cause = NULL, exit_code = NULL, signal = NULL,
               error_message = NULL
         WHERE job_id = p_job AND status IN ('COMPLETED', 'FAILED', 'DEPLOY_FAILED', 'STOPPED');
        PERFORM training_tell(p_job, 'PENDING', 'replayed');
    END IF;
    RETURN 'HELD';
END
$$;

CREATE FUNCTION training_finish(p_job uuid, p_status text, p_cause text, p_exit_code integer, p_signal integer, p_message text)
    RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE training_job SET status = p_status, status_at = now(), ended_at = now(), cause = p_cause, exit_code = p_exit_code,
           signal = p_signal, error_message = p_message
     WHERE job_id = p_job AND status IN ('PENDING', 'CREATED', 'DEPLOYING', 'RUNNING');
    IF FOUND THEN
        PERFORM training_tell(p_job, p_status, p_message, p_exit_code);
    END IF;
END
$$;

-- The row's part of a stop; the ledger's is its own.
CREATE FUNCTION training_stop_row(p_job uuid, p_by text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    t record;
BEGIN
    SELECT status, stop_asked_at INTO t FROM training_job WHERE job_id = p_job FOR UPDATE;
    IF NOT FOUND OR t.status NOT IN ('PENDING', 'CREATED', 'DEPLOYING', 'RUNNING') THEN
        RETURN t.status;
    END IF;
    IF t.stop_asked_at IS NULL THEN
        UPDATE training_job SET stop_asked_at = now(), stop_by = p_by WHERE job_id = p_job;
        UPDATE training_node SET stop_cause = 'stop' WHERE job_id = p_job AND state <> 'ENDED';
        PERFORM pg_notify('headrace_training', p_job::text);
    END IF;
    IF t.status = 'PENDING' THEN
        PERFORM training_finish(p_job, 'STOPPED', 'stopped', NULL, NULL, NULL);
        RETURN 'STOPPED';
    END IF;
    RETURN t.status;
END
$$;

-- Somebody stops it: the job in the ledger is canceled, and its nodes are told. NULL: there is no such job.
CREATE FUNCTION training_stop(p_job uuid, p_tenant text, p_by text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    became text;
BEGIN
    IF NOT EXISTS (SELECT FROM training_job WHERE job_id = p_job AND tenant = p_tenant) THEN
        RETURN NULL;
    END IF;
    became := training_stop_row(p_job, p_by);
    INSERT INTO command (shard, kind, job_id, tenant, asked_by)
    SELECT j.shard, 'cancel', j.id, j.tenant, p_by FROM job j WHERE j.id = p_job AND j.state IN (1, 2);
    RETURN became;
END
$$;

CREATE FUNCTION training_prioritize(p_job uuid, p_tenant text, p_priority bigint) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    t record;
BEGIN
    SELECT status INTO t FROM training_job WHERE job_id = p_job AND tenant = p_tenant FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    ELSIF t.status <> 'PENDING' THEN
        RETURN 'not_pending';
    END IF;
    UPDATE training_job SET priority = p_priority WHERE job_id = p_job;
    PERFORM pg_notify('headrace_training', p_job::text);
    RETURN 'ok';
END
$$;

-- ---- plans ----

CREATE FUNCTION training_plan_next(p_version bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE training_plan SET version = version + 1 WHERE version = p_version;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'somebody else has planned' USING ERRCODE = 'HR001';
    END IF;
END
$$;

CREATE FUNCTION training_place(p_job uuid, p_trainers text[], p_boots bigint[]) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    number integer;
BEGIN
    UPDATE training_job SET placement = placement + 1, status = 'CREATED', status_at = now()
     WHERE job_id = p_job AND status = 'PENDING' AND stop_asked_at IS NULL
    RETURNING placement INTO number;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO training_node (job_id, placement, rank, trainer, boot)
    SELECT p_job, number, (w.n - 1)::integer, w.trainer, w.boot
      FROM unnest(p_trainers, p_boots) WITH ORDINALITY AS w (trainer, boot, n);
    PERFORM training_tell(p_job, 'CREATED');
    RETURN true;
END
$$;

-- What a placement has come to, once all of its nodes have ended; the first that fails ends the others.
CREATE FUNCTION training_close(p_job uuid, p_placement integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t record;
    n record;
    last record;
BEGIN
    SELECT * INTO t FROM training_job WHERE job_id = p_job FOR UPDATE;
    IF NOT FOUND OR t.placement <> p_placement OR t.status NOT IN ('CREATED', 'DEPLOYING', 'RUNNING') THEN
        RETURN;
    END IF;
    SELECT count(*) FILTER (WHERE state <> 'ENDED') AS open,
           bool_or(started_at IS NOT NULL) AS began,
           bool_and(cause = 'exit' AND exit_code = 0) AS fine,
           bool_or(state = 'ENDED' AND NOT (cause = 'exit' AND exit_code = 0)) AS failed
      INTO n FROM training_node WHERE job_id = p_job AND placement = p_placement;
    IF n.open > 0 THEN
        IF n.failed THEN
            UPDATE training_node SET stop_cause = 'gang'
             WHERE job_id = p_job AND placement = p_placement AND state <> 'ENDED' AND stop_cause IS NULL;
            PERFORM pg_notify('headrace_training', p_job::text);
        END IF;
        RETURN;
    END IF;
    IF n.fine THEN
        PERFORM training_finish(p_job, 'COMPLETED', 'exit', 0, NULL, NULL);
        RETURN;
    ELSIF t.stop_asked_at IS NOT NULL THEN
        SELECT * INTO last FROM training_node WHERE job_id = p_job AND placement = p_placement ORDER BY rank LIMIT 1;
        PERFORM training_finish(p_job, 'STOPPED', 'stopped', last.exit_code, last.signal, last.message);
        RETURN;
    END IF;
    -- A loss counts first, since it makes others of the gang fail; then the job's own fault, then what we did.
    SELECT *, CASE WHEN cause = 'exit' AND exit_code = 0 THEN 9
                   WHEN cause IN ('preempted', 'drained') THEN 2
                   WHEN cause = 'gang' THEN 3
                   WHEN cause = 'lost' OR (cause = 'signal' AND signal = 9) THEN 0
                   ELSE 1 END AS class
      INTO last FROM training_node WHERE job_id = p_job AND placement = p_placement
     ORDER BY class, ended_at, rank LIMIT 1;
    IF last.class = 1 THEN
        UPDATE training_job SET failed_count = failed_count + 1 WHERE job_id = p_job;
        IF t.failed_count + 1 >= t.max_attempts OR last.cause NOT IN ('exit', 'signal', 'out_of_memory') THEN
            PERFORM training_finish(p_job, CASE WHEN last.started_at IS NULL THEN 'DEPLOY_FAILED' ELSE 'FAILED' END,
                                    last.cause, last.exit_code, last.signal, last.message);
            RETURN;
        END IF;
    ELSIF last.class = 0 THEN
        UPDATE training_job SET lost_count = lost_count + 1 WHERE job_id = p_job;
        IF t.lost_count + 1 >= 5 THEN
            PERFORM training_finish(p_job, 'FAILED', last.cause, last.exit_code, last.signal,
                                    'it was lost five times without a checkpoint in between: ' || coalesce(last.message, ''));
            RETURN;
        END IF;
    ELSE
        UPDATE training_job SET preempted_count = preempted_count + 1 WHERE job_id = p_job;
    END IF;
    UPDATE training_job SET status = 'PENDING', status_at = now(), retry_count = retry_count + n.began::integer
     WHERE job_id = p_job;
    PERFORM training_tell(p_job, 'PENDING', last.cause || coalesce(': ' || last.message, ''), last.exit_code);
END
$$;

-- ---- trainers ----

-- A trainer is not there any more: all that it ran has ended.
CREATE FUNCTION training_lose(p_trainer text, p_boot bigint, p_why text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    n record;
BEGIN
    FOR n IN
        SELECT DISTINCT job_id, placement FROM training_node
         WHERE trainer = p_trainer AND boot <= p_boot AND state <> 'ENDED' ORDER BY job_id
    LOOP
        PERFORM FROM training_job WHERE job_id = n.job_id FOR UPDATE; -- jobs before nodes, everywhere
        UPDATE training_node SET state = 'ENDED', ended_at = now(), cause = 'lost', message = p_why
         WHERE job_id = n.job_id AND placement = n.placement AND trainer = p_trainer AND boot <= p_boot
           AND state <> 'ENDED';
        PERFORM training_close(n.job_id, n.placement);
    END LOOP;
END
$$;

-- Each second. False: a newer process has that name.
CREATE FUNCTION training_beat(p_name text, p_boot bigint, p_machine text, p_address text, p_accelerator text,
                              p_gpus integer, p_cpus integer, p_memory bigint, p_draining boolean, p_version text)
    RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    t record;
BEGIN
    SELECT boot INTO t FROM training_trainer WHERE name = p_name FOR UPDATE;
    IF FOUND AND t.boot > p_boot THEN
        RETURN false;
    ELSIF FOUND AND t.boot = p_boot THEN
        UPDATE training_trainer SET seen_at = clock_timestamp(), draining = p_draining WHERE name = p_name;
        RETURN true;
    ELSIF FOUND THEN
        PERFORM training_lose(p_name, p_boot - 1, 'its trainer was started again');
    END IF;
    INSERT INTO training_trainer (name, boot, machine, address, accelerator, gpu_count, cpu_count, memory_bytes, draining, version)
    VALUES (p_name, p_boot, p_machine, p_address, p_accelerator, p_gpus, p_cpus, p_memory, p_draining, p_version)
    ON CONFLICT (name) DO UPDATE SET boot = excluded.boot, machine = excluded.machine, address = excluded.address,
        accelerator = excluded.accelerator, gpu_count = excluded.gpu_count, cpu_count = excluded.cpu_count,
        memory_bytes = excluded.memory_bytes, draining = excluded.draining, version = excluded.version,
        started_at = now(), seen_at = now();
    PERFORM pg_notify('headrace_training', '');
    RETURN true;
END
$$;

-- Silent for longer than it may be, or it has said that it goes: what it ran is lost, and its row goes.
CREATE FUNCTION training_bury(p_name text, p_boot bigint, p_silent interval) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM training_trainer WHERE name = p_name AND boot = p_boot AND seen_at < clock_timestamp() - p_silent;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM training_lose(p_name, p_boot, 'its trainer is lost');
    RETURN true;
END
$$;

-- False: the node is not that trainer's any more, or has ended.
CREATE FUNCTION training_node_set(p_job uuid, p_placement integer, p_rank integer, p_boot bigint, p_state text)
    RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    t record;
BEGIN
    SELECT status, placement INTO t FROM training_job WHERE job_id = p_job FOR UPDATE;
    IF NOT FOUND OR t.placement <> p_placement THEN
        RETURN false;
    END IF;
    UPDATE training_node SET state = p_state,
           ready_at = CASE WHEN p_state = 'READY' THEN now() ELSE ready_at END,
           started_at = CASE WHEN p_state = 'RUNNING' THEN now() ELSE started_at END
     WHERE job_id = p_job AND placement = p_placement AND rank = p_rank AND boot = p_boot AND state <> 'ENDED';
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF t.status = 'CREATED' THEN
        UPDATE training_job SET status = 'DEPLOYING', status_at = now() WHERE job_id = p_job;
        PERFORM training_tell(p_job, 'DEPLOYING');
    END IF;
    IF p_state = 'RUNNING' AND t.status <> 'RUNNING' THEN
        UPDATE training_job SET status = 'RUNNING', status_at = now(), started_at = coalesce(started_at, now())
         WHERE job_id = p_job;
        PERFORM training_tell(p_job, 'RUNNING');
    ELSIF p_state = 'READY' THEN
        PERFORM pg_notify('headrace_training', p_job::text); -- others of the gang wait for it
    END IF;
    RETURN true;
END
$$;

CREATE FUNCTION training_node_end(p_job uuid, p_placement integer, p_rank integer, p_boot bigint, p_cause text,
                                  p_exit_code integer, p_signal integer, p_message text)
    RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM training_job WHERE job_id = p_job FOR UPDATE;
    UPDATE training_node SET state = 'ENDED', ended_at = now(), cause = p_cause, exit_code = p_exit_code, signal = p_signal,
           message = p_message
     WHERE job_id = p_job AND placement = p_placement AND rank = p_rank AND boot = p_boot AND state <> 'ENDED';
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM training_close(p_job, p_placement);
    RETURN true;
END
$$;

-- Raises unless the node still is that trainer's: in front of whatever must not be written after its end.
CREATE FUNCTION training_fence(p_job uuid, p_placement integer, p_rank integer, p_boot bigint) RETURNS void
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM training_job t JOIN training_node n ON n.job_id = t.job_id AND n.placement = t.placement
      WHERE t.job_id = p_job AND t.placement = p_placement AND n.rank = p_rank AND n.boot = p_boot AND n.state <> 'ENDED'
        FOR UPDATE OF t;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'placement % of training job % is over', p_placement, p_job USING ERRCODE = 'HR001';
    END IF;
END
$$;

-- ---- checkpoints ----

CREATE FUNCTION training_checkpoint_begin(p_job uuid, p_placement integer, p_rank integer, p_boot bigint, p_name text)
    RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM training_fence(p_job, p_placement, p_rank, p_boot);
    INSERT INTO training_checkpoint AS c (job_id, rank, name, placement) VALUES (p_job, p_rank, p_name, p_placement)
    ON CONFLICT (job_id, rank, name) DO UPDATE SET placement = excluded.placement,
        state = CASE WHEN c.state = 'DELETED' THEN 'SYNCING' ELSE c.state END;
END
$$;

-- All of its files are in the store: from here on it is a checkpoint. Names of older ones that the
-- policy lets go are returned.
CREATE FUNCTION training_checkpoint_commit(p_job uuid, p_placement integer, p_rank integer, p_boot bigint, p_name text,
                                           p_files jsonb, p_size bigint, p_uploaded bigint, p_type text, p_base_model text,
                                           p_lora jsonb, p_keep integer)
    RETURNS TABLE (deleted text) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM training_fence(p_job, p_placement, p_rank, p_boot);
    INSERT INTO training_file AS f (project_id, digest, size_bytes)
    SELECT DISTINCT ON (e->>'digest') t.project_id, decode(e->>'digest', 'hex'), (e->>'size')::bigint
      FROM jsonb_array_elements(p_files) e, training_job t WHERE t.job_id = p_job
    ON CONFLICT (project_id, digest) DO UPDATE SET used_at = now();
    INSERT INTO training_checkpoint AS c (job_id, rank, name, placement, state, type, base_model, lora, size_bytes, file_count,
                                          uploaded_bytes, files, completed_at)
    VALUES (p_job, p_rank, p_name, p_placement, 'COMPLETE', p_type, p_base_model, p_lora, p_size,
            jsonb_array_length(p_files), p_uploaded, p_files, clock_timestamp())
    ON CONFLICT (job_id, rank, name) DO UPDATE SET placement = excluded.placement, state = 'COMPLETE', type = excluded.type,
        base_model = excluded.base_model, lora = excluded.lora, size_bytes = excluded.size_bytes,
        file_count = excluded.file_count, uploaded_bytes = c.uploaded_bytes + excluded.uploaded_bytes, files = excluded.files,
        completed_at = excluded.completed_at;
    UPDATE training_job SET lost_count = 0 WHERE job_id = p_job AND lost_count > 0;
    PERFORM pg_notify('headrace_training', p_job::text);
    RETURN QUERY
        UPDATE training_checkpoint c SET state = 'DELETED', files = NULL
         WHERE p_keep > 0 AND c.job_id = p_job AND c.rank = p_rank AND c.name IN
               (SELECT k.name FROM training_checkpoint k
                 WHERE k.job_id = p_job AND k.rank = p_rank AND k.state = 'COMPLETE'
                 ORDER BY k.completed_at DESC OFFSET greatest(p_keep, 1))
        RETURNING c.name;
END
$$;

-- Where a job goes on: the newest checkpoint that every rank that has any has completed; of its own, else
-- of those that its spec names.
CREATE FUNCTION training_resume(p_job uuid) RETURNS TABLE (job_id uuid, rank integer, name text, files jsonb)
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    t record;
    load jsonb;
    wanted jsonb;
    source uuid;
    newest text;
BEGIN
    SELECT * INTO t FROM training_job WHERE training_job.job_id = p_job;
    newest := training_newest(p_job);
    IF newest IS NOT NULL THEN
        RETURN QUERY SELECT c.job_id, c.rank, c.name, c.files FROM training_checkpoint c
                      WHERE c.job_id = p_job AND c.name = newest AND c.state = 'COMPLETE';
        RETURN;
    END IF;
    load := t.spec->'load_checkpoint';
    IF load IS NULL OR NOT coalesce((load->>'enabled')::boolean, false) THEN
        RETURN;
    END IF;
    FOR wanted IN SELECT jsonb_array_elements(coalesce(load->'checkpoints', '[{"typ": "baseten_latest_checkpoint"}]')) LOOP
        IF wanted->>'job_id' IS NOT NULL THEN
            SELECT x.job_id INTO source FROM training_job x WHERE x.job_id = (wanted->>'job_id')::uuid AND x.tenant = t.tenant;
        ELSE
            SELECT x.job_id INTO source FROM training_job x
              JOIN training_checkpoint c ON c.job_id = x.job_id AND c.state = 'COMPLETE'
             WHERE x.tenant = t.tenant AND x.project_id = coalesce(wanted->>'project_id', t.project_id) AND x.job_id <> p_job
             ORDER BY c.completed_at DESC LIMIT 1;
        END IF;
        RETURN QUERY SELECT c.job_id, c.rank, c.name, c.files FROM training_checkpoint c
                      WHERE c.job_id = source AND c.state = 'COMPLETE'
                        AND c.name = coalesce(wanted->>'checkpoint_name', training_newest(source));
    END LOOP;
END
$$;

CREATE FUNCTION training_newest(p_job uuid) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT name FROM training_checkpoint WHERE job_id = p_job AND state <> 'DELETED'
     GROUP BY name
    HAVING bool_and(state = 'COMPLETE')
       AND count(*) = (SELECT count(DISTINCT rank) FROM training_checkpoint WHERE job_id = p_job AND state <> 'DELETED')
     ORDER BY max(completed_at) DESC LIMIT 1
$$;

-- Files of a project that no checkpoint has had for as long, out of the table; their blobs are the caller's.
CREATE FUNCTION training_files_drop(p_keep interval, p_limit integer) RETURNS TABLE (project_id text, digest bytea)
    LANGUAGE sql AS $$
    DELETE FROM training_file f WHERE (f.project_id, f.digest) IN
        (SELECT x.project_id, x.digest FROM training_file x
          WHERE x.used_at < now() - p_keep
            AND NOT EXISTS (SELECT FROM training_job t JOIN training_checkpoint c ON c.job_id = t.job_id
                             WHERE t.project_id = x.project_id AND c.files @>
                                   jsonb_build_array(jsonb_build_object('digest', encode(x.digest, 'hex'))))
          LIMIT p_limit)
    RETURNING f.project_id, f.digest
$$;

SELECT tenant_views();
