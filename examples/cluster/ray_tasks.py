"""Compresses one capture with Ray tasks: curves by shard, lengths, parts by shard, the whole.

    pip install ray
    python ray_tasks.py capture.safetensors short.safetensors --shards 4 -- --keep 0.3

What follows `--` are options of `kvsculpt curves`; later steps take them from the files. --both="..." are words that `curves` and `compress`
need alike: --layers, --dtype, --queries and facts that the file does not hold. All workers must see the folder of the output.
Pieces that are there already are left alone, so the same command goes on after an interruption. Prints the SHA-256 of the output; with
--check also that of one `kvsculpt compress` with the same options, and fails unless they are the same.
"""

import argparse
import hashlib
import pathlib
import shlex
import subprocess
import sys

import ray

parser = argparse.ArgumentParser(usage="%(prog)s CAPTURE OUTPUT [--shards N] [--both WORDS] [--check] [-- OPTIONS]")
parser.add_argument("capture", type=pathlib.Path)
parser.add_argument("output", type=pathlib.Path)
parser.add_argument("--shards", type=int, default=4)
parser.add_argument("--program", default="kvsculpt")
parser.add_argument("--cpus", type=int, help="of this machine, where no cluster is running")
parser.add_argument("--engine", default="auto", help="the same on every machine: the engines round differently")
parser.add_argument("--both", type=shlex.split, default=[], help="words for curves and compress alike, as --both='--dtype f16'")
parser.add_argument("--check", action="store_true")
at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
arguments = parser.parse_args(sys.argv[1:at])
options = sys.argv[at + 1 :]

pieces = arguments.output.resolve()
pieces = pieces.with_name(pieces.name + ".pieces")
pieces.mkdir(parents=True, exist_ok=True)
capture = str(arguments.capture.resolve())
engine = ["--engine", arguments.engine]


def kvsculpt(*words):
    """Runs one step; what it says goes to the task's log."""
    subprocess.run([arguments.program, *map(str, words)], check=True)


# A task that is lost with its machine is started again; it writes its piece whole or not at all.
@ray.remote(num_cpus=1, max_retries=3, retry_exceptions=True)
def piece(output, *words):
    kvsculpt(*words, "-o", output)
    return ray.get_runtime_context().get_worker_id()


def on_shards(name, *words):
    """One task a shard; the files they wrote."""
    shards = [f"{index}/{arguments.shards}" for index in range(arguments.shards)]
    files = [str(pieces / f"{name}-{shard.replace('/', '-of-')}") for shard in shards]
    workers = ray.get([piece.remote(file, *words, "--shard", shard) for file, shard in zip(files, shards)])
    print(f"{name}: {len(files)} shards by {len(set(workers))} workers")
    return files


ray.init(num_cpus=arguments.cpus, include_dashboard=False, log_to_driver=False)
budgets = pieces / "budgets.json"
curves = on_shards("curves", "curves", capture, *engine, *arguments.both, *options)
kvsculpt("allocate", *curves, "-o", budgets)
parts = on_shards("part", "compress", capture, *engine, *arguments.both, "--budgets", budgets)
kvsculpt("merge", *parts, "-o", arguments.output)
print("sharded", hashlib.sha256(arguments.output.read_bytes()).hexdigest())
if arguments.check:
    whole = pieces / "whole"
    kvsculpt("compress", capture, *engine, *arguments.both, *options, "-o", whole)
    print("one run", hashlib.sha256(whole.read_bytes()).hexdigest())
    if whole.read_bytes() != arguments.output.read_bytes():
        sys.exit("the bytes differ")
