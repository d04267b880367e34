# SPDX-License-Identifier: Apache-2.0
# Each test_*.c here is one CTest test that gets a Postgres server of its own: tests/lib/postgres.sh.

file(GLOB c_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/test_*.c)
foreach(test IN LISTS c_tests)
  get_filename_component(name ${test} NAME_WE)
  add_executable(${name} ${test})
  target_link_libraries(${name} PRIVATE headrace_migrations headrace_brokers PkgConfig::cmocka)
  add_test(NAME stack.${name}
    COMMAND ${CMAKE_SOURCE_DIR}/tests/lib/postgres.sh $<TARGET_FILE:${name}>)
  set_tests_properties(stack.${name} PROPERTIES LABELS stack TIMEOUT 300
    WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
endforeach()
