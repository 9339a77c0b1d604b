"""``python -m fastloop``: run a program on fastloop, or one of the commands of :mod:`fastloop._cli`."""

from fastloop._cli import main

if __name__ == "__main__":
    main()
    # Nothing may follow: a program that was run has taken over this module's globals.
