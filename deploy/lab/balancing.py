"""The main job of load balancers: a client asks the virtual addresses while backends and balancers come and go."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tidegate.lab import balancers
from tidegate.lab.drawing import draw, table
from tidegate.lab.options import BACKENDS, BALANCERS
from tidegate.lab.premises import Premises, command
from tidegate.lab.progress import Progress
from tidegate.lab.topology import CLIENT, VIPS

REQUESTS, HELD = 300, 100
"""Per address: new connections, and connections that stay open through every change."""

_LINES, _DATAGRAMS, _HTTP, _TRANSLATED = 9000, 9001, 80, 8080
_WEIGHTS = {"backend1": 1, "backend2": 1, "backend3": 1, "backend4": 2}


class Client:
    """The client's side, in its namespace."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def tell(self, *words: object) -> dict[str, int]:
        """Give an order and return how often each answer came."""
        assert self._process.stdin
        assert self._process.stdout
        print(*words, file=self._process.stdin, flush=True)
        found: dict[str, int] = json.loads(self._process.stdout.readline())
        return found


@contextmanager
def client(premises: Premises) -> Iterator[Client]:
    """Run the client's process for as long as the block lasts."""
    run = [*premises.inside(CLIENT), *premises.python("tidegate.lab.callers")]
    with subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Client(process)
        finally:
            process.kill()


def run(premises: Premises, progress: Progress) -> bool:
    """Do it and print it. Returns whether every request was answered and no connection was lost."""
    vips = premises.topology.vips
    events: list[list[str]] = []
    with client(premises) as one:
        with progress.step("new connections and datagrams to every address"):
            answers = Counter[str]()
            for vip in vips:
                answers.update(one.tell("http", vip, _HTTP, REQUESTS))
            datagrams, translated = Counter[str](), Counter[str]()
            for vip in vips:
                datagrams.update(one.tell("udp", vip, _DATAGRAMS, REQUESTS // 3))
                translated.update(one.tell("http", vip, _TRANSLATED, REQUESTS // 3))
        with progress.step("connections that stay open"):
            for vip in vips:
                one.tell("hold", vip, _LINES, HELD)
        try:
            for title, change in _changes(premises, one):
                with progress.step(title):
                    change()
                    told = one.tell("ask")
                lost = sum(count for name, count in told.items() if name not in BACKENDS)
                events.append([title, str(sum(told.values())), str(lost), "ok" if not lost else "LOST"])
            one_drained = one.tell("http", vips[0], _HTTP, REQUESTS)
        finally:
            balancers.spread(premises, BALANCERS)
    print(f"\n{draw(premises.topology, dict.fromkeys(BALANCERS, 'load balancer'))}\n")
    heads = ["BACKEND", "WEIGHT", "CONNECTIONS", "SHARE", "EXPECTED", "DATAGRAMS", "TRANSLATED"]
    print(table(heads, _shares(answers, datagrams, translated)) + "\n")
    print(table(["WHILE CONNECTIONS ARE OPEN", "OPEN", "LOST", ""], events) + "\n")
    folder = str(balancers.manifests(premises, BALANCERS[0]))
    print(command(*premises.python("tidegate.cli.main", "lb", "status", "--manifests", folder)))
    print(_how_to_go_on(premises), flush=True)
    is_answered = set(answers) | set(datagrams) | set(translated) | set(one_drained) <= set(BACKENDS)
    return is_answered and all(row[-1] == "ok" for row in events)


def _changes(premises: Premises, one: Client) -> Iterator[tuple[str, Callable[[], object]]]:
    def add(spec: dict[str, Any]) -> None:
        spec["backends"].append({**spec["backends"][0], "address": "172.30.0.16"})

    def drain(spec: dict[str, Any]) -> None:
        spec["backends"][1]["state"] = "draining"

    def reweigh(spec: dict[str, Any]) -> None:
        spec["backends"][3]["weight"] = 5

    def remove() -> None:
        one.tell("close", BACKENDS[1])
        balancers.change(premises, "lines", lambda spec: spec["backends"].pop(1))

    def changed(edit: Callable[[dict[str, Any]], object]) -> Callable[[], object]:
        return lambda: balancers.change(premises, "lines", edit)

    def kill() -> None:
        premises.daemons.stop([f"agent-{BALANCERS[0]}"], signal.SIGKILL)
        balancers.start_agent(premises, BALANCERS[0])

    yield "a backend is added", changed(add)
    yield "a backend drains", changed(drain)
    yield "a weight changes", changed(reweigh)
    yield "an agent is killed and starts again", kill
    yield "an agent is upgraded", lambda: balancers.upgrade_agent(premises, BALANCERS[0])
    yield "all flows move to the other balancer", lambda: balancers.spread(premises, BALANCERS[1:])
    yield "and back to the first", lambda: balancers.spread(premises, BALANCERS[:1])
    yield "the drained backend, whose connections have ended, is removed", remove


def _shares(answers: Counter[str], *others: Counter[str]) -> list[list[str]]:
    total, weights = answers.total(), sum(_WEIGHTS.values())
    names = [*BACKENDS, *sorted(set().union(answers, *others) - set(BACKENDS))]
    return [
        [
            name,
            str(_WEIGHTS.get(name, "-")),
            str(answers[name]),
            f"{answers[name] / total:.0%}",
            f"{_WEIGHTS.get(name, 0) / weights:.0%}",
            *(str(counted[name]) for counted in others),
        ]
        for name in names
    ]


def _how_to_go_on(premises: Premises) -> str:
    name = "" if premises.options.name == "default" else f" --name {premises.options.name}"
    folder = balancers.manifests(premises, BALANCERS[0])
    return f"""The lab is up. To go on:
  tidegate lab exec{name} client -- curl -s http://{VIPS[0]}/
  edit {folder}/web.yaml, and look at: tidegate lb status --manifests {folder}
  tidegate lb forecast --manifests {folder} -f NEW.yaml
  tidegate lab exec{name} lb1 -- ip -d link show eth0
  tidegate lab down{name}
Logs are in {premises.daemons.logs}."""
