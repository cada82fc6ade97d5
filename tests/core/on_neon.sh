#!/bin/sh
# Builds the core and its attention tests for 64-bit Arm and runs them under emulation: the NEON kernels against the scalar ones.
# Exit status 77: the tools are missing. Arguments: source directory, build directory.
set -e
source=$1
build=$2
compiler=${VIDKV_AARCH64_CXX:-aarch64-linux-gnu-g++}
emulator=${VIDKV_AARCH64_EMULATOR:-qemu-aarch64}
googletest=${VIDKV_GOOGLETEST:-/usr/src/googletest/googletest}
for tool in "$compiler" "$emulator" cmake ninja; do
    if ! command -v "$tool" > /dev/null; then
        echo "SKIP: $tool is missing (Debian: g++-aarch64-linux-gnu, qemu-user, cmake, ninja-build)"
        exit 77
    fi
done
if [ ! -f "$googletest/src/gtest-all.cc" ]; then
    echo "SKIP: the source of GoogleTest is missing at $googletest (Debian: libgtest-dev)"
    exit 77
fi
cmake -S "$source/tests/core/neon" -B "$build" -G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_CXX_COMPILER="$compiler" -DVIDKV_SOURCE="$source" -DGOOGLETEST="$googletest"
cmake --build "$build" --parallel "$(nproc)"
"$emulator" "$build/attention_tests" --gtest_filter="${VIDKV_NEON_TESTS:-AttentionProducts.*:AttentionKernels.*:Attention.*:Presets/AttentionTest.AllInstructionSetsGiveTheSameBits/*}"
