/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Ownership and memory of fixed, small sizes.
 *
 * xcalloc and its kin abort when memory is exhausted: what was accepted is in Kafka, so a
 * restart is cheaper than a hundred untested error paths. They are for sizes that the program
 * chooses. A size that comes from outside is checked against a named limit first (base/buf.h).
 *
 * Thread: any.   Tests: tests/unit/test_mem.c
 */

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Runs dtor(&variable) when the variable's scope ends. */
#define OWNED(dtor) __attribute__((cleanup(dtor)))

/* Yields the pointer and leaves NULL behind: ownership leaves this scope. */
#define TAKE(p)                                                                                    \
    ({                                                                                             \
        __typeof__(p) taken_ = (p);                                                                \
        (p) = NULL;                                                                                \
        taken_;                                                                                    \
    })

#define MUST_CHECK __attribute__((warn_unused_result))
#define PRINTF_LIKE(fmt_index, first) __attribute__((format(printf, fmt_index, first)))
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

void *xmalloc(size_t size);
void *xcalloc(size_t count, size_t size);
void *xrealloc(void *old, size_t count, size_t size);
void *xmemdup(const void *bytes, size_t size);
char *xstrdup(const char *text);
char *xasprintf(const char *fmt, ...) PRINTF_LIKE(1, 2);

/* Destructor for plain heap memory: frees *p, whatever it points to, and sets it to NULL. */
void mem_free(void *p);

/* Copies text into a fixed array, cut at its end and always terminated. */
#define mem_copy_text(array, text) mem_copy_text_at((array), sizeof(array), (text))
void mem_copy_text_at(char *to, size_t to_size, const char *text);

#ifdef __cplusplus
}
#endif
