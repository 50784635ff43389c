# CUDA, found when it is there: nvcc on the PATH or under /usr/local/cuda. Sets ONEPASS_HAVE_CUDA.
#
# The runtime is linked statically and the driver's library not at all: the runtime opens it when it is first called, so
# the same binary runs on a machine without any file of NVIDIA's. Each room with kernels says which GPUs they are for:
# most are compiled for sm_80 and sm_90 and, as PTX of sm_90, for what comes after; those for Hopper alone for sm_90a.
set(ONEPASS_CUDA AUTO CACHE STRING "Compile the CUDA code: AUTO (if there is an nvcc), ON or OFF")
set_property(CACHE ONEPASS_CUDA PROPERTY STRINGS AUTO ON OFF)
set(ONEPASS_HAVE_CUDA OFF)

if(ONEPASS_CUDA STREQUAL "AUTO" AND ONEPASS_SANITIZE)
  # The sanitizers' shadow memory and the driver's address space collide; sanitizer builds are for host code.
  message(STATUS "CUDA: left out of a sanitizer build")
elseif(ONEPASS_CUDA)
  find_program(ONEPASS_NVCC nvcc HINTS /usr/local/cuda/bin)
  if(ONEPASS_NVCC)
    if(NOT DEFINED ENV{CUDACXX} AND NOT DEFINED CMAKE_CUDA_COMPILER)
      set(CMAKE_CUDA_COMPILER ${ONEPASS_NVCC})
    endif()
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 90a-real)
    endif()
    include(CheckLanguage)
    check_language(CUDA)
  endif()
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    # CMake 3.25 does not know that nvcc has C++20.
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    if(CCACHE_PROGRAM)
      set(CMAKE_CUDA_COMPILER_LAUNCHER ${ONEPASS_CCACHE})
    endif()
    set(ONEPASS_HAVE_CUDA ON)
    message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER_VERSION}, for sm_80 and sm_90, with PTX of sm_90; "
      "kernels for Hopper alone for sm_90a")
  elseif(ONEPASS_CUDA STREQUAL "ON")
    message(FATAL_ERROR "ONEPASS_CUDA=ON, but there is no working nvcc on the PATH or under /usr/local/cuda/bin")
  else()
    message(STATUS "CUDA: left out, no nvcc on the PATH or under /usr/local/cuda/bin")
  endif()
endif()
