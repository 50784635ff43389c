#!/usr/bin/env bash
# script/lib/bundle_test.sh: an earlier bundle is cleared and nothing else is, by what script/gpu-bundle does it with.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
. "$ROOT/script/lib/bundle.sh"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# expect WHAT EXPECTED FOUND
expect() { [[ "$2" == "$3" ]] || fail "$1: expected \"$2\", found \"$3\""; }
# left FOLDER: what is in it
left() { (cd "$1" && find . -mindepth 1 | sort | tr '\n' ' '); }
# refusal FOLDER: what clear_bundle says; it must end with status 2 and remove nothing
refusal() {
  local before status=0 said
  before="$(left "$1" 2>/dev/null || true)"
  said="$(clear_bundle "$1" 2>&1)" || status=$?
  expect "$1: exit status" 2 "$status"
  expect "$1" "$before" "$(left "$1" 2>/dev/null || true)"
  printf '%s' "${said#"$NAME: $1: "}"
}

bundle="$work/a bundle"
mkdir -p "$bundle"/{bin,lib,models/m,tests/golden,bench,python/onepass,kept}
touch "$bundle"/{bin/stale,models/m/stale,kept/file,binary,results.log}
head="$(sed -n "/<<'RUN'/,/^RUN/p" "$ROOT/script/gpu-bundle" | sed -n 2,3p)"
printf '%s\n' "$head" >"$bundle/run.sh"
clear_bundle "$bundle"
expect "an earlier bundle" "./binary ./kept ./kept/file ./results.log " "$(left "$bundle")"
clear_bundle "$bundle" # with nothing to remove
clear_bundle "$work/none"
expect "what is not there" "" "$(left "$work/none" 2>/dev/null || true)"

mkdir -p "$work/source/bench"
touch "$work/source/bench/mine" "$work/file"
expect "another folder" "expected an earlier bundle or no bench in it, found another bench" "$(refusal "$work/source")"
printf '#!/bin/sh\necho mine\n' >"$work/source/run.sh"
expect "another run.sh" "expected an earlier bundle or no bench in it, found another bench" "$(refusal "$work/source")"
expect "a file" "expected a folder, found something else" "$(refusal "$work/file")"
