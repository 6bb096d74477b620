"""Processes that do things with one layer store at once, and a judge of what they are told.

    python -m support.races PLACE [--driver fuse] [--mix all] [--processes 16] [--operations 200] [--seed 1]

Each process writes down what it did, when, and what came of it.  The judge knows when who must have had what:
from the end of a call that gave a handle to the beginning of the one that took it back, the layer and all
below it were there.  A layer that somebody deleted, or did not find, while somebody else had it is wrong; so
is a name that two had at once.  At the end all handles are given back, and nothing may be left.

Prints how often each call had which outcome, and what was wrong; the exit status says whether anything was.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from support.fsck import problems
from support.scenes import DRIVERS, Session
from support.tars import Stream, folder, hard_link, member, tar

from fusestore.errors import (
    ActiveMount,
    FusestoreError,
    InvalidLayer,
    LayerInUse,
    LayerNotFound,
    MountNameConflict,
    RWLayerNotFound,
)
from fusestore.store.layer import Layer, RWLayer

_DEADLINE = 380  # seconds for all of it

#: What somebody else may have brought about, call by call.
_DOCUMENTED: dict[str, tuple[type[FusestoreError], ...]] = {
    "register": (LayerNotFound,),
    "spoil": (LayerNotFound, InvalidLayer),
    "get": (LayerNotFound,),
    "create": (LayerNotFound, MountNameConflict),
    "take": (RWLayerNotFound,),
    "give": (ActiveMount,),
    "mount": (RWLayerNotFound,),
    "apply": (LayerInUse,),
}

#: How often each process does what; names ending in ``own`` are of what nobody else knows by name.
MIXES = {
    "same": {"register": 5, "release": 5, "read": 1},
    "different": {"register own": 5, "release": 5, "read": 1},
    "mounting": {"register": 2, "release": 4, "create": 2, "take": 2, "mount": 2, "give": 2},
    "cleaning": {
        "register": 3,
        "register own": 2,
        "spoil": 2,
        "release": 5,
        "create own": 3,
        "give": 3,
        "clean": 4,
    },
    "committing": {"register": 2, "create own": 3, "apply": 2, "commit": 3, "release": 6, "give": 2},
}
MIXES["all"] = dict(sum((Counter(mix) for mix in MIXES.values()), Counter({"get": 5})))


def _archive(name: str, number: int) -> bytes:
    files = (member(f"{name}/{i}", b"%d" % i * 50) for i in range(number + 3))
    return tar(folder(name), *files, hard_link("same", f"{name}/0"), member(".wh.gone"))


def _init(place: Path) -> None:
    (place / "same").rename(place / "first")
    (place / "same").write_bytes(b"init")


class Worker:
    """One of the processes."""

    def __init__(self, session: Session, number: int, seed: int, history: Path) -> None:
        self._session, self._number, self._history = session, number, history
        self._random = random.Random(seed * 1000 + number)
        self._layers: dict[int, Layer] = {}
        self._rw: dict[int, RWLayer] = {}
        self._next = 0

    def run(self, mix: dict[str, int], operations: int) -> None:
        """Do things, then give everything back."""
        with self._history.open("w") as file:
            for _ in range(operations):
                (what,) = self._random.choices(list(mix), list(mix.values()))
                self._one(what, file)
            while self._rw:
                self._one("give", file)
            while self._layers:
                self._one("release", file)
        self._session.close()

    def _one(self, what: str, file: Any) -> None:
        call, _, own = what.partition(" ")
        step = getattr(self, "_" + call)(bool(own))
        if step is None:  # nothing to do it with
            return
        told, act = step
        start = time.monotonic_ns()
        try:
            told |= act() or {}
            outcome = "ok"
        except _DOCUMENTED.get(call, ()) as exc:
            outcome = type(exc).__name__
        times = {"start": start, "end": time.monotonic_ns()}
        file.write(json.dumps({"call": call, "outcome": outcome, **told, **times}) + "\n")

    def _keep(self, layer: Layer) -> dict[str, Any]:
        self._next += 1
        self._layers[self._next] = layer
        return {"chain": layer.chain_id, "below": layer.parent, "handle": self._next}

    def _keep_rw(self, rw: RWLayer) -> dict[str, Any]:
        self._next += 1
        self._rw[self._next] = rw
        return {"handle": self._next, "below": rw.parent}

    def _any(self, kept: dict[int, Any]) -> tuple[int, Any]:
        return self._random.choice(list(kept.items()))

    # What to do, and what is known of it before; None when there is nothing to do it with.

    def _register(self, own: bool) -> tuple[dict[str, Any], Callable[[], Any]]:
        archive = _archive(f"own{self._number}" if own else "all", self._random.randrange(3))
        parents = [None, *self._session.store.map(), *(layer.chain_id for layer in self._layers.values())]
        parent = self._random.choice(parents)
        return {"wanted": parent}, lambda: self._keep(self._session.store.register(Stream(archive), parent))

    def _spoil(self, own: bool) -> tuple[dict[str, Any], Callable[[], Any]]:
        """Register what is no tar, on a parent that we have not got, which is held meanwhile."""
        parent = self._random.choice([None, *self._session.store.map()])
        return {"wanted": parent}, lambda: self._keep(
            self._session.store.register(Stream(_archive("all", 3)[:-2000]), parent)
        )

    def _get(self, own: bool) -> tuple[dict[str, Any], Callable[[], Any]] | None:
        known = list(self._session.store.map())
        if not known:
            return None
        chain = self._random.choice(known)
        return {"wanted": chain}, lambda: self._keep(self._session.store.get(chain))

    def _release(self, own: bool) -> tuple[dict[str, Any], Callable[[], Any]] | None:
        if not self._layers:
            return None
        handle, layer = self._any(self._layers)
        del self._layers[handle]
        return {"gone": handle}, lambda: {"deleted": [r.chain_id for r in self._session.store.release(layer)]}

    def _read(self, own: bool) -> tuple[dict[str, Any], Callable[[], Any]] | None:
        if not self._layers:
            return None
        layer = self._any(self._layers)[1]

        def read() -> None:  # which verifies the digest
            with layer.tar_stream() as stream:
                stream.read()

        return {}, read

    def _create(self, own: bool) -> tuple[dict[str, Any], Callable[[], Any]] | None:
        if not self._layers:
            return None
        parent = self._any(self._layers)[1].chain_id
        name = f"own{self._number}-{self._next}" if own else f"shared{self._random.randrange(3)}"
        init = _init if self._random.randrange(3) == 0 else None
        return {"name": name, "wanted": parent}, lambda: self._keep_rw(
            self._session.store.create_rw_layer(name, parent, init_func=init)
        )

    def _take(self, own: bool) -> tuple[dict[str, Any], Callable[[], Any]]:
        name = f"shared{self._random.randrange(3)}"
        return {"name": name}, lambda: self._keep_rw(self._session.store.get_rw_layer(name))

    def _give(self, own: bool) -> tuple[dict[str, Any], Callable[[], Any]] | None:
        """Back to the store.  While another has it mounted that is refused, and we keep it."""
        if not self._rw:
            return None
        handle, rw = self._any(self._rw)

        def give() -> dict[str, Any]:
            released = self._session.store.release_rw_layer(rw)
            del self._rw[handle]
            return {"gone": handle, "deleted": [r.chain_id for r in released]}

        return {"name": rw.name}, give

    def _mount(self, own: bool) -> tuple[dict[str, Any], Callable[[], Any]] | None:
        if not self._rw:
            return None
        rw = self._any(self._rw)[1]

        def mount() -> None:
            place = rw.mount()
            try:
                assert (place / "same").exists(), os.listdir(place)
                (place / f"by{self._number}").write_bytes(b"%d" % self._next)
            finally:
                rw.unmount()

        return {"name": rw.name}, mount

    def _mine(self) -> RWLayer | None:
        mine = [rw for rw in self._rw.values() if rw.name.startswith("own")]
        return self._random.choice(mine) if mine else None

    def _apply(self, own: bool) -> tuple[dict[str, Any], Callable[[], Any]] | None:
        rw, archive = self._mine(), _archive(f"applied{self._random.randrange(3)}", 3)
        return ({"name": rw.name}, lambda: rw.apply_diff(Stream(archive)) and None) if rw else None

    def _commit(self, own: bool) -> tuple[dict[str, Any], Callable[[], Any]] | None:
        rw = self._mine()
        return ({"name": rw.name}, lambda: self._keep(self._session.store.commit(rw))) if rw else None

    def _clean(self, own: bool) -> tuple[dict[str, Any], Callable[[], Any]]:
        return {}, self._session.store.cleanup


# -- the judge --------------------------------------------------------------------------------------------


def complaints(histories: list[list[dict[str, Any]]]) -> Iterator[str]:
    """What cannot have been."""
    events = [event | {"by": by} for by, history in enumerate(histories) for event in history]
    below = {event["chain"]: event["below"] for event in events if "chain" in event}
    had, named = defaultdict(list), defaultdict(list)  # from, to, by whom
    for event in events:
        if event["outcome"] == "ok" and "handle" in event:
            last = histories[event["by"]][-1]  # of a process that failed; others give all back
            until = next(
                (e["start"] for e in histories[event["by"]] if e.get("gone") == event["handle"]), last["end"]
            )
            span = event["end"], until, event["by"]
            chain = event.get("chain", event["below"])
            while chain is not None:
                had[chain].append(span)
                chain = below[chain]
            if "name" in event and "chain" not in event:
                named[event["name"]].append(span)

    def covered(spans: list[tuple[int, int, int]], event: dict[str, Any]) -> str:
        found = [by for start, end, by in spans if start <= event["start"] and event["end"] <= end]
        return f" while {found[0]} had it" if found else ""

    for event in events:
        who = f"{event['by']}, {event['call']}"
        for chain in event.get("deleted", ()):
            if covered(had[chain], event):
                yield f"{who}: deleted {chain}{covered(had[chain], event)}"
        if event["outcome"] == "LayerNotFound" and covered(had[event["wanted"]], event):
            yield f"{who}: did not find {event['wanted']}{covered(had[event['wanted']], event)}"
        if event["outcome"] == "RWLayerNotFound" and covered(named[event["name"]], event):
            yield f"{who}: did not find {event['name']}{covered(named[event['name']], event)}"
        if event["call"] == "create" and event["outcome"] == "ok" and covered(named[event["name"]], event):
            yield f"{who}: made {event['name']}{covered(named[event['name']], event)}"
        if event["outcome"] == "MountNameConflict" and not any(
            e["call"] == "create" and e["outcome"] == "ok" and e["name"] == event["name"]
            for e in events
            if e["start"] < event["end"]
        ):
            yield f"{who}: there never was a {event['name']}"
    made = Counter(
        event["chain"] for event in events if event["call"] in ("register", "commit") and "chain" in event
    )
    deleted = Counter(chain for event in events for chain in event.get("deleted", ()))
    yield from (f"{chain}: deleted more often than made" for chain in deleted if deleted[chain] > made[chain])


def _left(session: Session, *, spoilt: bool) -> list[str]:
    """What is still there when all has been given back.

    `spoilt`: a registration that fails has its parent for a moment; who gives that back then does not delete
    it. Nobody has it any more, so it can be taken and deleted.
    """
    while spoilt and session.store.map() and session.store.release(session.top()):
        pass
    found = [f"left: layer {name}" for name in session.store.map()]
    found += [f"left: RW layer {record.name}" for record in session.store.rw_layers()]
    session.close()
    found += problems(session.root)
    return found + [f"left: {path}" for path in session.runroot.glob("mnt/*")]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("place", type=Path)
    parser.add_argument("--driver", choices=DRIVERS, default="fuse")
    parser.add_argument("--mix", choices=MIXES, default="all")
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--operations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    place: Path = arguments.place
    place.mkdir()
    started = time.monotonic()
    gate, opened = os.pipe()
    children = []
    for number in range(arguments.processes):
        children.append(pid := os.fork())
        if not pid:
            status = 1
            try:
                os.close(opened)
                session = Session(place, arguments.driver)
                worker = Worker(session, number, arguments.seed, place / f"history{number}")
                os.read(gate, 1)  # until all are there
                worker.run(MIXES[arguments.mix], arguments.operations)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
    os.close(opened)
    signal.alarm(_DEADLINE)
    found = [f"process {n} failed" for n, pid in enumerate(children) if os.waitpid(pid, 0)[1]]
    seconds = time.monotonic() - started
    histories = [
        [json.loads(line) for line in (place / f"history{number}").read_text().splitlines()]
        for number in range(arguments.processes)
    ]
    found += complaints(histories)
    found += _left(Session(place, arguments.driver), spoilt="spoil" in MIXES[arguments.mix])
    counts = Counter(f"{event['call']} {event['outcome']}" for history in histories for event in history)
    print(f"{sum(counts.values())} calls in {seconds:.1f} s:", dict(sorted(counts.items())))
    print(*found, sep="\n", end="")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
