"""One key's connections, all of them, each sending the same request again and again.

Run as a process of its own: ``python flooding.py PORT CA REQUEST_FILE CONNECTIONS SECONDS``; prints
how many answers of each status came.
"""

import asyncio
import json
import ssl
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path


async def flood(port: int, ca: str, request: bytes, connections: int, seconds: float) -> Counter:
    context, codes = ssl.create_default_context(cafile=ca), Counter()

    async def one() -> None:
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
                while True:
                    writer.write(request)
                    await writer.drain()
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    codes[head.split(b" ")[1].decode()] += 1
                    length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
                    await reader.readexactly(int(length))
            await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(one()) for _ in range(connections)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    return codes


if __name__ == "__main__":
    port, ca, request, connections, seconds = sys.argv[1:]
    told = flood(int(port), ca, Path(request).read_bytes(), int(connections), float(seconds))
    print(json.dumps(asyncio.run(told)))
