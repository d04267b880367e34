-- SPDX-License-Identifier: Apache-2.0
-- Bulk jobs that go on past bad lines.
--
-- Why: what validation found wrong with a line stands beside its chunk, so that the line is never sent and its
-- place in the error file says why, whoever writes it.
-- Lock: ACCESS EXCLUSIVE on bulk and bulk_chunk for a moment, nothing is rewritten.
-- A million rows: nothing to rewrite.
-- Undo: DROP FUNCTION headrace.bulk_chunks_add (the one with p_bad); bulk_retry as in 0026; ALTER TABLE headrace.bulk
-- DROP skip_bad; ALTER TABLE headrace.bulk_chunk DROP bad.

ALTER TABLE bulk ADD COLUMN skip_bad boolean NOT NULL DEFAULT false; -- bad lines fail alone, and not all of it
ALTER TABLE bulk_chunk ADD COLUMN bad jsonb; -- lines that are not run: [{"line", "code", "message"}, …], in order; null: none

CREATE FUNCTION bulk_chunks_add(p_bulk uuid, p_epoch bigint, p_numbers integer[], p_starts bigint[], p_sizes integer[],
                                p_first_lines bigint[], p_bad text[]) RETURNS void LANGUAGE sql VOLATILE AS $$
    INSERT INTO bulk_chunk (bulk_id, number, start, size, first_line, bad)
    SELECT b.id, c.number, c.start, c.size, c.first_line, nullif(c.bad, '')::jsonb
      FROM (SELECT id FROM bulk WHERE id = p_bulk AND epoch = p_epoch FOR UPDATE) b,
           unnest(p_numbers, p_starts, p_sizes, p_first_lines, p_bad) AS c (number, start, size, first_line, bad)
    ON CONFLICT (bulk_id, number) DO UPDATE
       SET start = excluded.start, size = excluded.size, first_line = excluded.first_line, bad = excluded.bad
$$;

CREATE OR REPLACE FUNCTION bulk_retry(p_tenant text, p_bulk uuid, p_new uuid, p_key text) RETURNS SETOF bulk LANGUAGE sql
    VOLATILE AS $$
    WITH old AS (
        SELECT b.* FROM bulk b JOIN file f ON f.id = b.input_file_id
         WHERE b.id = p_bulk AND b.tenant = p_tenant AND b.failed > 0 AND f.deleted_at IS NULL
           AND b.status IN ('completed', 'expired', 'cancelled')),
    made AS (
        INSERT INTO bulk (id, tenant, key_prefix, endpoint, input_file_id, input_blob, input_size,
                          completion_window, status, targets, metadata, total, expires_at, in_progress_at,
                          output_expiry_s, retry_of, skip_bad)
        SELECT p_new, o.tenant, p_key, o.endpoint, o.input_file_id, o.input_blob, o.input_size,
               o.completion_window, 'in_progress', o.targets, o.metadata, o.failed,
               now() + (o.expires_at - o.created_at), now(), o.output_expiry_s, o.id, o.skip_bad
          FROM old o
        RETURNING *),
    chunks AS (
        INSERT INTO bulk_chunk (bulk_id, number, start, size, first_line, only_lines, bad)
        SELECT m.id, row_number() OVER (ORDER BY c.number) - 1, c.start, c.size, c.first_line, c.failed_lines, c.bad
          FROM made m JOIN bulk_chunk c ON c.bulk_id = p_bulk AND c.failed > 0)
    SELECT * FROM made
$$;
