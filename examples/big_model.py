"""A model that fits no node, served by three of them together.

On one machine, to see it happen with a small model that pretends to be large (each worker may use 100 MiB):

    sollol-coordinator --context 2048 &
    for node in a b c; do
      sollol-worker --node $node --model big=/path/to/SmolLM2.gguf --ram 105 --address 127.0.0.1 &
    done
    SOLLOL_MODEL=big python examples/big_model.py

On three machines leave out --ram and --address, and give each --models-dir with the file on one of them at least.
"""

import os
import time

from sollol import Client

MODEL = os.environ.get("SOLLOL_MODEL", "llama3.1:70b")

with Client(app="big-model") as client:
    job = client.submit(
        chat="Tell me about the sea.",
        model=MODEL,
        stream=True,
        wait_for_node=True,
        options={"num_predict": 48, "temperature": 0},
    )
    said = ""
    while not (job.attempt or job.done()):  # nobody has begun with it
        if job.note != said:
            said = job.note
            print(said)
        time.sleep(0.2)
    for piece in job:
        print(piece, end="", flush=True)
    print(f"\nanswered by {job.result().routing.node}")
    for group in client.groups():
        for place in group.places:
            print(f"{group.id}: {place['layers']:>3} layers, {place['mib']:>6.0f} MiB on {place['node']}")
