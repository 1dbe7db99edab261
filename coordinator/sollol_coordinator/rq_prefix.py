"""Where RQ keeps its keys: inside the fabric's prefix, so that the fabric's users of Redis reach them and no others."""

from __future__ import annotations

import os
import sys

from sollol_broker.errors import SollolError
from sollol_broker.keys import Keys

_VARIABLE = "RQ_KEY_PREFIX"


def prefix(fabric: str = "") -> str:
    """What RQ's keys of a fabric begin with."""
    return f"{Keys(fabric).prefix}:rq"


def keep_rq_inside(fabric: str = "") -> None:
    """Let RQ use the fabric's own prefix in this process. RQ reads it once, so this comes before `import rq`.

    Raises:
        SollolError: RQ is imported already, with another prefix.
    """
    if "rq" in sys.modules:
        check_rq_is_inside(fabric)
    os.environ[_VARIABLE] = prefix(fabric)


def check_rq_is_inside(fabric: str = "") -> None:
    """Check that RQ uses the fabric's prefix.

    Raises:
        SollolError: it does not.
    """
    from rq.defaults import RQ_KEY_PREFIX

    if prefix(fabric) != RQ_KEY_PREFIX:
        raise SollolError(
            f"RQ keeps its keys under {RQ_KEY_PREFIX!r}, not under {prefix(fabric)!r}: call keep_rq_inside before the "
            f"first `import rq`, or set {_VARIABLE}"
        )
