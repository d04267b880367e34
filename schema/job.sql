-- SPDX-License-Identifier: Apache-2.0
-- Jobs, their inputs and results. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

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
    seq bigint NOT NULL,    -- offset in intake of its Submit, or of what gave it a new place
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
    state_before smallint NOT NULL DEFAULT 0, -- for the deltas of queue_delta; 7: 1, and not due yet
    round smallint NOT NULL DEFAULT 1,
    rank smallint NOT NULL CONSTRAINT job_rank_check CHECK (rank BETWEEN 0 AND 4),
    error_class smallint NOT NULL DEFAULT 0
        CONSTRAINT job_error_class_check CHECK (error_class IN (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)),
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
    replayed_at timestamptz, -- when its newest round began; null in round 1
    input_type text, -- media type of the input; null: JSON
    route text,      -- method and path on the model's server; null: predict
    stream boolean NOT NULL DEFAULT false, -- its answer is wanted in pieces as they come
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE TABLE job_default PARTITION OF job DEFAULT;
-- Waiting lines, in the order in which the owner's cursors read them. Rows leave the index with
-- their first attempt or their end: finished jobs cost no scan anything.
CREATE INDEX job_lane ON job (shard, pool, rank, tenant, seq) WHERE state = 1 AND attempt_count = 0;
-- Deadlines of those, in the order in which the owner's cursor over deadlines reads them: what waits
-- outside of its memory expires in time, and entries that are dead are passed once.
CREATE INDEX job_deadline ON job (shard, least(start_deadline_at, total_deadline_at), seq)
    WHERE state = 1 AND attempt_count = 0;
-- What a takeover must know at once: running, or waiting with attempts behind it.
CREATE INDEX job_live ON job (shard) WHERE state = 2 OR (state = 1 AND attempt_count > 0);
-- What callers wait for: to be canceled when their gateway is lost.
CREATE INDEX job_caller ON job (gateway) WHERE sync AND state IN (1, 2) AND idempotency_key IS NULL;
-- The newest dead jobs of a model.
CREATE INDEX job_dead ON job (model, id) WHERE state IN (4, 5);

-- Inputs up to the inline limit, while the job is not final, and of jobs that failed or expired (replay).
CREATE TABLE job_input (
    job_id uuid NOT NULL,
    input bytea NOT NULL, -- compressed by LZ4 where the server has it, as are outputs and deliveries
    PRIMARY KEY (job_id)
) PARTITION BY RANGE (job_id);
CREATE TABLE job_input_default PARTITION OF job_input DEFAULT;

-- Words that a client gave its jobs; at most eight a job.
CREATE TABLE job_tag (
    job_id uuid NOT NULL,
    tag text NOT NULL,
    PRIMARY KEY (job_id, tag)
) PARTITION BY RANGE (job_id);
CREATE TABLE job_tag_default PARTITION OF job_tag DEFAULT;
CREATE INDEX job_tag_tag ON job_tag (tag, job_id);

-- What came out: of a job that succeeded, or what its model itself answered to one that failed.
CREATE TABLE job_result (
    job_id uuid NOT NULL,
    round smallint NOT NULL,
    token bigint NOT NULL,
    output_size bigint NOT NULL,
    output bytea,
    output_blob text,
    output_type text, -- null: JSON
    http_status smallint NOT NULL DEFAULT 0, -- the model's own; 0: it has none
    PRIMARY KEY (job_id, round)
) PARTITION BY RANGE (job_id);
CREATE TABLE job_result_default PARTITION OF job_result DEFAULT;
