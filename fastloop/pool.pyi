from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

class ThreadPool(ThreadPoolExecutor):
    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        **context: Any,
    ) -> None: ...

def new_default_executor() -> ThreadPool | None: ...
