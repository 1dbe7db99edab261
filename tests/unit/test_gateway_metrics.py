"""What the processes of one gateway count together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from prometheus_client.mmap_dict import MmapedDict, mmap_key

from sollol_client.gateway.metrics import OfAllProcesses


def test_requests_of_a_process_that_died_are_not_under_way_any_more(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (os.getpid(), dead.pid):
        values: Any = MmapedDict(str(tmp_path / f"gauge_livesum_{pid}.db"))  # type: ignore[no-untyped-call]
        values.write_value(mmap_key("in_flight", "in_flight", [], [], "Requests."), 2.0, 0.0)
        values.close()
    told = {
        family.name: [sample.value for sample in family.samples]
        for family in OfAllProcesses(tmp_path).collect()
    }
    assert told == {"in_flight": [2.0]}
