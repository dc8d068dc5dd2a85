"""Several processes of one run, as torchrun starts them: the first reports for all."""

from __future__ import annotations

import datetime
import os
import sys

KEY = "pytest-bncheck/reported"
TIMEOUT = datetime.timedelta(seconds=60)


def is_first() -> bool:
    """Whether this process is the one that reports."""
    return not _are_several() or os.environ.get("RANK") in (None, "", "0")


def note() -> str | None:
    """Why this process is silent; None if it is the one that reports."""
    if is_first():
        return None
    return "bncheck: RANK and WORLD_SIZE say that this is not the first process, which reports."


def wait_for_first() -> None:
    """Wait until the first process has reported: torchrun ends all of them when one fails."""
    distributed = sys.modules.get("torch.distributed")
    shared_store = (
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    )  # outlives the processes
    if distributed is None or not _are_several() or not shared_store:
        return
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = distributed.TCPStore(host, port, is_master=False, timeout=TIMEOUT)
        if is_first():
            store.set(KEY, "yes")
        else:
            store.wait([KEY], TIMEOUT)
    except RuntimeError:
        return  # the first never came, or torchrun is gone


def _are_several() -> bool:
    return os.environ.get("WORLD_SIZE") not in (None, "", "1")
