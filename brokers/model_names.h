/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The names of models by their ids: messages carry ids, people's dashboards want names.
 *
 * Read when Postgres is reached and at each change of the configuration; until then, and for a
 * model that is newer than the last reading, the id stands for the name. A name is a label and
 * nothing else here: nothing waits for it.
 *
 * Thread: the loop's of its connection.   Tests: tests/stack/test_trace.py
 */

#include "base/wire.h"

struct model_names;
struct pg;

/* Listens on the connection's channel headrace_config; one that does so already calls
 * model_names_read() from there instead. Borrows pg, which must be closed before it is freed. */
struct model_names *model_names_new(struct pg *pg);
void model_names_listen(struct model_names *names);
void model_names_free(struct model_names **names_p);

void model_names_read(struct model_names *names);

/* Counts readings: what was made of a name is to be made again when it has changed. */
unsigned model_names_version(const struct model_names *names);

/* Valid until the next turn of the loop; NULL: not known. */
const char *model_names_find(const struct model_names *names, struct wire_text id);
