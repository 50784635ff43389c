# Installs the library to a prefix of its own, builds the examples against it as anyone would (find_package) and runs them. Where
# there is no GPU they must say so in one line and end with status 1.
#
#   cmake -DBUILD=build/release -DSOURCE=examples -DWORK=build/release/examples -P examples/check.cmake
function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE _status OUTPUT_VARIABLE _output ERROR_VARIABLE _output)
  if(NOT _status EQUAL 0)
    string(REPLACE ";" " " _command "${ARGV}")
    message(FATAL_ERROR "${_command}\n${_output}")
  endif()
endfunction()

file(REMOVE_RECURSE ${WORK})
run(${CMAKE_COMMAND} --install ${BUILD} --component attention --prefix ${WORK}/prefix --strip)
foreach(_example c/decode cpp/prefix_and_suffix)
  get_filename_component(_folder ${_example} DIRECTORY)
  get_filename_component(_program ${_example} NAME)
  run(${CMAKE_COMMAND} -G Ninja -S ${SOURCE}/${_folder} -B ${WORK}/${_folder} -DCMAKE_BUILD_TYPE=Release
    -DCMAKE_PREFIX_PATH=${WORK}/prefix)
  run(${CMAKE_COMMAND} --build ${WORK}/${_folder})
  execute_process(COMMAND ${WORK}/${_folder}/${_program}
    RESULT_VARIABLE _status OUTPUT_VARIABLE _output ERROR_VARIABLE _error)
  if(_status EQUAL 0 AND _output MATCHES "largest difference [0-9.]+\n$")
    message(STATUS "${_program}: ${_output}")
  elseif(_status EQUAL 1 AND _error MATCHES "^${_program}: [^\n]*no NVIDIA (driver|GPU)\n$")
    message(STATUS "${_error}")
  else()
    message(FATAL_ERROR "${_program}: status ${_status}\n${_output}${_error}")
  endif()
endforeach()
