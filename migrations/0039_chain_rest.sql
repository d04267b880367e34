-- SPDX-License-Identifier: Apache-2.0
-- Runs of chains that only wait: their attempts are given back until the wait is over, and a decision wakes them.
--
-- Why: a run that waits for a time or for a person had a slot of its chain all the time. Whoever decides writes
-- a command for the owner of the run beside the decision, so that no run sleeps past it.
-- A decision is also taken while the run's own row is not there yet (its first attempt may run ahead of it).
-- Lock: ALTER TABLE of command, ACCESS EXCLUSIVE for milliseconds.
-- A million rows: the CHECK reads command once; its rows live for days, and are few.
-- Undo: chain_wait_decide as in 0029; DROP FUNCTION job_id_shard; the CHECK without 'wake'.

ALTER TABLE command DROP CONSTRAINT command_kind_check;
ALTER TABLE command ADD CONSTRAINT command_kind_check CHECK (kind IN ('cancel', 'replay', 'priority', 'wake'));
COMMENT ON COLUMN headrace_v1.commands.kind IS 'cancel, replay, priority, or wake: a run of a chain need not wait any longer.';

-- As schema/job_id.h has it.
CREATE FUNCTION job_id_shard(id uuid) RETURNS smallint LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN ((get_byte(uuid_send(id), 8) & 63) << 4 | get_byte(uuid_send(id), 9) >> 4)::smallint;

-- Somebody decides. No row: nobody is asked; `taken` false: it was decided before, or it is too late.
CREATE OR REPLACE FUNCTION chain_wait_decide(p_tenant text, p_run uuid, p_step text, p_approved boolean, p_by text,
                                             p_payload text)
    RETURNS TABLE (taken boolean, approved boolean, due_at timestamptz) LANGUAGE sql VOLATILE AS $$
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
     WHERE w.step = p_step AND w.approval
$$;
