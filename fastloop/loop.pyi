import asyncio

# The native methods have the types of the standard ones: users see an asyncio loop.
class Loop(asyncio.BaseEventLoop):
    def __init__(self) -> None: ...

def new_event_loop() -> asyncio.AbstractEventLoop: ...
