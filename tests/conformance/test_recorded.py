"""What a real Ollama 0.33 answered to 111 requests, asked again of the gateway before a stand-in.

`ollama_0_33.json` holds the requests, and what came back: status, kind, the error's text or the names of the fields of
the first and the last line. Where the gateway's answer differs, the reason stands below and in docs/gateway.md; a
difference that is no more has to leave the list.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx

from fabric import worker
from gateway_kit import gateway
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble

RECORDED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "ollama_0_33.json").read_text("utf-8"))
MODELS = [
    DoubleModel("tiny"),
    DoubleModel("toy"),
    DoubleModel("chat", answer='{"a": 2}'),
    DoubleModel("tooly", capabilities=("completion", "tools")),
    DoubleModel("thinky", capabilities=("completion", "thinking"), thinking="def", answer="def"),
    DoubleModel("embed", capabilities=("embedding",)),
]
# What the recorder sent beside the body.
HEADERS = {
    "10_options": {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"},
    "11_origin_bad": {"Origin": "http://evil.example.com"},
    "12_host_bad": {"Host": "evil.example.com"},
    "13_origin_ok": {"Origin": "http://localhost:3000"},
}
ORIGIN = "pages of localhost are let in only where they are allowed (--allow-origin)"
FULL_NAME = "the node asks for the model by its full name, and so it reads in Ollama's own words"
BLOBS = "files of models do not travel through the fabric"
STAND_IN = "the stand-in answers differently from Ollama, the gateway passes it on"
DIFFERENT = {
    "10_options": ORIGIN,
    "13_origin_ok": ORIGIN,
    "32_pull_unknown": STAND_IN,
    "33_pull_unknown_ns": STAND_IN,
    "35_push_unknown": "no node is asked to push what none has: 404 at once, and not an error line behind a 200",
    "38_blob_post_mismatch": BLOBS,
    "70_chat_think_unsup": FULL_NAME,
    "81_chat_images_unsup": STAND_IN,
    "95_gen_bad_template": STAND_IN,
    "97_gen_debug": STAND_IN,
    "109_embed_on_completion": "400 with the models that can, where Ollama has a 501 that names a flag of llama-server",
}


def fields_of(value: Any, before: str = "") -> set[str]:
    """The names of all fields, as paths; ours are left out, and so is what a tool or a model names itself."""
    found: set[str] = set()
    if isinstance(value, list) and value:
        return fields_of(value[0], f"{before}[].")
    for name, part in value.items() if isinstance(value, dict) else ():
        if not name.startswith("_sollol") and name != "sollol":
            found.add(before + name)
            found |= set() if name in ("arguments", "model_info") else fields_of(part, f"{before}{name}.")
    return found


def difference(recorded: dict[str, Any], answer: httpx.Response) -> str:
    """In what an answer differs from the recorded one; "" = in nothing."""
    if answer.status_code != recorded["status"]:
        return f"status {answer.status_code}, recorded {recorded['status']}: {answer.text[:200]}"
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if kind != recorded["type"] and recorded["method"] != "HEAD":
        return f"type {kind!r}, recorded {recorded['type']!r}"
    if "plain" in recorded:
        return "" if answer.text == recorded["plain"] else f"text {answer.text!r}"
    lines = [json.loads(line) for line in answer.text.splitlines()] if "json" in kind else []
    if "error" in recorded:
        told = lines[-1].get("error") if lines else None
        return "" if told == recorded["error"] else f"error {told!r}, recorded {recorded['error']!r}"
    wanted = [set(each) for each in recorded.get("fields", ())]
    for line, fields in zip(
        (lines[0], lines[-1]) if len(wanted) == 2 else lines[:1], wanted, strict=bool(wanted)
    ):
        if odd := fields_of(line) ^ fields:
            return f"fields {sorted(odd)}"
    return ""


async def test_each_recorded_request_is_answered_as_ollama_answered_it(redis_url: str) -> None:
    found: dict[str, str] = {}
    async with (
        OllamaDouble(MODELS) as ollama,
        worker(redis_url, ollama.url, advertise_seconds=5.0) as agent,
        gateway(redis_url) as http,
    ):
        for recorded in RECORDED:
            content = json.dumps(recorded["body"]) if "body" in recorded else recorded.get("text")
            headers = HEADERS.get(recorded["name"], {})
            answer = await http.request(
                recorded["method"], recorded["path"], content=content, headers=headers
            )
            if told := difference(recorded, answer):
                found[recorded["name"]] = told
            await agent._advertiser.advertise()
            await asyncio.sleep(0)
    odd = {name: told for name, told in found.items() if name not in DIFFERENT}
    assert not odd, "\n".join(f"{name}: {told}" for name, told in odd.items())
    assert found.keys() == DIFFERENT.keys(), f"the same by now: {DIFFERENT.keys() - found.keys()}"
