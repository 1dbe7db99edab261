"""The command line: `python -m benchmarks [names…] [--json FILE] [--share 0.1]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from .contenders import MissingContender
from .facts import machine_facts
from .report import Outcome


def main() -> int:
    """Run the benchmarks that were named, all by default; 1 when an aim was missed."""
    benchmarks = _benchmarks()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(benchmarks)}; default: all")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the results there as well; - prints them"
    )
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the usual number of jobs, e.g. 0.1 for a quick look"
    )
    options = parser.parse_args()
    if unknown := set(options.names) - benchmarks.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(benchmarks)}")
    facts = machine_facts()
    say = sys.stderr if str(options.json) == "-" else sys.stdout
    print("; ".join(f"{name} {value}" for name, value in facts.items()), file=say)
    outcomes = []
    for name in options.names or benchmarks:
        outcome = benchmarks[name](options.share)
        outcomes.append(outcome)
        print("", *outcome.tables, *outcome.notes, sep="\n", file=say, flush=True)
    aims = [aim for outcome in outcomes for aim in outcome.aims]
    print("\nAims", *aims, sep="\n", file=say)
    if options.json:
        text = json.dumps(
            {"machine": facts, "outcomes": [outcome.as_dict() for outcome in outcomes]}, indent=2
        )
        print(text) if str(options.json) == "-" else options.json.write_text(text + "\n")
    return 0 if all(aim.is_reached for aim in aims) else 1


def _benchmarks() -> dict[str, Callable[[float], Outcome]]:
    from . import (
        batch,
        commands,
        drain,
        explained,
        gateway,
        latency,
        llama,
        observed,
        rpc,
        scale,
        submits,
        takeover,
        unequal,
    )

    return {
        "latency": latency.run,
        "drain": drain.run,
        "submits": submits.run,
        "commands": commands.run,
        "explain": explained.run,
        "observed": observed.run,
        "scale": scale.run,
        "unequal": unequal.run,
        "llama": llama.run,
        "takeover": takeover.run,
        "batch": batch.run,
        "gateway": gateway.run,
        "rpc": rpc.run,
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MissingContender as error:
        sys.exit(str(error))
