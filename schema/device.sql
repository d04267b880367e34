-- SPDX-License-Identifier: Apache-2.0
-- GPUs of machines as their agents see them. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

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
