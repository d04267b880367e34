-- SPDX-License-Identifier: Apache-2.0
-- An answer to an approval is found, judged and written in one call, and one at a time.
--
-- Why: who had a token was looked for in one statement and answered in another, and of two answers at once the second
-- read the row as it was before the first one: it heard that it was too late, and not that it was answered, or 200 where
-- it said the same. Both functions lock the row now before they look at it.
-- Lock: none of what is there.
-- A million rows: nothing to rewrite.
-- Undo: DROP FUNCTION chain_token_decide; chain_wait_decide as in 0039.

-- Somebody decides. No row: nobody is asked; `taken` false: it was decided before, or it is too late.
CREATE OR REPLACE FUNCTION chain_wait_decide(p_tenant text, p_run uuid, p_step text, p_approved boolean, p_by text,
                                             p_payload text)
    RETURNS TABLE (taken boolean, approved boolean, due_at timestamptz) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM FROM chain_wait w WHERE w.run_id = p_run AND w.step = p_step FOR UPDATE;
    RETURN QUERY
    WITH run AS (
        SELECT c.run_id, coalesce(j.state IN (1, 2), c.closed_at IS NULL) AS open
          FROM chain_run c JOIN deployment d ON d.id = c.deployment_id JOIN model m ON m.id = d.model_id
          LEFT JOIN job j ON j.id = c.run_id
         WHERE c.run_id = p_run AND coalesce(j.tenant, m.tenant) = p_tenant),
    decided AS (
        UPDATE chain_wait w SET approved = p_approved, decided_at = now(), decided_by = p_by, payload = p_payload
          FROM run r
         WHERE w.run_id = r.run_id AND r.open AND w.step = p_step AND w.approval AND w.approved IS NULL
           AND w.due_at > now()
        RETURNING w.run_id),
    woken AS (
        INSERT INTO command (shard, kind, job_id, tenant, asked_by)
        SELECT job_id_shard(d.run_id), 'wake', d.run_id, p_tenant, p_by FROM decided d)
    SELECT EXISTS (SELECT FROM decided), w.approved, w.due_at
      FROM chain_wait w JOIN run r ON r.run_id = w.run_id
     WHERE w.step = p_step AND w.approval;
END
$$;

-- Who has a token decides. No row: there is no such token, or it is of an earlier round. `said` is 'taken', also of the
-- same answer again; 'answered', by whomever, as `approved` says; or 'expired'.
CREATE FUNCTION chain_token_decide(p_prefix text, p_digest bytea, p_approved boolean, p_payload text)
    RETURNS TABLE (said text, run_id uuid, step text, approved boolean) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    decider text := 'token ' || p_prefix;
    found_wait record;
    decided boolean;
BEGIN
    SELECT w.run_id, w.step, w.approved, w.decided_by, w.payload, j.tenant INTO found_wait
      FROM chain_wait w JOIN job j ON j.id = w.run_id
     WHERE w.token_prefix = p_prefix AND w.token_digest = p_digest AND w.token_round = w.round
       FOR UPDATE OF w;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    decided := found_wait.approved IS NULL AND
               (SELECT d.taken FROM chain_wait_decide(found_wait.tenant, found_wait.run_id, found_wait.step, p_approved,
                                                      decider, p_payload) d);
    RETURN QUERY SELECT CASE
        WHEN decided THEN 'taken'
        WHEN found_wait.approved IS NULL THEN 'expired'
        WHEN found_wait.approved = p_approved AND found_wait.decided_by = decider AND
             coalesce(found_wait.payload, 'null') = p_payload THEN 'taken'
        ELSE 'answered' END, found_wait.run_id, found_wait.step, coalesce(found_wait.approved, p_approved);
END
$$;
