-- SPDX-License-Identifier: Apache-2.0
-- Transactions of the ledger: offsets and the outbox. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

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
    command_floor bigint NOT NULL DEFAULT 0, -- all commands of the shard below are acknowledged
    end_names text[],     -- tenant, model, deployment: what became final, added up; null: nothing
    end_numbers bigint[], -- hour (s), state, error class, jobs, attempts, µs waited, µs ran, of each three names
    PRIMARY KEY (shard, epoch, number, at)
) PARTITION BY RANGE (at);
CREATE TABLE flush_default PARTITION OF flush DEFAULT;
