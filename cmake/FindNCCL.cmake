# SPDX-License-Identifier: Apache-2.0
# Finds NCCL and gives NCCL::NCCL. Hints: NCCL_ROOT, and where the CUDA toolkit is.
find_package(CUDAToolkit QUIET)
find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_library(NCCL_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR} ${CUDAToolkit_LIBRARY_ROOT}
             PATH_SUFFIXES lib lib64)
if(NCCL_INCLUDE_DIR)
    file(STRINGS ${NCCL_INCLUDE_DIR}/nccl.h version_lines REGEX "#define NCCL_(MAJOR|MINOR|PATCH) ")
    string(REGEX REPLACE "[^0-9]+([0-9]+)" "\\1." NCCL_VERSION "${version_lines}")
    string(REGEX REPLACE "[.;]+" "." NCCL_VERSION "${NCCL_VERSION}")
    string(REGEX REPLACE "[.]$" "" NCCL_VERSION "${NCCL_VERSION}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(NCCL REQUIRED_VARS NCCL_LIBRARY NCCL_INCLUDE_DIR
                                  VERSION_VAR NCCL_VERSION)
mark_as_advanced(NCCL_INCLUDE_DIR NCCL_LIBRARY)
if(NCCL_FOUND AND NOT TARGET NCCL::NCCL)
    add_library(NCCL::NCCL UNKNOWN IMPORTED)
    set_target_properties(NCCL::NCCL PROPERTIES
        IMPORTED_LOCATION ${NCCL_LIBRARY}
        INTERFACE_INCLUDE_DIRECTORIES ${NCCL_INCLUDE_DIR})
    # Its header includes that of the CUDA runtime.
    if(TARGET CUDA::toolkit)
        set_target_properties(NCCL::NCCL PROPERTIES INTERFACE_LINK_LIBRARIES CUDA::toolkit)
    endif()
endif()
