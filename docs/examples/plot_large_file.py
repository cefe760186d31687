"""
A file larger than memory
=========================

``nbbn normalize`` reads and writes a file in blocks of a few megabytes. So the memory that it needs does not
grow with the file. This program standardizes three files, and asks the operating system how much memory each
command took.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

# Run the command, then print the most memory that it held, in kilobytes (Linux).
MEASURED = """
import sys
from nbbn.cli import main
status = main(sys.argv[1:])
print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(status)
"""

rng = np.random.default_rng(0)
megabytes, needed = [16, 128, 512], []
with tempfile.TemporaryDirectory() as folder:
    source, target = Path(folder, "train.npy"), Path(folder, "normalized.npy")
    for size in megabytes:
        rows = size * 10**6 // (64 * 4)
        array = np.lib.format.open_memmap(source, "w+", np.float32, (rows, 64))
        for start in range(0, rows, 50_000):
            block = array[start : start + 50_000]
            block[:] = 3 + 2 * rng.standard_normal(block.shape, np.float32)
        del array, block
        command = [sys.executable, "-c", MEASURED, "normalize", source, target]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        needed.append(int(done.stdout) / 1e3)
    print(f"mean {np.load(target, 'r')[:10_000].mean():.3f}, std {np.load(target, 'r')[:10_000].std():.3f}")

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(megabytes, needed, "o-", label="nbbn normalize")
axes.plot(megabytes, megabytes, "--", color="grey", label="the file itself, held in memory")
axes.set(xlabel="size of the file in MB", ylabel="memory in MB", ylim=(0, None))
axes.legend()
