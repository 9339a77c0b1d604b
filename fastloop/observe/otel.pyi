from collections.abc import Mapping
from typing import Any

from fastloop.loop import Loop

# A MeterProvider of opentelemetry, which need not be there to check types.
def instrument(loop: Loop, meter_provider: Any = None, attributes: Mapping[str, Any] | None = None) -> None: ...
