# The licence texts of what is compiled into the command and its libraries: share/doc/vidkv/licences.
# The engine's own come with its source; of headers alone the distribution has them.
include_guard(GLOBAL)

# Installs FILE as NAME; a text that is missing is said, and an installation for yourself does not need it.
function(vidkv_install_licence name file)
  if(EXISTS "${file}")
    install(FILES ${file} DESTINATION share/doc/vidkv/licences RENAME ${name} COMPONENT command)
  else()
    message(STATUS "no licence text of ${name}: an installation that is given to others should have it in share/doc/vidkv/licences")
  endif()
endfunction()

function(vidkv_install_licences)
  set(engine ${VIDKV_LLAMA_CPP_SOURCE_DIR})
  vidkv_install_licence(llama.cpp ${engine}/LICENSE)
  vidkv_install_licence(cpp-httplib ${engine}/vendor/cpp-httplib/LICENSE)
  vidkv_install_licence(nlohmann-json ${engine}/licenses/LICENSE-jsonhpp)
  vidkv_install_licence(rotate-bits ${engine}/vendor/hash/rotate-bits/LICENSE.md)
  vidkv_install_licence(xxhash ${engine}/vendor/hash/xxhash/LICENSE)
  find_file(VIDKV_CLI11_LICENCE NAMES copyright LICENSE PATHS /usr/share/doc/libcli11-dev /usr/share/licenses/cli11 NO_DEFAULT_PATH)
  vidkv_install_licence(cli11 "${VIDKV_CLI11_LICENCE}")
  install(FILES ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/licences.md DESTINATION share/doc/vidkv/licences RENAME README COMPONENT command)
endfunction()
