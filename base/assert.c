/* SPDX-License-Identifier: Apache-2.0 */

#include "base/assert.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

static void (*assert_hook)(void);

void assert_set_hook(void (*hook)(void))
{
    assert_hook = hook;
}

void assert_failed(const char *fact, const char *file, int line)
{
    void (*hook)(void) = assert_hook;

    assert_hook = NULL; /* an assertion inside the hook must not call it again */
    (void)fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, fact);
    if (hook != NULL)
        hook();
    abort();
}
