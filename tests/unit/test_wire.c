/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: what is encoded decodes to the same, older and newer programs understand each other, and
 * bytes that lie about themselves are refused before they cost memory. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/wire.h"

struct parcel {
    struct wire_id id;
    uint64_t number;
    bool yes;
    struct wire_text text;
    struct wire_bytes bytes;
    struct wire_u64s list;
};

static const struct wire_field fields[] = {
    {1, WIRE_KIND_ID, true, 0, offsetof(struct parcel, id), "id"},
    {2, WIRE_KIND_U64, false, 0, offsetof(struct parcel, number), "number"},
    {3, WIRE_KIND_BOOL, false, 0, offsetof(struct parcel, yes), "yes"},
    {4, WIRE_KIND_TEXT, false, 8, offsetof(struct parcel, text), "text"},
    {5, WIRE_KIND_BYTES, false, 1000, offsetof(struct parcel, bytes), "bytes"},
    {6, WIRE_KIND_U64S, false, 4, offsetof(struct parcel, list), "list"},
};

static const struct wire_type parcel_type = {
    7, 2, "parcel", fields, COUNT_OF(fields), sizeof(struct parcel)};

/* The same message as an older program knows it. */
static const struct wire_type old_type = {7, 2, "parcel", fields, 2, sizeof(struct parcel)};
static const struct wire_type older_version = {7, 1, "parcel", fields, 2, sizeof(struct parcel)};

static const struct wire_id id = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}};

static struct wire_decoder *decoder;

static int open_decoder(void **state)
{
    (void)state;
    decoder = wire_decoder_new();
    return 0;
}

static int close_decoder(void **state)
{
    (void)state;
    wire_decoder_free(&decoder);
    assert_null(decoder);
    return 0;
}

static void test_round_trip(void **state)
{
    static const uint64_t numbers[] = {0, 127, 128, UINT32_MAX, UINT64_MAX};
    static const uint64_t list[] = {1, 300, UINT64_MAX};
    uint8_t blob[1000];

    (void)state;
    for (size_t i = 0; i < sizeof(blob); i++)
        blob[i] = (uint8_t)i;
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        OWNED(buf_done) struct buf buf = BUF_WITH_LIMIT(4096);
        struct parcel in = {.id = id,
                            .number = numbers[i],
                            .yes = i % 2 == 1,
                            .text = WIRE_TEXT_OF("12345678"),
                            .bytes = {blob, i * 250},
                            .list = {list, i % 4}};
        struct parcel out;
        struct err err;
        uint32_t type;

        assert_int_equal(wire_encode(&parcel_type, &in, &buf, &err), 0);
        assert_int_equal(wire_walk(buf.bytes, buf.size, &err), 0);
        assert_int_equal(wire_peek_type(buf.bytes, buf.size, &type, &err), 0);
        assert_int_equal(type, 7);
        assert_int_equal(wire_decode(decoder, &parcel_type, buf.bytes, buf.size, &out, &err), 0);
        assert_memory_equal(out.id.bytes, id.bytes, WIRE_ID_SIZE);
        assert_int_equal(out.number, numbers[i]);
        assert_int_equal(out.yes, i % 2 == 1);
        assert_true(wire_text_equal(out.text, "12345678"));
        assert_false(wire_text_equal(out.text, "1234567"));
        assert_int_equal(out.bytes.size, i * 250);
        if (i > 0)
            assert_memory_equal(out.bytes.bytes, blob, i * 250);
        assert_int_equal(out.list.count, i % 4);
        for (size_t j = 0; j < out.list.count; j++)
            assert_int_equal(out.list.values[j], list[j]);
    }
}

static void test_empty_fields_cost_nothing(void **state)
{
    OWNED(buf_done) struct buf buf = BUF_WITH_LIMIT(4096);
    struct parcel in = {.id = id}, out;
    struct err err;

    (void)state;
    assert_int_equal(wire_encode(&parcel_type, &in, &buf, &err), 0);
    assert_int_equal(buf.size, 3 + 1 + 1 + 2 + WIRE_ID_SIZE); /* head, map, key, id */
    memset(&out, 0xff, sizeof(out));
    assert_int_equal(wire_decode(decoder, &parcel_type, buf.bytes, buf.size, &out, &err), 0);
    assert_int_equal(out.number, 0);
    assert_false(out.yes);
    assert_null(out.text.text);
    assert_int_equal(out.list.count, 0);
}

static void test_what_must_not_be_sent(void **state)
{
    static const uint64_t list[5] = {0};
    OWNED(buf_done) struct buf buf = BUF_WITH_LIMIT(4096);
    struct parcel in = {.number = 1};
    struct err err;

    (void)state;
    buf_append_text(&buf, "before");
    assert_int_equal(wire_encode(&parcel_type, &in, &buf, &err), ERR_RANGE);
    assert_non_null(strstr(err.text, "parcel.id is missing"));
    in = (struct parcel){.id = id, .text = WIRE_TEXT_OF("123456789")};
    assert_int_equal(wire_encode(&parcel_type, &in, &buf, &err), ERR_RANGE);
    assert_non_null(strstr(err.text, "parcel.text has 9, the limit is 8"));
    in = (struct parcel){.id = id, .list = {list, 5}};
    assert_int_equal(wire_encode(&parcel_type, &in, &buf, &err), ERR_RANGE);
    assert_string_equal(buf_text(&buf), "before");
}

static void test_programs_of_two_ages(void **state)
{
    OWNED(buf_done) struct buf buf = BUF_WITH_LIMIT(4096);
    struct parcel in = {.id = id, .number = 5, .yes = true, .text = WIRE_TEXT_OF("new")}, out;
    struct err err;

    (void)state;
    assert_int_equal(wire_encode(&parcel_type, &in, &buf, &err), 0);
    assert_int_equal(wire_decode(decoder, &old_type, buf.bytes, buf.size, &out, &err), 0);
    assert_int_equal(out.number, 5);
    assert_false(out.yes); /* the older one knows nothing of it */
    assert_int_equal(wire_decode(decoder, &older_version, buf.bytes, buf.size, &out, &err),
                     ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "version 2"));
}

#define BYTES(text) text, sizeof(text) - 1
static const struct {
    const char *what, *bytes;
    size_t size;
} bad_rows[] = {
    {"nothing", "", 0},
    {"no array", BYTES("\x07")},
    {"two elements", BYTES("\x92\x02\x07")},
    {"another type", BYTES("\x93\x02\x08\x80")},
    {"no map", BYTES("\x93\x02\x07\x01")},
    {"no id", BYTES("\x93\x02\x07\x80")},
    {"id of 15 bytes", BYTES("\x93\x02\x07\x81\x01\xc4\x0f"
                             "123456789012345")},
    {"number as text", BYTES("\x93\x02\x07\x82\x01\xc4\x10"
                             "1234567890123456"
                             "\x02\xa1x")},
    {"negative number", BYTES("\x93\x02\x07\x82\x01\xc4\x10"
                              "1234567890123456"
                              "\x02\xff")},
    {"text past its limit", BYTES("\x93\x02\x07\x82\x01\xc4\x10"
                                  "1234567890123456"
                                  "\x04\xa9"
                                  "123456789")},
    {"list of texts", BYTES("\x93\x02\x07\x82\x01\xc4\x10"
                            "1234567890123456"
                            "\x06\x91\xa1x")},
    {"bytes behind it", BYTES("\x93\x02\x07\x81\x01\xc4\x10"
                              "1234567890123456"
                              "\x00")},
    {"cut", BYTES("\x93\x02\x07\x81\x01\xc4\x10"
                  "123456789012345")},
    {"4 billion elements", BYTES("\xdd\xff\xff\xff\xff")},
    {"4 billion pairs", BYTES("\xdf\xff\xff\xff\xff")},
    {"4 GB of bytes", BYTES("\xc6\xff\xff\xff\xff")},
    {"the byte that starts nothing", BYTES("\x93\x02\x07\xc1")},
    {"nested without end", BYTES("\x93\x02\x07\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x00")},
};

static void test_bytes_that_lie(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(bad_rows); i++) {
        struct parcel out;
        struct err err;
        int r = wire_decode(decoder, &parcel_type, bad_rows[i].bytes, bad_rows[i].size, &out, &err);

        if (r != ERR_MALFORMED)
            fail_msg("%s: %d", bad_rows[i].what, r);
    }
}

/* Goal: no cut of a good message is taken for a message, and none is read past its end (ASan). */
static void test_every_cut_is_refused(void **state)
{
    static const uint64_t list[] = {1, 2, 3};
    OWNED(buf_done) struct buf buf = BUF_WITH_LIMIT(4096);
    struct parcel in = {.id = id,
                        .number = 70000,
                        .yes = true,
                        .text = WIRE_TEXT_OF("text"),
                        .bytes = {(const uint8_t *)"bytes", 5},
                        .list = {list, 3}};
    struct parcel out;
    struct err err;

    (void)state;
    assert_int_equal(wire_encode(&parcel_type, &in, &buf, &err), 0);
    for (size_t size = 0; size < buf.size; size++) {
        OWNED(mem_free) uint8_t *cut = xmemdup(buf.bytes, size);

        assert_int_equal(wire_decode(decoder, &parcel_type, cut, size, &out, &err), ERR_MALFORMED);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trip, open_decoder, close_decoder),
        cmocka_unit_test_setup_teardown(test_empty_fields_cost_nothing, open_decoder,
                                        close_decoder),
        cmocka_unit_test(test_what_must_not_be_sent),
        cmocka_unit_test_setup_teardown(test_programs_of_two_ages, open_decoder, close_decoder),
        cmocka_unit_test_setup_teardown(test_bytes_that_lie, open_decoder, close_decoder),
        cmocka_unit_test_setup_teardown(test_every_cut_is_refused, open_decoder, close_decoder),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
