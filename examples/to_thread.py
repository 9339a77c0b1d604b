"""asyncio.to_thread: blocking functions see the caller's context variables, and their errors come back."""

import asyncio
import contextvars

user = contextvars.ContextVar("user", default="nobody")
STOCK = {"apples": 12, "pears": 0}


def look_up(item: str) -> str:
    """Block, as a database driver would."""
    asking = user.get()
    user.set("changed in the thread")
    return f"{asking} finds {STOCK[item]} {item}"


async def serve(name: str, item: str) -> str:
    user.set(name)
    try:
        found = await asyncio.to_thread(look_up, item)
    except KeyError as error:
        found = f"{name} finds no {error}"
    return f"{found} (still {user.get()})"


async def main() -> None:
    answers = await asyncio.gather(serve("ada", "apples"), serve("bob", "pears"), serve("eve", "gold"))
    for answer in answers:
        print(answer)
    print(await asyncio.to_thread(look_up, "apples"))
    print(user.get())


if __name__ == "__main__":
    asyncio.run(main())
