# What an installation is besides programs and libraries, and the Debian packages:
#   cmake --preset package && cmake --build build/package && cpack --config build/package/CPackConfig.cmake
# makes samkvd, libsamkv1, libsamkv-dev and, with the preset package-cuda, samkv-cuda.

# Units name the program where it is installed.
foreach(unit samkvd.service samkvd.socket)
    file(READ ${CMAKE_SOURCE_DIR}/systemd/${unit} text)
    string(REPLACE "/usr/sbin/" "${CMAKE_INSTALL_FULL_SBINDIR}/" text "${text}")
    string(REPLACE "/etc/samkv/" "${CMAKE_INSTALL_FULL_SYSCONFDIR}/samkv/" text "${text}")
    file(WRITE ${CMAKE_BINARY_DIR}/systemd/${unit} "${text}")
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/systemd/${unit})
    install(FILES ${CMAKE_BINARY_DIR}/systemd/${unit} DESTINATION lib/systemd/system COMPONENT samkvd)
endforeach()
install(FILES systemd/samkvd.sysusers DESTINATION lib/sysusers.d RENAME samkvd.conf COMPONENT samkvd)
install(FILES systemd/samkvd.tmpfiles DESTINATION lib/tmpfiles.d RENAME samkvd.conf COMPONENT samkvd)
install(FILES systemd/samkvd.conf DESTINATION ${CMAKE_INSTALL_FULL_SYSCONFDIR}/samkv COMPONENT samkvd)
install(FILES systemd/samkvd.conf systemd/samkvd-gpu.conf systemd/samkvd-dashboard.json
    DESTINATION ${CMAKE_INSTALL_DOCDIR}/examples COMPONENT samkvd)
install(FILES README.md CHANGELOG.md DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT samkvd)
foreach(package samkvd libsamkv1 libsamkv-dev samkv-cuda)
    if(SAMKV_CUDA OR NOT package STREQUAL samkv-cuda)
        install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/${package} RENAME copyright COMPONENT ${package})
    endif()
endforeach()
if(SAMKV_CUDA)
    install(TARGETS samkv_cuda LIBRARY DESTINATION lib/samkv COMPONENT samkv-cuda)
endif()

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME samkvd)
set(CPACK_PACKAGE_VENDOR "samkvd")
set(CPACK_PACKAGE_CONTACT "samkvd developers <samkvd@localhost>")
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGING_INSTALL_PREFIX ${CMAKE_INSTALL_PREFIX})
set(CPACK_PACKAGE_DIRECTORY ${CMAKE_BINARY_DIR}/packages)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_GROUPING IGNORE)
set(CPACK_COMPONENTS_ALL samkvd libsamkv1 libsamkv-dev)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_DEBIAN_ENABLE_COMPONENT_DEPENDS ON)
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS_POLICY ">=")
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS ${CMAKE_BINARY_DIR}/lib)

set(CPACK_COMPONENT_SAMKVD_DEPENDS libsamkv1)
set(CPACK_DEBIAN_SAMKVD_PACKAGE_NAME samkvd)
set(CPACK_DEBIAN_SAMKVD_PACKAGE_SECTION net)
set(CPACK_DEBIAN_SAMKVD_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_SAMKVD_PACKAGE_RECOMMENDS systemd)
set(CPACK_COMPONENT_SAMKVD_DESCRIPTION "Persistent, sparse KV caches for LLM engines: the daemon
 samkvd prefills each document once, keeps its KV cache compressed on disk, and gives an inference engine, for a query, a small
 ready-to-use KV cache of the tokens that the query needs. With samkvctl, its command line.")
set(CPACK_DEBIAN_SAMKVD_PACKAGE_CONTROL_EXTRA
    ${CMAKE_SOURCE_DIR}/systemd/deb/postinst ${CMAKE_SOURCE_DIR}/systemd/deb/prerm ${CMAKE_SOURCE_DIR}/systemd/deb/postrm
    ${CMAKE_SOURCE_DIR}/systemd/deb/conffiles)

set(CPACK_DEBIAN_LIBSAMKV1_PACKAGE_NAME libsamkv1)
set(CPACK_DEBIAN_LIBSAMKV1_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_LIBSAMKV1_PACKAGE_SHLIBDEPS ON)
set(CPACK_COMPONENT_LIBSAMKV1_DESCRIPTION "Persistent, sparse KV caches for LLM engines: the client library
 libsamkv is what an inference engine links to fetch KV caches from samkvd: blocking calls, and a descriptor to poll.")

set(CPACK_COMPONENT_LIBSAMKV-DEV_DEPENDS libsamkv1)
set(CPACK_DEBIAN_LIBSAMKV-DEV_PACKAGE_NAME libsamkv-dev)
set(CPACK_DEBIAN_LIBSAMKV-DEV_PACKAGE_SECTION libdevel)
set(CPACK_COMPONENT_LIBSAMKV-DEV_DESCRIPTION "Persistent, sparse KV caches for LLM engines: development files
 Headers, pkg-config and CMake files, and the manual of libsamkv.")

if(SAMKV_CUDA)
    list(APPEND CPACK_COMPONENTS_ALL samkv-cuda)
    set(CPACK_COMPONENT_SAMKV-CUDA_DEPENDS samkvd)
    set(CPACK_DEBIAN_SAMKV-CUDA_PACKAGE_NAME samkv-cuda)
    set(CPACK_DEBIAN_SAMKV-CUDA_PACKAGE_SECTION net)
    # NVIDIA's packages carry their version in their names, and many machines have CUDA without any package.
    set(CPACK_DEBIAN_SAMKV-CUDA_PACKAGE_SUGGESTS "libcublas-${CUDAToolkit_VERSION_MAJOR}-${CUDAToolkit_VERSION_MINOR}")
    set(CPACK_COMPONENT_SAMKV-CUDA_DESCRIPTION "Persistent, sparse KV caches for LLM engines: the CUDA backend
 Lets samkvd compute on NVIDIA GPUs of compute capability 8.0 and later. Needs the NVIDIA driver and cuBLASLt ${CUDAToolkit_VERSION_MAJOR}.")
endif()
include(CPack)
