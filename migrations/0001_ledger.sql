-- SPDX-License-Identifier: Apache-2.0
-- The ledger: shards, flushes, jobs with their inputs, results and attempts.
--
-- Why: one row a job, written by the owner of its shard only (DESIGN 3.2). Everything that grows
-- is partitioned by day, so that retention is dropping tables, and has a DEFAULT partition, so
-- that an id from a wrong clock is stored all the same.
-- Lock: none that anybody waits for, all objects are new.
-- A million rows: nothing to rewrite.
-- Undo: DROP SCHEMA headrace CASCADE, which drops the ledger.

-- Who owns a shard. Only takeovers update this row; flushes lock it FOR SHARE (the epoch guard).
CREATE TABLE shard (
    id smallint PRIMARY KEY CHECK (id BETWEEN 0 AND 1023),
    epoch bigint NOT NULL DEFAULT 0 CHECK (epoch BETWEEN 0 AND 2147483647),
    owner text NOT NULL DEFAULT '',
    cluster text NOT NULL DEFAULT '', -- Kafka cluster id and topic ids: offsets mean nothing elsewhere
    intake_topic text NOT NULL DEFAULT '',
    outcome_topic text NOT NULL DEFAULT '',
    taken_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- One row a ledger transaction: offsets, and the outbox. Never updated.
CREATE TABLE flush (
    shard smallint NOT NULL,
    epoch bigint NOT NULL,
    number bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    intake_floor bigint NOT NULL,
    outcome_floor bigint NOT NULL,
    floor_at timestamptz NOT NULL, -- append time that intake was read and written up to
    published_epoch bigint NOT NULL,
    published_number bigint NOT NULL,
    final_ids uuid[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (shard, epoch, number, at)
) PARTITION BY RANGE (at);
CREATE TABLE flush_default PARTITION OF flush DEFAULT;

-- The first statement of a flush: raises unless the shard is still that owner's, and holds the next
-- owner's takeover back until this transaction is over.
CREATE FUNCTION flush_guard(of_shard smallint, of_epoch bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM shard WHERE id = of_shard AND epoch = of_epoch FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'shard % is not owned in epoch %', of_shard, of_epoch USING ERRCODE = 'HR001';
    END IF;
END
$$;

-- The last statement of a trial: it worked, and is rolled back.
CREATE FUNCTION flush_undo() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'trial' USING ERRCODE = 'HR002';
END
$$;

-- One row a job, written by the owner of its shard only.
CREATE TABLE job (
    id uuid NOT NULL,
    accepted_at timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    start_deadline_at timestamptz NOT NULL,
    total_deadline_at timestamptz,
    due_at timestamptz, -- a retry is not tried before
    state_at timestamptz NOT NULL,
    started_at timestamptz, -- newest attempt
    seq bigint NOT NULL,    -- offset of its Submit in intake
    token bigint NOT NULL DEFAULT 0,
    fence bigint NOT NULL DEFAULT 0, -- highest token that has ended
    input_size bigint NOT NULL DEFAULT 0,
    run_limit_ms bigint NOT NULL,
    queue_limit_ms bigint NOT NULL,
    total_limit_ms bigint NOT NULL DEFAULT 0,
    initial_delay_ms integer NOT NULL DEFAULT 0,
    max_delay_ms integer NOT NULL DEFAULT 0,
    slot_count integer NOT NULL DEFAULT 1,
    shard smallint NOT NULL,
    state smallint NOT NULL CONSTRAINT job_state_check CHECK (state IN (1, 2, 3, 4, 5, 6)),
    state_before smallint NOT NULL DEFAULT 0, -- for the deltas of queue_delta
    round smallint NOT NULL DEFAULT 1,
    rank smallint NOT NULL CONSTRAINT job_rank_check CHECK (rank BETWEEN 0 AND 3),
    error_class smallint NOT NULL DEFAULT 0
        CONSTRAINT job_error_class_check CHECK (error_class IN (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)),
    attempt_count smallint NOT NULL DEFAULT 0,
    max_attempts smallint NOT NULL,
    user_failures smallint NOT NULL DEFAULT 0,
    oom_failures smallint NOT NULL DEFAULT 0,
    lost_failures smallint NOT NULL DEFAULT 0,
    sync boolean NOT NULL DEFAULT false,
    tenant text NOT NULL,
    model text NOT NULL,
    deployment text NOT NULL,
    environment text,
    pool text NOT NULL,
    worker text,
    error_message text,
    input_digest bytea NOT NULL CHECK (octet_length(input_digest) = 32),
    input_blob text,
    webhook_url text,
    idempotency_key text,
    gateway text,
    trace text,
    key_prefix text,
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE TABLE job_default PARTITION OF job DEFAULT;

-- Waiting lines, in the order in which the owner's cursors read them. Rows leave the index with
-- their first attempt or their end: finished jobs cost no scan anything.
CREATE INDEX job_lane ON job (shard, pool, rank, tenant, seq) WHERE state = 1 AND attempt_count = 0;
-- What a takeover must know at once: running, or waiting with attempts behind it.
CREATE INDEX job_live ON job (shard) WHERE state = 2 OR (state = 1 AND attempt_count > 0);
-- The newest dead jobs of a model.
CREATE INDEX job_failed ON job (model, id) WHERE state = 4;

-- Inputs up to the inline limit, while the job is not final, and of jobs that failed (replay).
CREATE TABLE job_input (
    job_id uuid NOT NULL,
    input bytea NOT NULL,
    PRIMARY KEY (job_id)
) PARTITION BY RANGE (job_id);
CREATE TABLE job_input_default PARTITION OF job_input DEFAULT;

CREATE TABLE job_result (
    job_id uuid NOT NULL,
    round smallint NOT NULL,
    token bigint NOT NULL,
    output_size bigint NOT NULL,
    output bytea,
    output_blob text,
    PRIMARY KEY (job_id, round)
) PARTITION BY RANGE (job_id);
CREATE TABLE job_result_default PARTITION OF job_result DEFAULT;

-- Attempts that have ended; the running one is in its job's row.
CREATE TABLE attempt (
    job_id uuid NOT NULL,
    token bigint NOT NULL,
    boot bigint NOT NULL,
    dispatched_at timestamptz,
    started_at timestamptz,
    ended_at timestamptz,
    round smallint NOT NULL,
    number smallint NOT NULL,
    error_class smallint NOT NULL
        CONSTRAINT attempt_error_class_check CHECK (error_class IN (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)),
    batch_count integer NOT NULL DEFAULT 0,
    worker text NOT NULL,
    device text,
    error_message text,
    PRIMARY KEY (job_id, token)
) PARTITION BY RANGE (job_id);
CREATE TABLE attempt_default PARTITION OF attempt DEFAULT;

-- Changes of queue depths, one row a flush, deployment and rank; queue_compact() adds them up.
-- The depth of a queue is the sum of its rows: nothing counts jobs.
CREATE TABLE queue_delta (
    shard smallint NOT NULL,
    rank smallint NOT NULL,
    deployment text NOT NULL,
    pool text NOT NULL,
    waiting bigint NOT NULL,
    running bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 10000,
    autovacuum_vacuum_cost_delay = 0);
CREATE INDEX queue_delta_deployment ON queue_delta (deployment);

-- What SQL functions ask the owner of a shard to do: only the owner writes a job's row. An
-- acknowledgement is written in the flush that applied the command.
CREATE TABLE command (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    shard smallint NOT NULL,
    kind text NOT NULL CONSTRAINT command_kind_check CHECK (kind IN ('cancel', 'replay')),
    job_id uuid NOT NULL,
    asked_by text NOT NULL DEFAULT current_user,
    asked_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX command_shard ON command (shard, id);
CREATE TABLE command_done (
    command_id bigint PRIMARY KEY REFERENCES command,
    applied boolean NOT NULL,
    epoch bigint NOT NULL,
    number bigint NOT NULL,
    done_at timestamptz NOT NULL DEFAULT now()
);
