# shellcheck shell=bash
# What goes to other machines. To be sourced after common.sh.

# copy_program FILE FOLDER: a program or shared library without its symbols. Of another machine it may ask glibc and the kernel; NVIDIA's
# libraries are opened when they are used.
copy_program() {
  local foreign
  foreign="$(ldd "$1" | awk '{print $1}' | grep -vE '^(linux-vdso|libc|libm|libdl|librt|libpthread|/lib64/ld-linux-x86-64)\.so' || true)"
  [[ -z "$foreign" ]] || fail "${1##*/} needs shared libraries that another machine may lack: ${foreign//$'\n'/ }"
  mkdir -p "$2"
  strip -o "$2/${1##*/}" "$1"
}

# What script/gpu-bundle writes into its folder.
BUNDLE_PARTS=(bin lib models tests bench python run.sh)

# expect_bundle_folder FOLDER: refuses one with such parts that no bundle brought, a source tree for example: they would be removed.
expect_bundle_folder() {
  local part
  [[ ! -e "$1" || -d "$1" ]] || usage_error "$1: expected a folder, found something else"
  if [[ "$(sed -n 2p "$1/run.sh" 2>/dev/null)" == "# Written by script/gpu-bundle,"* ]]; then return; fi
  for part in "${BUNDLE_PARTS[@]}"; do
    [[ ! -e "$1/$part" && ! -L "$1/$part" ]] || usage_error "$1: expected an earlier bundle or no $part in it, found another $part"
  done
}

# clear_bundle FOLDER: without the parts of an earlier bundle, which would count towards the size, and nothing else.
clear_bundle() {
  expect_bundle_folder "$1"
  rm -rf -- "${BUNDLE_PARTS[@]/#/$1/}"
}
