# SPDX-License-Identifier: Apache-2.0
# cmake -DFILE=… -DNAME=… -DHEADER=… -DOUTPUT=… -P: writes a C file with a file's text, `const char *const NAME`, which
# HEADER declares.

file(READ ${FILE} hex HEX)
string(REGEX REPLACE "(..)" "0x\\1," bytes "${hex}")
get_filename_component(name ${FILE} NAME)
file(WRITE ${OUTPUT}.new "/* Made by cmake/embed_text.cmake from ${name}. */
#include \"${HEADER}\"

static const unsigned char text[] = {${bytes}0};
const char *const ${NAME} = (const char *)text;
")
file(RENAME ${OUTPUT}.new ${OUTPUT})
