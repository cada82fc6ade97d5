# The engine: llama.cpp b11434, built by scripts/build-engine and cached outside the tree.
# VIDKV_ENGINE_VARIANTS makes it the engine for other machines too: CPU back-ends as modules, chosen at run time.
#
# Targets    llama_cpp::ggml_base  llama_cpp::ggml  llama_cpp::llama  llama_cpp::mtmd  llama_cpp::common
# Variables  VIDKV_LLAMA_CPP_SOURCE_DIR  the source tree (private headers: ggml/src)
#            VIDKV_ENGINE_BIN_DIR        its libraries, llama-server, llama-perplexity, ...
include_guard(GLOBAL)

set(VIDKV_LLAMA_CPP_DIR "" CACHE PATH "Your own llama.cpp source tree (empty: the pinned one)")
set(VIDKV_ENGINE_JOBS "" CACHE STRING "Parallel compilers for the engine (empty: all cores)")
set(VIDKV_ENGINE_VARIANTS "" CACHE STRING "CPU back-ends to choose from at run time: all, or names as in x64,haswell (empty: this machine's alone)")

function(vidkv_build_engine out)
  set(command ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/../scripts/build-engine)
  if(VIDKV_LLAMA_CPP_DIR)
    list(APPEND command --source ${VIDKV_LLAMA_CPP_DIR})
  endif()
  if(VIDKV_ENGINE_JOBS)
    list(APPEND command --jobs ${VIDKV_ENGINE_JOBS})
  endif()
  if(VIDKV_ENGINE_VARIANTS)
    list(APPEND command --dl --variants ${VIDKV_ENGINE_VARIANTS})
  endif()
  if(NOT VIDKV_BUILD_TESTS)
    list(APPEND command --libraries) # the tests run its tools
  endif()
  execute_process(COMMAND ${command} OUTPUT_VARIABLE prefix RESULT_VARIABLE failed OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(failed)
    message(FATAL_ERROR "llama.cpp could not be built (scripts/build-engine says why). "
                        "-DVIDKV_BUILD_PLUGIN=OFF -DVIDKV_BUILD_CLI=OFF builds without it.")
  endif()
  set(${out} ${prefix} PARENT_SCOPE)
endfunction()

function(vidkv_import_engine_library name)
  set(file ${VIDKV_ENGINE_BIN_DIR}/lib${name}${CMAKE_SHARED_LIBRARY_SUFFIX})
  if(NOT EXISTS ${file})
    message(FATAL_ERROR "${file} is missing: remove ${VIDKV_ENGINE_BIN_DIR}/../.. and configure again")
  endif()
  string(REPLACE "-" "_" target ${name})
  add_library(llama_cpp::${target} SHARED IMPORTED GLOBAL)
  set_target_properties(llama_cpp::${target} PROPERTIES
    IMPORTED_LOCATION ${file}
    INTERFACE_INCLUDE_DIRECTORIES "${ARGN}")
endfunction()

vidkv_build_engine(VIDKV_ENGINE_DIR)
message(STATUS "llama.cpp: ${VIDKV_ENGINE_DIR}")
file(REAL_PATH ${VIDKV_ENGINE_DIR}/source VIDKV_LLAMA_CPP_SOURCE_DIR) # one path for every engine of this source, so that ccache knows it
set(VIDKV_ENGINE_BIN_DIR ${VIDKV_ENGINE_DIR}/build/bin)

vidkv_import_engine_library(ggml-base ${VIDKV_LLAMA_CPP_SOURCE_DIR}/ggml/include)
vidkv_import_engine_library(ggml ${VIDKV_LLAMA_CPP_SOURCE_DIR}/ggml/include)
vidkv_import_engine_library(llama ${VIDKV_LLAMA_CPP_SOURCE_DIR}/include)
vidkv_import_engine_library(llama-common ${VIDKV_LLAMA_CPP_SOURCE_DIR}/common)
vidkv_import_engine_library(mtmd ${VIDKV_LLAMA_CPP_SOURCE_DIR}/tools/mtmd)
set_target_properties(llama_cpp::ggml PROPERTIES INTERFACE_LINK_LIBRARIES llama_cpp::ggml_base)
set_target_properties(llama_cpp::llama PROPERTIES INTERFACE_LINK_LIBRARIES llama_cpp::ggml)
set_target_properties(llama_cpp::mtmd PROPERTIES INTERFACE_LINK_LIBRARIES llama_cpp::llama)

# Installs `file` as `name`. "$ORIGIN:", the run path that the engine is built with, would look into the current directory too.
function(vidkv_install_engine_library file name destination component)
  install(PROGRAMS ${file} DESTINATION ${destination} RENAME ${name} COMPONENT ${component})
  file(STRINGS ${file} run_path REGEX "^[$]ORIGIN:$" LIMIT_COUNT 1)
  if(run_path)
    install(CODE "file(RPATH_CHANGE FILE \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${destination}/${name}\"
      OLD_RPATH [[$ORIGIN:]] NEW_RPATH [[$ORIGIN]])" COMPONENT ${component})
  endif()
endfunction()

# Installs the engine's libraries under the names they are loaded by.
function(vidkv_install_engine destination component)
  foreach(name ggml-base ggml llama mtmd llama-common ggml-cpu)
    set(link ${VIDKV_ENGINE_BIN_DIR}/lib${name}${CMAKE_SHARED_LIBRARY_SUFFIX})
    if(EXISTS ${link}) # with VIDKV_ENGINE_VARIANTS there is no ggml-cpu
      file(READ_SYMLINK ${link} soname)
      file(REAL_PATH ${link} file)
      vidkv_install_engine_library(${file} ${soname} ${destination} ${component})
    endif()
  endforeach()
  file(GLOB modules ${VIDKV_ENGINE_BIN_DIR}/libggml-cpu-*.so)
  foreach(file ${modules})
    get_filename_component(name ${file} NAME)
    vidkv_install_engine_library(${file} ${name} ${destination} ${component})
  endforeach()
endfunction()
set_target_properties(llama_cpp::llama_common PROPERTIES INTERFACE_LINK_LIBRARIES llama_cpp::llama)
add_library(llama_cpp::common ALIAS llama_cpp::llama_common)
