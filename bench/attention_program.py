"""What attention_peers.py has of the program: the report that onepass bench attention writes."""

import json
import pathlib
import subprocess
import sys


def report(program: pathlib.Path, *options) -> dict:
    command = [program.resolve(), "bench", "attention", *options, "--json"]
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    except OSError as error:
        sys.exit(f"attention_peers.py: --onepass: {program}: {error.strerror}")
    if done.returncode != 0:
        found = done.stderr.strip().splitlines()
        sys.exit(
            f"attention_peers.py: --onepass: {found[-1] if found else f'{program}: exit status {done.returncode}'}"
        )
    try:
        return json.loads(done.stdout)
    except ValueError:
        sys.exit(f"attention_peers.py: --onepass: {program}: expected a report in JSON, found none")
