-- SPDX-License-Identifier: Apache-2.0
-- Bulk jobs whose input is at a URL.
--
-- Why: whoever works on it reads the URL into a file first; until then the row has no blob and says
-- where the input is, and after that no more, since a URL may hold a secret.
-- Lock: ACCESS EXCLUSIVE on bulk for a moment, nothing is rewritten.
-- A million rows: nothing to rewrite.
-- Undo: ALTER TABLE headrace.bulk DROP input_url.

ALTER TABLE bulk ADD COLUMN input_url text; -- null: the input is input_blob
