"""What compiling costs a run that was started before: one config twice, with a cache of programs that begins empty.

    python packages/clip-train/benchmarks/second_start.py [CONFIG] [--set FIELD=VALUE]

Each start is a process of its own that trains two steps, saves and evaluates, in an output directory of its own.
Compiling is what jax reports of itself: seconds in XLA's compiler or, instead, in reading the cache. Tracing and
lowering come before either and are done every time; they are in the CPU seconds of the whole process. The last line is
the second start's compiling over the first one's.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "config.json"
COMPILED = "/jax/core/compile/backend_compile_duration"
READ = "/jax/compilation_cache/cache_retrieval_time_sec"


def child(config, overrides, to):
    """Train, and write the seconds of each of jax's events."""
    from clip_train.host import prepare_host

    prepare_host()
    import jax

    from clip_train.cli import main as clip_train

    events = collections.defaultdict(list)
    jax.monitoring.register_event_duration_secs_listener(lambda event, seconds, **_: events[event].append(seconds))
    status = clip_train(["run", config, *(word for override in overrides for word in ("--set", override))])
    Path(to).write_text(json.dumps(events))
    return status


def start(config, overrides, folder, number):
    """The events of one start, as a process, and its seconds of CPU."""
    to = folder / f"events-{number}.json"
    command = [sys.executable, __file__, config, "--child", to]
    for override in (*overrides, f"output_dir={folder / f'run-{number}'}"):
        command += ["--set", override]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"start {number} failed:\n{done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return collections.defaultdict(list, json.loads(to.read_text())), cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default=str(DIGITS))
    parser.add_argument("--set", action="append", default=[], help="as of clip-train run")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        sys.exit(child(args.config, args.set, args.child))

    overrides = ["train_samples=256", *args.set]
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for number in (1, 2):
            events, cpu = start(args.config, overrides, Path(folder), number)
            seconds.append(sum(events[COMPILED]))
            print(
                f"start {number}  {seconds[-1]:6.2f} s compiling: {len(events[COMPILED])} programs, the longest "
                f"{max(events[COMPILED]):.2f} s, {len(events[READ])} read from the cache; {cpu:.1f} s of CPU in all",
                flush=True,
            )
    print(f"second over first  {seconds[1] / seconds[0]:.3f}")


if __name__ == "__main__":
    main()
