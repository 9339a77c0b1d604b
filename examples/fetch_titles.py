"""Fetch three JSON documents over HTTPS at the same time and print their titles. Needs aiohttp and trustme."""

import asyncio
from typing import Any

import aiohttp
from https_server import serve_json

DOCUMENTS = {
    "/posts/1": {"id": 1, "title": "A loop is a queue with a clock"},
    "/posts/2": {"id": 2, "title": "Waiting is cheap, threads are not"},
    "/posts/3": {"id": 3, "title": "Grüße aus der Ereignisschleife"},
}


async def fetch_json(session: aiohttp.ClientSession, url: str) -> Any:
    async with session.get(url) as response:
        response.raise_for_status()
        return await response.json()


async def main() -> None:
    async with serve_json(DOCUMENTS) as (base_url, trusting):
        connector = aiohttp.TCPConnector(ssl=trusting)
        async with aiohttp.ClientSession(base_url, connector=connector) as session:
            documents = await asyncio.gather(
                fetch_json(session, "/posts/1"),
                fetch_json(session, "/posts/2"),
                fetch_json(session, "/posts/3"),
            )
    for document in documents:
        print(document["title"])


if __name__ == "__main__":
    asyncio.run(main())
