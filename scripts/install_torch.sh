#!/bin/sh
# Installs torch (or the requirement given after it) into the environment whose Python is given, unless it is there:
# the usual build on a machine with an NVIDIA GPU, elsewhere the CPU build, which spares gigabytes of CUDA libraries.
set -eu
python=$1
wanted=${2:-torch==2.13.0}
if "$python" -c "import torch" 2>/dev/null; then
    exit 0
fi
if command -v nvidia-smi >/dev/null 2>&1 || [ "$(uname -s)" != Linux ]; then
    "$python" -m pip install -q "$wanted"
    exit 0
fi
# The CPU build by its full name, where pip knows a place for it; else uv knows where PyTorch keeps it.
if ! "$python" -m pip install -q "$wanted+cpu" 2>/dev/null; then
    "$python" -m pip install -q uv
    "$python" -m uv pip install -q --python "$python" --torch-backend=cpu "$wanted"
fi
