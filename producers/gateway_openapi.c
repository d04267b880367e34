/* SPDX-License-Identifier: Apache-2.0 */

/*
 * schema/openapi.json as it was when this was built, with a terminator behind it: the gateway
 * answers with what it was built from, and needs no file to do so.
 */

#include "producers/gateway.h"

__asm__(".pushsection .rodata\n"
        ".global gateway_openapi_text\n"
        ".type gateway_openapi_text, @object\n"
        "gateway_openapi_text:\n"
        ".incbin \"" HEADRACE_OPENAPI "\"\n"
        ".byte 0\n"
        ".size gateway_openapi_text, . - gateway_openapi_text\n"
        ".popsection\n");
