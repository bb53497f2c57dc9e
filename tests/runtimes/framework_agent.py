"""An agent of one framework with the mesh as its tools, run once: ``framework_agent.py FRAMEWORK PROMPT``.

Run by the Python of an environment that has the frameworks; OPENAI_BASE_URL leads to the model. Prints what the agent
says in the end.
"""

import asyncio
import os
import sys

from meshlib import ClientConfig, MeshClient

URL = os.environ["OPENAI_BASE_URL"]


async def openai_agents(mesh: MeshClient, prompt: str) -> str:
    from agents import Agent, Runner, set_tracing_disabled
    from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
    from openai import AsyncOpenAI

    from meshlib.tools.openai_agents import tools_for

    set_tracing_disabled(True)
    model = OpenAIChatCompletionsModel(model="fake", openai_client=AsyncOpenAI(base_url=URL, api_key="x"))
    agent = Agent(name="a", model=model, tools=tools_for(mesh))
    return str((await Runner.run(agent, prompt)).final_output)


async def pydantic_ai(mesh: MeshClient, prompt: str) -> str:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    from meshlib.tools.pydantic_ai import tools_for

    model = OpenAIChatModel("fake", provider=OpenAIProvider(base_url=URL, api_key="x"))
    return str((await Agent(model, tools=tools_for(mesh)).run(prompt)).output)


async def langchain(mesh: MeshClient, prompt: str) -> str:
    from langchain.agents import create_agent
    from langchain_openai import ChatOpenAI

    from meshlib.tools.langchain import tools_for

    model = ChatOpenAI(model="fake", base_url=URL, api_key="x")
    result = await create_agent(model, tools_for(mesh)).ainvoke({"messages": [("user", prompt)]})
    return str(result["messages"][-1].content)


async def agent_framework(mesh: MeshClient, prompt: str) -> str:
    from agent_framework import Agent
    from agent_framework.openai import OpenAIChatCompletionClient

    from meshlib.tools.agent_framework import tools_for

    client = OpenAIChatCompletionClient(model="fake", base_url=URL, api_key="x")
    return str((await Agent(client, tools=tools_for(mesh)).run(prompt)).text)


async def main() -> None:
    framework, prompt = sys.argv[1:]
    run = {one.__name__: one for one in (openai_agents, pydantic_ai, langchain, agent_framework)}[framework]
    config = ClientConfig(
        name=os.environ["MESH_NAME"],
        relay_url=os.environ["MESH_RELAY_URL"],
        registry_url=os.environ["MESH_REGISTRY_URL"],
    )
    async with MeshClient(config) as mesh:
        print(await run(mesh, prompt))


asyncio.run(main())
