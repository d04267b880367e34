/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A temporary folder of a command, which goes with it however it ends: also by Ctrl-C, SIGTERM or
 * SIGKILL. A child of ours waits for our end, by a pipe that only we hold, and removes it then.
 *
 * Thread: the only one of a command.   Tests: tests/stack/test_training_api.py
 */

#include "base/err.h"

/* In $TMPDIR, else /tmp; a few at a time. The caller ends it with push_folder_remove(). */
int push_folder_make(const char *name, char **ret_folder, struct err *err) MUST_CHECK;

/* With all that is in it. NULL inside: nothing. */
void push_folder_remove(char **folder_p);
