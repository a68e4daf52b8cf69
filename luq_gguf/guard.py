"""The program `luq-gguf` as users start it: runs the commands in a child process and reports how that ended.

Whatever takes the child down (an assertion of llama.cpp, the kernel for want of memory) ends in one line
here, and Ctrl-C stops within two seconds even in the middle of a long computation. The child ends with
this process, however that ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import NoReturn

from luq_gguf.children import child_environment

INTERRUPTED = 130
FAILED = 101
"""The child's exit code where it said itself what failed; 1 is that of libraries that give up without our word."""
GAVE_UP = {1, INTERRUPTED}
"""Where nobody interrupted: OpenBLAS interrupts its own process when it gets no threads."""
PATIENCE = 1.0
"""Seconds that an interrupted child may take to say what it keeps."""
OWNER = "LUQ_GGUF_OWNER"
"""Tells the child the file descriptor that closes when its owner ends."""
KEPT = "what was finished is kept, the same command goes on from there"


def main() -> NoReturn:
    """Run the commands with this process' arguments in a child and exit with its code, 1 where it was killed."""
    sys.exit(supervise([sys.executable, "-P", "-m", "luq_gguf.guard", *sys.argv[1:]]))


def supervise(command: list[str]) -> int:
    """Run a command to its end, or until Ctrl-C; returns the exit code of the program."""
    process = None
    try:
        watched, _ = os.pipe()  # the other end closes with this process
        process = subprocess.Popen(command, pass_fds=[watched], env={**child_environment(), OWNER: str(watched)})
        os.close(watched)
        signal.signal(signal.SIGTERM, lambda *_: _terminated(process))
        code = process.wait()
    except KeyboardInterrupt:
        code = INTERRUPTED if process is None else _interrupt(process)
        if code == INTERRUPTED:
            _say(f"interrupted; {KEPT}")
            return code
    if code == FAILED:
        return 1
    return _report(code) if code in GAVE_UP or code < 0 else code


def _interrupt(process: subprocess.Popen[bytes]) -> int:
    """Let the child end by itself; kill it where a computation keeps it from that. It may have been done already."""
    try:
        process.send_signal(signal.SIGINT)
        code = process.wait(PATIENCE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()
        return INTERRUPTED
    return INTERRUPTED if code < 0 else code


def _terminated(process: subprocess.Popen[bytes]) -> NoReturn:
    process.kill()
    os._exit(128 + signal.SIGTERM)


def _report(code: int) -> int:
    """One line on a child that a library or a signal ended."""
    name = signal.Signals(-code).name if code < 0 else ""
    if code > 0:
        _say(f"a library ended the process, most often for want of memory or threads; {KEPT}")
    elif code == -signal.SIGKILL:
        _say(
            f"the process was killed from outside ({name}), most often for want of memory; close other programs or "
            f"calibrate with fewer --samples; {KEPT}"
        )
    else:
        _say(
            f"the process crashed ({name}), in a library or for want of memory; {KEPT}; if it crashes there again, "
            "report the command and what stands above"
        )
    return 1


def _say(text: str) -> None:
    print(f"luq-gguf: {text}", file=sys.stderr)  # noqa: T201


def _serve() -> NoReturn:
    """The child: end as soon as the owner does, and take one Ctrl-C, not its echo from the terminal too."""
    signal.signal(signal.SIGINT, _interrupt_once)
    threading.Thread(target=_watch, args=(int(os.environ.pop(OWNER)),), daemon=True).start()
    try:
        from luq_gguf.cli import main as run_command

        run_command(sys.argv[1:])
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    except SystemExit as ended:
        sys.exit(FAILED if ended.code == 1 else ended.code)
    except ModuleNotFoundError as error:
        if "--debug" in sys.argv:
            raise
        _say(f"a library is missing: {error}; install luq_gguf again")
        os._exit(FAILED)
    except BaseException:  # the commands tell their own errors: these could not even be loaded
        if "--debug" in sys.argv:
            raise
        os._exit(1)


def _watch(watched: int) -> None:
    os.read(watched, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def _interrupt_once(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    _serve()
