"""Names for the PCI ids of GPUs that are seen beside LLM servers.

Only to be read by people: no rule looks at a name from here. A GPU that is missing is shown by its id.
"""

from __future__ import annotations

_NAMES = {
    # One id often stands for a family of cards, which differ by a revision number.
    ("1002", "738c"): "AMD Instinct MI100",
    ("1002", "740c"): "AMD Instinct MI250/MI250X",
    ("1002", "740f"): "AMD Instinct MI210",
    ("1002", "74a1"): "AMD Instinct MI300X",
    ("1002", "73bf"): "AMD Radeon RX 6800/6900 series",
    ("1002", "73df"): "AMD Radeon RX 6700 series",
    ("1002", "744c"): "AMD Radeon RX 7900 series",
    ("1002", "747e"): "AMD Radeon RX 7700/7800 series",
    ("1002", "7480"): "AMD Radeon RX 7600 series",
    ("1002", "7550"): "AMD Radeon RX 9070 series",
    ("1002", "150e"): "AMD Radeon 880M/890M",
    ("1002", "1586"): "AMD Radeon 8050S/8060S",
    ("1002", "15bf"): "AMD Radeon 740M/760M/780M",
    ("1002", "1638"): "AMD Radeon Vega (Cezanne)",
    ("1002", "1681"): "AMD Radeon 660M/680M",
    ("8086", "56a0"): "Intel Arc A770",
    ("8086", "56a1"): "Intel Arc A750",
    ("8086", "56a5"): "Intel Arc A380",
    ("8086", "56a6"): "Intel Arc A310",
    ("8086", "e20b"): "Intel Arc B580",
    ("8086", "e20c"): "Intel Arc B570",
    ("8086", "46a6"): "Intel Iris Xe (Alder Lake)",
    ("8086", "a780"): "Intel UHD Graphics 770",
}
_VENDORS = {"1002": "AMD", "8086": "Intel"}


def gpu_name(pci_id: str) -> str:
    """A name for "1002:744C" as uevent files write it; "AMD GPU 1002:744c" when it is not known."""
    vendor, _, device = pci_id.lower().partition(":")
    maker = _VENDORS.get(vendor, "")
    return _NAMES.get((vendor, device)) or f"{maker} GPU {pci_id.lower()}".strip()
