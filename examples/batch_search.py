"""Every paragraph of a folder's texts, embedded in one batch, then searched by meaning.

    python examples/batch_search.py docs "what happens when a worker dies"

The batch is cut into chunks that suit the nodes, runs beside other work without hurting it, and goes on if this
program is killed: started again, it finds the same batch by its id.
"""

import hashlib
import os
import sys
from pathlib import Path

from sollol import Client

MODEL = os.environ.get("SOLLOL_EMBED_MODEL", "all-minilm")
folder, question = Path(sys.argv[1]), sys.argv[2]
texts = [
    paragraph.strip()[:800]
    for path in sorted(folder.rglob("*.md"))
    for paragraph in path.read_text().split("\n\n")
    if len(paragraph) > 80
]
with Client(app="search") as client:
    same_again = hashlib.sha256("\0".join([MODEL, *texts]).encode()).hexdigest()[:16]
    batch = client.batch(embed=texts, model=MODEL, id=f"search-{same_again}")
    vectors = [item.vector if item.ok else None for item in batch.results()]
    print(f"{batch.progress.completed} paragraphs, {batch.progress.failed} failed")
    (wanted,) = client.submit(embed=[question], model=MODEL).result().embeddings


def alike(vector: list[float] | None) -> float:
    """The cosine of the angle to the question; the model's vectors have the length 1."""
    return sum(x * y for x, y in zip(vector, wanted, strict=True)) if vector else -1.0


for text, vector in sorted(zip(texts, vectors, strict=True), key=lambda pair: -alike(pair[1]))[:3]:
    print(f"{alike(vector):.2f}  {' '.join(text.split())[:100]}")
