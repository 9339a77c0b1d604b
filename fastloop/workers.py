"""Worker classes for gunicorn: ``gunicorn -k fastloop.workers.UvicornWorker``.

Imported by gunicorn only. gunicorn's and aiohttp's own workers take the loop of the policy instead, so
``python -m fastloop -m gunicorn`` does for them.
"""

try:
    from uvicorn_worker import UvicornWorker as _UvicornWorker  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    # Where uvicorn still brings it.
    from uvicorn.workers import UvicornWorker as _UvicornWorker


class UvicornWorker(_UvicornWorker):  # type: ignore[misc, unused-ignore]
    """uvicorn's worker, on fastloop. Needs uvicorn 0.36 or later, which takes the name of a function for loop."""

    CONFIG_KWARGS = {**_UvicornWorker.CONFIG_KWARGS, "loop": "fastloop:new_event_loop"}
