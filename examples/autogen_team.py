"""AutoGen on the fabric: a writer and a critic take turns. Only the base URL is new."""

import asyncio
import os

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core.models import ModelInfo
from autogen_ext.models.openai import OpenAIChatCompletionClient

GATEWAY = os.environ.get("SOLLOL_GATEWAY_URL", "http://127.0.0.1:8000")


async def main() -> None:
    """Three messages: the task, a draft, a critique."""
    model = OpenAIChatCompletionClient(
        model=os.environ.get("SOLLOL_MODEL", "smollm2"),
        base_url=f"{GATEWAY}/v1",
        api_key=os.environ.get("SOLLOL_API_KEY", "none"),
        max_tokens=40,
        temperature=0,
        model_info=ModelInfo(
            vision=False,
            function_calling=False,
            json_output=False,
            structured_output=False,
            family="unknown",
        ),
    )
    team = RoundRobinGroupChat(
        [
            AssistantAgent("writer", model, system_message="You write one short sentence."),
            AssistantAgent("critic", model, system_message="You say in one sentence what is wrong with it."),
        ],
        termination_condition=MaxMessageTermination(3),
    )
    result = await team.run(task="Write about the sea.")
    for message in result.messages:
        print(f"{message.source}: {' '.join(message.to_text().split())}")
    await model.close()


asyncio.run(main())
