"""The peers beside foveate, in one run on this machine: torch's compiled FlexAttention and llama.cpp.

    .venv/bin/python bench/peers.py [--flex "--length 4096"] [--llama "--tokens 512 4096 --llama-python PATH"]

Runs bench/flex.py and bench/llama.py, one after the other, with these arguments; each checks what it compares, and says
what is not installed.  Nothing else should run meanwhile.
"""

import argparse
import pathlib
import shlex
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for peer in ("flex", "llama"):
        parser.add_argument(f"--{peer}", default="", metavar="ARGUMENTS", help=f"for bench/{peer}.py")
    arguments = parser.parse_args()
    failed = []
    for peer in ("flex", "llama"):
        print(f"# bench/{peer}.py {getattr(arguments, peer)}", flush=True)
        if subprocess.run([sys.executable, HERE / f"{peer}.py", *shlex.split(getattr(arguments, peer))]).returncode:
            failed.append(peer)
    if failed:
        sys.exit(f"peers: failed: {' '.join(failed)}")


if __name__ == "__main__":
    main()
