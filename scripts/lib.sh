# Shared by scripts/demo and scripts/test: what has to be installed, and how to build. Sourced, not run.
# Everything it says goes to standard error.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${VIDKV_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/vidkv}
export VIDKV_CACHE_DIR=$cache
# Debian's Python, whose numpy Debian installs, where there is one.
python=/usr/bin/python3
[ -x "$python" ] || python=python3
export VIDKV_PYTHON=${VIDKV_PYTHON:-$python}

build_packages=(cmake ninja-build g++ pkg-config ffmpeg python3 python3-dev python3-venv python3-numpy libcli11-dev nlohmann-json3-dev
    libgtest-dev libxxhash-dev libwebp-dev libedit-dev zlib1g-dev libavformat-dev libavcodec-dev libavfilter-dev libswscale-dev libavutil-dev)

say() { echo "$program: $*" >&2; }
die() { say "$*"; exit 1; }

# Installs the Debian packages named that are missing; without root, says which and ends.
install_packages() {
    command -v dpkg-query >/dev/null || { say "not a Debian system: taking it that these are installed: $*"; return; }
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || die "these Debian packages are missing: ${missing[*]} (install them as root: apt-get install ${missing[*]})"
    say "installing ${missing[*]}"
    mkdir -p "$cache"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } \
        >"$cache/apt.log" 2>&1 || { tail -n 5 "$cache/apt.log" >&2; die "apt-get failed; see $cache/apt.log"; }
}

# Makes a virtual environment with the packages of requirements file $1, once; prints its folder.
python_environment() {
    local key folder
    key=$({ "$python" --version; cat "$1"; } | sha256sum | cut -c1-16)
    folder=$cache/venv-$key
    if [ ! -e "$folder/complete" ]; then
        say "installing the Python packages of ${1#"$root"/} (a few minutes)"
        rm -rf "$folder"
        mkdir -p "$cache"
        { "$python" -m venv "$folder" && "$folder/bin/pip" install --quiet --disable-pip-version-check -r "$1"; } >&2 ||
            die "the Python packages of $1 could not be installed: is PyPI reachable?"
        touch "$folder/complete"
    fi
    echo "$folder"
}

# The newest release of transformers is in tests/e2e/requirements.txt. $1/bin/pip fetches the lowest that python/ allows as
# well, without what it needs (the environment has it), into a folder for PYTHONPATH; prints that folder.
lowest_transformers() {
    local version folder
    version=$(sed -nE 's/.*"transformers>=([0-9.]+),.*/\1/p' "$root/pyproject.toml" | head -n 1)
    folder=$cache/transformers-$version
    if [ ! -e "$folder/complete" ]; then
        rm -rf "$folder"
        "$1/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$folder" "transformers==$version" >&2 ||
            die "transformers $version could not be installed: is PyPI reachable?"
        touch "$folder/complete"
    fi
    echo "$folder"
}

# Makes an environment with lmms-eval over environment $1, once; prints its folder.
benchmark_environment() {
    local list=$root/measure/benchmarks/requirements.txt key folder packages
    key=$({ echo "$1"; cat "$list"; } | sha256sum | cut -c1-16)
    folder=$cache/benchmarks-$key
    if [ ! -e "$folder/complete" ]; then
        say "installing lmms-eval (a minute)"
        rm -rf "$folder"
        { "$python" -m venv "$folder" && "$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$list"; } >&2 ||
            die "the Python packages of $list could not be installed: is PyPI reachable?"
        packages=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        echo "$packages" >"$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
        touch "$folder/complete"
    fi
    echo "$folder"
}

# configure_and_build FOLDER CMAKE-OPTION...: quiet; the log is FOLDER/build.log. Builds $target, or else everything.
configure_and_build() {
    local folder=$1 log=$1/build.log
    shift
    mkdir -p "$folder"
    say "building ${folder#"$root"/}"
    # The engine is built as it is configured: its lines are shown.
    : >"$log"
    cmake -S "$root" -B "$folder" -G Ninja -DVIDKV_ENGINE_JOBS="${VIDKV_JOBS:-}" "$@" 2>&1 >>"$log" | tee -a "$log" |
        sed -n '/^build-engine/p' >&2 || { tail -n 20 "$log" >&2; die "cmake failed; see $log"; }
    cmake --build "$folder" --parallel "${VIDKV_JOBS:-$(nproc)}" --target "${target:-all}" >>"$log" 2>&1 ||
        { grep -m5 -A8 -E 'error|FAILED' "$log" >&2 || tail -n 20 "$log" >&2; die "the build failed; see $log"; }
}
