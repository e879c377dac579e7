# SPDX-License-Identifier: Apache-2.0
# Installs the build and uses it from a project that knows nothing but the prefix.
include(${CMAKE_CURRENT_LIST_DIR}/run.cmake)

set(prefix ${SCRATCH}/prefix)
set(project ${CMAKE_CURRENT_LIST_DIR}/project)
must_run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${prefix})
# The package must work from anywhere.
file(RENAME ${prefix} ${SCRATCH}/moved)
set(prefix ${SCRATCH}/moved)
if(NOT EXISTS ${prefix}/share/licenses/latpar/LICENSE)
    message(FATAL_ERROR "the licence was not installed")
endif()

must_build(${project} ${SCRATCH}/plain -DCMAKE_PREFIX_PATH=${prefix})
if(MPI)
    list(JOIN MPIEXEC_FLAGS " " flags)
    must_build(${project} ${SCRATCH}/mpi -DCMAKE_PREFIX_PATH=${prefix} -DCONSUMER_COMPONENTS=mpi
               "-DCONSUMER_MPIEXEC_FLAGS=${flags}")
endif()
set(missing warp)
foreach(component cuda nccl)
    string(TOUPPER ${component} option)
    if(${option})
        must_build(${project} ${SCRATCH}/with_${component} -DCMAKE_PREFIX_PATH=${prefix}
                   -DCONSUMER_COMPONENTS=${component})
    else()
        list(APPEND missing ${component})
    endif()
endforeach()
if(CUDA AND NCCL)
    must_build(${project} ${SCRATCH}/gpus -DCMAKE_PREFIX_PATH=${prefix} -DCONSUMER_COMPONENTS=cuda,nccl)
endif()
foreach(component IN LISTS missing)
    must_fail("this installation has no component '${component}'; it has: latpar"
        ${CMAKE_COMMAND} -S ${project} -B ${SCRATCH}/${component} -G ${GENERATOR}
        -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_PREFIX_PATH=${prefix} -DCONSUMER_COMPONENTS=${component})
endforeach()
