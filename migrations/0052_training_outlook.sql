-- SPDX-License-Identifier: Apache-2.0
-- The outlook of a training job of one node speaks of one trainer.
--
-- Why: it said "1 trainers with ... are needed".
-- Lock: none of what is there.
-- A million rows: nothing to rewrite.
-- Undo: training_outlook as in 0032.

-- Why a job waits for trainers that are not there, whatever else runs; null: it will run when there is room.
CREATE OR REPLACE FUNCTION training_outlook(p_job uuid) RETURNS text LANGUAGE sql STABLE
    SECURITY DEFINER SET search_path = headrace, pg_temp AS $$
    WITH wanted AS (SELECT * FROM training_job WHERE job_id = p_job AND status = 'PENDING'),
    alive AS (SELECT * FROM training_trainer WHERE seen_at > now() - interval '10 s' AND NOT draining),
    fit AS (SELECT count(*) AS n FROM alive a, wanted t
             WHERE (t.gpu_count = 0 OR (a.accelerator = t.accelerator AND a.gpu_count >= t.gpu_count))
               AND a.cpu_count >= t.cpu_count AND a.memory_bytes >= t.memory_bytes),
    there AS (SELECT string_agg(k.n || ' with ' || k.has, '; ' ORDER BY k.has) AS text
                FROM (SELECT count(*) AS n, CASE WHEN a.gpu_count > 0 THEN a.gpu_count || ' ' || a.accelerator || ', '
                                                 ELSE '' END
                             || a.cpu_count || ' CPUs, ' || pg_size_pretty(a.memory_bytes) AS has
                        FROM alive a GROUP BY 2) k)
    SELECT format('%s with %s%s CPUs, %s needed and %s there; trainers that are there: %s. It waits until more come.',
                  CASE WHEN t.node_count = 1 THEN '1 trainer' ELSE t.node_count || ' trainers' END,
                  CASE WHEN t.gpu_count > 0 THEN t.gpu_count || ' ' || t.accelerator || ', ' ELSE '' END,
                  t.cpu_count, pg_size_pretty(t.memory_bytes) || CASE WHEN t.node_count = 1 THEN ' is' ELSE ' are' END,
                  CASE WHEN fit.n = 1 THEN '1 is' ELSE fit.n || ' are' END, coalesce(there.text, 'none'))
      FROM wanted t, fit, there WHERE fit.n < t.node_count
$$;
