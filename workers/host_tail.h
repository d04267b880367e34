/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What a host wrote last to its standard error, which is ours and, where an agent started us, a
 * file: for the reason that is told when the host ends without a word of its own.
 *
 * Thread: any.   Tests: tests/unit/test_host_tail.c
 */

#include <stddef.h>
#include <stdint.h>

/* Where its lines begin: the size of the file behind a descriptor; 0: it is no file. */
uint64_t host_tail_begin(int fd);

/* The newest lines from `begin` on that fit, oldest first, with " | " between; "" when there are
 * none. Of a line of JSON its `message`, of another one its printable ASCII; a worker's own lines
 * are left out. UTF-8. */
void host_tail_read(int fd, uint64_t begin, char *to, size_t to_size);

/* The same of bytes; the last line counts without its line feed, too. */
void host_tail_text(const char *bytes, size_t size, char *to, size_t to_size);
