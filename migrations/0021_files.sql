-- SPDX-License-Identifier: Apache-2.0
-- Files: what clients upload for bulk jobs, and what these give back.
--
-- Why: the bytes are in the blob store; a row says whose they are, and is what a list reads.
-- Lock: none of what is there.
-- A million rows: nothing to rewrite.
-- Undo: DROP VIEW headrace_tenant_v1.files, headrace_v1.files; DROP TABLE headrace.file.

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
    deleted_at timestamptz  -- its blob goes, and then its row
);
CREATE INDEX file_tenant ON file (tenant, id) WHERE deleted_at IS NULL;
CREATE INDEX file_expiry ON file (expires_at) WHERE deleted_at IS NULL AND expires_at IS NOT NULL;
CREATE INDEX file_deleted ON file (deleted_at) WHERE deleted_at IS NOT NULL;

CREATE VIEW headrace_v1.files AS
SELECT f.id AS file_id,
       f.tenant,
       f.purpose,
       f.filename,
       f.size,
       f.created_at,
       f.expires_at
  FROM headrace.file f
 WHERE f.deleted_at IS NULL;
COMMENT ON VIEW headrace_v1.files IS 'Files that were uploaded for bulk jobs, or written by them.';
COMMENT ON COLUMN headrace_v1.files.file_id IS 'Id of the file; on the wire file- and its 32 digits.';
COMMENT ON COLUMN headrace_v1.files.tenant IS 'Whose it is.';
COMMENT ON COLUMN headrace_v1.files.purpose IS 'What it is for: batch, batch_output, or what its client said.';
COMMENT ON COLUMN headrace_v1.files.filename IS 'Its name, as its client said.';
COMMENT ON COLUMN headrace_v1.files.size IS 'Its bytes.';
COMMENT ON COLUMN headrace_v1.files.created_at IS 'When it was complete.';
COMMENT ON COLUMN headrace_v1.files.expires_at IS 'When it goes; null: when somebody deletes it.';

SELECT tenant_views();
