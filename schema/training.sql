-- SPDX-License-Identifier: Apache-2.0
-- Training. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

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
    error_message text,
    submit_at timestamptz NOT NULL DEFAULT now(), -- when its Submit was sent last
    promised boolean NOT NULL DEFAULT false, -- the ledger was seen to have it
    capacity jsonb -- GPUs of its type when it was accepted: limit, usage_count; null: it wants none
);
CREATE INDEX training_job_unpromised ON training_job (submit_at) WHERE status = 'PENDING' AND token = 0 AND NOT promised;
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
    lost_why text, -- it was complete, and a file of it could not be read
    PRIMARY KEY (job_id, rank, name)
);
CREATE INDEX training_checkpoint_files ON training_checkpoint USING gin (files jsonb_path_ops);

-- Files that the blob store has, of all checkpoints of a project. A content that comes anew has a blob of its own.
CREATE SEQUENCE training_file_number;
CREATE TABLE training_file (
    project_id text NOT NULL REFERENCES training_project,
    digest bytea NOT NULL CHECK (octet_length(digest) = 32),
    size_bytes bigint NOT NULL,
    used_at timestamptz NOT NULL DEFAULT now(),
    number bigint NOT NULL DEFAULT 0, -- in the key of its blob; 0: not in it
    stored boolean NOT NULL DEFAULT true, -- false: wanted, or its blob could not be read
    dropping_at timestamptz, -- its blob is being removed; nothing may name it
    PRIMARY KEY (project_id, digest, number)
);
CREATE UNIQUE INDEX training_file_digest ON training_file (project_id, digest) WHERE dropping_at IS NULL;
CREATE INDEX training_file_used ON training_file (used_at);

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
