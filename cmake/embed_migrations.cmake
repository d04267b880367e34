# SPDX-License-Identifier: Apache-2.0
# cmake -DFOLDER=… -DOUTPUT=… -P: writes a C file with the text of each NNNN_name.sql, in order.

file(GLOB files ${FOLDER}/[0-9][0-9][0-9][0-9]_*.sql)
list(SORT files)
set(texts "")
set(rows "")
set(count 0)
foreach(file IN LISTS files)
  get_filename_component(name ${file} NAME_WE)
  string(SUBSTRING ${name} 0 4 number)
  string(SUBSTRING ${name} 5 -1 short)
  math(EXPR count "${count} + 1")
  math(EXPR wanted "${count}")
  string(REGEX REPLACE "^0+" "" plain ${number})
  if(NOT plain EQUAL wanted)
    message(FATAL_ERROR "${file}: number ${number}, but it is file ${count}: numbers have no gaps")
  endif()
  file(READ ${file} hex HEX)
  string(REGEX REPLACE "(..)" "0x\\1," bytes "${hex}")
  string(APPEND texts "static const unsigned char text_${number}[] = {${bytes}0};\n")
  string(APPEND rows "    {${plain}, \"${short}\", (const char *)text_${number}},\n")
endforeach()
file(WRITE ${OUTPUT}.new "/* Made by cmake/embed_migrations.cmake from migrations/. */
#include \"migrations/migrate.h\"

${texts}
const struct migration migrations[] = {
${rows}};
const size_t migration_count = sizeof(migrations) / sizeof(migrations[0]);
")
file(RENAME ${OUTPUT}.new ${OUTPUT})
