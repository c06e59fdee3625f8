#!/usr/bin/env bash
# Makes .venv beside this file ready to run: native libraries, Python, pinned packages. A second run installs nothing.
#
#   bash setup.sh [--dev]      --dev adds what run_tests.sh needs, Ray among it
#   PYTHON=/path/to/python3    another Python than the first of 3.10 to 3.14 on the PATH
#   FORCE_CPU_TORCH=1          the CPU build of torch although there is an NVIDIA GPU
#
# Prints what it does on stderr; where it cannot go on, one line says what to install, and the exit status is 2.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 2
dev=${1:-}
venv=.venv
python=$venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1 PIP_USE_PEP517=1
# A user's own PYTHONPATH, target folder or --user habit would install beside the .venv.
unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV

say() { printf '%s\n' "$*" >&2; }
stop() { say "error: $*"; exit 2; }
may_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

# Debian and Ubuntu packages, silently; apt's own last words where it fails.
apt_install() {
    say "set-up: installing the system packages $*"
    local log
    log=$({
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
    } 2>&1 </dev/null) || stop "apt-get install $* failed: $(printf '%s' "$log" | tail -n 1)"
}

find_python() {
    local candidate found=
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10 python3.14 python; do
        command -v "${candidate:-none}" >/dev/null || continue
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
        found="$found $("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)"
    done
    stop "Python 3.10 to 3.14 is needed, found:${found:- none};" \
        "install one (Debian, Ubuntu: apt-get install python3 python3-venv) or set PYTHON to it"
}

# What mediapipe's library loads at run time. OpenCV's headless build, PyAV and torch carry what they need.
check_libraries() {
    [ "$(uname -s)" = Linux ] || return 0
    local missing
    missing=$("$1" - <<'PYTHON'
import ctypes
for library, package in (("libEGL.so.1", "libegl1"), ("libGLESv2.so.2", "libgles2")):
    try:
        ctypes.CDLL(library)
    except OSError:
        print(package, end=" ")
PYTHON
    )
    [ -z "$missing" ] && return 0
    # shellcheck disable=SC2086
    if may_apt; then apt_install $missing; return 0; fi
    stop "system libraries are missing; run: sudo apt-get install --no-install-recommends ${missing% }" \
        "(Fedora: sudo dnf install libglvnd-egl libglvnd-gles)"
}

make_venv() {
    if ! "$1" -c 'import ensurepip, venv' 2>/dev/null; then
        may_apt || stop "Python's venv module is missing; run: sudo apt-get install python3-venv"
        apt_install python3-venv
    fi
    say "set-up: making $venv with $("$1" --version)"
    rm -rf "$venv"
    "$1" -m venv "$venv" >&2 || stop "$1 -m venv $venv failed; is python3-venv installed and the disk not full?"
}

pip_install() { "$python" -m pip install --quiet --progress-bar off "$@" >&2; }

has_nvidia() { [ -e /dev/nvidiactl ] || command -v nvidia-smi >/dev/null; }

# PyPI's torch for Linux draws in gigabytes of CUDA. Without an NVIDIA GPU the CPU build is taken: from where pip
# is set up to look, else from PyTorch's own index; where neither answers within seconds, PyPI's works as well.
install_torch() {
    local torch
    torch=$(sed -n 's/^\(torch==[^ ;#]*\).*/\1/p' requirements.txt)
    [ "$("$python" -c 'from importlib.metadata import version as v; print("torch==" + v("torch").split("+")[0])' \
        2>/dev/null)" = "$torch" ] && return
    say "set-up: installing $torch"
    if [ "$(uname -sm)" = "Linux x86_64" ] && { [ -n "${FORCE_CPU_TORCH:-}" ] || ! has_nvidia; }; then
        pip_install "$torch+cpu" 2>/dev/null && return
        pip_install --retries 0 --timeout 10 --extra-index-url https://download.pytorch.org/whl/cpu "$torch+cpu" \
            2>/dev/null && return
    fi
    pip_install "$torch" || give_up "$torch"
}

# pip has failed by itself, so the .venv is whole, unlike after Ctrl-C: the next run goes on from here.
give_up() { rm -f $venv/.installing; stop "pip could not install $1 (its message is above)"; }

# The stamp is written last, so a set-up that was interrupted is known by its absence.
stamp_now() { printf '%s %s\n' "$("$python" --version 2>&1)" "$(cksum <"$1")"; }

install_list() {
    local stamp=$venv/.installed-${1%.txt} words
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(stamp_now "$1")" ] && return
    rm -f "$stamp"
    touch $venv/.installing
    [ "$1" = requirements.txt ] && install_torch
    say "set-up: installing the packages of $1"
    pip_install --no-deps -r "$1" || give_up "$1"
    words=$("$python" -c 'import av, cv2, mediapipe, safetensors, scipy, torch' 2>&1) ||
        give_up "packages that work here ($(printf '%s' "$words" | tail -n 1))"
    stamp_now "$1" >"$stamp"
    rm -f $venv/.installing
}

base=$(find_python) || exit 2
check_libraries "$base"
if [ -e $venv/.installing ] || ! "$python" -c 'import pip' 2>/dev/null; then make_venv "$base"; fi
install_list requirements.txt
[ "$dev" != --dev ] || { install_list requirements-ray.txt && install_list requirements-dev.txt; }
