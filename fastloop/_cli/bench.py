"""``python -m fastloop bench``: compare fastloop with the standard loop on this machine."""


def main(arguments: list[str]) -> None:
    """Run the benchmarks; python -m fastloop bench --help tells of the arguments."""
    from fastloop._bench import compare

    compare.main(arguments)
