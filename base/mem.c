/* SPDX-License-Identifier: Apache-2.0 */

#include "base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

void *xmalloc(size_t size)
{
    void *p = malloc(size > 0 ? size : 1);

    if (p == NULL)
        NEVER("memory is exhausted");
    return p;
}

void *xcalloc(size_t count, size_t size)
{
    void *p = calloc(count > 0 ? count : 1, size > 0 ? size : 1);

    if (p == NULL)
        NEVER("memory is exhausted");
    return p;
}

void *xrealloc(void *old, size_t count, size_t size)
{
    void *p = reallocarray(old, count > 0 ? count : 1, size > 0 ? size : 1);

    if (p == NULL)
        NEVER("memory is exhausted");
    return p;
}

void *xmemdup(const void *bytes, size_t size)
{
    void *p = xmalloc(size);

    if (size > 0)
        memcpy(p, bytes, size);
    return p;
}

char *xstrdup(const char *text)
{
    return xmemdup(text, strlen(text) + 1);
}

char *xasprintf(const char *fmt, ...)
{
    va_list args;
    char *text = NULL;
    int n;

    va_start(args, fmt);
    n = vasprintf(&text, fmt, args);
    va_end(args);
    if (n < 0)
        NEVER("memory is exhausted");
    return text;
}

void mem_free(void *p)
{
    void **owner = p;

    free(*owner);
    *owner = NULL;
}

void mem_copy_text_at(char *to, size_t to_size, const char *text)
{
    size_t n = strlen(text);

    assert(to_size > 0);
    if (n > to_size - 1)
        n = to_size - 1;
    memcpy(to, text, n);
    to[n] = '\0';
}
