# shellcheck shell=bash disable=SC2034
# The Debian and pip packages that onepass is built with, and the functions that install those missing. To be sourced after common.sh.

# The compiler and the kept libraries (cmake/OnepassDependencies.cmake finds them); python3 runs tools/check_layers.py.
BUILD_PACKAGES=(
  ccache cmake g++ git ninja-build python3
  libabsl-dev libcli11-dev libfmt-dev libgtest-dev libpcre2-dev libspdlog-dev libutf8proc-dev nlohmann-json3-dev
)
LINT_PACKAGES=(python3-venv shellcheck)
# Pinned: another clang-format lays code out differently. clang-tidy 14, Debian 12's, stumbles over C++20.
LINT_PIP_PACKAGES=(clang-format==14.0.6 clang-tidy==18.1.8 ruff==0.8.4)

# Prints the packages among its arguments that are not installed.
missing_packages() {
  local package
  for package in "$@"; do
    # ${...} is dpkg-query's own notation.
    # shellcheck disable=SC2016
    [[ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" == installed ]] || echo "$package"
  done
}

check_platform() {
  [[ "$(uname -s)-$(uname -m)" == Linux-x86_64 ]] || fail "needs Linux on x86-64, this is $(uname -s) on $(uname -m)"
  command -v apt-get >/dev/null ||
    fail "no apt-get here: install the counterparts of \"${BUILD_PACKAGES[*]}\" and run cmake --preset release && cmake --build --preset release"
  local id version
  id="$(. /etc/os-release && echo "${ID:-}")"
  version="$(. /etc/os-release && echo "${VERSION_ID:-999}")" # Debian testing has none
  case "$id" in
    debian) [[ "${version%%.*}" -ge 12 ]] || fail "needs Debian 12 or later, this is Debian $version" ;;
    ubuntu) [[ "${version%%.*}" -ge 24 ]] || fail "needs Ubuntu 24.04 or later, this is Ubuntu $version" ;;
    *) ;; # another system with apt-get: its packages may well do
  esac
}

# install_packages NAMES...: installs those missing, as root or through sudo; silent when there is nothing to do.
install_packages() {
  local missing sudo=()
  mapfile -t missing < <(missing_packages "$@")
  [[ ${#missing[@]} -gt 0 ]] || return 0
  if [[ "$(id -u)" -ne 0 ]]; then
    command -v sudo >/dev/null || fail "not root and no sudo; as root, run: apt-get install ${missing[*]}"
    sudo=(sudo env DEBIAN_FRONTEND=noninteractive)
  fi
  say "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  step "$ROOT/build/setup.log" "${sudo[@]}" apt-get -q -o DPkg::Lock::Timeout=300 update
  step "$ROOT/build/setup.log" "${sudo[@]}" apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}"
}

# install_pip_packages NAMES...: into the virtual environment build/tools, which nothing at run time uses.
install_pip_packages() {
  local venv="$ROOT/build/tools" stamp="$ROOT/build/tools/installed.txt"
  [[ "$(cat "$stamp" 2>/dev/null)" == "$*" ]] && return 0
  say "installing $* into build/tools"
  step "$ROOT/build/setup.log" python3 -m venv "$venv"
  step "$ROOT/build/setup.log" "$venv/bin/pip" install --quiet "$@"
  echo "$*" >"$stamp"
}
