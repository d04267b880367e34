-- SPDX-License-Identifier: Apache-2.0
-- What the owner of a shard is asked to do. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

-- What SQL functions ask the owner of a shard to do: only the owner writes a job's row. An
-- acknowledgement is written in the flush that applied the command. Inserts stand in line (trigger
-- command_line), so that ids become visible in their order.
CREATE TABLE command (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    shard smallint NOT NULL,
    kind text NOT NULL CONSTRAINT command_kind_check CHECK (kind IN ('cancel', 'replay', 'priority', 'wake')),
    job_id uuid NOT NULL,
    asked_by text NOT NULL DEFAULT current_user,
    asked_at timestamptz NOT NULL DEFAULT now(),
    round smallint NOT NULL DEFAULT 0, -- to be replayed
    priority smallint NOT NULL DEFAULT 0
        CONSTRAINT command_priority_check CHECK (priority BETWEEN 0 AND 2),
    tenant text NOT NULL DEFAULT '', -- who pays for the job
    operation uuid -- one request may ask for many
);
CREATE INDEX command_shard ON command (shard, id);
CREATE INDEX command_operation ON command (operation) WHERE operation IS NOT NULL;

CREATE TABLE command_done (
    command_id bigint PRIMARY KEY,
    applied boolean NOT NULL,
    epoch bigint NOT NULL,
    number bigint NOT NULL,
    done_at timestamptz NOT NULL DEFAULT now(),
    reason text NOT NULL DEFAULT '' -- why not
);

-- Rows that those lock who take care of the ledger one at a time: no login of SQL can.
CREATE TABLE care_lock (
    what text PRIMARY KEY
);
