"""LangChain on the fabric: only the base URL is new. A chain, ten prompts at once, and a stream."""

import os

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_ollama import ChatOllama, OllamaEmbeddings

GATEWAY = os.environ.get("SOLLOL_GATEWAY_URL", "http://127.0.0.1:8000")
# With an API key: client_kwargs={"headers": {"Authorization": "Bearer …"}}
model = ChatOllama(
    model=os.environ.get("SOLLOL_MODEL", "smollm2"), base_url=GATEWAY, num_predict=24, temperature=0
)
chain = ChatPromptTemplate.from_template("Name one {thing}.") | model | StrOutputParser()

things = ["fruit", "river", "planet", "metal", "bird", "tool", "colour", "city", "tree", "fish"]
for thing, answer in zip(things, chain.batch([{"thing": thing} for thing in things]), strict=True):
    print(f"{thing}: {' '.join(answer.split())}")

print("streamed: ", end="")
for piece in chain.stream({"thing": "song"}):
    print(piece, end="", flush=True)
print()

embeddings = OllamaEmbeddings(model=os.environ.get("SOLLOL_EMBED_MODEL", "all-minilm"), base_url=GATEWAY)
print("dimensions:", len(embeddings.embed_query("a cat")))
