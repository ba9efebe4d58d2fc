"""Print the address of PyTorch's CPU wheels, if this machine wants them and can reach them; else print nothing.

On Linux the package index serves builds of several gigabytes that bring CUDA along. Standard library only: it runs
before anything is installed.
"""

import shutil
import sys
import urllib.request

CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


def main() -> None:
    """Macs and Windows get CPU builds from the package index; a machine with an NVIDIA driver wants CUDA."""
    if not sys.platform.startswith("linux") or shutil.which("nvidia-smi"):
        return
    try:
        with urllib.request.urlopen(f"{CPU_WHEELS}/torch/", timeout=10):
            print(CPU_WHEELS)
    except OSError:  # offline or behind a mirror: pip's own configuration decides
        return


if __name__ == "__main__":
    main()
