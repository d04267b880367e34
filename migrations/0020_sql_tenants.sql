-- SPDX-License-Identifier: Apache-2.0
-- SQL for a tenant: the views of headrace_v1 again, in headrace_tenant_v1, with the rows of one
-- tenant, for logins that an administrator binds to it. And retry, the other name of replay.
--
-- Why: whoever may read headrace_v1 reads everybody's jobs. A policy on the tables would be asked by
-- the owners of shards with each flush, and a filter in the views of headrace_v1 has to be a security
-- barrier, which keeps the planner from joining them well. So the filter has views of its own.
-- Lock: none that anybody waits for, all objects are new.
-- A million rows: nothing to rewrite.
-- Undo: DROP SCHEMA headrace_tenant_v1 CASCADE; DROP FUNCTION headrace.tenant_views,
-- headrace.tenant_command, headrace.tenant_bind, headrace.tenant_unbind, headrace.sql_tenant,
-- headrace_v1.retry; DROP TABLE headrace.sql_login; DROP ROLE headrace_tenant.

-- Logins of the database server that see one tenant.
CREATE TABLE sql_login (
    role text PRIMARY KEY CHECK (length(role) BETWEEN 1 AND 63),
    tenant text NOT NULL REFERENCES tenant,
    may_write boolean NOT NULL DEFAULT false, -- cancel, retry, set_priority
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Tenant of this session's login: SET ROLE does not change whose it is. NULL: bound to none.
CREATE FUNCTION sql_tenant() RETURNS text LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = headrace, pg_temp AS $$ SELECT tenant FROM sql_login WHERE role = session_user $$;

-- The attempts of one round of a job: views that show it are read by roles that see no table.
ALTER FUNCTION attempt_log(uuid, smallint) SECURITY DEFINER;

CREATE FUNCTION headrace_v1.retry(job_id uuid) RETURNS bigint LANGUAGE sql SECURITY DEFINER
    SET search_path = headrace, pg_temp AS $$ SELECT command_add('replay', job_id, 0::smallint) $$;
COMMENT ON FUNCTION headrace_v1.retry(uuid) IS 'The same as replay.';
REVOKE ALL ON FUNCTION headrace_v1.retry(uuid) FROM PUBLIC;

CREATE SCHEMA headrace_tenant_v1;
COMMENT ON SCHEMA headrace_tenant_v1 IS
    'The views of headrace_v1 with the rows of one tenant: that of the login. Columns are only ever added.';

CREATE FUNCTION headrace_tenant_v1.id_at(at timestamptz) RETURNS uuid LANGUAGE sql STABLE STRICT PARALLEL SAFE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '00000000000000000000')::uuid
$$;
COMMENT ON FUNCTION headrace_tenant_v1.id_at(timestamptz) IS 'The lowest id of that time, as in headrace_v1.';

-- Makes the twin of each view of headrace_v1: a row is a tenant's by its column, by its job, by its
-- deployment or by its model. What has none of these (shards) is nobody's and has no twin. A migration
-- that makes or changes a view of headrace_v1 ends with a call; a test compares.
CREATE FUNCTION tenant_views() RETURNS void LANGUAGE plpgsql SET search_path = headrace, pg_temp AS $$
DECLARE
    v record;
    condition text;
    mine CONSTANT text := '(SELECT headrace.sql_tenant())';
BEGIN
    FOR v IN SELECT c.oid, c.relname AS name, obj_description(c.oid, 'pg_class') AS says,
                    ARRAY(SELECT a.attname::text FROM pg_attribute a
                           WHERE a.attrelid = c.oid AND a.attnum > 0) AS columns
               FROM pg_class c WHERE c.relnamespace = 'headrace_v1'::regnamespace AND c.relkind = 'v'
    LOOP
        condition := CASE
            WHEN 'tenant' = ANY (v.columns) THEN format('v.tenant = %s', mine)
            WHEN 'job_id' = ANY (v.columns) THEN
                format('EXISTS (SELECT FROM headrace.job j WHERE j.id = v.job_id AND j.tenant = %s)', mine)
            WHEN 'deployment_id' = ANY (v.columns) AND NOT 'model_id' = ANY (v.columns) THEN
                format('EXISTS (SELECT FROM headrace.deployment d JOIN headrace.model m ON m.id = d.model_id '
                       'WHERE d.id = v.deployment_id AND m.tenant = %s)', mine)
            WHEN 'model_id' = ANY (v.columns) THEN
                format('EXISTS (SELECT FROM headrace.model m WHERE m.id = v.model_id AND m.tenant = %s)', mine)
        END;
        CONTINUE WHEN condition IS NULL;
        EXECUTE format('CREATE OR REPLACE VIEW headrace_tenant_v1.%I WITH (security_barrier) AS '
                       'SELECT v.* FROM headrace_v1.%I v WHERE %s', v.name, v.name, condition);
        EXECUTE format('COMMENT ON VIEW headrace_tenant_v1.%I IS %L', v.name, v.says);
    END LOOP;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'headrace_tenant') THEN
        GRANT USAGE ON SCHEMA headrace_tenant_v1 TO headrace_tenant;
        GRANT SELECT ON ALL TABLES IN SCHEMA headrace_tenant_v1 TO headrace_tenant;
        GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA headrace_tenant_v1 TO headrace_tenant;
    END IF;
END
$$;

-- As command_add(), for a login that is bound to a tenant: other tenants' jobs are not there.
CREATE FUNCTION tenant_command(p_kind text, p_job uuid, p_priority integer) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    login sql_login;
BEGIN
    SELECT * INTO login FROM sql_login WHERE role = session_user;
    IF NOT coalesce(login.may_write, false) THEN
        RAISE EXCEPTION 'role % may read the jobs of its tenant, and not write', session_user
            USING ERRCODE = 'insufficient_privilege';
    ELSIF NOT EXISTS (SELECT FROM job WHERE id = p_job AND tenant = login.tenant) THEN
        RAISE EXCEPTION 'there is no job %', p_job USING ERRCODE = 'no_data_found';
    ELSIF p_priority IS NULL OR p_priority NOT BETWEEN 0 AND 2 THEN
        RAISE EXCEPTION 'priority is %; it must be 0, 1 or 2', p_priority USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN command_add(p_kind, p_job, p_priority::smallint);
END
$$;

CREATE FUNCTION headrace_tenant_v1.cancel(job_id uuid) RETURNS bigint LANGUAGE sql SECURITY DEFINER
    SET search_path = headrace, pg_temp AS $$ SELECT tenant_command('cancel', job_id, 0) $$;
COMMENT ON FUNCTION headrace_tenant_v1.cancel(uuid) IS 'As in headrace_v1, for a login that may write.';
CREATE FUNCTION headrace_tenant_v1.replay(job_id uuid) RETURNS bigint LANGUAGE sql SECURITY DEFINER
    SET search_path = headrace, pg_temp AS $$ SELECT tenant_command('replay', job_id, 0) $$;
COMMENT ON FUNCTION headrace_tenant_v1.replay(uuid) IS 'As in headrace_v1, for a login that may write.';
CREATE FUNCTION headrace_tenant_v1.retry(job_id uuid) RETURNS bigint LANGUAGE sql SECURITY DEFINER
    SET search_path = headrace, pg_temp AS $$ SELECT tenant_command('replay', job_id, 0) $$;
COMMENT ON FUNCTION headrace_tenant_v1.retry(uuid) IS 'The same as replay.';
CREATE FUNCTION headrace_tenant_v1.set_priority(job_id uuid, priority integer) RETURNS bigint LANGUAGE sql
    SECURITY DEFINER SET search_path = headrace, pg_temp AS $$ SELECT tenant_command('priority', job_id, priority) $$;
COMMENT ON FUNCTION headrace_tenant_v1.set_priority(uuid, integer) IS 'As in headrace_v1, for a login that may write.';
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA headrace_tenant_v1 FROM PUBLIC;

-- Binds a login to a tenant. One that sees all tenants anyhow is refused.
CREATE FUNCTION tenant_bind(p_role text, p_tenant text, p_may_write boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql SET search_path = headrace, pg_temp AS $$
DECLARE
    sees text;
BEGIN
    SELECT CASE WHEN r.rolsuper THEN 'a superuser' ELSE (SELECT 'a member of ' || g.rolname FROM pg_roles g
                 WHERE g.rolname IN ('headrace_reader', 'headrace_operator')
                   AND pg_has_role(r.oid, g.oid, 'MEMBER') LIMIT 1) END
      INTO sees FROM pg_roles r WHERE r.rolname = p_role;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no role %', p_role USING ERRCODE = 'undefined_object';
    ELSIF sees IS NOT NULL THEN
        RAISE EXCEPTION 'role % is %, which sees all tenants', p_role, sees USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT EXISTS (SELECT FROM tenant WHERE id = p_tenant) THEN
        RAISE EXCEPTION 'there is no tenant %', p_tenant USING ERRCODE = 'no_data_found';
    END IF;
    INSERT INTO sql_login (role, tenant, may_write) VALUES (p_role, p_tenant, p_may_write)
    ON CONFLICT (role) DO UPDATE SET tenant = excluded.tenant, may_write = excluded.may_write;
    INSERT INTO audit (tenant, actor, action, target, details)
    VALUES (p_tenant, session_user, 'SQL_LOGIN_BOUND', p_role, jsonb_build_object('may_write', p_may_write));
END
$$;

CREATE FUNCTION tenant_unbind(p_role text) RETURNS void LANGUAGE plpgsql SET search_path = headrace, pg_temp AS $$
DECLARE
    was text;
BEGIN
    DELETE FROM sql_login WHERE role = p_role RETURNING tenant INTO was;
    IF was IS NULL THEN
        RAISE EXCEPTION 'role % is bound to no tenant', p_role USING ERRCODE = 'no_data_found';
    END IF;
    INSERT INTO audit (tenant, actor, action, target) VALUES (was, session_user, 'SQL_LOGIN_UNBOUND', p_role);
END
$$;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'headrace_tenant') THEN
        BEGIN
            CREATE ROLE headrace_tenant NOLOGIN;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL;
            WHEN insufficient_privilege THEN
                RAISE NOTICE 'role headrace_tenant has to be created by an administrator';
        END;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'headrace_operator') THEN
        GRANT EXECUTE ON FUNCTION headrace_v1.retry(uuid) TO headrace_operator;
    END IF;
END
$$;
SELECT tenant_views();
