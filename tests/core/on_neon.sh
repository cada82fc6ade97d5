#!/bin/sh
# Builds the core and its attention tests for 64-bit Arm and runs them under emulation: the NEON kernels against the scalar ones.
# Exit status 77: the tools are missing. Arguments: source directory, build directory.
set -e
source=$1
build=$2
compiler=${VIDKV_AARCH64_CXX:-aarch64-linux-gnu-g++}
emulator=${VIDKV_AARCH64_EMULATOR:-qemu-aarch64}
googletest=${VIDKV_GOOGLETEST:-/usr/src/googletest/googletest}
for tool in "$compiler" "$emulator"; do
    if ! command -v "$tool" > /dev/null; then
        echo "SKIP: $tool is missing (Debian: g++-aarch64-linux-gnu, qemu-user)"
        exit 77
    fi
done
if [ ! -f "$googletest/src/gtest-all.cc" ]; then
    echo "SKIP: the source of GoogleTest is missing at $googletest (Debian: libgtest-dev)"
    exit 77
fi

mkdir -p "$build"
flags="-std=c++20 -O2 -ffp-contract=off -DVIDKV_VERSION=\"neon\" -I$source/src -I$source/include -I$source/tests -I$googletest -I$googletest/include"
objects=
for file in "$source"/src/base/*.cpp "$source"/src/codec/*.cpp "$source"/src/cache/*.cpp "$source"/src/attention/*.cpp \
    "$source"/src/kernels/*.cpp "$source"/src/api/*.cpp "$source"/tests/core/attention_kernels_test.cpp "$source"/tests/core/attention_reference.cpp \
    "$source"/tests/core/attention_test.cpp "$googletest"/src/gtest-all.cc "$googletest"/src/gtest_main.cc; do
    object="$build/$(echo "${file#"$source"/}" | tr / -).o"
    objects="$objects $object"
    if [ "$object" -nt "$file" ] && [ -z "$(find "$source/src" "$source/include" -name '*.h' -newer "$object" | head -n 1)" ]; then continue; fi
    # shellcheck disable=SC2086
    "$compiler" $flags -c "$file" -o "$object"
done
# shellcheck disable=SC2086
"$compiler" -static $objects -lpthread -o "$build/attention_tests"
"$emulator" "$build/attention_tests" --gtest_filter="${VIDKV_NEON_TESTS:-AttentionKernels.*:Attention.*:Presets/AttentionTest.AllInstructionSetsGiveTheSameBits/*}"
