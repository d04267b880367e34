# SPDX-License-Identifier: Apache-2.0
# Every library that we link, with the lowest version that we test with (Debian 12's).

find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)

pkg_check_modules(rdkafka REQUIRED IMPORTED_TARGET rdkafka>=2.0.2)
pkg_check_modules(hiredis REQUIRED IMPORTED_TARGET hiredis>=0.14)
pkg_check_modules(libpq REQUIRED IMPORTED_TARGET libpq>=15)
pkg_check_modules(msgpack REQUIRED IMPORTED_TARGET msgpack>=4.0)
pkg_check_modules(libuv REQUIRED IMPORTED_TARGET libuv>=1.44)
pkg_check_modules(microhttpd REQUIRED IMPORTED_TARGET libmicrohttpd>=0.9.75)
pkg_check_modules(gnutls REQUIRED IMPORTED_TARGET gnutls>=3.7)
pkg_check_modules(curl REQUIRED IMPORTED_TARGET libcurl>=7.88)
pkg_check_modules(jansson REQUIRED IMPORTED_TARGET jansson>=2.14)
pkg_check_modules(simdjson REQUIRED IMPORTED_TARGET simdjson>=3.0)
pkg_check_modules(openssl REQUIRED IMPORTED_TARGET openssl>=3.0)
pkg_check_modules(sodium REQUIRED IMPORTED_TARGET libsodium>=1.0.18)
pkg_check_modules(archive REQUIRED IMPORTED_TARGET libarchive>=3.6)
pkg_check_modules(utf8proc REQUIRED IMPORTED_TARGET libutf8proc>=2.6)
pkg_check_modules(smartcols REQUIRED IMPORTED_TARGET smartcols>=2.38)
pkg_check_modules(yaml REQUIRED IMPORTED_TARGET yaml-0.1>=0.2.5)
pkg_check_modules(seccomp REQUIRED IMPORTED_TARGET libseccomp>=2.5)
pkg_check_modules(expat REQUIRED IMPORTED_TARGET expat>=2.5)
find_package(prometheus-cpp CONFIG REQUIRED COMPONENTS core)

# Headers alone; its pkg-config file names only where they are.
find_path(RAPIDJSON_INCLUDE_DIR rapidjson/schema.h REQUIRED)

# jq 1.6 has no pkg-config file.
find_library(JQ_LIBRARY jq REQUIRED)
find_path(JQ_INCLUDE_DIR jq.h REQUIRED)
add_library(JQ::jq UNKNOWN IMPORTED)
set_target_properties(JQ::jq PROPERTIES IMPORTED_LOCATION ${JQ_LIBRARY}
  INTERFACE_INCLUDE_DIRECTORIES ${JQ_INCLUDE_DIR})

find_library(DNNL_LIBRARY dnnl REQUIRED)
find_path(DNNL_INCLUDE_DIR oneapi/dnnl/dnnl.h REQUIRED)
