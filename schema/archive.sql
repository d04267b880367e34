-- SPDX-License-Identifier: Apache-2.0
-- What was pushed. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

-- Model archives and directories that were pushed, by their digest.
CREATE TABLE archive (
    digest bytea PRIMARY KEY CHECK (octet_length(digest) = 32),
    blob text NOT NULL, -- key in the blob store
    size bigint NOT NULL,
    file_count integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
