-- SPDX-License-Identifier: Apache-2.0
-- The critical path of a run of a chain goes through the step that another one falls back to.
--
-- Why: a step with `fallback_step` that has failed is over when that one is, and who needs it waits for both; the
-- path went past the one that ran, and said of its time that nobody had run.
-- Lock: none.
-- A million rows: nothing to rewrite.
-- Undo: chain_needs() as in 0022.

-- Which step waits for which, by `needs`, by the names in templates and expressions, and by `fallback_step`.
CREATE OR REPLACE FUNCTION chain_needs(p_steps jsonb) RETURNS TABLE (step text, needs text) LANGUAGE sql IMMUTABLE AS $$
    WITH RECURSIVE named AS (
        SELECT s.key AS step, n.name AS needs
          FROM jsonb_each(p_steps) AS s
         CROSS JOIN LATERAL (
               SELECT e.name FROM jsonb_array_elements_text(
                      CASE jsonb_typeof(s.value -> 'needs') WHEN 'array' THEN s.value -> 'needs' ELSE '[]' END) AS e (name)
               UNION ALL
               SELECT m[1] FROM regexp_matches(s.value::text, '\msteps\.([A-Za-z0-9_-]+)', 'g') AS m) n
         WHERE n.name <> s.key AND p_steps ? n.name),
    stands_in AS (
        SELECT s.key AS step, s.value ->> 'fallback_step' AS by
          FROM jsonb_each(p_steps) AS s WHERE p_steps ? (s.value ->> 'fallback_step')),
    waits AS (
        SELECT n.step, n.needs FROM named n
        UNION
        SELECT w.step, i.by FROM waits w JOIN stands_in i ON i.step = w.needs WHERE i.by <> w.step)
    SELECT w.step, w.needs FROM waits w
    UNION
    SELECT i.by, i.step FROM stands_in i
$$;
