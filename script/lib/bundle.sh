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
