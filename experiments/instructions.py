"""How many instructions does one call of a `.tflite` file take on a processor that is not here?

A tool for experiments: qemu's user-mode emulation runs LiteRT as on an x86-64 without AVX or on an
ARM64, and a plugin of a few lines counts. Two runs that differ only in their number of calls are
subtracted, so that start-up cancels. A count is no time (caches, width and clock are not in it), but
it is repeatable where a shared machine's clock is not.

    python -m experiments.instructions model.tflite --processor arm64

Needs Debian's qemu-user (7.2) and gcc; for arm64 also apt-get, dpkg and pip, once, which
fetch a Python of that architecture into a folder (Debian 12; 155 MB, under a minute).
"""

import argparse
import importlib.metadata
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from typing import Literal

import numpy as np

from tfkit.errors import ArgumentError, ExportError
from tfkit.export import apart, runners

Processor = Literal["no-avx", "arm64", "arm64-dot"]
CORES = {"arm64": "cortex-a72", "arm64-dot": "cortex-a76"}  # as qemu names them; the second has dot products
ARM64 = pathlib.Path("~/.cache/tfkit/arm64")
PYTHON = "3.11"  # of Debian 12
PACKAGES = (
    *(f"python{PYTHON}-minimal", f"libpython{PYTHON}-minimal", f"libpython{PYTHON}-stdlib"),
    *(
        "libc6",
        "libstdc++6",
        "libgcc-s1",
        "zlib1g",
        "libffi8",
        "libexpat1",
        "libssl3",
        "libbz2-1.0",
        "liblzma5",
    ),
)
# LiteRT asks the system what the processor can and crashes on this machine's answer. These are a
# Cortex-A72's; qemu opens a file below the root instead of the one of that name outside.
SYSTEM = {
    "proc/cpuinfo": (
        "processor\t: 0\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid\n"
        + "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\n"
        + "CPU part\t: 0xd08\nCPU revision\t: 3\n"
    ),
    "sys/devices/system/cpu/possible": "0\n",
    "sys/devices/system/cpu/present": "0\n",
}
# What of qemu's plugin interface is used, declared here because Debian packages no header.
PLUGIN = r"""
#include <inttypes.h>
#include <stdio.h>

struct qemu_plugin_tb;
typedef uint64_t plugin_id;
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *block, int what, void *sum, uint64_t n);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*translated)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_atexit_cb(plugin_id, void (*ended)(plugin_id, void *), void *data);

int qemu_plugin_version = 1;
static uint64_t executed;
static const char *place;

static void translated(plugin_id self, struct qemu_plugin_tb *block) {
    qemu_plugin_register_vcpu_tb_exec_inline(block, 0 /* add */, &executed, qemu_plugin_tb_n_insns(block));
}

static void ended(plugin_id self, void *data) {
    FILE *file = fopen(place, "w");
    if (file) {
        fprintf(file, "%" PRIu64 "\n", executed);
        fclose(file);
    }
}

int qemu_plugin_install(plugin_id self, const void *information, int count, char **arguments) {
    static char kept[4096];
    if (count < 1 || sscanf(arguments[0], "to=%4095s", kept) != 1)
        return 1;
    place = kept;
    qemu_plugin_register_vcpu_tb_trans_cb(self, translated);
    qemu_plugin_register_atexit_cb(self, ended, 0);
    return 0;
}
"""


def count_instructions(
    path: str | os.PathLike,
    arrays: Sequence[np.ndarray] | None = None,
    *,
    processor: Processor = "no-avx",
    calls: tuple[int, int] = (1, 3),
    arm64: str | os.PathLike = ARM64,
    time_limit_s: float = 1800.0,
) -> float:
    """Counts the instructions of one call of a `.tflite` file, on one thread.

    ``(count of a run with calls[1] - count of a run with calls[0]) / (calls[1] - calls[0])``

    Args:
        path: A `.tflite` file.
        arrays: One batch, an array an input; None takes zeros.
        processor: ``"no-avx"``, an Intel Nehalem; ``"arm64"``, a Cortex-A72; or ``"arm64-dot"``, a
            Cortex-A76, which multiplies int8 four at a time as phones do since 2018.
        calls: Two different numbers of calls.
        arm64: Where `arm64_root` made its folder, or makes it now.
        time_limit_s: Seconds for each run.

    Raises:
        ArgumentError: If `calls` cannot be subtracted or the processor is unknown.
        ExportError: If a tool is missing, or the file does not run there.
    """
    few, many = calls
    if not 0 <= few < many:
        raise ArgumentError(f"`calls` must be two numbers, the smaller first. Received: calls={calls!r}.")
    with tempfile.TemporaryDirectory(prefix="tfkit-instructions-") as name:
        folder = pathlib.Path(name)
        plugin = compile_plugin(folder)
        command, environment = _child(processor, folder, plugin, arm64)
        counts = []
        for rounds in calls:
            (folder / "count").unlink(missing_ok=True)
            apart.write_job(folder, pathlib.Path(path).absolute(), arrays, rounds=rounds)
            done = _run(command, environment, time_limit_s)
            happened = apart.read_job(folder)
            if done.returncode or happened["stage"] != "done" or not (folder / "count").exists():
                raise ExportError(
                    f"The file must run on {processor} and be counted there. Received: path={str(path)!r}, "
                    f"exit code {done.returncode} while {happened['stage']}. "
                    f"{happened['text'] or done.stderr[-500:]}"
                )
            counts.append(int((folder / "count").read_text()))
    return (counts[1] - counts[0]) / (many - few)


def compile_plugin(folder: pathlib.Path) -> pathlib.Path:
    """Compiles the plugin that counts into a folder."""
    source, plugin = folder / "count.c", folder / "libcount.so"
    source.write_text(PLUGIN)
    _run(
        [_need("gcc", "gcc"), "-O2", "-shared", "-fPIC", "-o", str(plugin), str(source)],
        os.environ,
        120,
        True,
    )
    return plugin


def arm64_root(folder: str | os.PathLike = ARM64) -> pathlib.Path:
    """Makes, once, a folder with Python, NumPy and LiteRT for ARM64, and returns it.

    Debian's packages come through apt-get with lists of its own, so that the system's stay as they are.
    """
    folder = pathlib.Path(folder).expanduser().absolute()
    if (folder / "opt/made").exists():
        return folder
    apt_get, dpkg = _need("apt-get", "apt"), _need("dpkg", "dpkg")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".arm64-", dir=folder.parent) as name:
        work = pathlib.Path(name)
        root, packages = work / "root", work / "packages"
        for each in ("state/lists/partial", "cache/archives/partial", "packages", "root/opt/packages"):
            (work / each).mkdir(parents=True)
        apt = [apt_get, "-qq", "-o", f"Dir::State={work / 'state'}", "-o", f"Dir::Cache={work / 'cache'}"]
        apt += ["-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64"]
        apt += ["-o", "APT::Sandbox::User="] if os.geteuid() == 0 else []
        _run([*apt, "update"], os.environ, 600, True)
        _run([*apt, "download", *PACKAGES], os.environ, 600, True, cwd=packages)
        wheels = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        wheels += ["--platform", "manylinux_2_28_aarch64", "--platform", "manylinux_2_27_aarch64"]
        wheels += ["--python-version", PYTHON, "--dest", str(packages)]
        litert = f"ai-edge-litert=={importlib.metadata.version('ai-edge-litert')}"
        _run([*wheels, "numpy", litert], os.environ, 600, True)
        for package in packages.glob("*.deb"):
            _run([dpkg, "-x", str(package), str(root)], os.environ, 120, True)
        for wheel in packages.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(root / "opt/packages")
        for place, text in SYSTEM.items():
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).write_text(text)
        # shows that it works, and keeps the compiled modules so that no counted run compiles them
        command, environment = _arm64_python(root)
        environment = {**environment, "PYTHONDONTWRITEBYTECODE": ""}
        _run([*command, "-c", "import json, ai_edge_litert.interpreter"], environment, 600, True)
        (root / "opt/made").touch()
        shutil.rmtree(folder, ignore_errors=True)
        root.rename(folder)
    return folder


def _child(
    processor: Processor, folder: pathlib.Path, plugin: pathlib.Path, arm64: str | os.PathLike
) -> tuple[list[str], dict[str, str]]:
    """Returns the command and the environment of a counted run."""
    counting = ["-plugin", f"{plugin},to={folder / 'count'}"]
    if processor in CORES:
        (emulator, *python), environment = _arm64_python(arm64_root(arm64), processor)
        return [emulator, *counting, *python, "-P", runners.__file__, str(folder)], environment
    if processor != "no-avx":
        known = ", ".join(["no-avx", *CORES])
        raise ArgumentError(f"`processor` must be one of {known}. Received: processor={processor!r}.")
    if not apart.has_avx():
        raise ExportError("no-avx is counted on an x86-64 machine with AVX only. Received: another one.")
    emulator, *python = apart.command("no-avx", folder)
    return [emulator, *counting, *python], apart.child_environment("no-avx") | _FIXED | {
        "PYTHONPATH": _packages()
    }


_FIXED = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}


def _packages() -> str:
    """Returns where NumPy and LiteRT stand, and nothing else.

    Python lists every folder of its path, and one whose files change would change the count.
    """
    found = [importlib.util.find_spec(name).origin for name in ("numpy", "ai_edge_litert")]
    return os.pathsep.join(dict.fromkeys(str(pathlib.Path(each).parents[1]) for each in found))


def _arm64_python(root: pathlib.Path, processor: str = "arm64") -> tuple[list[str], dict[str, str]]:
    paths = {"PYTHONHOME": str(root / "usr"), "PYTHONPATH": str(root / "opt/packages")}
    emulator = _need("qemu-aarch64", "qemu-user")
    # not qemu's default, "max", which has extensions that few phones have
    command = [
        emulator,
        "-cpu",
        CORES[processor],
        "-L",
        str(root),
        str(root / f"usr/bin/python{PYTHON}"),
        "-S",
    ]
    return command, {"PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1", **paths, **_FIXED}


def _need(program: str, package: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise ExportError(
            f"Counting instructions needs {program}. Received: none on PATH. "
            f"On Debian it is in the package {package} (apt-get install {package})."
        )
    return found


def _run(
    command: list[str],
    environment: "os._Environ[str] | dict[str, str]",
    time_limit_s: float,
    must: bool = False,
    cwd: pathlib.Path | None = None,
) -> subprocess.CompletedProcess:
    try:
        done = subprocess.run(
            command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=time_limit_s
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(
            f"A run must end within {time_limit_s:g} s. Received: {pathlib.Path(command[0]).name}, stopped."
        ) from error
    if must and done.returncode:
        raise ExportError(
            f"{pathlib.Path(command[0]).name} must succeed. "
            f"Received: exit code {done.returncode}. {done.stderr.strip()[-500:]}"
        )
    return done


def main(arguments: list[str] | None = None) -> int:
    """Counts from the command line and returns the process's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.instructions", description=__doc__.split("\n")[0]
    )
    parser.add_argument("path", type=pathlib.Path)
    parser.add_argument("--processor", choices=("no-avx", *CORES), default="no-avx")
    options = parser.parse_args(arguments)
    try:
        count = count_instructions(options.path, processor=options.processor)
    except (ExportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{count:.0f} instructions a call")
    return 0


if __name__ == "__main__":
    sys.exit(main())
