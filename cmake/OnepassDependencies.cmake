# Kept libraries, from Debian packages (script/lib/packages.sh lists them), linked statically.
set(CMAKE_FIND_LIBRARY_SUFFIXES .a .so)
find_package(Threads REQUIRED)
find_package(absl REQUIRED)
# Debian's CMake files name Abseil's shared libraries; the archives beside them make a binary that runs elsewhere.
get_property(_imported DIRECTORY PROPERTY IMPORTED_TARGETS)
foreach(_target ${_imported})
  if(_target MATCHES "^absl::")
    get_target_property(_configs ${_target} IMPORTED_CONFIGURATIONS)
    foreach(_config ${_configs})
      get_target_property(_location ${_target} IMPORTED_LOCATION_${_config})
      string(REGEX REPLACE "\\.so.*$" ".a" _archive "${_location}")
      if(EXISTS "${_archive}")
        set_target_properties(${_target} PROPERTIES IMPORTED_LOCATION_${_config} "${_archive}")
      endif()
    endforeach()
  endif()
endforeach()
find_package(CLI11 REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(fmt REQUIRED)     # header-only; spdlog formats with it
find_package(spdlog REQUIRED)  # header-only, included by src/base/log.cc alone

# name of the imported target, header, static library
function(onepass_find_static TARGET HEADER LIBRARY)
  string(MAKE_C_IDENTIFIER ${LIBRARY} _id)
  find_path(${_id}_INCLUDE ${HEADER} REQUIRED)
  find_library(${_id}_LIBRARY NAMES ${LIBRARY} REQUIRED)
  add_library(${TARGET} UNKNOWN IMPORTED GLOBAL)
  set_target_properties(${TARGET} PROPERTIES
    IMPORTED_LOCATION ${${_id}_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${${_id}_INCLUDE})
endfunction()

onepass_find_static(pcre2::pcre2-8 pcre2.h pcre2-8)
set_property(TARGET pcre2::pcre2-8 PROPERTY INTERFACE_COMPILE_DEFINITIONS PCRE2_CODE_UNIT_WIDTH=8)
onepass_find_static(utf8proc::utf8proc utf8proc.h utf8proc)
set_property(TARGET utf8proc::utf8proc PROPERTY INTERFACE_COMPILE_DEFINITIONS UTF8PROC_STATIC)

if(ONEPASS_BUILD_TESTS)
  find_package(GTest REQUIRED)
endif()
