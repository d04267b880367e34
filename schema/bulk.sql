-- SPDX-License-Identifier: Apache-2.0
-- Bulk jobs. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

-- A file of requests, each line a job. One ingest at a time works on it.
CREATE TABLE bulk (
    id uuid PRIMARY KEY, -- 'batch_' and its 32 digits on the wire
    tenant text NOT NULL,
    key_prefix text NOT NULL,
    endpoint text NOT NULL,
    input_file_id uuid NOT NULL,
    input_blob text NOT NULL,
    input_size bigint NOT NULL,
    completion_window text NOT NULL,
    status text NOT NULL DEFAULT 'validating' CONSTRAINT bulk_status_check CHECK (status IN (
        'validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired', 'cancelling', 'cancelled')),
    targets jsonb NOT NULL DEFAULT '{}', -- by model of a line: whom its jobs go to
    metadata jsonb,
    errors jsonb, -- of validation: OpenAI's list
    total bigint NOT NULL DEFAULT 0,
    completed bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    output_expiry_s bigint, -- of its files; null: they stay
    output_file_id uuid,
    error_file_id uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    in_progress_at timestamptz,
    finalizing_at timestamptz,
    completed_at timestamptz,
    failed_at timestamptz,
    expired_at timestamptz,
    cancelling_at timestamptz,
    cancelled_at timestamptz,
    epoch bigint NOT NULL DEFAULT 0, -- of the ingest that works on it: one more with each that takes it
    owner text,
    leased_until timestamptz NOT NULL DEFAULT '-infinity',
    retry_of uuid, -- whose failed lines it has; null: of none
    skip_bad boolean NOT NULL DEFAULT false, -- bad lines fail alone, and not all of it
    input_url text -- null: the input is input_blob
);
CREATE INDEX bulk_tenant ON bulk (tenant, id);
CREATE INDEX bulk_open ON bulk (id) WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');

-- Lines that are sent and written together, in the order of the file.
CREATE TABLE bulk_chunk (
    bulk_id uuid NOT NULL,
    number integer NOT NULL, -- from 0
    start bigint NOT NULL,   -- of its bytes in the input
    size integer NOT NULL,
    first_line bigint NOT NULL, -- from 1
    done boolean NOT NULL DEFAULT false,
    completed integer NOT NULL DEFAULT 0,
    failed integer NOT NULL DEFAULT 0,
    output_size bigint NOT NULL DEFAULT 0,
    error_size bigint NOT NULL DEFAULT 0,
    failed_lines bigint[] NOT NULL DEFAULT '{}',
    only_lines bigint[], -- of a retry; null: all
    bad jsonb, -- lines that are not run: [{"line", "code", "message"}, …], in order; null: none
    PRIMARY KEY (bulk_id, number)
);
CREATE INDEX bulk_chunk_open ON bulk_chunk (bulk_id, number) WHERE NOT done;
