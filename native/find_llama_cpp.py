"""Print where the installed llama-cpp-python keeps what a build needs: version;include; and its LIBRARIES."""

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

LIBRARIES = ("llama", "mtmd", "ggml", "ggml-base")


def find_library(folder: Path, name: str) -> Path:
    """The library's file in the folder that llama_cpp itself loads from."""
    for suffix in (".so", ".dylib"):
        if (folder / f"lib{name}{suffix}").is_file():
            return folder / f"lib{name}{suffix}"
    sys.exit(f"{folder} has no lib{name}; install llama-cpp-python again")


def main() -> None:
    """Print one line for CMake, or say on stderr what is missing."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        sys.exit(f"{sys.executable} has none; pip install llama-cpp-python")
    package = Path(spec.origin).parent
    include = package.parent / "include"
    if not (include / "llama.h").is_file():
        sys.exit(f"{include} has no llama.h; install llama-cpp-python again")
    version = importlib.metadata.version("llama-cpp-python")
    libraries = [find_library(package / "lib", name) for name in LIBRARIES]
    sys.stdout.write(";".join([version, *map(str, (include, *libraries))]))


if __name__ == "__main__":
    main()
