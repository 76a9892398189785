"""How a process ended, in words."""

from __future__ import annotations

import signal


def how_it_ended(exit_code: int) -> str:
    """`signal SIGKILL` or `exit code 3`; `exit_code` as `subprocess.Popen.returncode` has it.

    Most real-time signals have a number and no name.
    """
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"signal {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"signal {-exit_code}"
