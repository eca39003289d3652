"""Measures a model on the GPU of this machine.

    python -m profiler model=qwq-32b opt=awq gpu=h100-sxm budget_s=240

Groups: model= (conf/model, or the path of a config.json), gpu= (conf/gpu), opt= (conf/opt; they combine: opt=awq opt.kv_cache_dtype=fp8).
All other keys are those of conf/profile.yaml. Writes OUT/points.jsonl.gz as it goes (the same command continues a run that was cut),
and at the end OUT/steps.csv.gz (a row a step) and OUT/profile.json. `python -m profiler.record` records a trace under load instead.
"""

from __future__ import annotations

import sys
from time import perf_counter

from profiler.errors import EngineError
from profiler.options import Profile, load
from profiler.run import run
from profiler.start import check_device, prepare_environment, require_vllm
from profiler.stop import Interruption
from simulator.errors import UserError


def main(arguments: list[str]) -> int:
    """Exit code: 0 done (or cut by its budget), 1 vLLM failed, 2 the user's mistake, 130 interrupted."""
    begin_s = perf_counter()
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        profile = load(arguments, Profile)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        with Interruption() as interruption:
            require_vllm(profile.gpu.name)
            prepare_environment(profile, in_process=True)
            print(run(profile, check_device(profile), begin_s, interruption))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except EngineError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: what was measured is in {profile.folder}; the same command continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
