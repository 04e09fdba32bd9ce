"""Writes the uncompressed ELF kernel within a bzImage: unpack-kernel.py BZIMAGE VMLINUX."""

import subprocess
import sys

DECOMPRESSORS = {b"\x28\xb5\x2f\xfd": ["zstd", "-dc"], b"\xfd7zXZ\x00": ["xz", "-dc"]}

with open(sys.argv[1], "rb") as file:
    image = file.read()
for magic, command in DECOMPRESSORS.items():
    at = image.find(magic)
    while at >= 0:
        # What follows the payload makes the program end with an error: the ELF header decides.
        found = subprocess.run(command, input=image[at:], capture_output=True, check=False).stdout
        if found.startswith(b"\x7fELF"):
            with open(sys.argv[2], "wb") as file:
                file.write(found)
            sys.exit(0)
        at = image.find(magic, at + 1)
sys.exit(f"no kernel found in {sys.argv[1]}")
