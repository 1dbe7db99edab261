"""Ten agents ask at once. Each has a role, and the role says how soon its answer is needed.

All jobs go into the queue together; the fabric lets the researcher go first and the summarizer last, and whatever
nodes there are share the work.
"""

import os
from concurrent.futures import as_completed

from sollol import Client
from sollol.priority_helpers import get_priority_for_role

MODEL = os.environ.get("SOLLOL_MODEL", "smollm2")
TASKS = [
    ("summarizer", "Summarize in one sentence: Redis is a data structure server."),
    ("editor", "Correct the sentence: He go to school."),
    ("researcher", "Name one use of graphite."),
    ("summarizer", "Summarize in one sentence: The moon has no air."),
    ("editor", "Correct the sentence: They was here."),
    ("researcher", "Name one use of copper."),
    ("summarizer", "Summarize in one sentence: Bees dance to tell where flowers are."),
    ("editor", "Correct the sentence: I has a cat."),
    ("researcher", "Name one use of helium."),
    ("researcher", "Name one use of quartz."),
]

with Client(app="agents") as client:
    asked = {
        client.submit(
            chat=task,
            model=MODEL,
            priority=get_priority_for_role(role),
            options={"num_predict": 24, "temperature": 0},
        ): role
        for role, task in TASKS
    }
    for job in as_completed(asked):
        answer = job.result()
        text = " ".join(answer.text.split())
        waited = answer.routing.queue_wait_ms / 1000
        print(f"{asked[job]:<11} waited {waited:5.2f} s for {answer.routing.node}: {text[:70]}")
