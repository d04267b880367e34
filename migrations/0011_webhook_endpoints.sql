-- SPDX-License-Identifier: Apache-2.0
-- Webhook endpoints: which are disabled, why and by whom, and how the others are. Replays of
-- deliveries.
--
-- Why: 410 disabled an address for good and silently; a circuit breaker needs a place where people
-- see it. An endpoint is a tenant's URL without its query. A delivery that is replayed has its tries
-- counted on and its schedule begun anew.
-- Lock: delivery, ACCESS EXCLUSIVE, while its partitions are indexed: a second a million rows. Senders of the version before answer with
-- errors until they are replaced; what they had to send waits in the ledger.
-- A million rows: nothing to rewrite, the defaults are constants; one partial index is built.
-- Undo: CREATE TABLE webhook_gone as in 0003 and fill it from webhook_endpoint; DROP VIEW
-- headrace_v1.webhook_endpoints; DROP TABLE webhook_endpoint; drop the columns.

-- The URL up to its query or fragment.
CREATE FUNCTION webhook_endpoint_url(url text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN split_part(split_part(url, '#', 1), '?', 1);

CREATE TABLE webhook_endpoint (
    tenant text NOT NULL,
    url text NOT NULL CHECK (length(url) BETWEEN 1 AND 2048),
    disabled_at timestamptz, -- NULL: enabled
    disabled_by text,        -- 'receiver', or the prefix of a key
    disabled_reason text CHECK (disabled_reason IS NOT NULL OR disabled_at IS NULL),
    circuit smallint NOT NULL DEFAULT 1
        CONSTRAINT webhook_endpoint_circuit_check CHECK (circuit IN (1, 2, 3)),
    failure_count integer NOT NULL DEFAULT 0, -- in a row
    last_http_status smallint NOT NULL DEFAULT 0,
    last_error text,
    last_success_at timestamptz,
    last_failure_at timestamptz,
    retry_at timestamptz, -- the circuit is open until then
    latency_ms integer,   -- of answers, smoothed
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, url)
);

INSERT INTO webhook_endpoint (tenant, url, disabled_at, disabled_by, disabled_reason)
SELECT tenant, webhook_endpoint_url(url), min(at), 'receiver', 'it answered 410 Gone'
  FROM webhook_gone
 GROUP BY tenant, webhook_endpoint_url(url);
DROP TABLE webhook_gone;

ALTER TABLE delivery
    ADD COLUMN try_base smallint NOT NULL DEFAULT 0, -- tries made before the last replay
    ADD COLUMN replayed_at timestamptz;

-- What was given up, by tenant: for lists and replays. Few rows, and none that is written twice.
CREATE INDEX delivery_failed ON delivery (tenant, job_id) WHERE state = 3;

CREATE FUNCTION circuit_name(circuit smallint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE circuit WHEN 1 THEN 'closed' WHEN 2 THEN 'open' WHEN 3 THEN 'half-open' END;

CREATE OR REPLACE VIEW headrace_v1.deliveries AS
SELECT d.job_id,
       d.round,
       d.endpoint,
       d.tenant,
       d.model AS model_id,
       d.url,
       delivery_state_name(d.state) AS status,
       d.try_count AS tries,
       d.last_http_status,
       d.last_error,
       d.next_at AS next_try_at,
       d.created_at,
       d.finished_at,
       d.webhook_id,
       webhook_endpoint_url(d.url) AS endpoint_url,
       d.replayed_at
  FROM delivery d;
COMMENT ON COLUMN headrace_v1.deliveries.endpoint_url IS 'That address without its query: the url of webhook_endpoints.';
COMMENT ON COLUMN headrace_v1.deliveries.replayed_at IS 'When it was last sent anew by hand; null: never.';

CREATE VIEW headrace_v1.webhook_endpoints AS
SELECT e.tenant,
       e.url,
       CASE WHEN e.disabled_at IS NULL THEN 'enabled' ELSE 'disabled' END AS status,
       e.disabled_at,
       e.disabled_by,
       e.disabled_reason,
       circuit_name(e.circuit) AS circuit,
       e.failure_count AS failures,
       e.last_http_status,
       e.last_error,
       e.last_success_at,
       e.last_failure_at,
       CASE WHEN e.circuit <> 1 THEN e.retry_at END AS retry_at,
       e.latency_ms,
       e.updated_at
  FROM webhook_endpoint e;
COMMENT ON VIEW headrace_v1.webhook_endpoints IS 'Addresses of webhooks that are used again and again, are disabled, or do not answer.';
COMMENT ON COLUMN headrace_v1.webhook_endpoints.tenant IS 'Whose webhooks go there.';
COMMENT ON COLUMN headrace_v1.webhook_endpoints.url IS 'The address without its query.';
COMMENT ON COLUMN headrace_v1.webhook_endpoints.status IS 'enabled, or disabled: nothing is sent there.';
COMMENT ON COLUMN headrace_v1.webhook_endpoints.disabled_at IS 'When it was disabled.';
COMMENT ON COLUMN headrace_v1.webhook_endpoints.disabled_by IS '"receiver" (it answered 410), or the prefix of an API key.';
COMMENT ON COLUMN headrace_v1.webhook_endpoints.disabled_reason IS 'Why.';
COMMENT ON COLUMN headrace_v1.webhook_endpoints.circuit IS 'closed: it is sent to; open: nothing until retry_at; half-open: one is tried.';
COMMENT ON COLUMN headrace_v1.webhook_endpoints.failures IS 'Failed tries in a row.';
COMMENT ON COLUMN headrace_v1.webhook_endpoints.last_http_status IS 'What it answered last; 0: nothing.';
COMMENT ON COLUMN headrace_v1.webhook_endpoints.last_error IS 'Why the last try failed.';
COMMENT ON COLUMN headrace_v1.webhook_endpoints.last_success_at IS 'When a try last succeeded, as of updated_at.';
COMMENT ON COLUMN headrace_v1.webhook_endpoints.last_failure_at IS 'When a try last failed, as of updated_at.';
COMMENT ON COLUMN headrace_v1.webhook_endpoints.retry_at IS 'When it is tried again while its circuit is open.';
COMMENT ON COLUMN headrace_v1.webhook_endpoints.latency_ms IS 'How long an answer takes, smoothed.';
COMMENT ON COLUMN headrace_v1.webhook_endpoints.updated_at IS 'When a sender last wrote this row: with each change of the circuit, else at most twice a minute.';
