/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: what a record says is what its binding's mapping makes of it, and what cannot be is refused
 * by name. Method: rows of mapping, value and expectation; records of librdkafka's cluster inside
 * the process are not needed, since headers without an origin are none. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <librdkafka/rdkafka.h>

#include "producers/ingest_map.h"

#define BYTES(text) text, sizeof(text) - 1

static const struct {
    const char *format, *mapping, *value;
    size_t size;
    const char *input; /* NULL: refused… */
    const char *words; /* …with these */
    const char *key;
    int priority;
} rows[] = {
    {"json", "{}", BYTES("{\"a\": [1, 2.50]}"), "{\"a\": [1, 2.50]}", NULL, NULL, -1},
    {"json", "{}", BYTES("7"), "7", NULL, NULL, -1},
    {"json", "{}", BYTES("{\"a\": "), NULL, "JSON", NULL, -1},
    {"json", "{}", BYTES(""), NULL, "JSON", NULL, -1},
    {"json", "{}", BYTES("\0\0\0\0\1\2\3"), NULL, "Avro", NULL, -1},
    {"json", "{}", NULL, 0, NULL, "tombstone", NULL, -1},
    {"json",
     "{\"input\": {\"t\": \"{{input.value.x}}\", \"k\": \"{{input.key}}\", \"at\": "
     "\"{{input.topic}}/{{input.partition}}/{{input.offset}}\"}}",
     BYTES("{\"x\": true}"), "{\"t\":true,\"k\":\"key\",\"at\":\"topic/3/42\"}", NULL, NULL, -1},
    {"json", "{\"input\": \"{{input.value.y}}\"}", BYTES("{\"x\": 1}"), NULL, "input.value.y", NULL,
     -1},
    {"json", "{\"key\": \"{{input.value.id}}\"}", BYTES("{\"id\":12}"), "{\"id\":12}", NULL, "12",
     -1},
    {"json", "{\"key\": \"{{input.value.id?}}\"}", BYTES("{}"), "{}", NULL, NULL, -1},
    {"json", "{\"key\": \"{{input.value.id}}\"}", BYTES("{\"id\":[]}"), NULL, "its key must be",
     NULL, -1},
    {"json", "{\"priority\": \"{{input.value}}\"}", BYTES("2"), "2", NULL, NULL, 2},
    {"json", "{\"priority\": \"{{input.value}}\"}", BYTES("3"), NULL, "priority is '3'", NULL, -1},
    {"json", "{\"key\": \"{{input.value}}\"}", BYTES("99999999999999999999"), NULL, "big", NULL,
     -1},
    {"msgpack", "{}",
     BYTES("\x82\xa1"
           "a\x93\x01\xcb\x3f\xf8\0\0\0\0\0\0\xc0\xa1"
           "b\xc4\x02\xff\x00"),
     "{\"a\":[1,1.5,null],\"b\":\"/wA=\"}", NULL, NULL, -1},
    {"msgpack", "{}", BYTES("\xc1"), NULL, "", NULL, -1},
    {"msgpack", "{}", BYTES("\x81\x01\x02"), NULL, "a key that is no text", NULL, -1},
    {"msgpack", "{}", BYTES("\xd4\x01\x02"), NULL, "extension", NULL, -1},
    {"msgpack", "{}", BYTES("\xcf\xff\xff\xff\xff\xff\xff\xff\xff"), NULL, "18446744073709551615",
     NULL, -1},
    {"msgpack", "{}", BYTES("\xa1\xff"), NULL, "no UTF-8", NULL, -1},
    {"msgpack", "{}", BYTES("\xdd\xff\xff\xff\xff"), NULL, "", NULL, -1},
    {"msgpack", "{}", BYTES("\x01\x02"), NULL, "", NULL, -1},
};

static void test_records_are_what_their_mapping_says(void **state)
{
    struct ingest_mapper *mapper = ingest_mapper_new();

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const struct queue_record from = {.offset = 42,
                                          .key = "key",
                                          .key_size = 3,
                                          .bytes = rows[i].value,
                                          .size = rows[i].size};
        struct ingest_mapping *mapping = NULL;
        struct ingest_record made;
        struct err err;

        if (ingest_mapping_parse(rows[i].format, rows[i].mapping, &mapping, &err) < 0)
            fail_msg("row %zu: %s", i, err.text);
        ingest_map_record(mapper, mapping, "topic", 3, &from, false, &made);
        if (rows[i].input == NULL) {
            if (made.reason == NULL || strstr(made.reason, rows[i].words) == NULL)
                fail_msg("row %zu: refused for '%s', not '%s'", i, made.reason, rows[i].words);
            assert_null(made.input);
            assert_int_equal(made.value_size, rows[i].size);
            assert_int_equal(made.key_size, 3);
        } else {
            if (made.reason != NULL)
                fail_msg("row %zu: %s", i, made.reason);
            assert_int_equal(made.input_size, strlen(rows[i].input));
            assert_memory_equal(made.input, rows[i].input, made.input_size);
            assert_int_equal(made.priority, rows[i].priority);
            assert_int_equal(rows[i].key == NULL, made.dedupe == NULL);
            if (rows[i].key != NULL)
                assert_string_equal(made.dedupe, rows[i].key);
        }
        ingest_record_done(&made);
        ingest_mapping_free(&mapping);
    }
    ingest_mapper_free(&mapper);
}

static void test_bad_mappings_have_names(void **state)
{
    static const struct {
        const char *format, *mapping, *words;
        int code;
    } bad[] = {
        {"avro", "{}", "Avro", ERR_UNSUPPORTED},
        {"xml", "{}", "'xml'", ERR_RANGE},
        {"json", "[]", "no JSON object", ERR_MALFORMED},
        {"json", "{", "no JSON object", ERR_MALFORMED},
        {"json", "{\"inputs\": 1}", "'inputs'", ERR_MALFORMED},
        {"json", "{\"key\": 1}", "mapping.key must be a text", ERR_MALFORMED},
        {"json", "{\"input\": \"{{steps.a.output}}\"}", "", ERR_MALFORMED},
        {"json", "{\"input\": \"{{input\"}", "{{", ERR_MALFORMED},
        {"json", "{\"input\": [{\"a\": \"${ .x }\"}]}", "jq", ERR_UNSUPPORTED},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        struct ingest_mapping *mapping = NULL;
        struct err err;

        assert_int_equal(ingest_mapping_parse(bad[i].format, bad[i].mapping, &mapping, &err),
                         bad[i].code);
        if (strstr(err.text, bad[i].words) == NULL)
            fail_msg("row %zu: '%s' does not say '%s'", i, err.text, bad[i].words);
    }
}

static void test_headers_come_back_as_they_were(void **state)
{
    const struct queue_header headers[] = {
        {"a", "1", 1}, {"", "", 0}, {"none", NULL, 0}, {"b", "\0x", 2}};
    struct buf packed = BUF_WITH_LIMIT(2 * INGEST_HEADERS_SIZE_MAX);
    struct queue_header back[8];

    (void)state;
    ingest_headers_pack(headers, COUNT_OF(headers), &packed);
    assert_int_equal(
        ingest_headers_unpack((struct wire_bytes){packed.bytes, packed.size}, back, COUNT_OF(back)),
        4);
    for (size_t i = 0; i < COUNT_OF(headers); i++) {
        assert_string_equal(back[i].name, headers[i].name);
        assert_int_equal(back[i].size, headers[i].size);
        assert_int_equal(back[i].value == NULL, headers[i].value == NULL);
    }
    assert_memory_equal(back[3].value, "\0x", 2);
    for (size_t cut = 0; cut < packed.size; cut++) { /* never beyond what is there */
        uint8_t *copy = xmemdup(packed.bytes, cut > 0 ? cut : 1);

        assert_true(ingest_headers_unpack((struct wire_bytes){copy, cut}, back, COUNT_OF(back)) <
                    4);
        free(copy);
    }
    buf_done(&packed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_records_are_what_their_mapping_says),
        cmocka_unit_test(test_bad_mappings_have_names),
        cmocka_unit_test(test_headers_come_back_as_they_were),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
