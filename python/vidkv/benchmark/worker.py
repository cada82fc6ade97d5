"""python -m vidkv.benchmark.worker CELLS: lmms-eval for one cache after the other in one process, so that torch, the tasks and the model are
loaded once. CELLS: JSON, [{"arguments": of lmms-eval, "log": file for what it says, "finished": file that is there when it is done}]."""
import ctypes
import json
import os
import signal
import sys
import traceback
from pathlib import Path


def _say_into(path):
    """Standard output and error go to this file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with open(path, "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def _evaluate(arguments):
    """True if it came to an end."""
    from lmms_eval.__main__ import cli_evaluate

    sys.argv = ["lmms_eval", *arguments]
    try:
        cli_evaluate()
    except SystemExit as end:
        print(end.code, file=sys.stderr)
        return end.code in (None, 0)
    except Exception:
        traceback.print_exc()
        return False
    return True


def _end_with_parent():
    """A worker that is left alone would write beside that of the next run."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main():
    _end_with_parent()
    for cell in json.loads(Path(sys.argv[1]).read_text()):
        _say_into(cell["log"])
        if not _evaluate(cell["arguments"]):
            return 1
        Path(cell["finished"]).touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
