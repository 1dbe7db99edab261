"""LlamaIndex on the fabric: only the base URL is new."""

import os

from llama_index.core.llms import ChatMessage
from llama_index.llms.ollama import Ollama

llm = Ollama(
    model=os.environ.get("SOLLOL_MODEL", "smollm2"),
    base_url=os.environ.get("SOLLOL_GATEWAY_URL", "http://127.0.0.1:8000"),
    request_timeout=120,
    additional_kwargs={"num_predict": 24, "temperature": 0},
)
print("complete:", " ".join(llm.complete("Name a fruit.").text.split()))
print("chat: ", end="")
for piece in llm.stream_chat([ChatMessage(role="user", content="Name a river.")]):
    print(piece.delta, end="", flush=True)
print()
