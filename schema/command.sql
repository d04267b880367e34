-- SPDX-License-Identifier: Apache-2.0
-- What the owner of a shard is asked to do. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

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
