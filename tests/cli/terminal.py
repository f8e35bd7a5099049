"""A terminal: what a program shows there, by the few control sequences that rich uses; as a script, a program in one.

python terminal.py MODULE ARGUMENTS...   prints, raw, what `python -m MODULE ARGUMENTS...` writes to its terminal
"""

import os
import pty
import re
import runpy
import sys
import termios

from polydistill.cli.say import console

SEQUENCE = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|\x1b\][^\x07]*\x07")


def shown(raw: str) -> list[str]:
    """Lines of the screen, and those that were scrolled away."""
    lines, row, column, place = [""], 0, 0, 0
    while place < len(raw):
        if found := SEQUENCE.match(raw, place):
            place = found.end()
            number, what = int(found[1]) if (found[1] or "").isdigit() else 1, found[2]
            if what == "A":
                row = max(0, row - number)
            elif what == "K":
                lines[row] = "" if found[1] == "2" else lines[row][:column]
            continue
        letter, place = raw[place], place + 1
        if letter == "\r":
            column = 0
        elif letter == "\n":
            row, column, lines = row + 1, 0, [*lines, ""] if row + 1 == len(lines) else lines
        else:
            lines[row] = lines[row].ljust(column)[:column] + letter + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


if __name__ == "__main__":
    pid, terminal = pty.fork()
    if not pid:
        termios.tcsetwinsize(0, (40, 120))
        console.__init__()  # as the import makes it, here where there is a terminal
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        sys.exit(0)
    try:
        while said := os.read(terminal, 1 << 16):
            sys.stdout.buffer.write(said)
    except OSError:  # the program has ended
        pass
    sys.stdout.flush()
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
