# SPDX-License-Identifier: Apache-2.0
# Uses the source tree through add_subdirectory.
include(${CMAKE_CURRENT_LIST_DIR}/run.cmake)

must_build(${CMAKE_CURRENT_LIST_DIR}/subproject ${SCRATCH}/build
           -DLATPAR_SOURCE_DIR=${SOURCE} -DLATPAR_WARNINGS_AS_ERRORS=ON)
# This version has no communicator on NCCL, and says so rather than build without it in silence.
must_fail("LATPAR_ENABLE_NCCL is ON, but latpar [0-9.]+ has no communicator on NCCL; configure with -DLATPAR_ENABLE_NCCL=OFF"
    ${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR}/subproject -B ${SCRATCH}/NCCL -G ${GENERATOR}
    -DCMAKE_CXX_COMPILER=${COMPILER} -DLATPAR_SOURCE_DIR=${SOURCE} -DLATPAR_ENABLE_NCCL=ON)
