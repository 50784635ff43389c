# shellcheck shell=bash disable=SC2034
# What every script here starts with: strict mode, the repository's root, one-line errors. To be sourced.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)"
NAME="$(realpath --relative-to="$ROOT" "$0")"
JOBS="${ONEPASS_JOBS:-$(nproc 2>/dev/null || echo 2)}"

# Progress goes to stderr: stdout is for results.
say() { printf '%s\n' "$*" >&2; }
fail() {
  printf '%s: %s\n' "$NAME" "$*" >&2
  exit 1
}
usage_error() {
  printf '%s: %s\n' "$NAME" "$*" >&2
  exit 2
}

# step LOG COMMAND...: runs it with its output in LOG, which is shown only if it fails.
step() {
  local log="$1"
  shift
  mkdir -p "$(dirname "$log")"
  "$@" >"$log" 2>&1 || {
    cat "$log" >&2
    fail "failed: $*"
  }
}
