-- SPDX-License-Identifier: Apache-2.0
-- Worker processes as agents see them. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

-- One worker process that an agent runs or ran, as the agent last saw it.
CREATE TABLE replica (
    worker text PRIMARY KEY CHECK (length(worker) BETWEEN 1 AND 64),
    deployment_id text NOT NULL REFERENCES deployment,
    pool text NOT NULL,
    host text NOT NULL,
    boot bigint NOT NULL DEFAULT 0,
    pid integer NOT NULL DEFAULT 0,
    state text NOT NULL CONSTRAINT replica_state_check CHECK (state IN (
        'STARTING', 'LOADING', 'WARM', 'READY', 'DRAINING', 'STOPPED', 'FAILED')),
    reason text,
    slot_count integer NOT NULL DEFAULT 1,
    restart_count integer NOT NULL DEFAULT 0,
    device text,
    log_path text,
    started_at timestamptz NOT NULL DEFAULT now(),
    ready_at timestamptz,
    seen_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);
CREATE INDEX replica_deployment ON replica (deployment_id);
