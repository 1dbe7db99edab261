"""What a node knows about its own hardware: GPUs of every make, CPU, load and RAM."""

from sollol_worker_agent.hardware.limits import Limits
from sollol_worker_agent.hardware.nvidia import NvidiaReader
from sollol_worker_agent.hardware.reader import HardwareReader
from sollol_worker_agent.hardware.readings import Gpu, Hardware

__all__ = ["Gpu", "Hardware", "HardwareReader", "Limits", "NvidiaReader"]
