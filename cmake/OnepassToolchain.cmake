# Language level, warnings, sanitizers, and what makes the binary run elsewhere.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  # Paths below the source tree count as relative ones, so that a clone or worktree elsewhere finds what another has compiled.
  set(ONEPASS_CCACHE ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${CCACHE_PROGRAM})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${ONEPASS_CCACHE})
endif()

# -Wrestrict has false alarms in GCC 12 (GCC bug 105651). Designated initialisers name what differs from the defaults; the rest is meant to be left out.
set(_warnings -Wall -Wextra -Wshadow -Wno-missing-field-initializers -Wno-restrict -Wno-psabi)
# The code that is not chosen at run time keeps to x86-64-v2, so that one binary runs on any server or laptop
# of the last ten years; kernels are compiled once per instruction set (src/*/cpu/) and chosen at start.
set(_code -fno-strict-aliasing -march=x86-64-v2)
# Messages and debug information name files from the source tree's root: objects are the same wherever it lies. CUDA code has neither, and
# inside -Xcompiler ccache would take the path for a part of the command: no object of another tree would serve.
add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:${_warnings};${_code};-ffile-prefix-map=${CMAKE_SOURCE_DIR}/=>")
string(REPLACE ";" "," _code "${_code}")
add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,${_code}>")
# A kernel for several architectures takes a sixth of the room.
add_compile_options("$<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<VERSION_GREATER_EQUAL:$<CUDA_COMPILER_VERSION>,12.8>>:--compress-mode=size>")

if(ONEPASS_SANITIZE)
  string(REPLACE ";" "," _sanitizers "${ONEPASS_SANITIZE}")
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${_sanitizers};-fno-omit-frame-pointer;-fno-sanitize-recover=all>")
  add_link_options(-fsanitize=${_sanitizers})
else()
  # The release binary carries its C++ runtime; glibc >= 2.36 is what it asks of a machine.
  add_link_options(-static-libstdc++ -static-libgcc)
endif()
