/* SPDX-License-Identifier: Apache-2.0 */

/*
 * headrace completion SHELL: prints a script that completes commands, actions and flags.
 *
 *     source <(headrace completion bash)
 *
 * Commands come from the table. Actions and flags are asked for at completion time, from --help
 * itself, so that the script never goes stale.
 */

#include <stdio.h>
#include <string.h>

int completion_main(int argc, char **argv);

static const char *const names[] = {
#define COMMAND(name, function, section, help) name,
#include "cli/commands.def"
#undef COMMAND
};

static const char bash_head[] =
    "# headrace: completion for bash; source <(headrace completion bash)\n"
    "_headrace() {\n"
    "  local cur=${COMP_WORDS[COMP_CWORD]} words\n"
    "  if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
    "    words='";
static const char bash_tail[] =
    " help --help --version'\n"
    "  else\n"
    "    local n; for n in 2 1; do\n"
    "      words=$(headrace \"${COMP_WORDS[@]:1:$n}\" --help 2>/dev/null |\n"
    "        grep -oE \"^  (--[a-z-]+|${COMP_WORDS[1]} [a-z]+)\" |\n"
    "        sed -E \"s/^  (${COMP_WORDS[1]} )?//\")\n"
    "      [ -n \"$words\" ] && break\n"
    "    done\n"
    "  fi\n"
    "  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
    "  [ ${#COMPREPLY[@]} -eq 0 ] && COMPREPLY=($(compgen -f -- \"$cur\"))\n"
    "}\n"
    "complete -o filenames -F _headrace headrace\n";

int completion_main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "zsh") == 0) {
        (void)fputs("autoload -U +X bashcompinit && bashcompinit\n", stdout);
    } else if (argc != 2 || strcmp(argv[1], "bash") != 0) {
        (void)fputs("usage: headrace completion bash|zsh\n"
                    "Prints a completion script: source <(headrace completion bash)\n",
                    argc == 2 && strcmp(argv[1], "--help") == 0 ? stdout : stderr);
        return argc == 2 && strcmp(argv[1], "--help") == 0 ? 0 : 1;
    }
    (void)fputs(bash_head, stdout);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        (void)printf("%s%s", i > 0 ? " " : "", names[i]);
    (void)fputs(bash_tail, stdout);
    return 0;
}
