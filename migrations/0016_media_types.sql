-- SPDX-License-Identifier: Apache-2.0
-- What a request and its answer are made of: media types, the route of a passthrough, pieces wanted.
--
-- Why: sync calls send bodies of any type to any route of a model, and pass its own status and bytes on;
-- the owner that takes a shard over has only the row to make the next Attempt from.
-- Lock: ACCESS EXCLUSIVE of job and job_result, for a moment: the columns have constant defaults.
-- A million rows: nothing to rewrite; a row that does not use them grows by one byte at most.
-- Undo: ALTER TABLE … DROP COLUMN of the five, and headrace_v1.results as in 0005.

ALTER TABLE job ADD COLUMN input_type text, ADD COLUMN route text,
    ADD COLUMN stream boolean NOT NULL DEFAULT false;
ALTER TABLE job_result ADD COLUMN output_type text, ADD COLUMN http_status smallint NOT NULL DEFAULT 0;

CREATE OR REPLACE VIEW headrace_v1.results AS
SELECT r.job_id,
       r.round,
       r.output_size,
       text_of(r.output) AS output,
       r.output_blob,
       coalesce(r.output_type, 'application/json') AS output_type,
       nullif(r.http_status, 0) AS http_status
  FROM job_result r;
COMMENT ON VIEW headrace_v1.results IS 'Outputs of jobs that succeeded, and what a model itself answered to those that failed.';
COMMENT ON COLUMN headrace_v1.results.output IS 'The output as text; null when it is in the blob store, or no text.';
COMMENT ON COLUMN headrace_v1.results.output_type IS 'Media type of the output.';
COMMENT ON COLUMN headrace_v1.results.http_status IS 'Status that the model itself answered with; null when it has none.';
