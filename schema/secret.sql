-- SPDX-License-Identifier: Apache-2.0
-- Secrets of models. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

CREATE TABLE secret (
    tenant text NOT NULL REFERENCES tenant,
    name text NOT NULL CONSTRAINT secret_name_check CHECK (name ~ '^[A-Za-z0-9._-]{1,253}$'),
    id text NOT NULL,
    sealed bytea NOT NULL CONSTRAINT secret_sealed_check CHECK (octet_length(sealed) <= 66000), -- base/seal.h
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, name)
);
