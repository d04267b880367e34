/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Assertions that stay on in every build: they catch our own bugs, never input.
 *
 * CMake's release types define NDEBUG, so <assert.h> would vanish exactly where a wrong
 * answer costs most. Two kinds only: assert(fact) and NEVER("why this cannot be").
 *
 * Thread: any.
 */

#undef assert
#define assert(fact) ((fact) ? (void)0 : assert_failed(#fact, __FILE__, __LINE__))
#define NEVER(why) assert_failed((why), __FILE__, __LINE__)

/* Prints the fact and where it failed, runs the hook, and aborts. */
__attribute__((noreturn)) void assert_failed(const char *fact, const char *file, int line);

/* Installs what to print before an abort, for example the jobs in flight. NULL: nothing. */
void assert_set_hook(void (*hook)(void));
