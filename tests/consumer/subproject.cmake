# SPDX-License-Identifier: Apache-2.0
# Uses the source tree through add_subdirectory.
include(${CMAKE_CURRENT_LIST_DIR}/run.cmake)

must_build(${CMAKE_CURRENT_LIST_DIR}/subproject ${SCRATCH}/build
           -DLATPAR_SOURCE_DIR=${SOURCE} -DLATPAR_WARNINGS_AS_ERRORS=ON)
# This version has no GPU code, and says so rather than build without it in silence.
foreach(part CUDA NCCL)
    must_fail("LATPAR_ENABLE_${part} is ON, but latpar [0-9.]+ has no GPU code; configure with -DLATPAR_ENABLE_${part}=OFF"
        ${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR}/subproject -B ${SCRATCH}/${part} -G ${GENERATOR}
        -DCMAKE_CXX_COMPILER=${COMPILER} -DLATPAR_SOURCE_DIR=${SOURCE} -DLATPAR_ENABLE_${part}=ON)
endforeach()
