"""Calls tools of a server on standard input and output, with the client library of whatever ``mcp`` is installed.

Run by the Python of an environment that has it. Reads lines of JSON, ``[tool, arguments]``; writes a line per result.
"""

import asyncio
import json
import os
import sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client


async def main() -> None:
    command, *arguments = sys.argv[1:]
    server = StdioServerParameters(command=command, args=arguments, env=dict(os.environ))
    async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        listed = await session.list_tools()
        say([tool.model_dump(by_alias=True, mode="json", exclude_none=True) for tool in listed.tools])
        while line := await asyncio.to_thread(sys.stdin.readline):
            name, values = json.loads(line)
            result = await session.call_tool(name, values)
            say([result.model_dump(by_alias=True, mode="json")["isError"], result.content[0].text])


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


asyncio.run(main())
