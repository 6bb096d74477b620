"""Mount an image, send its server a signal, print the server's exit code.

A program of its own, because servers outlive the command that starts them: it becomes their new parent
(PR_SET_CHILD_SUBREAPER), which the test run itself must not be.  Arguments: image, signal number.
"""

import ctypes
import json
import os
import subprocess
import sys

from support_real.commands import FUSESTORE

_PR_SET_CHILD_SUBREAPER = 36


def main(image, number):
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    subprocess.run([*FUSESTORE, "mount", image], stdout=subprocess.DEVNULL, check=True)
    (mount,) = json.loads(subprocess.check_output([*FUSESTORE, "mount", "--format", "json"]))
    os.kill(mount["Pid"], number)
    print(os.waitstatus_to_exitcode(os.waitpid(mount["Pid"], 0)[1]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
