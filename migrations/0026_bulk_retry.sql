-- SPDX-License-Identifier: Apache-2.0
-- A new bulk job of what has failed in an old one.
--
-- Why: the failed lines are known by number, so the input need be neither sent nor checked again: the
-- new one has the old one's chunks, and of each only these lines.
-- Lock: ACCESS EXCLUSIVE on bulk and bulk_chunk for a moment, nothing is rewritten.
-- A million rows: nothing to rewrite.
-- Undo: DROP FUNCTION headrace.bulk_retry; ALTER TABLE headrace.bulk DROP retry_of; ALTER TABLE
-- headrace.bulk_chunk DROP only_lines.

ALTER TABLE bulk ADD COLUMN retry_of uuid; -- whose failed lines it has; null: of none
ALTER TABLE bulk_chunk ADD COLUMN only_lines bigint[]; -- of a retry; null: all

CREATE FUNCTION bulk_retry(p_tenant text, p_bulk uuid, p_new uuid, p_key text) RETURNS SETOF bulk LANGUAGE sql
    VOLATILE AS $$
    WITH old AS (
        SELECT b.* FROM bulk b JOIN file f ON f.id = b.input_file_id
         WHERE b.id = p_bulk AND b.tenant = p_tenant AND b.failed > 0 AND f.deleted_at IS NULL
           AND b.status IN ('completed', 'expired', 'cancelled')),
    made AS (
        INSERT INTO bulk (id, tenant, key_prefix, endpoint, input_file_id, input_blob, input_size,
                          completion_window, status, targets, metadata, total, expires_at, in_progress_at,
                          output_expiry_s, retry_of)
        SELECT p_new, o.tenant, p_key, o.endpoint, o.input_file_id, o.input_blob, o.input_size,
               o.completion_window, 'in_progress', o.targets, o.metadata, o.failed,
               now() + (o.expires_at - o.created_at), now(), o.output_expiry_s, o.id
          FROM old o
        RETURNING *),
    chunks AS (
        INSERT INTO bulk_chunk (bulk_id, number, start, size, first_line, only_lines)
        SELECT m.id, row_number() OVER (ORDER BY c.number) - 1, c.start, c.size, c.first_line, c.failed_lines
          FROM made m JOIN bulk_chunk c ON c.bulk_id = p_bulk AND c.failed > 0)
    SELECT * FROM made
$$;
