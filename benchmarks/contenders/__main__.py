"""The worker process of one contender: `python -m benchmarks.contenders NAME URL …`."""

import sys

from benchmarks.contenders import contender

contender(sys.argv[1]).serve(*sys.argv[2:])
