# SPDX-License-Identifier: Apache-2.0
# install(), the exported targets and the package configuration.
include(CMakePackageConfigHelpers)

set(latpar_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/latpar)

install(TARGETS latpar EXPORT latpar-targets)
install(DIRECTORY include/latpar DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        PATTERN "mpi" EXCLUDE
        PATTERN "nccl" EXCLUDE
        PATTERN "cuda" EXCLUDE)
install(EXPORT latpar-targets NAMESPACE latpar:: DESTINATION ${latpar_package_dir})
if(TARGET latpar_mpi)
    install(TARGETS latpar_mpi EXPORT latpar-mpi-targets)
    install(DIRECTORY include/latpar/mpi DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/latpar)
    install(EXPORT latpar-mpi-targets NAMESPACE latpar:: DESTINATION ${latpar_package_dir})
endif()
if(TARGET latpar_cuda)
    install(TARGETS latpar_cuda EXPORT latpar-cuda-targets)
    install(DIRECTORY include/latpar/cuda DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/latpar)
    install(EXPORT latpar-cuda-targets NAMESPACE latpar:: DESTINATION ${latpar_package_dir})
endif()
if(TARGET latpar_nccl)
    install(TARGETS latpar_nccl EXPORT latpar-nccl-targets)
    install(DIRECTORY include/latpar/nccl DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/latpar)
    install(EXPORT latpar-nccl-targets NAMESPACE latpar:: DESTINATION ${latpar_package_dir})
    install(FILES cmake/FindNCCL.cmake DESTINATION ${latpar_package_dir})
endif()

configure_package_config_file(cmake/latpar-config.cmake.in latpar-config.cmake
    INSTALL_DESTINATION ${latpar_package_dir})
write_basic_package_version_file(latpar-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES
    ${CMAKE_CURRENT_BINARY_DIR}/latpar-config.cmake
    ${CMAKE_CURRENT_BINARY_DIR}/latpar-config-version.cmake
    DESTINATION ${latpar_package_dir})
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/latpar)
