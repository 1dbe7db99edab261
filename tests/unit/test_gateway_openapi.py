"""The gateway's OpenAPI document tells of what there is."""

from __future__ import annotations

from sollol_client import AsyncClient
from sollol_client.gateway import GatewayConfig, build
from sollol_client.gateway.openapi import document


def test_every_path_is_described_and_every_body_that_our_checks_know() -> None:
    app = build(GatewayConfig(), AsyncClient("redis://127.0.0.1:1/0"))
    told = document(app.routes)
    assert told["openapi"] == "3.1.0"
    assert {"/", "/api/chat", "/v1/chat/completions", "/v1/messages", "/api/jobs/{id}"} <= set(told["paths"])
    assert "/v1/models/{model}" in told["paths"], "without Starlette's own word"
    assert set(told["paths"]["/api/jobs"]) == {"get", "post"}
    upload = told["paths"]["/v1/files"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert upload["required"] == ["file", "purpose"]
    operations = [each for path in told["paths"].values() for each in path.values()]
    assert all(each["summary"] and "default" in each["responses"] for each in operations)
    chat = told["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
    assert chat["schema"]["properties"]["max_completion_tokens"] == {"type": "integer"}
    assert chat["schema"]["required"] == ["model", "messages"]
    assert told["paths"]["/livez"]["get"]["security"] == []
    assert told["paths"]["/v1/messages"]["post"]["security"] == [{"key": []}, {}]
