-- SPDX-License-Identifier: Apache-2.0
-- Schedules: jobs that are submitted at a time, or again and again by a cron line in a time zone.
--
-- Why: the zones and their changes are in Postgres already, and whoever claims a tick claims it here, so
-- the time arithmetic is here too. A tick is a row, and its job's id stands in that row before anything is
-- sent: however many gateways look, and whenever one dies, a tick has one job.
-- Lock: none that anybody waits for, all objects are new.
-- A million rows: nothing to rewrite.
-- Undo: DROP VIEW headrace_v1.schedules, headrace_v1.schedule_ticks and their twins in headrace_tenant_v1;
-- DROP TABLE schedule_tick, schedule; DROP FUNCTION of each below.

CREATE TABLE schedule (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant text NOT NULL REFERENCES tenant,
    name text NOT NULL CONSTRAINT schedule_name_check CHECK (name ~ '^[A-Za-z0-9._-]{1,64}$'),
    model_id text NOT NULL REFERENCES model,
    environment text NOT NULL,
    body text NOT NULL CONSTRAINT schedule_body_check CHECK (octet_length(body) <= 70000), -- of an async predict
    cron text,           -- NULL: once, at next_at
    zone text NOT NULL DEFAULT 'UTC',
    jitter_s integer NOT NULL DEFAULT 0 CONSTRAINT schedule_jitter_check CHECK (jitter_s BETWEEN 0 AND 86400),
    catch_up text NOT NULL DEFAULT 'one' CONSTRAINT schedule_catch_up_check CHECK (catch_up IN ('skip', 'one', 'all')),
    next_at timestamptz, -- its next tick; NULL: none
    paused_at timestamptz,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant, name)
);
CREATE INDEX schedule_due ON schedule (next_at) WHERE paused_at IS NULL;

-- A moment at which a schedule was due, and the job that came of it. The newest 1,000 of a schedule are kept.
CREATE TABLE schedule_tick (
    schedule_id uuid NOT NULL REFERENCES schedule ON DELETE CASCADE,
    tick_at timestamptz NOT NULL,
    due_at timestamptz NOT NULL, -- with its jitter
    state text NOT NULL DEFAULT 'PENDING'
        CONSTRAINT schedule_tick_state_check CHECK (state IN ('PENDING', 'SUBMITTED', 'REFUSED', 'MISSED')),
    by_hand boolean NOT NULL DEFAULT false,
    job_id uuid, -- set before it is sent
    deployment_id text,
    claimed_until timestamptz,
    done_at timestamptz,
    reason text NOT NULL DEFAULT '',
    PRIMARY KEY (schedule_id, tick_at)
);
CREATE INDEX schedule_tick_due ON schedule_tick (due_at) WHERE state = 'PENDING';

-- One field of a cron line as the numbers that it stands for.
CREATE FUNCTION cron_field(field text, what text, lowest integer, highest integer, names text[]) RETURNS integer[]
    LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    part text;
    bounds text;
    step integer;
    first integer;
    last integer;
    found integer[] := '{}';
BEGIN
    FOREACH part IN ARRAY string_to_array(lower(field), ',') LOOP
        IF part !~ '^(\*|[a-z]{3}|[0-9]{1,2})(-([a-z]{3}|[0-9]{1,2}))?(/[0-9]{1,3})?$' OR part ~ '^\*-' THEN
            RAISE EXCEPTION '%: ''%'' is no number, name, range or step', what, left(part, 40)
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
        bounds := split_part(part, '/', 1);
        step := coalesce(nullif(split_part(part, '/', 2), '')::integer, 1);
        IF bounds = '*' THEN
            first := lowest;
            last := highest;
        ELSE
            first := cron_number(split_part(bounds, '-', 1), names);
            last := CASE WHEN bounds LIKE '%-%' THEN cron_number(split_part(bounds, '-', 2), names)
                         WHEN part LIKE '%/%' THEN highest ELSE first END;
        END IF;
        IF first IS NULL OR last IS NULL OR first NOT BETWEEN lowest AND highest
           OR last NOT BETWEEN lowest AND highest THEN
            RAISE EXCEPTION '%: ''%'' is not from % to %', what, part, lowest, highest
                USING ERRCODE = 'invalid_parameter_value';
        ELSIF first > last THEN
            RAISE EXCEPTION '%: ''%'' ends before it begins', what, part USING ERRCODE = 'invalid_parameter_value';
        ELSIF step NOT BETWEEN 1 AND highest THEN
            RAISE EXCEPTION '%: the step of ''%'' is not from 1 to %', what, part, highest
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
        found := found || ARRAY(SELECT generate_series(first, last, step));
    END LOOP;
    IF found = '{}' THEN
        RAISE EXCEPTION '%: it is empty', what USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN ARRAY(SELECT DISTINCT n FROM unnest(found) n ORDER BY n);
END
$$;

-- A number, or the place of a name; NULL: neither.
CREATE FUNCTION cron_number(word text, names text[]) RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN word ~ '^[0-9]+$' THEN word::integer ELSE array_position(names, word) - 1 END
$$;

CREATE TYPE cron_line AS (
    minutes integer[], hours integer[], days integer[], months integer[], weekdays integer[],
    any_day boolean,   -- a day of the month or of the week is enough: both fields say something
    every_hour boolean -- it keeps its pace when clocks change
);

CREATE FUNCTION cron_read(line text) RETURNS cron_line LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    words text[];
    found cron_line;
    plain text := CASE lower(btrim(line)) WHEN '@hourly' THEN '0 * * * *' WHEN '@daily' THEN '0 0 * * *'
        WHEN '@midnight' THEN '0 0 * * *' WHEN '@weekly' THEN '0 0 * * 0' WHEN '@monthly' THEN '0 0 1 * *'
        WHEN '@yearly' THEN '0 0 1 1 *' WHEN '@annually' THEN '0 0 1 1 *' ELSE btrim(line) END;
BEGIN
    words := regexp_split_to_array(plain, '\s+');
    IF length(plain) > 200 OR cardinality(words) <> 5 THEN
        RAISE EXCEPTION 'it has % fields; a cron line has five (minute, hour, day, month, weekday), or is @hourly, @daily, @weekly, @monthly or @yearly',
            cardinality(words) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    found.minutes := cron_field(words[1], 'minute', 0, 59, '{}');
    found.hours := cron_field(words[2], 'hour', 0, 23, '{}');
    found.days := cron_field(words[3], 'day', 1, 31, '{}');
    found.months := cron_field(words[4], 'month', 1, 12,
        '{-,jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec}');
    found.weekdays := cron_field(words[5], 'weekday', 0, 7, '{sun,mon,tue,wed,thu,fri,sat}');
    found.weekdays := ARRAY(SELECT DISTINCT n % 7 FROM unnest(found.weekdays) n ORDER BY 1);
    found.any_day := words[3] NOT LIKE '*%' AND words[5] NOT LIKE '*%';
    found.every_hour := words[2] LIKE '*%';
    RETURN found;
END
$$;

-- The moments that a wall clock shows a time of day. None where clocks go forward over it: then the moment at
-- which they do, unless its line keeps its pace. Two where they go back: the first, or both for such a line.
CREATE FUNCTION cron_moments(local timestamp, zone text, every_hour boolean) RETURNS SETOF timestamptz
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    later timestamptz := local AT TIME ZONE zone; -- of two the later one
    other timestamptz;
BEGIN
    IF later AT TIME ZONE zone <> local THEN
        IF NOT every_hour THEN
            RETURN QUERY SELECT min(t) FROM generate_series(later - interval '3 hours', later, '1 minute') t
                          WHERE t AT TIME ZONE zone > local AND (t - interval '1 minute') AT TIME ZONE zone < local;
        END IF;
        RETURN;
    END IF;
    SELECT min(later - b) INTO other FROM unnest('{30 minutes,1 hour,2 hours,3 hours}'::interval[]) b
     WHERE (later - b) AT TIME ZONE zone = local;
    IF other IS NOT NULL THEN
        RETURN NEXT other;
    END IF;
    IF other IS NULL OR every_hour THEN
        RETURN NEXT later;
    END IF;
END
$$;

-- The first moment of a cron line behind one; NULL: none within nine years.
CREATE FUNCTION cron_next(line text, zone text, behind timestamptz) RETURNS timestamptz LANGUAGE plpgsql STABLE AS $$
DECLARE
    cron cron_line := cron_read(line);
    calm boolean := (behind + interval '4 hours') AT TIME ZONE zone - (behind - interval '4 hours') AT TIME ZONE zone
                    = interval '8 hours'; -- no clock changes here
    begins timestamp := date_trunc('hour', behind AT TIME ZONE zone)
                        - CASE WHEN calm THEN interval '0' ELSE interval '3 hours' END;
    day date;
    hour timestamp;
    found timestamptz;
    one timestamptz;
BEGIN
    FOR n IN 0 .. 9 * 366 LOOP
        day := begins::date + n;
        CONTINUE WHEN NOT extract(month FROM day)::integer = ANY (cron.months);
        CONTINUE WHEN CASE WHEN cron.any_day
            THEN NOT (extract(day FROM day)::integer = ANY (cron.days) OR extract(dow FROM day)::integer = ANY (cron.weekdays))
            ELSE NOT (extract(day FROM day)::integer = ANY (cron.days) AND extract(dow FROM day)::integer = ANY (cron.weekdays)) END;
        FOR hour IN SELECT day + h * interval '1 hour' FROM unnest(cron.hours) h ORDER BY h LOOP
            CONTINUE WHEN hour < begins;
            -- What is found may be behind what the clock shows in the three hours after it.
            EXIT WHEN found IS NOT NULL AND ((calm AND found < behind + interval '4 hours')
                                             OR hour > (found AT TIME ZONE zone) + interval '3 hours');
            IF calm AND hour < begins + interval '3 hours' THEN
                SELECT min(m) INTO one FROM (SELECT (hour + x * interval '1 minute') AT TIME ZONE zone AS m
                                               FROM unnest(cron.minutes) x) y WHERE m > behind;
            ELSE
                SELECT min(m) INTO one FROM unnest(cron.minutes) x,
                       cron_moments(hour + x * interval '1 minute', zone, cron.every_hour) m WHERE m > behind;
            END IF;
            found := least(found, one);
        END LOOP;
        IF found IS NOT NULL THEN
            RETURN found;
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

-- The last moment of a cron line up to one; NULL: none within four years.
CREATE FUNCTION cron_last(line text, zone text, until timestamptz) RETURNS timestamptz LANGUAGE plpgsql STABLE AS $$
DECLARE
    back interval;
    at timestamptz;
    found timestamptz;
BEGIN
    FOREACH back IN ARRAY '{1 minute,10 minutes,1 hour,6 hours,1 day,8 days,32 days,1 year,4 years}'::interval[] LOOP
        at := cron_next(line, zone, until - back);
        WHILE at <= until LOOP
            found := at;
            at := cron_next(line, zone, at);
        END LOOP;
        EXIT WHEN found IS NOT NULL;
    END LOOP;
    RETURN found;
END
$$;

-- Checks what somebody wants and makes or replaces the schedule; problem '' when it is done.
CREATE FUNCTION schedule_set(p_tenant text, p_name text, p_model text, p_environment text, p_body text, p_cron text,
    p_zone text, p_run_at timestamptz, p_jitter integer, p_catch_up text, p_actor text, p_most integer)
    RETURNS TABLE (id uuid, problem text, next_at timestamptz) LANGUAGE plpgsql AS $$
DECLARE
    at timestamptz := p_run_at;
    made uuid;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_timezone_names z WHERE z.name = p_zone) THEN
        RETURN QUERY SELECT NULL::uuid, format('timezone ''%s'' is not known', left(p_zone, 60)), NULL::timestamptz;
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT FROM environment e WHERE e.model_id = p_model AND e.name = p_environment) THEN
        RETURN QUERY SELECT NULL::uuid, format('environment ''%s'' is none of the model', left(p_environment, 60)),
            NULL::timestamptz;
        RETURN;
    END IF;
    IF p_cron IS NOT NULL THEN
        BEGIN
            at := cron_next(p_cron, p_zone, now());
        EXCEPTION WHEN invalid_parameter_value THEN
            RETURN QUERY SELECT NULL::uuid, format('cron ''%s'': %s', left(p_cron, 80), SQLERRM), NULL::timestamptz;
            RETURN;
        END;
        IF at IS NULL THEN
            RETURN QUERY SELECT NULL::uuid, format('cron ''%s'' names no day within nine years', left(p_cron, 80)), at;
            RETURN;
        END IF;
    END IF;
    IF NOT EXISTS (SELECT FROM schedule s WHERE s.tenant = p_tenant AND s.name = p_name)
       AND (SELECT count(*) FROM schedule s WHERE s.tenant = p_tenant) >= p_most THEN
        RETURN QUERY SELECT NULL::uuid, format('there are %s schedules, which is the most', p_most), at;
        RETURN;
    END IF;
    INSERT INTO schedule AS s (tenant, name, model_id, environment, body, cron, zone, jitter_s, catch_up, next_at, created_by)
    VALUES (p_tenant, p_name, p_model, p_environment, p_body, p_cron, p_zone, p_jitter, p_catch_up, at, p_actor)
    ON CONFLICT (tenant, name) DO UPDATE SET model_id = excluded.model_id, environment = excluded.environment,
        body = excluded.body, cron = excluded.cron, zone = excluded.zone, jitter_s = excluded.jitter_s,
        catch_up = excluded.catch_up, next_at = excluded.next_at
    RETURNING s.id INTO made;
    INSERT INTO audit (tenant, actor, action, target, details) VALUES (p_tenant, p_actor, 'SCHEDULE_SET', p_name,
        jsonb_build_object('cron', p_cron, 'timezone', p_zone, 'run_at', p_run_at));
    RETURN QUERY SELECT made, ''::text, at;
END
$$;

-- Ticks of a schedule that are due, at most 100 a call, and when the next one is. `late` is what counts as missed.
CREATE FUNCTION schedule_advance(p_id uuid, p_now timestamptz) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    s schedule;
    late CONSTANT interval := '1 minute';
    at timestamptz;
    made integer := 0;
BEGIN
    SELECT * INTO s FROM schedule WHERE id = p_id;
    at := s.next_at;
    IF at < p_now - late AND s.catch_up <> 'all' THEN
        IF s.catch_up = 'skip' THEN
            INSERT INTO schedule_tick (schedule_id, tick_at, due_at, state, done_at, reason)
            VALUES (s.id, at, at, 'MISSED', p_now, 'nobody was there to submit it, and it is not caught up')
            ON CONFLICT DO NOTHING;
            at := CASE WHEN s.cron IS NOT NULL THEN cron_next(s.cron, s.zone, p_now - late) END;
        ELSIF s.cron IS NOT NULL THEN
            at := greatest(at, cron_last(s.cron, s.zone, p_now));
        END IF;
    END IF;
    WHILE at <= p_now AND made < 100 LOOP
        INSERT INTO schedule_tick (schedule_id, tick_at, due_at)
        VALUES (s.id, at, at + CASE s.jitter_s WHEN 0 THEN interval '0' ELSE make_interval(secs =>
            (hashtextextended(s.id::text || at::text, 0) & 9007199254740991) % (s.jitter_s * 1000 + 1) / 1000.0) END)
        ON CONFLICT DO NOTHING;
        made := made + 1;
        at := CASE WHEN s.cron IS NOT NULL THEN cron_next(s.cron, s.zone, at) END;
    END LOOP;
    UPDATE schedule SET next_at = at WHERE id = s.id;
    DELETE FROM schedule_tick t WHERE t.schedule_id = s.id AND t.state <> 'PENDING' AND t.tick_at <
        (SELECT o.tick_at FROM schedule_tick o WHERE o.schedule_id = s.id ORDER BY o.tick_at DESC OFFSET 999 LIMIT 1);
END
$$;

-- An id of a job as schema/job_id.h lays it out.
CREATE FUNCTION job_id_new(shard integer, at timestamptz) RETURNS uuid LANGUAGE sql VOLATILE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(r, 1, 3)
            || to_hex(128 | (shard >> 4)) || to_hex(shard & 15) || substr(r, 20, 13))::uuid
      FROM (SELECT replace(gen_random_uuid()::text, '-', '') AS r) x
$$;

-- What is to be submitted now, claimed for half a minute. A tick that comes again has the job that it had, and
-- goes to the deployment that it went to while that is there. No deployment: the model or environment has none.
CREATE FUNCTION schedule_claim(p_now timestamptz, p_most integer)
    RETURNS TABLE (schedule_id uuid, tick_at timestamptz, tenant text, name text, model_id text, environment text,
        body text, job_id uuid, deployment_id text, pool text, run_limit_ms bigint, slot_count integer,
        created_by text)
    LANGUAGE plpgsql AS $$
DECLARE
    due record;
BEGIN
    FOR due IN SELECT s.id FROM schedule s WHERE s.next_at <= p_now AND s.paused_at IS NULL
                ORDER BY s.next_at LIMIT p_most FOR UPDATE SKIP LOCKED LOOP
        PERFORM schedule_advance(due.id, p_now);
    END LOOP;
    FOR due IN SELECT t.schedule_id AS id, t.tick_at AS at, t.deployment_id AS was,
                      s.tenant AS whose, s.name AS called, s.model_id AS model, s.environment AS place, s.body AS input,
                      s.created_by AS maker
                 FROM schedule_tick t JOIN schedule s ON s.id = t.schedule_id
                WHERE t.state = 'PENDING' AND t.due_at <= p_now AND (t.claimed_until IS NULL OR t.claimed_until < p_now)
                ORDER BY t.due_at LIMIT p_most FOR UPDATE OF t SKIP LOCKED LOOP
        RETURN QUERY
        WITH chosen AS (
            SELECT d.id, d.pool, d.shard, d.run_limit_ms, d.slot_count
              FROM deployment d LEFT JOIN environment_target e ON e.deployment_id = d.id AND e.model_id = due.model
                   AND e.environment = due.place AND e.weight > 0
             WHERE d.model_id = due.model AND d.deleted_at IS NULL AND (d.id = due.was OR e.weight IS NOT NULL)
             ORDER BY d.id = due.was DESC NULLS LAST, -ln(1 - random()) / e.weight LIMIT 1),
        claimed AS (
            UPDATE schedule_tick t SET claimed_until = p_now + interval '30 seconds',
                   job_id = coalesce(t.job_id, (SELECT job_id_new(c.shard, p_now) FROM chosen c)),
                   deployment_id = (SELECT c.id FROM chosen c)
             WHERE t.schedule_id = due.id AND t.tick_at = due.at RETURNING t.job_id)
        SELECT due.id, due.at, due.whose, due.called, due.model, due.place, due.input, c.job_id, d.id, d.pool,
               d.run_limit_ms, d.slot_count, due.maker
          FROM claimed c LEFT JOIN chosen d ON true;
    END LOOP;
END
$$;

-- The job is in Kafka, or was refused: then the tick has none.
CREATE FUNCTION schedule_done(p_schedule uuid, p_tick timestamptz, p_reason text) RETURNS void LANGUAGE sql AS $$
    UPDATE schedule_tick SET state = CASE p_reason WHEN '' THEN 'SUBMITTED' ELSE 'REFUSED' END, done_at = now(),
           reason = p_reason, job_id = CASE p_reason WHEN '' THEN job_id END
     WHERE schedule_id = p_schedule AND tick_at = p_tick AND state = 'PENDING'
$$;

CREATE VIEW headrace_v1.schedules AS
SELECT s.tenant,
       s.name,
       s.model_id,
       m.name AS model_name,
       s.environment,
       s.cron,
       s.zone AS timezone,
       s.next_at,
       s.paused_at,
       s.jitter_s AS jitter_seconds,
       s.catch_up,
       t.tick_at AS last_at,
       t.state AS last_status,
       t.job_id AS last_job_id,
       nullif(t.reason, '') AS last_reason,
       s.created_by,
       s.created_at,
       s.id
  FROM headrace.schedule s
  LEFT JOIN headrace.model m ON m.id = s.model_id
  LEFT JOIN LATERAL (SELECT * FROM headrace.schedule_tick x WHERE x.schedule_id = s.id
                      ORDER BY x.tick_at DESC LIMIT 1) t ON true;
COMMENT ON VIEW headrace_v1.schedules IS 'Jobs that are submitted at a time, or again and again.';
COMMENT ON COLUMN headrace_v1.schedules.tenant IS 'Whose it is.';
COMMENT ON COLUMN headrace_v1.schedules.name IS 'Its name, unique for the tenant.';
COMMENT ON COLUMN headrace_v1.schedules.model_id IS 'Model that it submits to.';
COMMENT ON COLUMN headrace_v1.schedules.model_name IS 'Name of that model.';
COMMENT ON COLUMN headrace_v1.schedules.environment IS 'Environment of the model.';
COMMENT ON COLUMN headrace_v1.schedules.cron IS 'Its cron line; null: once.';
COMMENT ON COLUMN headrace_v1.schedules.timezone IS 'Time zone of that line.';
COMMENT ON COLUMN headrace_v1.schedules.next_at IS 'Its next tick, before jitter; null: none.';
COMMENT ON COLUMN headrace_v1.schedules.paused_at IS 'Since when it is paused; null: it is not.';
COMMENT ON COLUMN headrace_v1.schedules.jitter_seconds IS 'Each tick is put off by up to that much.';
COMMENT ON COLUMN headrace_v1.schedules.catch_up IS 'What becomes of missed ticks: skip, one or all.';
COMMENT ON COLUMN headrace_v1.schedules.last_at IS 'Its newest tick.';
COMMENT ON COLUMN headrace_v1.schedules.last_status IS 'What became of that: PENDING, SUBMITTED, REFUSED or MISSED.';
COMMENT ON COLUMN headrace_v1.schedules.last_job_id IS 'Its job.';
COMMENT ON COLUMN headrace_v1.schedules.last_reason IS 'Why it was refused or missed.';
COMMENT ON COLUMN headrace_v1.schedules.created_by IS 'Prefix of the API key that made it.';
COMMENT ON COLUMN headrace_v1.schedules.created_at IS 'When it was made.';
COMMENT ON COLUMN headrace_v1.schedules.id IS 'Its id: schedule_id of its ticks.';

CREATE VIEW headrace_v1.schedule_ticks AS
SELECT s.tenant,
       s.name AS schedule,
       t.schedule_id,
       t.tick_at,
       t.due_at,
       t.state AS status,
       t.job_id,
       t.by_hand,
       nullif(t.reason, '') AS reason,
       t.done_at
  FROM headrace.schedule_tick t
  JOIN headrace.schedule s ON s.id = t.schedule_id;
COMMENT ON VIEW headrace_v1.schedule_ticks IS 'Moments at which schedules were due, the newest thousand of each.';
COMMENT ON COLUMN headrace_v1.schedule_ticks.tenant IS 'Whose it is.';
COMMENT ON COLUMN headrace_v1.schedule_ticks.schedule IS 'Name of the schedule.';
COMMENT ON COLUMN headrace_v1.schedule_ticks.schedule_id IS 'Id of the schedule.';
COMMENT ON COLUMN headrace_v1.schedule_ticks.tick_at IS 'The moment that the schedule names.';
COMMENT ON COLUMN headrace_v1.schedule_ticks.due_at IS 'The same with its jitter.';
COMMENT ON COLUMN headrace_v1.schedule_ticks.status IS 'PENDING, SUBMITTED, REFUSED (by a limit, a switch, a missing model) or MISSED (not caught up).';
COMMENT ON COLUMN headrace_v1.schedule_ticks.job_id IS 'Its job; null when it has none.';
COMMENT ON COLUMN headrace_v1.schedule_ticks.by_hand IS 'Whether somebody asked for it.';
COMMENT ON COLUMN headrace_v1.schedule_ticks.reason IS 'Why it was refused or missed.';
COMMENT ON COLUMN headrace_v1.schedule_ticks.done_at IS 'When its job was in Kafka, or when it was refused.';

SELECT tenant_views();
