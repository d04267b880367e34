-- SPDX-License-Identifier: Apache-2.0
-- Runs of chains, and their jobs. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

-- A run, once a coordinator has begun with it.
CREATE TABLE chain_run (
    run_id uuid NOT NULL, -- its job
    deployment_id text NOT NULL,
    token bigint NOT NULL, -- of the attempt that may go on with it: the fence of coordinators
    depth smallint NOT NULL, -- 0: no step of another run
    targets jsonb NOT NULL, -- by step: whom its jobs go to, chosen as the run began
    begun_at timestamptz NOT NULL DEFAULT now(),
    closed_at timestamptz, -- over, and nothing of it runs any more
    input bytea,              -- of the run, up to the inline limit: its job's is gone when it has succeeded
    source_run_id uuid,       -- of a run again: whose outputs it takes over
    source_round smallint,    -- … as they were in that round
    source_steps text[],      -- … of these steps
    PRIMARY KEY (run_id)
) PARTITION BY RANGE (run_id);
CREATE TABLE chain_run_default PARTITION OF chain_run DEFAULT;
CREATE INDEX chain_run_open ON chain_run (run_id) WHERE closed_at IS NULL;

-- A job that a run has submitted: written by the flush that inserts the job.
CREATE TABLE chain_step (
    run_id uuid NOT NULL,
    step text NOT NULL,
    item integer NOT NULL,   -- of a map; 0 else
    round smallint NOT NULL, -- of the run
    job_id uuid NOT NULL,
    taken_at timestamptz, -- the job is another run's, and its output was taken over then
    PRIMARY KEY (run_id, step, item, round)
) PARTITION BY RANGE (run_id);
CREATE TABLE chain_step_default PARTITION OF chain_step DEFAULT;
CREATE INDEX chain_step_job ON chain_step (job_id);

-- Jobs whose outputs may be taken over by whoever has the same input.
CREATE TABLE chain_cache (
    deployment_id text NOT NULL,
    digest bytea NOT NULL, -- SHA-256 of the input
    job_id uuid NOT NULL,  -- that succeeded with it
    stored_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (deployment_id, digest)
);
CREATE INDEX chain_cache_stored ON chain_cache (stored_at);

-- Calls of URLs by steps of runs: what each came to is written down before the run goes on.
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

-- What a run waits for that is no job: a time, or somebody's word.
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
    decided_by text,   -- prefix of the API key, or `token` and that of a token
    payload text,      -- JSON: the step's output, or why not
    token_prefix text, -- of the token that may decide it once
    token_digest bytea CHECK (length(token_digest) = 32), -- SHA-256 of all of it
    token_round smallint, -- of the run, as it was made; a round that asks anew needs another one
    PRIMARY KEY (run_id, step)
);
CREATE INDEX chain_wait_opened ON chain_wait (opened_at);
CREATE UNIQUE INDEX chain_wait_token ON chain_wait (token_prefix) WHERE token_prefix IS NOT NULL;
