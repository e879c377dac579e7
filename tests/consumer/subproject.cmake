# SPDX-License-Identifier: Apache-2.0
# Uses the source tree through add_subdirectory.
include(${CMAKE_CURRENT_LIST_DIR}/run.cmake)

must_build(${CMAKE_CURRENT_LIST_DIR}/subproject ${SCRATCH}/build
           -DLATPAR_SOURCE_DIR=${SOURCE} -DLATPAR_WARNINGS_AS_ERRORS=ON)
