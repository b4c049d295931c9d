"""Run a command as root under a distribution's kernel: QEMU's emulation, with this machine's files, about three seconds to it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from vm_kernel import Kernel, boot_modules

PACKAGES = "qemu-system-x86 busybox-static kmod zstd lz4, and virtiofsd where qemu-system-common has none"

# The initramfs: loads what the host's files need, lays a writable layer over them, and goes there.
_INIT = """#!/busybox sh
b=/busybox
fail() { echo "vm: $1" >/dev/ttyS0; $b poweroff -f; }
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
for module in $($b cat /modules); do $b insmod /$module || fail "insmod $module"; done
$b mount -t virtiofs -o ro host /lower || fail "mount the host's files"
$b mount -t tmpfs -o mode=755,size=80% up /up; $b mkdir /up/files /up/work
$b cp /stage2 /command /up/files/
$b mount -t overlay -o lowerdir=/lower,upperdir=/up/files,workdir=/up/work root /new || fail "mount the overlay"
$b mkdir -p /new/usr/lib/modules/$($b uname -r)
$b mount --bind /lower@MODULES@ /new/usr/lib/modules/$($b uname -r) || fail "bind the modules"
for tree in dev proc sys; do $b mount --move /$tree /new/$tree; done
exec $b switch_root /new @BUSYBOX@ sh /stage2
"""

# Process 1. The command has bash, not busybox sh, which prefers its own ip and ping.
_STAGE2 = """
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
for port in /sys/class/virtio-ports/*; do
    read name <$port/name
    eval "$name=/dev/${port##*/}"
done
b=@BUSYBOX@
$b mount -t bpf bpf /sys/fs/bpf; $b mount -t tracefs t /sys/kernel/tracing; $b mount -t cgroup2 c /sys/fs/cgroup
$b mkdir -p /dev/shm /dev/pts; $b mount -t tmpfs s /dev/shm; $b mount -t devpts -o ptmxmode=666 p /dev/pts
$b mount -t tmpfs r /run; $b mkdir /run/netns
$b ip link set lo up; $b hostname vm
/usr/bin/setsid -w /bin/bash /command </dev/null >$out 2>&1
echo $? >$status
echo o >/proc/sysrq-trigger
$b sleep 5; $b poweroff -f
"""

_KERNEL_LINE = (
    "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t mitigations=off nokaslr audit=0 cryptomgr.notests random.trust_cpu=on "
    "tsc=reliable no_timer_check 8250.nr_uarts=1 rcupdate.rcu_expedited=1"
)


# Read-only by the mount, in a mount namespace of its own: the server itself promises nothing.
_BIND = """
root=$1
shift
while [ "$1" != -- ]; do
    mount --bind "$1" "$root$1"
    mount -o remount,bind,ro "$root$1"
    shift
done
shift
exec "$@"
"""


class Unfit(Exception):
    """This machine cannot emulate another; the message says what is missing."""


class NeverAnswered(Exception):
    """The guest ended, or was ended, before its command did; the message has its console and what it printed."""


@dataclass(frozen=True, slots=True)
class Done:
    """What the command came to: its exit status, its output (both streams), and seconds from power-on to power-off."""

    status: int
    output: str
    seconds: float


def run(kernel: Kernel, command: str, *, shared: tuple[Path, ...], memory_mib: int = 2048, timeout_s: float = 240) -> Done:
    """Boot `kernel` and run `command` (bash) in it.

    The guest sees this machine's root file system under the same paths and may write anywhere; nothing of that reaches
    the host. Name in `shared` the folders that may lie on other file systems. Raises `Unfit` or `NeverAnswered`.
    """
    qemu, busybox, virtiofsd = _program("qemu-system-x86_64"), _program("busybox"), _virtiofsd()
    with tempfile.TemporaryDirectory(prefix="tidegate-vm-") as made:
        folder = Path(made)
        initramfs = folder / "initramfs"
        initramfs.write_bytes(_initramfs(kernel, busybox, command))
        begin = time.monotonic()
        with subprocess.Popen(_share_files(virtiofsd, folder, (*shared, kernel.modules)), stderr=subprocess.PIPE) as server:
            try:
                _wait_for_socket(server, folder / "files.sock")
                guest = [qemu, *_hardware(folder, memory_mib), "-kernel", kernel.vmlinux, "-initrd", initramfs]
                words = _run_guest([*guest, "-append", _KERNEL_LINE], timeout_s)
            finally:
                server.kill()
        seconds = time.monotonic() - begin
        output = (folder / "out").read_text(errors="replace")
        status = (folder / "status").read_text().strip()
        if not status:
            console = (folder / "console").read_text(errors="replace")
            raise NeverAnswered(f"{kernel.release}: {words}\n{output}\n--- console\n{console}")
        return Done(int(status), output, seconds)


def _run_guest(command: list[str | Path], timeout_s: float) -> str:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return f"no end after {timeout_s:.0f} s"
    return done.stderr.decode(errors="replace")


def _program(name: str) -> Path:
    found = shutil.which(name)
    if found is None:
        raise Unfit(f"{name} is missing; install {PACKAGES}")
    return Path(found).resolve()


def _virtiofsd() -> Path:
    # Debian 13 and Ubuntu 24.04 have the one written in Rust, which speaks another command line.
    for path in map(Path, ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")):
        if path.exists():
            return path
    raise Unfit(f"virtiofsd is missing; install {PACKAGES}")


def _share_files(virtiofsd: Path, folder: Path, shared: tuple[Path, ...]) -> list[str]:
    root, socket = folder / "root", folder / "files.sock"
    root.mkdir()
    served = [str(virtiofsd), f"--socket-path={socket}"]
    spoken = subprocess.run([virtiofsd, "--help"], capture_output=True, text=True, check=False).stdout
    if "--shared-dir" in spoken:
        # By handles it needs no open file for each that the guest has looked at ("Too many open files in system").
        served += [f"--shared-dir={root}", "--sandbox=chroot", "--cache=always", "--inode-file-handles=prefer"]
        if "--no-announce-submounts" in spoken:
            # The overlay refuses to look below what it is told are mount points ("Object is remote").
            served.append("--no-announce-submounts")
    else:
        # Its sandbox of namespaces refuses to serve a whole root ("pivot_root: Device or resource busy").
        served += ["-o", f"source={root}", "-o", "sandbox=chroot", "-o", "cache=always"]
    binds = ("/", *map(str, shared), "--")
    return ["unshare", "-m", "--propagation", "private", "sh", "-ec", _BIND, "sh", str(root), *binds, *served]


def _wait_for_socket(server: subprocess.Popen[bytes], socket: Path) -> None:
    for _ in range(500):
        if socket.exists():
            return
        if server.poll() is not None:
            break
        time.sleep(0.01)
    server.kill()
    raise Unfit(f"virtiofsd does not serve: {server.communicate()[1].decode(errors='replace')}")


def _hardware(folder: Path, memory_mib: int) -> list[str]:
    # Of the processors that TCG offers, `max` makes networking four times slower; without rdrand Python waits for entropy.
    return [
        *("-machine", "q35", "-accel", "tcg", "-cpu", "qemu64,+rdrand", "-smp", "1", "-m", f"{memory_mib}M"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none"),
        *("-serial", f"file:{folder}/console", "-device", "virtio-serial-pci"),
        *("-chardev", f"file,id=out,path={folder}/out", "-device", "virtserialport,chardev=out,name=out"),
        *("-chardev", f"file,id=status,path={folder}/status", "-device", "virtserialport,chardev=status,name=status"),
        *("-object", f"memory-backend-memfd,id=mem,size={memory_mib}M,share=on", "-numa", "node,memdev=mem"),
        *("-chardev", f"socket,id=files,path={folder}/files.sock"),
        *("-device", "vhost-user-fs-pci,chardev=files,tag=host,queue-size=1024"),
    ]


def _initramfs(kernel: Kernel, busybox: Path, command: str) -> bytes:
    modules = boot_modules(kernel)
    filled = _INIT.replace("@MODULES@", str(kernel.modules)), _STAGE2
    init, stage2 = (script.replace("@BUSYBOX@", str(busybox)).encode() for script in filled)
    files = {"init": init, "stage2": stage2, "command": command.encode(), "busybox": busybox.read_bytes()}
    files["modules"] = " ".join(path.name for path in modules).encode()
    files |= {path.name: path.read_bytes() for path in modules}
    folders = [_cpio_entry(name, 0o40755, b"") for name in ("proc", "sys", "dev", "lower", "up", "new")]
    packed = [_cpio_entry(name, 0o100755, content) for name, content in files.items()]
    return b"".join([*folders, *packed, _cpio_entry("TRAILER!!!", 0, b"")])


def _cpio_entry(name: str, mode: int, content: bytes) -> bytes:
    # The "newc" format: Documentation/driver-api/early-userspace/buffer-format.rst.
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
