# SPDX-License-Identifier: Apache-2.0
# Flags that every target of ours gets: strict warnings, sanitizers, hardening.

add_library(headrace_flags INTERFACE)
target_include_directories(headrace_flags INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_definitions(headrace_flags INTERFACE _GNU_SOURCE HEADRACE_VERSION="${PROJECT_VERSION}")
target_compile_options(headrace_flags INTERFACE
  $<$<COMPILE_LANGUAGE:C,CXX>:-Wall -Wextra -Wshadow -Wconversion -Wvla -Wformat=2 -Wundef -Werror>
  $<$<COMPILE_LANGUAGE:C,CXX>:-fno-omit-frame-pointer>
  $<$<COMPILE_LANGUAGE:C>:-Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition>
  $<$<COMPILE_LANGUAGE:CXX>:-Wno-conversion>
  # nvcc makes C++ of its own out of ours, which -Wextra of gcc finds fault with.
  $<$<COMPILE_LANGUAGE:CUDA>:--Werror=all-warnings -Xcompiler=-Wall,-Werror,-fno-omit-frame-pointer>
  $<$<AND:$<COMPILE_LANGUAGE:C,CXX>,$<CONFIG:Release,RelWithDebInfo>>:-fstack-protector-strong>)

if(HEADRACE_SANITIZE)
  target_compile_options(headrace_flags INTERFACE
    $<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${HEADRACE_SANITIZE}>
    $<$<COMPILE_LANGUAGE:C,CXX>:-fno-sanitize-recover=all>
    # Instrumented code hides from gcc what it could prove of the plain one.
    $<$<AND:$<COMPILE_LANGUAGE:C,CXX>,$<C_COMPILER_ID:GNU>>:-Wno-maybe-uninitialized>)
  target_link_options(headrace_flags INTERFACE -fsanitize=${HEADRACE_SANITIZE})
  # For the few places that a sanitizer changes: gcc's __SANITIZE_ADDRESS__ is unknown to clang 14.
  if(HEADRACE_SANITIZE STREQUAL "thread")
    target_compile_definitions(headrace_flags INTERFACE HEADRACE_WITH_TSAN)
  else()
    target_compile_definitions(headrace_flags INTERFACE HEADRACE_WITH_ASAN)
  endif()
endif()
if(HEADRACE_FUZZ)
  target_compile_options(headrace_flags INTERFACE $<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=fuzzer-no-link>)
endif()

# headrace_library(NAME FOLDER_LIBRARIES…): the static library of one folder, from its *.c files.
function(headrace_library name)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.c ${CMAKE_CURRENT_SOURCE_DIR}/*.cc)
  if(NOT sources)
    add_library(${name} INTERFACE)
    target_link_libraries(${name} INTERFACE headrace_flags ${ARGN})
    return()
  endif()
  add_library(${name} STATIC ${sources})
  target_link_libraries(${name} PUBLIC headrace_flags ${ARGN})
endfunction()

# The sanitizer must see librdkafka's threads begin and lock: tests/lib/tsan_threads.c says why.
if(HEADRACE_SANITIZE STREQUAL "thread")
  add_library(tsan_threads OBJECT ${CMAKE_SOURCE_DIR}/tests/lib/tsan_threads.c)
  target_compile_options(tsan_threads PRIVATE -fsanitize=thread)
  target_link_libraries(headrace_flags INTERFACE $<TARGET_OBJECTS:tsan_threads>)
endif()
