# SPDX-License-Identifier: Apache-2.0
# Uses the source tree through add_subdirectory.
include(${CMAKE_CURRENT_LIST_DIR}/run.cmake)

must_build(${CMAKE_CURRENT_LIST_DIR}/subproject ${SCRATCH}/build
           -DLATPAR_SOURCE_DIR=${SOURCE} -DLATPAR_WARNINGS_AS_ERRORS=ON)

# What is asked for is built or missed, never left out in silence.
must_fail("CUDAToolkit"
    ${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR}/subproject -B ${SCRATCH}/NCCL -G ${GENERATOR}
    -DCMAKE_CXX_COMPILER=${COMPILER} -DLATPAR_SOURCE_DIR=${SOURCE} -DLATPAR_ENABLE_NCCL=ON
    -DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON)

# A compiler for CUDA that is too old, or is not nvcc, is left alone where it is not asked for.
foreach(answer "release 12.7" "clang version 14.0.0")
    set(nvcc ${SCRATCH}/nvcc)
    file(WRITE ${nvcc} "#!/bin/sh\necho '${answer}, '\n")
    file(CHMOD ${nvcc} PERMISSIONS OWNER_READ OWNER_EXECUTE)
    must_say("without CUDA, without NCCL"
        ${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR}/subproject -B ${SCRATCH}/AUTO -G ${GENERATOR}
        -DCMAKE_CXX_COMPILER=${COMPILER} -DLATPAR_SOURCE_DIR=${SOURCE} -DLATPAR_ENABLE_CUDA=AUTO
        -DCMAKE_CUDA_COMPILER=${nvcc})
    file(REMOVE ${nvcc})
endforeach()
