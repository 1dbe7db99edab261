"""Every Redis key there is: one short function each, with its type and lifetime.

All keys of a fabric share one hash tag, so they lie in one slot of a Redis Cluster. `lua/_keys.lua`
is the twin of this file for the functions; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass

from .names import check_name, key_part


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one fabric.

    Args:
        fabric: the fabric's name; several may share one Redis. Empty for the default one.
    """

    fabric: str = ""

    @property
    def prefix(self) -> str:
        """What each key begins with: "{sollol}" or "{sollol:NAME}"."""
        if not self.fabric:
            return "{sollol}"
        return "{sollol:" + key_part(check_name(self.fabric, "fabric")) + "}"

    def job(self, job_id: str) -> str:
        """Hash: state, fence, times, counters; no prompt. Lives while the job does, then its result TTL."""
        return f"{self.prefix}:job:{job_id}"

    def blob(self, job_id: str) -> str:
        """Hash: the job's body: `env`, its envelope, and its pictures by number. Deleted at the job's end, or kept
        with a job that may be tried again.
        """
        return f"{self.prefix}:blob:{job_id}"

    def events(self, job_id: str) -> str:
        """Stream: what the job's followers read. Lives like the job."""
        return f"{self.prefix}:events:{job_id}"

    def queue(self, model_key: str) -> str:
        """Zset: waiting jobs of a model by rank. Vanishes when empty."""
        return f"{self.prefix}:queue:{model_key}"

    def idle(self, model_key: str) -> str:
        """Zset: workers waiting for this model, by what they would cost in ms. TTL 60 s."""
        return f"{self.prefix}:idle:{model_key}"

    def serves(self, model_key: str) -> str:
        """Zset: workers that serve this model, by when their advert runs out (ms). TTL of the advert."""
        return f"{self.prefix}:serves:{model_key}"

    def inbox(self, who: str) -> str:
        """Stream: everything that one process waits for. TTL, renewed by its owner."""
        return f"{self.prefix}:inbox:{who}"

    def worker(self, worker_id: str) -> str:
        """Hash: a worker's advert. TTL, renewed by each advert."""
        return f"{self.prefix}:worker:{worker_id}"

    def node(self, node: str) -> str:
        """Hash: a machine's hardware and load. TTL, renewed by each advert."""
        return f"{self.prefix}:node:{key_part(node)}"

    def app(self, app: str) -> str:
        """Hash: an application that uses the fabric. TTL, renewed while a client of it lives."""
        return f"{self.prefix}:app:{key_part(app)}"

    def tally(self, node: str) -> str:
        """Hash: what a node has finished: counts and sums. TTL 7 d after the last job."""
        return f"{self.prefix}:tally:{key_part(node)}"

    def armed(self, model_key: str) -> str:
        """Zset: workers that would help once so many jobs wait for this model. TTL 60 s."""
        return f"{self.prefix}:armed:{model_key}"

    def hosts(self, model_key: str) -> str:
        """Zset: key parts of the nodes that serve a model, by when their advert runs out (ms). TTL of the advert."""
        return f"{self.prefix}:hosts:{model_key}"

    def shares(self, model_key: str) -> str:
        """Hash: what each worker adds to a model's capacity (`claim_rule.Share`). TTL of the advert."""
        return f"{self.prefix}:shares:{model_key}"

    def classes(self, model_key: str) -> str:
        """String (msgpack): sums of the shares by class, and of workers by context. TTL of the advert."""
        return f"{self.prefix}:classes:{model_key}"

    def fair(self, model_key: str) -> str:
        """Hash: virtual time and tags of a queue's applications. Vanishes with its last unfinished job."""
        return f"{self.prefix}:fair:{model_key}"

    def learned(self, model_key: str) -> str:
        """Hash: characters per token, and usual lengths of answers. TTL 30 d after the last job."""
        return f"{self.prefix}:learned:{model_key}"

    def late(self, model_key: str) -> str:
        """Hash: histogram of real to predicted run times, for hedging. TTL 30 d after the last job."""
        return f"{self.prefix}:late:{model_key}"

    def cached(self, model_key: str) -> str:
        """Zset: cache keys of a model's answers, by when they run out (ms). TTL of the longest of them."""
        return f"{self.prefix}:cached:{model_key}"

    def cache(self, request: str) -> str:
        """String: id of the job that answers, or has answered, this very request. Lives like that job."""
        return f"{self.prefix}:cache:{request}"

    def usage(self, app: str) -> str:
        """Hash: what an application asked for and got, its unfinished jobs and rates. TTL 7 d after its last job."""
        return f"{self.prefix}:usage:{key_part(app)}"

    def call(self, call_id: str) -> str:
        """String (msgpack): what an admin asks a worker's LLM server about its models. TTL 60 s."""
        return f"{self.prefix}:call:{call_id}"

    def file(self, file_id: str) -> str:
        """Hash: a file that was uploaded over HTTP: `record`, and its parts by number. TTL, as its sender chose."""
        return f"{self.prefix}:file:{file_id}"

    def files(self, app: str) -> str:
        """Hash: an application's files, by when they run out (ms), and their bytes. TTL of the last of them."""
        return f"{self.prefix}:files:{key_part(app)}"

    def errand(self, batch: str) -> str:
        """Hash: what gateways owe a batch: `record`, `cancel`, `end`. TTL 8 d."""
        return f"{self.prefix}:errand:{batch}"

    def errands_of(self, app: str) -> str:
        """Zset: an application's errands by when they came (ms). TTL 8 d after the last one."""
        return f"{self.prefix}:errands_of:{key_part(app)}"

    def group(self, group: str) -> str:
        """Hash: a group of nodes that serves one model together. TTL, renewed by the leader."""
        return f"{self.prefix}:group:{key_part(group)}"

    def formable(self, model_key: str) -> str:
        """Hash: whether a group could serve a model that no worker serves. TTL, renewed by the leader."""
        return f"{self.prefix}:formable:{model_key}"

    def pace(self, node: str, model_key: str) -> str:
        """Hash: how fast a node has run a model. TTL 30 d."""
        return f"{self.prefix}:pace:{key_part(node)}:{model_key}"

    def estimate(self, model_key: str) -> str:
        """Hash: by how much the memory of a model was estimated wrongly. TTL 30 d."""
        return f"{self.prefix}:estimate:{model_key}"

    def series(self, chunk: str) -> str:
        """Hash: points of a series by their place; `chunk` is WHO:STEP:NUMBER. TTL: as long as they are kept."""
        return f"{self.prefix}:series:{chunk}"

    def totals(self, node: str) -> str:
        """Hash: all that a node has counted, by model. TTL 7 d after the last advert."""
        return f"{self.prefix}:totals:{key_part(node)}"

    def batch(self, batch: str) -> str:
        """Hash: a batch: state, model, counts, times; see `_batch.lua`. Lives while it is driven, then its TTL."""
        return f"{self.prefix}:batch:{batch}"

    def batch_in(self, batch: str) -> str:
        """Hash: index → item that has no answer yet. Lives like the batch."""
        return f"{self.prefix}:batch_in:{batch}"

    def batch_open(self, batch: str) -> str:
        """Hash: start → count of a batch's chunks that are jobs now. Lives like the batch."""
        return f"{self.prefix}:batch_open:{batch}"

    def batch_out(self, batch: str) -> str:
        """Hash: start → answer or error of a chunk. Lives like the batch."""
        return f"{self.prefix}:batch_out:{batch}"

    def batch_map(self, batch: str) -> str:
        """Zset: "start:count:state:sent" of a batch's ended chunks, by start. Lives like the batch."""
        return f"{self.prefix}:batch_map:{batch}"

    def batch_done(self, batch: str) -> str:
        """Stream: "start:count:state:sent" of a batch's chunks in the order of their ends. Lives like the batch."""
        return f"{self.prefix}:batch_done:{batch}"

    @property
    def batches(self) -> str:
        """Zset: batches by when they came (ms). Permanent, at most 10,000."""
        return f"{self.prefix}:batches"

    @property
    def batch_due(self) -> str:
        """Zset: unfinished batches by when somebody else may have to drive them (ms). Permanent."""
        return f"{self.prefix}:batch_due"

    @property
    def leases(self) -> str:
        """Zset: running jobs by lease deadline, Redis time in ms; "ID|h" for a hedge's. Permanent."""
        return f"{self.prefix}:leases"

    @property
    def delayed(self) -> str:
        """Zset: jobs that wait out a backoff, by when they are due (ms). Permanent."""
        return f"{self.prefix}:delayed"

    @property
    def deadlines(self) -> str:
        """Zset: unfinished jobs that have a deadline, by that deadline (ms). Permanent."""
        return f"{self.prefix}:deadlines"

    @property
    def dead(self) -> str:
        """Zset: dead letters by time of death (ms). Permanent, at most 10,000."""
        return f"{self.prefix}:dead"

    @property
    def failed(self) -> str:
        """Zset: jobs that failed on every try and whose body is kept, by when (ms). Permanent, at most 500."""
        return f"{self.prefix}:failed"

    @property
    def ended(self) -> str:
        """List: ids of the last 1,000 jobs that ended, chunks of batches apart, newest first. Permanent."""
        return f"{self.prefix}:ended"

    @property
    def ended_chunks(self) -> str:
        """List: ids of the last 1,000 chunks of batches that ended, newest first. As long as the records of chunks."""
        return f"{self.prefix}:ended_chunks"

    @property
    def workers(self) -> str:
        """Zset: worker ids by when their advert runs out (ms), or ran out within the last hour. Permanent."""
        return f"{self.prefix}:workers"

    @property
    def apps(self) -> str:
        """Zset: application names by when they were last seen (ms). Permanent."""
        return f"{self.prefix}:apps"

    @property
    def models(self) -> str:
        """Hash: model key → the model's name, for every model ever advertised. Permanent."""
        return f"{self.prefix}:models"

    @property
    def stats(self) -> str:
        """Hash: counters of the whole fabric. Permanent."""
        return f"{self.prefix}:stats"

    @property
    def limits(self) -> str:
        """Hash: admission: when memory was last looked at, and whether it was full. Permanent."""
        return f"{self.prefix}:limits"

    @property
    def hedges(self) -> str:
        """Zset: running jobs of which a second copy may start, by when they are late (ms). Permanent."""
        return f"{self.prefix}:hedges"

    @property
    def crashes(self) -> str:
        """Zset: workers that died with jobs, by when that was noticed (ms); the last 10 minutes. Permanent."""
        return f"{self.prefix}:crashes"

    @property
    def controls(self) -> str:
        """Hash: node key → what an operator has set for the node. Permanent."""
        return f"{self.prefix}:controls"

    @property
    def policy(self) -> str:
        """Hash: limits of queues and quotas of applications. Permanent."""
        return f"{self.prefix}:policy"

    @property
    def api_keys(self) -> str:
        """Hash: SHA-256 of an API key → what it is good for. Permanent."""
        return f"{self.prefix}:api_keys"

    @property
    def caches(self) -> str:
        """Hash: how often cached answers were dropped, by model key, `app:KEY` and `shared:`. Permanent."""
        return f"{self.prefix}:caches"

    @property
    def groups(self) -> str:
        """Zset: groups by when their record runs out (ms). Permanent."""
        return f"{self.prefix}:groups"

    @property
    def series_models(self) -> str:
        """Zset: models that have a series, at most 64, by when it was last told of (s). Permanent."""
        return f"{self.prefix}:series_models"

    @property
    def series_nodes(self) -> str:
        """Zset: nodes that have a series, at most 256, by when they last told (s). Permanent."""
        return f"{self.prefix}:series_nodes"

    @property
    def log(self) -> str:
        """Stream: the live log of all processes. Permanent, about 10,000 entries."""
        return f"{self.prefix}:log"

    @property
    def errands(self) -> str:
        """Zset: unfinished errands by when another gateway may take them (ms). Permanent."""
        return f"{self.prefix}:errands"

    @property
    def leader(self) -> str:
        """Hash: the leader, its term and its lease. Permanent."""
        return f"{self.prefix}:leader"


_PERMANENT = (
    "leases",
    "delayed",
    "deadlines",
    "dead",
    "failed",
    "ended",
    "workers",
    "apps",
    "models",
    "stats",
    "limits",
    "hedges",
    "crashes",
    "controls",
    "policy",
    "caches",
    "api_keys",
    "errands",
    "leader",
    "groups",
    "series_models",
    "series_nodes",
    "batches",
    "batch_due",
    "log",
)


def old_gpu_report(place: str) -> str:
    """string, of SOLLOL 0.9's reporters, outside of every fabric: the GPUs of the machine of an Ollama, HOST:PORT."""
    return f"sollol:gpu:{place}"


def is_permanent(key: str) -> bool:
    """Whether `key` may lack a TTL: it is one of the few that live for ever, a queue with jobs, or a list of RQ's."""
    _, _, rest = key.partition("}:")
    return rest in _PERMANENT or rest.startswith(("queue:", "fair:", "rq:"))
