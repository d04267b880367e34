-- SPDX-License-Identifier: Apache-2.0
-- Secrets of models: sealed values under a tenant's names.
--
-- Why: a model that needs a token gets it from here, and from nowhere that others can look.
-- Lock: none that matters, the table is new.
-- A million rows: nothing to rewrite.
-- Undo: DROP VIEW headrace_v1.secrets; DROP TABLE secret. The values are gone then.

CREATE TABLE secret (
    tenant text NOT NULL REFERENCES tenant,
    name text NOT NULL CONSTRAINT secret_name_check CHECK (name ~ '^[A-Za-z0-9._-]{1,253}$'),
    id text NOT NULL,
    sealed bytea NOT NULL CONSTRAINT secret_sealed_check CHECK (octet_length(sealed) <= 66000),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, name)
);

CREATE VIEW headrace_v1.secrets AS
SELECT s.tenant, s.name, s.created_at, s.updated_at FROM secret s;
COMMENT ON VIEW headrace_v1.secrets IS 'Secrets that models may be given, by name; their values are nowhere to be read.';
COMMENT ON COLUMN headrace_v1.secrets.tenant IS 'Whose models may name it.';
COMMENT ON COLUMN headrace_v1.secrets.name IS 'Its name: a key of `secrets` in config.yaml.';
COMMENT ON COLUMN headrace_v1.secrets.created_at IS 'When it was first set.';
COMMENT ON COLUMN headrace_v1.secrets.updated_at IS 'When its value was last set; workers that started before have an older one.';
