"""Every setting of every command: its name in `sollol.toml`, in the environment and on the command line. A table.

One rule gives all three: `slots` in the table [worker] is $SOLLOL_WORKER_SLOTS and `sollol-worker --slots`. What
several commands share stands at the top of the file or in [redis] and [backend].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["text", "whole", "number", "yes/no", "list"]

# Which command each table of the file is for; the others hold for all commands.
PROGRAMS: Final = {
    "worker": "sollol-worker",
    "gateway": "sollol-gateway",
    "coordinator": "sollol-coordinator",
    "dashboard": "sollol-dashboard",
    "up": "sollol up",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    Attributes:
        section: the table of the file; "" = its top.
        kind: what its value has to be. A list may also be one text; in the environment, blanks stand between its items.
        default: in words, for people.
        is_secret: its value is never shown.
        other_env: a second name in the environment, from earlier releases.
    """

    section: str
    name: str
    kind: Kind
    default: str
    help: str
    is_secret: bool = False
    other_env: str = ""

    @property
    def key(self) -> str:
        """Its whole name, such as "worker.slots"."""
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def env(self) -> str:
        """Its name in the environment."""
        return f"SOLLOL_{self.key.replace('.', '_').upper()}"

    @property
    def names(self) -> tuple[str, ...]:
        """All its names in the environment; the first that is set counts."""
        return (self.env, self.other_env) if self.other_env else (self.env,)

    @property
    def flag(self) -> str:
        """Its name on the command line; "" = it has none there."""
        if self.key == "redis.url":
            return "--redis"
        if self.section in PROGRAMS or self.key == "insecure":
            return f"--{self.name.replace('_', '-')}"
        return ""

    @property
    def is_shared(self) -> bool:
        """Whether it holds for all commands."""
        return self.section not in PROGRAMS


SETTINGS: Final = (
    Setting("", "durability", "text", "local; ha with Sentinel and Cluster",
            "When a job and an answer count as accepted: local or ha."),
    Setting("", "payload_key_file", "text", "none",
            "Keys with which prompts and answers are encrypted."),
    Setting("", "insecure", "yes/no", "no", "Take a Redis on the network that asks for no password."),
    Setting("redis", "url", "text", "redis://127.0.0.1:6379/0", "The fabric's Redis."),
    Setting("redis", "username", "text", "none", "The user of Redis, where the URL names none."),
    Setting("redis", "password", "text", "none", "Its password; password_file is the better place.",
            is_secret=True),
    Setting("redis", "password_file", "text", "none", "A file that holds the password."),
    Setting("redis", "ca", "text", "the system's", "With TLS: the CA that signed the server's certificate."),
    Setting("redis", "cert", "text", "none", "With TLS: our own certificate."),
    Setting("redis", "key", "text", "none", "With TLS: its key."),
    Setting("backend", "api_key", "text", "none", "Sent to the LLM servers as a bearer token.", is_secret=True),
    Setting("worker", "find", "text", "no", "The announced fabric to look for: its name, default, or any."),
    Setting("worker", "backend", "list", "those found here", "LLM servers to front."),
    Setting("worker", "model", "list", "none", "GGUF files to start a llama-server for, [NAME=]FILE.gguf."),
    Setting("worker", "models_dir", "list", "none", "Directories of GGUF files for groups of nodes."),
    Setting("worker", "no_search", "yes/no", "no", "Serve nothing that is not named."),
    Setting("worker", "report_only", "yes/no", "no", "Take no jobs, only tell of the hardware."),
    Setting("worker", "ram", "whole", "all of it", "MiB of main memory that models may use."),
    Setting("worker", "vram", "whole", "all of it", "MiB of the GPUs' memory that models may use."),
    Setting("worker", "address", "text", "from which Redis is reached", "Where others of a group reach us."),
    Setting("worker", "node", "text", "the host's name", "This machine's name in the fabric."),
    Setting("worker", "elsewhere", "text", "this machine", "The host on which the backends stand."),
    Setting("worker", "slots", "whole", "as many as the backends have", "Jobs at once."),
    Setting("worker", "label", "list", "none", "Words that jobs may require."),
    Setting("worker", "lease", "number", "10", "Seconds without a sign of life until our jobs go to others."),
    Setting("worker", "drain", "number", "30", "Seconds that running jobs have to end on SIGTERM."),
    Setting("worker", "log_sample", "text", "0.1", "Share of info lines for the live log; off = no lines."),
    Setting("worker", "metrics_port", "whole", "0", "Where Prometheus reads what a worker counts; 0 = nowhere."),
    Setting("worker", "metrics_host", "text", "127.0.0.1", "The address for that port."),
    Setting("worker", "verbose", "yes/no", "no", "Say more."),
    Setting("gateway", "host", "text", "127.0.0.1", "Where to listen."),
    Setting("gateway", "port", "whole", "8000", "The port; 11434 stands in for Ollama.",
            other_env="SOLLOL_PORT"),
    Setting("gateway", "workers", "whole", "1", "Processes."),
    Setting("gateway", "api_keys", "yes/no", "no", "Ask for an API key on this machine, too."),
    Setting("gateway", "allow_host", "list", "none", "More names under which it is reached."),
    Setting("gateway", "allow_origin", "list", "none", "Sites whose pages may call."),
    Setting("gateway", "max_body_mib", "whole", "64", "MiB of one request."),
    Setting("gateway", "max_file_mib", "whole", "128", "MiB of one uploaded file."),
    Setting("gateway", "max_requests", "whole", "2048", "Requests under way at once, per process."),
    Setting("gateway", "dashboard", "text", "http://127.0.0.1:8080/", "Where /api/dashboard leads."),
    Setting("gateway", "allow_webhook_host", "list", "none",
            "Hosts that webhooks may call though they are not on the internet."),
    Setting("gateway", "webhook_secret_file", "text", "none", "A file with the secret that signs webhooks."),
    Setting("gateway", "max_documents", "whole", "10000", "Documents of one batch."),
    Setting("gateway", "log_sample", "text", "0.1", "Share of info lines for the live log; off = no lines."),
    Setting("gateway", "fabric_metrics", "yes/no", "no", "At /metrics tell of the whole fabric, too."),
    Setting("gateway", "metrics_port", "whole", "0", "Where Prometheus reads without an API key; 0 = nowhere."),
    Setting("gateway", "metrics_host", "text", "127.0.0.1", "The address for that port."),
    Setting("gateway", "verbose", "yes/no", "no", "Log each request."),
    Setting("coordinator", "lease", "number", "5", "Seconds until a silent leader is replaced."),
    Setting("coordinator", "idle", "number", "600", "Seconds until an unused group is dissolved."),
    Setting("coordinator", "context", "whole", "4096", "Tokens of context of each slot of a group."),
    Setting("coordinator", "slots", "whole", "1", "Jobs at once on a group."),
    Setting("coordinator", "metrics", "text", "127.0.0.1:9090", "Where Prometheus reads; off = nowhere."),
    Setting("coordinator", "log_sample", "text", "0.1", "Share of info lines for the live log; off = no lines."),
    Setting("coordinator", "announce", "yes/no", "no", "Tell the local network where Redis is (mDNS)."),
    Setting("coordinator", "verbose", "yes/no", "no", "Say more."),
    Setting("dashboard", "host", "text", "127.0.0.1", "Where to listen."),
    Setting("dashboard", "port", "whole", "8080", "The port."),
    Setting("dashboard", "login", "yes/no", "no", "Ask for a login on this machine, too."),
    Setting("dashboard", "password_file", "text", "none", "A file whose first line lets in, beside API keys."),
    Setting("dashboard", "password_role", "text", "operator", "What its holder may do: viewer or operator."),
    Setting("dashboard", "allow_host", "list", "none", "More names under which it is reached."),
    Setting("dashboard", "trusted_proxy", "text", "none", "A reverse proxy that is believed when it says https."),
    Setting("dashboard", "queue_age", "number", "120", "Seconds after which a queue's first job is told of."),
    Setting("dashboard", "max_browsers", "whole", "64", "Browsers kept up to date at the same time."),
    Setting("dashboard", "show_prompts", "yes/no", "no", "Let operators read what jobs were asked."),
    Setting("dashboard", "metrics_port", "whole", "0", "Where Prometheus reads without a login; 0 = nowhere."),
    Setting("dashboard", "metrics_host", "text", "127.0.0.1", "The address for that port."),
    Setting("dashboard", "verbose", "yes/no", "no", "Say more."),
    Setting("up", "port", "whole", "6379", "Port of the private Redis."),
    Setting("up", "workers", "whole", "1", "Worker agents to start."),
    Setting("up", "model", "list", "servers found here, else two small models", "Model files to serve."),
    Setting("up", "gateway_port", "whole", "8000", "Port of the gateway; 0 = none."),
    Setting("up", "dashboard_port", "whole", "8080", "Port of the monitoring page; 0 = none."),
    Setting("up", "announce", "yes/no", "no", "Let workers of the local network join; Redis gets a password."),
)  # fmt: skip

BY_KEY: Final = {each.key: each for each in SETTINGS}
# Two forms of one setting: where a stronger source gives either, a weaker one gives neither.
TWINS: Final = {"redis.password": "redis.password_file", "redis.password_file": "redis.password"}
