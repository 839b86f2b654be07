"""``python -m tests.mutants``: plants single mistakes and counts those that the tests notice.

    LENGTHWISE_COVER=map python -m pytest -n 2 -p tests.mutants.cover     # once: who runs what
    python -m tests.mutants map --each 60 --jobs 2 --out mutants.jsonl

A mistake is found when a test near it fails or does not end. What is in the file is not run again;
``--survivors FILE`` runs those of an earlier file that were not found.
"""

import argparse
import dataclasses
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lengthwise.serving.fast.compiler.cache import trusted
from tests.mutants.nearest import Nearest
from tests.mutants.plant import PACKAGES, Mutant, of_import, sample

ROOT = Path(__file__).parents[2]
EQUIVALENT = {
    (one["path"], one["text"], one["before"], one["after"]): one["reason"]
    for one in tomllib.loads((Path(__file__).parent / "equivalent.toml").read_text())["mistakes"]
}
FAILS = ("FAILED", "ERROR")
NO_SUCH_TEST = 4  # pytest's exit code, too, for arguments that it can't use
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
NO_END = "no end, or a crash"


def copy_of_the_project(folder: Path) -> Path:
    shutil.copytree(ROOT, folder, symlinks=True, ignore=LEFT_OUT)
    shared = ROOT.parent / "shared"
    if shared.exists() and not (folder.parent / "shared").exists():
        (folder.parent / "shared").symlink_to(shared)
    return folder


class Place:
    """A copy of the project, with machine code of its own: nothing is kept of what is planted."""

    def __init__(self, folder: Path) -> None:
        self.root = copy_of_the_project(folder / "project")
        self.cache = folder / "cache"
        kept, _ = trusted()
        if kept.is_dir():
            shutil.copytree(kept, self.cache / "lengthwise" / "kernels")
        self.empty = folder / "empty"

    def run(self, tests: list[str], seconds: float, path: str) -> tuple[bool, list[str], list[str]]:
        """Whether all passed, what failed first, and which tests are not there."""
        shutil.rmtree(self.empty, ignore_errors=True)
        # whoever plants a mistake in the compiler must not be handed what it compiled before
        cache = self.empty if path.startswith("serving/fast/compiler/") else self.cache
        engines = self.cache / "lengthwise" / "kernels"
        kept, engine = set(engines.glob("run_*")), path.startswith("serving/fast/")
        paths = os.pathsep.join([str(self.root), os.environ.get("PYTHONPATH", "")])
        alone = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
                 "XDG_CACHE_HOME": str(cache)}  # fmt: skip
        one = f"--timeout={(20 if engine else 4) * seconds + 60:.0f}"  # compiled for each mistake
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no",
                   "-p", "no:benchmark", "-n", "0", one, "--timeout-method=thread",
                   *tests]  # fmt: skip
        done = subprocess.run(
            command, cwd=self.root, env={**os.environ, **alone}, capture_output=True, text=True,
            timeout=(40 if engine else 20) * seconds + 300,
        )  # fmt: skip
        for made in set(engines.glob("run_*")) - kept if engine else ():
            made.unlink()  # nobody asks for it again
        gone = []
        if done.returncode == NO_SUCH_TEST:
            gone = re.findall(r"^ERROR: not found: .*?(tests/\S+)", done.stdout + done.stderr, re.M)
        by = [line for line in done.stdout[-2000:].splitlines() if line.startswith(FAILS)][:1]
        return done.returncode == 0, by or ([NO_END] if done.returncode else []), gone


def who_failed(by: str, tests: list[str]) -> list[str]:
    """The test that a line of pytest names; all, where a file can't be read or nothing ended."""
    if by == NO_END:
        return tests
    name = by.split(maxsplit=1)[1]
    one = max((test for test in tests if name.startswith(test)), key=len, default=None)
    return [one] if one else [test for test in tests if test.startswith(name.split(" - ")[0])]


def judged(
    mutant: Mutant, tests: list[str], place: Place, seconds: float, sound: dict[str, bool]
) -> dict[str, Any]:
    """Whether ``tests`` notice ``mutant``, in a copy of the project that is mended afterwards.

    What fails must pass, and what does not end must end, without the mistake; ``sound`` keeps what
    is known of that.
    """
    path = place.root / mutant.path
    source = path.read_bytes()
    begun = time.monotonic()
    while tests := [test for test in tests if sound.get(test, True)]:
        try:
            path.write_bytes(mutant.planted(source))
            passed, by, gone = place.run(tests, seconds, mutant.path)
        except subprocess.TimeoutExpired:
            passed, by, gone = True, ["the tests took too long together"], []
        finally:
            path.write_bytes(source)
        if gone:  # the map is older than the tests
            tests = [test for test in tests if not test.startswith(tuple(gone))]
            continue
        who = [] if passed else who_failed(by[0], tests)
        if not passed and not all(sound.get(test) for test in who):
            try:
                mended = place.run(who, seconds, mutant.path)[0]
            except subprocess.TimeoutExpired:
                mended = False
            if mended:
                sound.update(dict.fromkeys(who, True))
            elif len(who) == 1:
                sound[who[0]] = False
                continue
            else:
                passed, by = True, ["what fails here fails without the mistake as well"]
        took = round(time.monotonic() - begun, 1)
        return {"found": not passed, "by": by, "who": who, "tests": len(tests), "seconds": took}
    return {"found": False, "by": ["no test runs this file"], "tests": 0}


def reason(row: dict[str, object]) -> str | None:
    """Why no test can see a mistake that was not found; None where one could."""
    given = tuple(str(row[key]) for key in ("path", "text", "before", "after"))
    return None if row["found"] else EQUIVALENT.get(given)


def table(results: list[dict[str, object]]) -> str:
    lines = ["| package | planted | equivalent | found | of these by no end | % |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for package in (*PACKAGES, ""):
        some = [one for one in results if str(one["path"]).startswith(package)]
        if some:
            found = sum(bool(one["found"]) for one in some)
            same = sum(reason(one) is not None for one in some)
            hung = sum(bool(one["found"]) and one["by"] == [NO_END] for one in some)
            share = 100 * found / max(1, len(some) - same)
            row = (package or "all", len(some), same, found, hung, f"{share:.0f}")
            lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("map", type=Path, help="folder that tests.mutants.cover wrote")
    parser.add_argument("--each", type=int, default=60, help="mistakes a package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=30.0, help="of tests a mistake")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds in all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--packages", default=",".join(PACKAGES))
    parser.add_argument("--survivors", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    ends = time.monotonic() + given.limit
    near = Nearest(given.map)
    if given.survivors:
        earlier = [json.loads(line) for line in given.survivors.read_text().splitlines()]
        fields = [field.name for field in dataclasses.fields(Mutant)]
        left = [one for one in earlier if not one["found"] and reason(one) is None]
        chosen = [Mutant(**{k: one[k] for k in fields}) for one in left]
    else:
        packages = tuple(given.packages.split(","))
        chosen = sample(ROOT, given.each, given.seed, packages)
    results = (
        [json.loads(line) for line in given.out.read_text().splitlines()]
        if given.out.exists()
        else []
    )
    known = {one["name"] for one in results}
    with tempfile.TemporaryDirectory() as folder, given.out.open("a") as out:
        free: queue.SimpleQueue[Place] = queue.SimpleQueue()
        sound: dict[str, bool] = {}
        for job in range(given.jobs):
            free.put(Place(Path(folder) / str(job)))

        def one(mutant: Mutant) -> None:
            if time.monotonic() > ends:
                return
            once = of_import((ROOT / mutant.path).read_bytes(), mutant.line)
            tests = near.tests(mutant.path, mutant.line, given.seconds, once=once)
            place = free.get()
            try:
                verdict = judged(mutant, tests, place, given.seconds, sound)
            finally:
                free.put(place)
            who = verdict.pop("who", [])
            if verdict["found"] and len(who) == 1:
                near.learn(mutant.path, who[0])
            row = {"name": mutant.name, **dataclasses.asdict(mutant), **verdict}
            results.append(row)
            out.write(json.dumps(row) + "\n")
            out.flush()

        # packages in turns, so that a run that is cut off has some of each
        order = sorted(
            (mutant for mutant in chosen if mutant.name not in known),
            key=lambda mutant: hash((mutant.line, mutant.start)),
        )
        with ThreadPoolExecutor(given.jobs) as pool:
            list(pool.map(one, order))
    print(table(results))
    for row in results:
        if not row["found"]:
            why = reason(row)
            print(row["name"], f"(equivalent: {why})" if why else "")


if __name__ == "__main__":
    main()
