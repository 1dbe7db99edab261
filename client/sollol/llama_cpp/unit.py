"""The systemd unit `llama-rpc@PORT.service`: an rpc-server on loopback that comes up with the machine.

Groups do not need it, since workers start fresh ones; it is for those who run llama-server by hand.
"""

from __future__ import annotations

import grp
from pathlib import Path

from sollol_worker_agent.llama_binaries import LlamaBinary

NAME = "llama-rpc@.service"
DIRECTORY = Path("/etc/systemd/system")
# Who may use GPUs; a group that the system does not have would keep the unit from starting.
_GPU_GROUPS = ("render", "video")

_TEMPLATE = """\
# Written by `sollol setup-llama-cpp --systemd`. Start one with: systemctl enable --now llama-rpc@50052
[Unit]
Description=llama.cpp rpc-server on 127.0.0.1:%i
Documentation=https://github.com/ggml-org/llama.cpp/tree/master/tools/rpc
After=network.target

[Service]
# Whoever reaches it may read and write its memory: it listens on loopback, and nowhere else.
ExecStart="{program}" -H 127.0.0.1 -p %i -c
Environment=GGML_NO_BACKTRACE=1 LLAMA_CACHE=%C/llama-rpc
{environment}Restart=on-failure
RestartSec=2
DynamicUser=yes
{groups}CacheDirectory=llama-rpc
IPAddressDeny=any
IPAddressAllow=localhost
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
CapabilityBoundingSet=
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=tmpfs
{home}PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictNamespaces=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def unit_text(rpc_server: LlamaBinary) -> str:
    """The unit for this rpc-server."""
    program = rpc_server.path.resolve()
    known = {each.gr_name for each in grp.getgrall()}
    groups = " ".join(name for name in _GPU_GROUPS if name in known)
    environment = "".join(f'Environment="{name}={value}"\n' for name, value in rpc_server.environment.items())
    # Homes are hidden; the program may lie in one.
    is_at_home = program.is_relative_to("/home") or program.is_relative_to("/root")
    return _TEMPLATE.format(
        program=program,
        environment=environment,
        groups=f"SupplementaryGroups={groups}\n" if groups else "",
        home=f"BindReadOnlyPaths={program.parent}\n" if is_at_home else "",
    )
