"""The packet recorder from a manifest or a command to a file that tshark reads: the agent is a process, packets cross a wire."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pcapng_reader import read_blocks
from recorded import Machine, frame, machine, tshark
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

VIP_TCP = {"destination": "192.0.2.10/32", "protocol": "TCP"}


@pytest.fixture(scope="module")
def balancer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with machine(tmp_path_factory.mktemp("machine")) as made:
        yield made


def begin(balancer: Machine, name: str, **spec: Any) -> None:
    """Order a recording, and wait until it runs."""
    balancer.apply(name, **({"filters": [VIP_TCP]} | spec))
    balancer.until(lambda: name in balancer.command("list").stdout, f"{name} runs")


def state(balancer: Machine, name: str) -> str:
    """How the agent says a recording is."""
    return next(line for line in balancer.command("list").stdout.splitlines() if line.startswith(f"{name}: "))


def ended(balancer: Machine, name: str) -> Any:
    """Wait for the status of a recording that has ended."""
    balancer.until(lambda: balancer.told(name).get("state", "Running") != "Running", f"{name} has ended")
    return balancer.told(name)


def fetched(balancer: Machine, name: str, tmp_path: Path) -> Path:
    """The files of a recording, as the command brings them."""
    file = tmp_path / f"{name}.pcapng"
    balancer.command("fetch", name, "-o", str(file))
    return file


def test_packet_for_packet(balancer: Machine, tmp_path: Path) -> None:
    """What was sent is in the file as received, what came back is in it as sent, and each pair has one number."""
    sent = [frame(number) for number in range(1, 40)] + [frame(number, family=6) for number in range(40, 80)]
    sent += [frame(number, dport=53) for number in range(80, 99)]
    filters = [{"destination": "192.0.2.0/24"}, {"destination": "2001:db8:10::/64", "protocol": "TCP"}]
    begin(balancer, "whole", filters=filters, limits={"packets": len(sent)})
    before = time.time_ns()
    back = balancer.exchange(sent)
    after = time.time_ns()
    told = ended(balancer, "whole")
    assert (told["state"], told["message"]) == ("Finished", "the packet limit is reached")
    assert (told["matched"], told["written"], told.get("lost", 0)) == (len(sent), len(sent), 0)
    (path,) = map(Path, told["files"])
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert path.name.startswith("whole.lb-1.2")
    shown = tshark(fetched(balancer, "whole", tmp_path))
    received, left = shown[::2], shown[1::2]
    assert [one.frame for one in received] == sent
    assert [one.frame for one in left] == back
    assert {one.interface for one in received} | {one.interface for one in left} == {"received", "sent"}
    assert [one.packet_id for one in received] == [one.packet_id for one in left]
    assert len({one.packet_id for one in received}) == len(sent)
    times = [one.time_ns for one in received]
    assert times == sorted(times)
    assert before < times[0] < times[-1] < after
    for word in ("capture whole", "filter 192.0.2.0/24", "VIP 192.0.2.10:80 of LoadBalancer/web", "backend 10.9.0.1:80"):
        assert word in shown[0].comments
    assert "VIP [2001:db8:10::10]:80" in received[50].comments
    balancer.remove("whole")


def test_dropped_with_the_reason(balancer: Machine, tmp_path: Path) -> None:
    """A packet that no frontend takes is recorded as it came, with what became of it."""
    begin(balancer, "dropped", limits={"packets": 2})
    assert balancer.exchange([frame(1, dport=81), frame(2, dport=82)]) == []
    ended(balancer, "dropped")
    shown = tshark(fetched(balancer, "dropped", tmp_path))
    assert [(one.interface, one.frame) for one in shown] == [
        ("received", frame(1, dport=81)),
        ("received", frame(2, dport=82)),
    ]
    assert all("dropped: no_frontend" in one.comments for one in shown)
    balancer.remove("dropped")


def test_snap_length_and_one_tap(balancer: Machine, tmp_path: Path) -> None:
    begin(balancer, "short", snapLength=60, taps=["Sent"], limits={"packets": 1})
    back = balancer.exchange([frame(5, size=500)])
    ended(balancer, "short")
    (shown,) = tshark(fetched(balancer, "short", tmp_path))
    assert (shown.interface, shown.frame, shown.length) == ("sent", back[0][:60], len(back[0]))
    balancer.remove("short")


def test_live_to_a_pipe(balancer: Machine) -> None:
    """Packets reach the reader while the recording goes on, and it ends at its limit."""
    words = balancer.words("start", "192.0.2.10 tcp/80", "--packets", "3", "-o", "-", "--name", "live")
    reader = ["tshark", "-l", "-n", "-r", "-", "-T", "fields", "-e", "frame.interface_name", "-e", "frame.len"]
    with (
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as capture,
        subprocess.Popen(reader, stdin=capture.stdout, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as shark,
    ):
        assert capture.stdout
        assert capture.stderr
        assert shark.stdout
        capture.stdout.close()
        balancer.until(lambda: "live: Running" in balancer.command("list").stdout, "it runs")
        balancer.exchange([frame(1)])
        size = len(frame(1))
        assert [shark.stdout.readline().split() for _ in range(2)] == [["received", str(size)], ["sent", str(size + 20)]]
        assert "live: Running" in balancer.command("list").stdout
        balancer.exchange([frame(2), frame(3), frame(4)])
        assert len(shark.stdout.readlines()) == 4
        said = capture.stderr.read()
    assert capture.returncode == 0
    assert "live: Finished (the packet limit is reached), 3 packets matched, 3 written, 0 lost" in said


def test_interrupted(balancer: Machine, tmp_path: Path) -> None:
    """Ctrl-C ends a recording with everything that was seen and its account."""
    file = tmp_path / "x.pcapng"
    words = balancer.words("start", "192.0.2.10", "-o", str(file), "--name", "interrupted")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as capture:
        balancer.until(lambda: "interrupted" in balancer.command("list").stdout, "it runs")
        sent = [frame(number) for number in range(5)]
        balancer.exchange(sent)
        capture.send_signal(signal.SIGINT)
        _, said = capture.communicate(timeout=20)
    assert capture.returncode == 0, said
    assert "Finished (stopped), 5 packets matched, 5 written, 0 lost" in said
    assert [one.frame for one in tshark(file)][::2] == sent
    assert read_blocks(file.read_bytes())[-1].kind == 5
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("packets", [0, 5])
def test_reader_that_goes(balancer: Machine, packets: int) -> None:
    """A reader that dies ends its recording, whether packets come or not."""
    name = f"leaver-{packets}"
    words = balancer.words("start", "192.0.2.10", "-o", "-", "--name", name)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as capture:
        balancer.until(lambda: name in balancer.command("list").stdout, "it runs")
        capture.kill()
    balancer.exchange([frame(number) for number in range(packets)])
    balancer.until(lambda: "Finished (the reader has closed)" in state(balancer, name), "it has ended")


def test_slow_reader_is_counted_and_stops_nothing(balancer: Machine) -> None:
    """Packets go on when nobody reads; those that were not written are counted."""
    count = 9000
    words = balancer.words("start", "192.0.2.10 tcp/80", "-o", "-", "--name", "slow")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as capture:
        balancer.until(lambda: "slow" in balancer.command("list").stdout, "it runs")
        before = balancer.forwarded()
        for number in range(count):
            balancer.wire.send(frame(number % 60000, size=1380))
        balancer.until(lambda: balancer.forwarded() - before == count, "all are forwarded")
        balancer.until(lambda: " 0 lost" not in state(balancer, "slow"), "losses are told")
        assert capture.stdout
        capture.kill()
        capture.stdout.close()
    balancer.until(lambda: "slow: Finished" in state(balancer, "slow"), "it has ended")


def test_quota(balancer: Machine) -> None:
    """The files take no more than was allowed, and the status says why the recording ended."""
    begin(balancer, "quota", quotaMegabytes=1)
    for number in range(600):
        balancer.wire.send(frame(number, size=1380))
    told = ended(balancer, "quota")
    assert (told["state"], told["message"]) == ("QuotaReached", "the storage quota is used up")
    assert 900_000 < Path(told["files"][0]).stat().st_size <= 1 << 20
    balancer.remove("quota")


def test_full_disk(balancer: Machine, tmp_path: Path) -> None:
    """A full disk ends the recording with a file that can be read, and forwarding goes on."""
    folder = balancer.state / "captures"
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k,mode=700", "tmpfs", folder], check=True)
    try:
        begin(balancer, "full")
        before = balancer.forwarded()
        for number in range(200):
            balancer.wire.send(frame(number, size=1380))
        told = ended(balancer, "full")
        assert (told["state"], told["message"]) == ("Failed", "the disk is full")
        assert told["lost"] > 0
        assert balancer.forwarded() - before == 200
        shown = tshark(fetched(balancer, "full", tmp_path))
        received = [one.frame for one in shown][::2]
        # The disk may have been full between the two records of the last packet.
        assert received == [frame(number, size=1380) for number in range(len(received))]
        assert len(received) - told["written"] in (0, 1)
    finally:
        balancer.remove("full")
        subprocess.run(["umount", folder], check=True)


def ring(balancer: Machine, name: str, **spec: Any) -> None:
    begin(balancer, name, mode="Ring", ring={"packets": 3}, **spec)


def test_ring_by_command_and_by_request(balancer: Machine, tmp_path: Path) -> None:
    """The last packets are written when somebody asks, by either way, and the ring goes on."""
    ring(balancer, "flight")
    sent = [frame(number) for number in range(9)]
    balancer.exchange(sent)
    assert "9 packets matched, 0 written" in state(balancer, "flight")
    balancer.command("trigger", "flight")
    assert [one.frame for one in tshark(fetched(balancer, "flight", tmp_path))][::2] == sent[-3:]
    balancer.exchange(sent[:2])
    ring(balancer, "flight", writeRequest=1)
    balancer.until(lambda: "5 written" in state(balancer, "flight"), "the second file is written")
    assert [one.frame for one in tshark(fetched(balancer, "flight", tmp_path))][::2] == sent[-3:] + sent[:2]
    balancer.remove("flight")


def answer(balancer: Machine, translated: bytes, flags: str) -> bytes:
    """What the backend of a translated connection answers."""
    packet = Ether(translated)
    ends = IP(src=packet[IP].dst, dst=packet[IP].src) / TCP(sport=packet[TCP].dport, dport=packet[TCP].sport, flags=flags)
    return bytes(Ether(src=packet.dst, dst=packet.src) / ends)


def test_ring_by_what_happens(balancer: Machine, tmp_path: Path) -> None:
    """A drop for the named reason, a reset by a client, and one by a backend whose answers are translated, write the ring."""
    to_dnat = {"destination": "192.0.2.20/32"}
    from_dnat = {"source": "192.0.2.20/32"}
    ring(balancer, "on-drop", triggers=[{"type": "DropReason", "reason": "lb_no_frontend"}])
    ring(balancer, "on-reset", triggers=[{"type": "BackendReset"}])
    ring(balancer, "on-answer", filters=[to_dnat, from_dnat], triggers=[{"type": "BackendReset"}])
    balancer.exchange([frame(1), frame(2, dport=81)])
    balancer.until(lambda: "2 written" in state(balancer, "on-drop"), "the drop is written")
    balancer.exchange([frame(3, flags="R")])
    balancer.until(lambda: "3 written" in state(balancer, "on-reset"), "the reset is written")
    (out,) = balancer.exchange([frame(4, flags="S", vip="192.0.2.20")])
    (back,) = balancer.exchange([answer(balancer, out, "RA")])
    balancer.until(lambda: "2 written" in state(balancer, "on-answer"), "the backend's reset is written")
    shown = tshark(fetched(balancer, "on-answer", tmp_path))
    assert [one.frame for one in shown] == [frame(4, flags="S", vip="192.0.2.20"), out, answer(balancer, out, "RA"), back]
    assert "VIP 192.0.2.20:80 of LoadBalancer/translated" in shown[2].comments
    assert "backend 10.9.0.2:8080" in shown[2].comments
    assert Ether(back)[IP].src == "192.0.2.20"
    file = fetched(balancer, "on-answer", tmp_path).read_bytes()
    assert b"written because: a reset by the backend" in file
    assert b"written because: a packet was dropped: no_frontend" in fetched(balancer, "on-drop", tmp_path).read_bytes()
    for name in ("on-drop", "on-reset", "on-answer"):
        balancer.remove(name)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("start", "192.0.2.300"), "'192.0.2.300' is no address"),
        (("start", "192.0.2.10", "--snaplen", "70000"), "spec.snapLength: 70000 does not lie between 0 and 65535"),
        (("start", "192.0.2.10", "--trigger", "drop"), "it is reset, health, or drop:REASON"),
        (("start", "192.0.2.10", "--trigger", "drop:boredom"), "no packet is dropped for 'boredom'; the reasons are lb_"),
        (("stop", "nobody"), "no recording named nobody is here: see tidegate capture list"),
        (("fetch", "nobody", "-o", "/nonexistent/x"), "no recording named nobody"),
    ],
)
def test_refusals_name_what_is_wrong(balancer: Machine, words: tuple[str, ...], said: str) -> None:
    done = balancer.command(*words, check=False)
    assert done.returncode == 2
    assert said in done.stderr


def test_an_ordered_recording_is_not_stopped_by_command(balancer: Machine) -> None:
    begin(balancer, "ordered")
    done = balancer.command("stop", "ordered", check=False)
    assert "PacketCapture/ordered orders it: set its spec.stopped to true" in done.stderr
    begin(balancer, "ordered", stopped=True)
    assert ended(balancer, "ordered")["message"] == "stopped"
    balancer.remove("ordered")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_over_a_restart(balancer: Machine, tmp_path: Path, number: int) -> None:
    """What has ended stays ended, what runs goes on in another file, and forwarding never stops."""
    begin(balancer, "done", limits={"packets": 1})
    begin(balancer, "going")
    sent = [frame(number) for number in range(6)]
    balancer.exchange(sent[:3])
    assert ended(balancer, "done")["state"] == "Finished"
    balancer.until(lambda: "3 written" in state(balancer, "going"), "the first part is written")
    balancer.until(lambda: len(balancer.told("going").get("files", ())) == 1, "the file is remembered")
    balancer.stop(number)
    assert len(balancer.exchange(sent[:3])) == 3
    balancer.start()
    balancer.until(lambda: "going: Running" in balancer.command("list", check=False).stdout, "it goes on")
    balancer.exchange(sent[3:])
    balancer.until(lambda: tshark(fetched(balancer, "going", tmp_path))[-1].frame[-24:] == sent[5][-24:], "the rest is written")
    assert [one.frame for one in tshark(fetched(balancer, "going", tmp_path))][::2] == sent
    assert "done: Finished" in balancer.command("list").stdout
    assert len(tshark(fetched(balancer, "done", tmp_path))) == 2
    for name in ("done", "going"):
        (balancer.manifests / f"{name}.yaml").unlink()
    balancer.until(lambda: "going" not in balancer.command("list").stdout, "it is gone")
