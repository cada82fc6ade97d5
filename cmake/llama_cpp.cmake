# The engine: llama.cpp b11434, built by scripts/build-engine and cached outside the tree.
#
# Targets    llama_cpp::ggml_base  llama_cpp::ggml  llama_cpp::llama  llama_cpp::mtmd
# Variables  VIDKV_LLAMA_CPP_SOURCE_DIR  the source tree (private headers: ggml/src)
#            VIDKV_ENGINE_BIN_DIR        its libraries, llama-server, llama-perplexity, ...
include_guard(GLOBAL)

set(VIDKV_LLAMA_CPP_DIR "" CACHE PATH "Your own llama.cpp source tree (empty: the pinned one)")
set(VIDKV_ENGINE_JOBS "" CACHE STRING "Parallel compilers for the engine (empty: all cores)")

function(vidkv_build_engine out)
  set(command ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/../scripts/build-engine)
  if(VIDKV_LLAMA_CPP_DIR)
    list(APPEND command --source ${VIDKV_LLAMA_CPP_DIR})
  endif()
  if(VIDKV_ENGINE_JOBS)
    list(APPEND command --jobs ${VIDKV_ENGINE_JOBS})
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
set(VIDKV_LLAMA_CPP_SOURCE_DIR ${VIDKV_ENGINE_DIR}/source)
set(VIDKV_ENGINE_BIN_DIR ${VIDKV_ENGINE_DIR}/build/bin)

vidkv_import_engine_library(ggml-base ${VIDKV_LLAMA_CPP_SOURCE_DIR}/ggml/include)
vidkv_import_engine_library(ggml ${VIDKV_LLAMA_CPP_SOURCE_DIR}/ggml/include)
vidkv_import_engine_library(llama ${VIDKV_LLAMA_CPP_SOURCE_DIR}/include)
vidkv_import_engine_library(mtmd ${VIDKV_LLAMA_CPP_SOURCE_DIR}/tools/mtmd)
set_target_properties(llama_cpp::ggml PROPERTIES INTERFACE_LINK_LIBRARIES llama_cpp::ggml_base)
set_target_properties(llama_cpp::llama PROPERTIES INTERFACE_LINK_LIBRARIES llama_cpp::ggml)
set_target_properties(llama_cpp::mtmd PROPERTIES INTERFACE_LINK_LIBRARIES llama_cpp::llama)
