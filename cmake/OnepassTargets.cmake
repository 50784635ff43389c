# onepass_library(NAME SOURCES ... [DEPENDS rooms ...] [LIBRARIES kept libraries ...] [TESTS files ...]
#   [TEST_DEPENDS rooms ...])
#
# One static library per folder of src/, target onepass_NAME (NAME may be a path such as attention/cpu). DEPENDS are the
# rooms that its files may include; TESTS become one GoogleTest binary, NAME_test, registered case by case, which may use the rooms
# of TEST_DEPENDS too.
function(onepass_library NAME)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS;LIBRARIES;TESTS;TEST_DEPENDS" ${ARGN})
  string(REPLACE "/" "_" _name ${NAME})
  set(_target onepass_${_name})
  if(ARG_SOURCES)
    add_library(${_target} STATIC ${ARG_SOURCES})
    set(_scope PUBLIC)
  else()
    add_library(${_target} INTERFACE)
    set(_scope INTERFACE)
  endif()
  target_include_directories(${_target} ${_scope} ${CMAKE_SOURCE_DIR}/src)
  foreach(_dep ${ARG_DEPENDS})
    string(REPLACE "/" "_" _dep ${_dep})
    target_link_libraries(${_target} ${_scope} onepass_${_dep})
  endforeach()
  target_link_libraries(${_target} ${_scope} ${ARG_LIBRARIES})
  if(ARG_TESTS AND ONEPASS_BUILD_TESTS)
    onepass_test(${_name}_test SOURCES ${ARG_TESTS} DEPENDS ${NAME} ${ARG_TEST_DEPENDS})
  endif()
endfunction()

# onepass_test(NAME SOURCES ... DEPENDS rooms ...): a GoogleTest binary, one ctest entry per case. The tests find data files
# through base/source_dir.h.
function(onepass_test NAME)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  add_executable(${NAME} ${ARG_SOURCES})
  foreach(_dep ${ARG_DEPENDS})
    string(REPLACE "/" "_" _dep ${_dep})
    target_link_libraries(${NAME} PRIVATE onepass_${_dep})
  endforeach()
  target_link_libraries(${NAME} PRIVATE GTest::gtest GTest::gtest_main Threads::Threads)
  target_compile_definitions(${NAME} PRIVATE ONEPASS_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  include(GoogleTest)
  gtest_discover_tests(${NAME} DISCOVERY_MODE PRE_TEST PROPERTIES TIMEOUT 600)
endfunction()

# onepass_isa_sources(BASENAME OUT_VAR): the files cpu/BASENAME_{portable,avx2,avx512,avx512bf16}.cc with the compiler flags of
# their instruction set. Such a file may include only headers that define no shared inline functions (<cstdint>,
# <immintrin.h>, *.inl of its own in a namespace named after the instruction set): the linker keeps one copy of an inline function, and
# a copy compiled for AVX-512 would crash an older machine.
function(onepass_isa_sources BASENAME OUT_VAR)
  set(_flags_portable "")
  set(_flags_avx2 "-mavx2;-mfma;-mf16c")
  set(_flags_avx512 "-mavx2;-mfma;-mf16c;-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl")
  set(_flags_avx512bf16 "${_flags_avx512};-mavx512bf16")
  set(_files)
  foreach(_isa portable avx2 avx512 avx512bf16)
    set(_file ${CMAKE_CURRENT_SOURCE_DIR}/${BASENAME}_${_isa}.cc)
    # -O3 in every build: a debug build of these files would be 50 times slower and tell nothing. GCC 12 warns of its own
    # intrinsics headers (GCC bug 105593).
    set_source_files_properties(${_file} PROPERTIES COMPILE_OPTIONS "${_flags_${_isa}};-O3;-ffp-contract=fast;-fno-math-errno;-fno-trapping-math;-Wno-maybe-uninitialized;-Wno-uninitialized"
      SKIP_PRECOMPILE_HEADERS ON)
    list(APPEND _files ${_file})
  endforeach()
  set(${OUT_VAR} ${_files} PARENT_SCOPE)
endfunction()
