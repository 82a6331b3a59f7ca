"""Makes an installed torch run without CUDA, which saves 4.5 GB. For Linux; see the Makefile.

    pip install --no-deps torch && python .ci/cpu_torch.py

The default index's torch is linked to CUDA's libraries and does not load without them, even on a
machine without a GPU. This script puts a stub for each library into torch/lib: a few kilobytes with
the library's name and the functions that torch imports, all of which return an error. torch then
reports that CUDA is not available. The script also removes the CUDA packages from torch's
requirements, so that pip does not install them later.

Always holds: if torch does not load with the stubs, nothing is changed, and pip installs CUDA as
usual. `pip install --force-reinstall torch` undoes all of this.
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib.metadata import distribution
from pathlib import Path

NO_DEVICE = 100  # cudaErrorNoDevice; an error for all other libraries, too
CUDA_LIBRARY = re.compile(r"lib(cu|nv|nccl)(?!da\.so)")  # not the driver's libcuda.so
CUDA_REQUIREMENT = re.compile(r"Requires-Dist: (nvidia-|cuda-|triton).*\n")
# Not `import torch`, whose other requirements are not installed yet.
LOAD = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"


def output(*command: str) -> str:
    """Standard output of a command. Raises CalledProcessError if the command fails."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def imported(files: list[str]) -> tuple[dict[str, set[str]], dict[str, str]]:
    """The functions that files import of each CUDA library, and the library of each version name.

    Functions without a version name belong to no library in particular: they are under "".
    """
    functions: dict[str, set[str]] = defaultdict(set)
    for name in re.findall(r"NEEDED.*\[(.*)\]", output("readelf", "-dW", *files)):
        if CUDA_LIBRARY.match(name):
            functions[name] = set()
    library, versions = "", {}
    for line in output("readelf", "-VW", *files).splitlines():
        if found := re.search(r" File: (\S+)", line):
            library = found[1]
        elif (found := re.search(r" Name: (\S+) +Flags", line)) and library in functions:
            versions[found[1]] = library
    symbols = re.findall(r" [Uw] (\w+)(?:@(\S+))?$", output("nm", "-Du", *files), re.MULTILINE)
    for name, version in symbols:
        if version in versions:
            functions[versions[version]].add(name)
        elif not version and re.match("cu|nccl|nvshmem", name):
            functions[""].add(name)
    return functions, versions


def build_stub(path: Path, functions: set[str], versions: list[str]) -> None:
    """Compile a library that has these functions, under these version names."""
    code = "".join(f"int {name}(void) {{ return {NO_DEVICE}; }}\n" for name in sorted(functions))
    with tempfile.NamedTemporaryFile("w", suffix=".map") as script:
        script.write("".join(f"{version} {{ global: *; }};\n" for version in versions))
        script.flush()
        options = [f"-Wl,--version-script={script.name}"] if versions else []
        command = ["cc", "-shared", "-w", "-fno-builtin", f"-Wl,-soname={path.name}", *options]
        command += ["-o", str(path), "-x", "c", "-"]
        subprocess.run(command, input=code, check=True, text=True)


def main() -> int:
    """Exit status: always 0, because without stubs pip installs CUDA and torch works, too."""
    torch = distribution("torch")
    packages = Path(str(torch.locate_file("")))
    metadata = next(packages.glob("torch-*.dist-info/METADATA"))
    asked = metadata.read_text(encoding="utf-8")
    if sys.platform != "linux" or not CUDA_REQUIREMENT.search(asked):
        return 0
    libraries = packages / "torch" / "lib"
    files = sorted(str(file) for file in libraries.glob("*.so"))
    load = [sys.executable, "-c", LOAD, str(libraries / "libtorch_python.so")]
    if subprocess.run(load, capture_output=True, check=False).returncode == 0:
        return 0  # CUDA is installed already
    stubs: list[Path] = []
    try:
        functions, versions = imported(files)
        loose = functions.pop("", set())
        for name, own in functions.items():
            stubs.append(libraries / name)
            names = [version for version, library in versions.items() if library == name]
            build_stub(stubs[-1], own if names else loose, names)
        output(*load)
    except (OSError, subprocess.CalledProcessError) as error:
        for stub in stubs:
            stub.unlink(missing_ok=True)
        details = getattr(error, "stderr", None) or error
        print(f"torch needs CUDA's packages here ({details}): pip installs them", file=sys.stderr)
        return 0
    with (metadata.parent / "RECORD").open("a", encoding="utf-8") as record:
        record.writelines(f"{stub.relative_to(packages)},,\n" for stub in stubs)
    metadata.write_text(CUDA_REQUIREMENT.sub("", asked), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
