"""Builds `llama-server` from the llama.cpp source that llama-cpp-python's sdist carries.

Owns: where the source comes from and how it is configured: the options under which llama.cpp is
fastest here (this machine's instructions, an optimized build), without web pages and TLS, which
would be fetched or need more packages. Needs cmake, ninja and a C++ compiler; takes about ten
minutes of one processor. A build that was broken off goes on where it was.

    python benchmarks/peers/build_llama_server.py --out ~/peers/llama-server [--version 0.3.36]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
from pathlib import Path

PACKAGE = "llama-cpp-python"
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "GGML_NATIVE": "ON",
    "LLAMA_BUILD_COMMON": "ON",
    "LLAMA_BUILD_TOOLS": "ON",
    "LLAMA_BUILD_SERVER": "ON",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}


def source(folder: Path, version: str | None) -> Path:
    """llama.cpp's folder in the unpacked sdist, which is fetched if it isn't there."""
    pattern = "llama_cpp_python-*.tar.gz"
    if not list(folder.glob(pattern)):
        wanted = f"{PACKAGE}=={version}" if version else PACKAGE
        download = ["pip", "download", "--no-deps", "--no-binary", PACKAGE, "-d", str(folder)]
        subprocess.run([sys.executable, "-m", *download, wanted], check=True)
    (archive,) = folder.glob(pattern)
    unpacked = folder / archive.name.removesuffix(".tar.gz")
    if not unpacked.is_dir():
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
    return unpacked / "vendor" / "llama.cpp"


def build(folder: Path, version: str | None, jobs: int) -> Path:
    """The path of the program."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = folder / "build"
    settings = [f"-D{name}={value}" for name, value in OPTIONS.items()]
    configure = ["cmake", "-G", "Ninja", "-S", str(source(folder, version)), "-B", str(tree)]
    subprocess.run([*configure, *settings], check=True)
    target = ["--target", "llama-server", f"-j{jobs}"]
    subprocess.run(["cmake", "--build", str(tree), *target], check=True)
    return tree / "bin" / "llama-server"


def main() -> int:
    own = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    own.add_argument("--out", type=Path, required=True, help="folder for source and build")
    own.add_argument("--version", help=f"of {PACKAGE} (default: the newest)")
    own.add_argument("--jobs", type=int, default=1, help="compilers at once (default: 1)")
    options = own.parse_args()
    try:
        print(build(options.out.resolve(), options.version, options.jobs))
    except subprocess.CalledProcessError as error:
        print(f"{error.cmd[0]} failed with status {error.returncode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
