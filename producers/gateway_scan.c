/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/gateway_scan.h"

#include <string.h>

#include "base/json_fast.h"

static const char input_key[] = "model_input";

void scan_init(struct scan *scan)
{
    *scan = (struct scan){.at = SCAN_AT_VALUE, .envelope = BUF_WITH_LIMIT(SCAN_ENVELOPE_SIZE_MAX)};
}

void scan_done(struct scan *scan)
{
    buf_done(&scan->envelope);
}

static int bad(const struct scan *scan, const char *what, struct err *err)
{
    return err_set(err, ERR_MALFORMED, "body: not JSON at byte %llu: %s",
                   (unsigned long long)scan->position, what);
}

/* ---- what is open ---- */

static int open_level(struct scan *scan, bool object, struct err *err)
{
    if (scan->depth == JSON_FAST_DEPTH_MAX)
        return err_set(err, ERR_RANGE, "body: JSON is nested deeper than %d", JSON_FAST_DEPTH_MAX);
    scan->objects &= ~(1ull << scan->depth);
    scan->objects |= (uint64_t)object << scan->depth;
    scan->depth++;
    scan->at = object ? SCAN_AT_KEY_OR_END : SCAN_AT_VALUE_OR_END;
    return 0;
}

static bool in_object(const struct scan *scan)
{
    return scan->depth > 0 && (scan->objects >> (scan->depth - 1) & 1) != 0;
}

static void value_over(struct scan *scan)
{
    scan->at = scan->depth == 0 ? SCAN_AT_END : SCAN_AT_AFTER;
}

static int close_level(struct scan *scan, uint8_t c, struct err *err)
{
    if ((c == '}') != in_object(scan))
        return bad(scan, "a bracket closes what another opened", err);
    scan->depth--;
    value_over(scan);
    return 0;
}

/* ---- strings ---- */

static void string_begin(struct scan *scan, bool is_key)
{
    scan->in_key = is_key;
    scan->key_size = 0;
    scan->key_matches = is_key && scan->depth == 1;
    scan->at = SCAN_AT_STRING;
}

static void string_end(struct scan *scan)
{
    if (scan->in_key) {
        scan->input_next = scan->key_matches && scan->key_size == sizeof(input_key) - 1;
        scan->in_key = false;
        scan->at = SCAN_AT_COLON;
    } else {
        value_over(scan);
    }
}

/* The first byte of a character of several: RFC 3629's table. */
static int utf8_begin(struct scan *scan, uint8_t c, struct err *err)
{
    scan->utf8_low = 0x80;
    scan->utf8_high = 0xbf;
    if (c >= 0xc2 && c <= 0xdf) {
        scan->utf8_left = 1;
    } else if (c >= 0xe0 && c <= 0xef) {
        scan->utf8_left = 2;
        scan->utf8_low = c == 0xe0 ? 0xa0 : 0x80;
        scan->utf8_high = c == 0xed ? 0x9f : 0xbf;
    } else if (c >= 0xf0 && c <= 0xf4) {
        scan->utf8_left = 3;
        scan->utf8_low = c == 0xf0 ? 0x90 : 0x80;
        scan->utf8_high = c == 0xf4 ? 0x8f : 0xbf;
    } else {
        return bad(scan, "a string is not UTF-8", err);
    }
    return 0;
}

static int string_byte(struct scan *scan, uint8_t c, struct err *err)
{
    if (scan->utf8_left > 0) {
        if (c < scan->utf8_low || c > scan->utf8_high)
            return bad(scan, "a string is not UTF-8", err);
        scan->utf8_left--;
        scan->utf8_low = 0x80;
        scan->utf8_high = 0xbf;
        return 0;
    }
    if (c == '"') {
        string_end(scan);
        return 0;
    }
    if (c == '\\') {
        scan->key_matches = false; /* a spelling that hides the key leaves it in the envelope */
        scan->at = SCAN_AT_ESCAPE;
        return 0;
    }
    if (c < 0x20)
        return bad(scan, "a control character in a string", err);
    if (scan->key_matches) {
        scan->key_matches = scan->key_size < sizeof(input_key) - 1 &&
                            c == (uint8_t)input_key[scan->key_size];
        scan->key_size++;
    }
    return c < 0x80 ? 0 : utf8_begin(scan, c, err);
}

static int escape_byte(struct scan *scan, uint8_t c, struct err *err)
{
    if (c == 'u') {
        scan->at = SCAN_AT_HEX;
        scan->hex_count = 4;
        scan->code = 0;
        return 0;
    }
    if (c == '\0' || strchr("\"\\/bfnrt", c) == NULL)
        return bad(scan, "an unknown escape in a string", err);
    scan->at = SCAN_AT_STRING;
    return 0;
}

static int hex_byte(struct scan *scan, uint8_t c, struct err *err)
{
    uint32_t digit = c >= '0' && c <= '9'   ? c - '0' + 0u
                     : c >= 'a' && c <= 'f' ? c - 'a' + 10u
                     : c >= 'A' && c <= 'F' ? c - 'A' + 10u
                                            : 16u;

    if (digit > 15)
        return bad(scan, "an escape without four hexadecimal digits", err);
    scan->code = scan->code << 4 | digit;
    if (--scan->hex_count > 0)
        return 0;
    if (scan->want_low != (scan->code >= 0xdc00 && scan->code <= 0xdfff))
        return bad(scan, "half a surrogate pair", err);
    scan->at = SCAN_AT_STRING;
    if (scan->code >= 0xd800 && scan->code <= 0xdbff)
        scan->at = SCAN_AT_LOW;
    scan->want_low = false;
    return 0;
}

/* ---- numbers and names ---- */

static bool is_digit(uint8_t c)
{
    return c >= '0' && c <= '9';
}

static int token_byte(struct scan *scan, uint8_t c, struct err *err);

/* Digits that may end: what does not belong to the number is read as what follows it. */
static int number_byte(struct scan *scan, uint8_t c, struct err *err)
{
    bool more_digits = scan->at != SCAN_AT_ZERO;

    if (more_digits && is_digit(c))
        return 0;
    if (c == '.' && (scan->at == SCAN_AT_ZERO || scan->at == SCAN_AT_INT)) {
        scan->at = SCAN_AT_POINT;
        return 0;
    }
    if ((c == 'e' || c == 'E') && scan->at != SCAN_AT_EXPONENT) {
        scan->at = SCAN_AT_E;
        return 0;
    }
    value_over(scan);
    return token_byte(scan, c, err);
}

static int digit_must_come(struct scan *scan, uint8_t c, struct err *err)
{
    static const enum scan_at next[] = {[SCAN_AT_MINUS] = SCAN_AT_INT,
                                        [SCAN_AT_POINT] = SCAN_AT_FRACTION,
                                        [SCAN_AT_E] = SCAN_AT_EXPONENT,
                                        [SCAN_AT_E_SIGN] = SCAN_AT_EXPONENT};

    if (scan->at == SCAN_AT_E && (c == '+' || c == '-')) {
        scan->at = SCAN_AT_E_SIGN;
        return 0;
    }
    if (!is_digit(c))
        return bad(scan, "a number without a digit where one belongs", err);
    scan->at = scan->at == SCAN_AT_MINUS && c == '0' ? SCAN_AT_ZERO : next[scan->at];
    return 0;
}

static int literal_byte(struct scan *scan, uint8_t c, struct err *err)
{
    if (c != (uint8_t)*scan->literal)
        return bad(scan, "neither true nor false nor null", err);
    if (*++scan->literal == '\0')
        value_over(scan);
    return 0;
}

/* ---- between them ---- */

static int value_byte(struct scan *scan, uint8_t c, struct err *err)
{
    static const char *const literals[] = {"true", "false", "null"};

    if (scan->depth == 0 && c != '{')
        return bad(scan, "the top level must be an object", err);
    if (c == '{' || c == '[')
        return open_level(scan, c == '{', err);
    if (c == '"') {
        string_begin(scan, false);
        return 0;
    }
    if (c == '-' || is_digit(c)) {
        scan->at = c == '-' ? SCAN_AT_MINUS : c == '0' ? SCAN_AT_ZERO : SCAN_AT_INT;
        return 0;
    }
    for (size_t i = 0; i < COUNT_OF(literals); i++) {
        if (c == (uint8_t)literals[i][0]) {
            scan->literal = literals[i] + 1;
            scan->at = SCAN_AT_LITERAL;
            return 0;
        }
    }
    return bad(scan, "a value belongs here", err);
}

static int token_byte(struct scan *scan, uint8_t c, struct err *err)
{
    if (c == ' ' || c == '\n' || c == '\r' || c == '\t')
        return 0;
    switch (scan->at) {
    case SCAN_AT_VALUE_OR_END:
        return c == ']' ? close_level(scan, c, err) : value_byte(scan, c, err);
    case SCAN_AT_VALUE:
        return value_byte(scan, c, err);
    case SCAN_AT_KEY_OR_END:
        if (c == '}')
            return close_level(scan, c, err);
        /* fall through */
    case SCAN_AT_KEY:
        if (c != '"')
            return bad(scan, "a key belongs here", err);
        string_begin(scan, true);
        return 0;
    case SCAN_AT_COLON:
        if (c != ':')
            return bad(scan, "a colon belongs here", err);
        scan->at = SCAN_AT_VALUE;
        return 0;
    case SCAN_AT_AFTER:
        if (c == '}' || c == ']')
            return close_level(scan, c, err);
        if (c != ',')
            return bad(scan, "a comma or a closing bracket belongs here", err);
        scan->at = in_object(scan) ? SCAN_AT_KEY : SCAN_AT_VALUE;
        return 0;
    default:
        return bad(scan, "something follows the object", err);
    }
}

static int scan_byte(struct scan *scan, uint8_t c, struct err *err)
{
    switch (scan->at) {
    case SCAN_AT_STRING:
        return string_byte(scan, c, err);
    case SCAN_AT_ESCAPE:
        return escape_byte(scan, c, err);
    case SCAN_AT_HEX:
        return hex_byte(scan, c, err);
    case SCAN_AT_LOW:
    case SCAN_AT_LOW_U:
        if (c != (scan->at == SCAN_AT_LOW ? '\\' : 'u'))
            return bad(scan, "half a surrogate pair", err);
        scan->want_low = true;
        scan->hex_count = 4;
        scan->code = 0;
        scan->at = scan->at == SCAN_AT_LOW ? SCAN_AT_LOW_U : SCAN_AT_HEX;
        return 0;
    case SCAN_AT_LITERAL:
        return literal_byte(scan, c, err);
    case SCAN_AT_MINUS:
    case SCAN_AT_POINT:
    case SCAN_AT_E:
    case SCAN_AT_E_SIGN:
        return digit_must_come(scan, c, err);
    case SCAN_AT_ZERO:
    case SCAN_AT_INT:
    case SCAN_AT_FRACTION:
    case SCAN_AT_EXPONENT:
        return number_byte(scan, c, err);
    default:
        return token_byte(scan, c, err);
    }
}

/* Bytes of a string's inside that need no thought: what makes large inputs large. */
static size_t plain_run(const struct scan *scan, const uint8_t *bytes, size_t size)
{
    size_t n = 0;

    if (scan->at != SCAN_AT_STRING || scan->utf8_left > 0 || scan->key_matches)
        return 0;
    while (n < size && bytes[n] >= 0x20 && bytes[n] < 0x80 && bytes[n] != '"' && bytes[n] != '\\')
        n++;
    return n;
}

int scan_feed(struct scan *scan, const void *bytes, size_t size, struct buf *input, struct err *err)
{
    const uint8_t *from = bytes;
    size_t begin = 0; /* of what goes to one of the two */

    for (size_t i = 0; i < size; i++) {
        size_t plain = plain_run(scan, from + i, size - i);
        bool opens = scan->input_next && scan->at == SCAN_AT_VALUE && from[i] == '{';
        bool was_value = scan->at == SCAN_AT_VALUE;
        int r;

        scan->position += plain;
        i += plain;
        if (i == size)
            break;
        r = scan_byte(scan, from[i], err);
        if (r < 0)
            return r;
        scan->position++;
        if (opens) {
            buf_append(&scan->envelope, from + begin, i - begin);
            buf_append_text(&scan->envelope, "{}");
            begin = i;
            scan->in_input = true;
        }
        if (was_value && scan->at != SCAN_AT_VALUE)
            scan->input_next = false;
        if (scan->in_input && scan->depth == 1) {
            buf_append(input, from + begin, i + 1 - begin);
            begin = i + 1;
            scan->in_input = false;
        }
    }
    buf_append(scan->in_input ? input : &scan->envelope, from + begin, size - begin);
    if (buf_check(&scan->envelope, "what is not model_input", err) < 0)
        return err->code;
    return buf_check(input, "model_input", err);
}

int scan_end(const struct scan *scan, struct err *err)
{
    return scan->at == SCAN_AT_END ? 0 : bad(scan, "it ends in the middle", err);
}
