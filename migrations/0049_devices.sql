-- SPDX-License-Identifier: Apache-2.0
-- The GPUs of the machines that agents run on, and what they are worth at the moment.
--
-- Why: an agent whose devices will not do for a deployment has to know whether another one's would, and people want
-- to see what is promised, what is out and why.
-- Lock: none of what is there.
-- A million rows: a few for each machine; who tells of its own removes those that nobody has told of for a week.
-- Undo: DROP VIEW headrace_v1.devices, DROP FUNCTION device_tell, DROP TABLE device.

CREATE TABLE device (
    host text NOT NULL,
    uuid text NOT NULL, -- GPU-…, or MIG-… of a slice
    parent text,        -- of a slice: its GPU
    number integer NOT NULL,
    name text NOT NULL,
    capability text NOT NULL,
    memory_bytes bigint NOT NULL,
    used_bytes bigint NOT NULL,
    promised_bytes bigint NOT NULL,
    free_bytes bigint NOT NULL, -- that could be promised, were it well
    workers integer NOT NULL,
    state text NOT NULL CONSTRAINT device_state_check CHECK (state IN ('well', 'probation', 'quarantined', 'gone')),
    reason text,
    until timestamptz, -- quarantined: when it is looked at again
    quarantines integer NOT NULL,
    context_faults bigint NOT NULL,
    hang_faults bigint NOT NULL,
    xid_faults bigint NOT NULL,
    oom_faults bigint NOT NULL,
    ecc_errors bigint NOT NULL,
    driver text,
    cuda text,
    seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (host, uuid)
) WITH (fillfactor = 70);

-- What an agent sees of its machine, all of it: what is not in it is there no more.
CREATE FUNCTION device_tell(p_host text, p_devices jsonb) RETURNS void LANGUAGE sql SET search_path = headrace AS $$
    DELETE FROM device WHERE seen_at < now() - interval '7 days'
        OR (host = p_host AND uuid NOT IN (SELECT d->>'uuid' FROM jsonb_array_elements(p_devices) d));
    INSERT INTO device (host, uuid, parent, number, name, capability, memory_bytes, used_bytes, promised_bytes,
                        free_bytes, workers, state, reason, until, quarantines, context_faults, hang_faults,
                        xid_faults, oom_faults, ecc_errors, driver, cuda)
    SELECT p_host, d.uuid, nullif(d.parent, ''), d.number, d.name, d.capability, d.memory_bytes, d.used_bytes,
           d.promised_bytes, d.free_bytes, d.workers, d.state, nullif(d.reason, ''),
           now() + d.seconds_left * interval '1 second', d.quarantines, d.context_faults, d.hang_faults,
           d.xid_faults, d.oom_faults, d.ecc_errors, nullif(d.driver, ''), nullif(d.cuda, '')
      FROM jsonb_to_recordset(p_devices) AS d (
           uuid text, parent text, number integer, name text, capability text, memory_bytes bigint,
           used_bytes bigint, promised_bytes bigint, free_bytes bigint, workers integer, state text, reason text,
           seconds_left double precision, quarantines integer, context_faults bigint, hang_faults bigint,
           xid_faults bigint, oom_faults bigint, ecc_errors bigint, driver text, cuda text)
    ON CONFLICT (host, uuid) DO UPDATE SET
        parent = excluded.parent, number = excluded.number, name = excluded.name, capability = excluded.capability,
        memory_bytes = excluded.memory_bytes, used_bytes = excluded.used_bytes,
        promised_bytes = excluded.promised_bytes, free_bytes = excluded.free_bytes, workers = excluded.workers,
        state = excluded.state, reason = excluded.reason, until = excluded.until, quarantines = excluded.quarantines,
        context_faults = excluded.context_faults, hang_faults = excluded.hang_faults,
        xid_faults = excluded.xid_faults, oom_faults = excluded.oom_faults, ecc_errors = excluded.ecc_errors,
        driver = excluded.driver, cuda = excluded.cuda, seen_at = now()
$$;

CREATE VIEW headrace_v1.devices AS
SELECT d.host,
       d.uuid,
       d.parent,
       d.number,
       d.name,
       d.capability,
       d.state AS status,
       d.reason,
       d.until,
       d.memory_bytes,
       d.used_bytes,
       d.promised_bytes,
       d.free_bytes,
       d.workers,
       d.quarantines,
       d.context_faults,
       d.hang_faults,
       d.xid_faults,
       d.oom_faults,
       d.ecc_errors,
       d.driver,
       d.cuda,
       d.seen_at
  FROM device d;
COMMENT ON VIEW headrace_v1.devices IS 'GPUs and their slices, as the agents of their machines last saw them.';
COMMENT ON COLUMN headrace_v1.devices.host IS 'Machine that it is in.';
COMMENT ON COLUMN headrace_v1.devices.uuid IS 'The driver''s name of it: GPU-…, or MIG-… of a slice.';
COMMENT ON COLUMN headrace_v1.devices.parent IS 'GPU that it is a slice of; null: it is none.';
COMMENT ON COLUMN headrace_v1.devices.number IS 'Number of the GPU as nvidia-smi counts.';
COMMENT ON COLUMN headrace_v1.devices.name IS 'What it is.';
COMMENT ON COLUMN headrace_v1.devices.capability IS 'Compute capability.';
COMMENT ON COLUMN headrace_v1.devices.status IS 'well; probation: used again after a quarantine; quarantined; gone: the driver does not list it any more.';
COMMENT ON COLUMN headrace_v1.devices.reason IS 'Why it is not well.';
COMMENT ON COLUMN headrace_v1.devices.until IS 'When it is looked at again; null: it is not quarantined.';
COMMENT ON COLUMN headrace_v1.devices.memory_bytes IS 'Its memory.';
COMMENT ON COLUMN headrace_v1.devices.used_bytes IS 'In use by anybody.';
COMMENT ON COLUMN headrace_v1.devices.promised_bytes IS 'Promised to workers.';
COMMENT ON COLUMN headrace_v1.devices.free_bytes IS 'Could be promised to another one, were it well.';
COMMENT ON COLUMN headrace_v1.devices.workers IS 'Workers that are placed on it.';
COMMENT ON COLUMN headrace_v1.devices.quarantines IS 'How often it was quarantined since its agent started; so all counts.';
COMMENT ON COLUMN headrace_v1.devices.context_faults IS 'Workers that left because their context on it was lost.';
COMMENT ON COLUMN headrace_v1.devices.hang_faults IS 'Engine hosts on it that stood still and were killed.';
COMMENT ON COLUMN headrace_v1.devices.xid_faults IS 'Xids that the driver told of, those of applications too.';
COMMENT ON COLUMN headrace_v1.devices.oom_faults IS 'Attempts that ran out of its memory.';
COMMENT ON COLUMN headrace_v1.devices.ecc_errors IS 'Uncorrected memory errors since the driver was loaded.';
COMMENT ON COLUMN headrace_v1.devices.driver IS 'Version of the driver.';
COMMENT ON COLUMN headrace_v1.devices.cuda IS 'Newest CUDA version that the driver takes.';
COMMENT ON COLUMN headrace_v1.devices.seen_at IS 'When the agent last wrote this row.';
