import asyncio
import os
from collections.abc import Mapping
from typing import Any

from fastloop.loop import Loop

__all__ = ("SlowCallback", "fetch", "prometheus_text", "serve", "stop_serving")

def prometheus_text(*loops: Loop | dict[str, Any], labels: Mapping[str, object] | None = None) -> str: ...
def serve(loop: Loop, path: str | os.PathLike[str]) -> str: ...
def stop_serving(loop: Loop) -> None: ...
def fetch(path: str | os.PathLike[str], seconds: float = 5.0) -> dict[str, Any]: ...

class SlowCallback:
    seconds: float
    source: Any
    handle: asyncio.Handle | None
    task: asyncio.Task[Any] | None
    def __init__(self, source: Any, seconds: float) -> None: ...
    def call_graph(self) -> str: ...
