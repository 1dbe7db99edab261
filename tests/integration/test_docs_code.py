"""Every block of Python on a page runs as it stands, a page's blocks one after the other in one program."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from docs_kit import PAGES, blocks
from fabric import worker
from gateway_kit import gateway

_MODELS = "llama3.2,smollm2,nomic-embed-text,all-minilm,m"
# What a page takes for given: the reader's own things.
_GIVEN = """
import time
texts, last_id = ["one", "two"], None
def send(*args, **more): pass
def save(*args): pass
"""
_LINE = {
    "custom_id": "1",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
}
_WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


@pytest.mark.parametrize("page", _WITH_PYTHON, ids=lambda page: page.name)
async def test_the_python_on_a_page_runs(page: Path, redis_url: str, tmp_path: Path) -> None:
    runs = [block for block in blocks(page) if block.language == "python" and not block.is_marked]
    (tmp_path / "requests.jsonl").write_text(json.dumps(_LINE))
    async with worker(redis_url, f"echo://?slots=4&models={_MODELS}"), gateway(redis_url) as http:
        code = _GIVEN + "\n".join(block.text for block in runs)
        code = code.replace("redis://localhost:6379/0", redis_url)
        code = code.replace("time.sleep(5)", "time.sleep(0.2)")
        code = code.replace("http://127.0.0.1:8000", str(http.base_url).rstrip("/"))
        program = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code),
            env={**os.environ, "SOLLOL_REDIS_URL": redis_url},
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(program.communicate(), 120)
    assert program.returncode == 0, said.decode()
