-- SPDX-License-Identifier: Apache-2.0
-- Files of clients. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

-- What clients upload for bulk jobs, and what these give back. The bytes are in the blob store.
CREATE TABLE file (
    id uuid PRIMARY KEY, -- 'file-' and its 32 digits on the wire
    tenant text NOT NULL,
    purpose text NOT NULL,
    filename text NOT NULL,
    size bigint NOT NULL,
    digest bytea CHECK (octet_length(digest) = 32), -- null: it is in parts
    blob text,                                      -- key in the blob store; null: it is in parts
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz, -- null: when somebody deletes it
    deleted_at timestamptz,  -- its blob goes, and then its row
    bulk_id uuid, -- that has written it …
    part text CONSTRAINT file_part_check CHECK (part IN ('output', 'error')) -- … as which
);
CREATE INDEX file_tenant ON file (tenant, id) WHERE deleted_at IS NULL;
CREATE INDEX file_expiry ON file (expires_at) WHERE deleted_at IS NULL AND expires_at IS NOT NULL;
CREATE INDEX file_deleted ON file (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX file_bulk ON file (bulk_id) WHERE bulk_id IS NOT NULL;
