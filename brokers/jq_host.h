/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What is said between a process that runs expressions (`headrace host-jq`) and who started it,
 * over a socket that is its descriptor 3. Each message: four bytes of size, little endian, then so
 * many.
 *
 *     to it    first the program: {"program": text, "each": [text of each expression alone]}
 *              then requests (schema/chain_jq.h)
 *     from it  one byte: '+', then the answer, empty for the program
 *                        '-', then four bytes, which expression it is of, then what is wrong
 *
 * It ends when it is asked too much: by these codes, by a signal where jq itself gives up.
 */

#define JQ_HOST_FD 3
#define JQ_HOST_HEAD 4
#define JQ_HOST_REQUEST_MAX (160u << 20)
#define JQ_HOST_CPU_MS 2000   /* of one request */
#define JQ_HOST_MEMORY_MB 768 /* in use at any time */
#define JQ_HOST_EXIT_CPU 41
#define JQ_HOST_EXIT_MEMORY 42
