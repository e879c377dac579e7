# SPDX-License-Identifier: Apache-2.0
# Whether there is a compiler for CUDA that is new enough; asked before CMake's language is enabled,
# which stops at one that does not know the newest architectures.
include(CheckLanguage)

# latpar_find_cuda_compiler(result) sets result to TRUE for nvcc 12.8 or later that compiles here.
function(latpar_find_cuda_compiler result)
    set(${result} FALSE PARENT_SCOPE)
    check_language(CUDA)
    if(NOT CMAKE_CUDA_COMPILER)
        return()
    endif()
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE text ERROR_QUIET)
    if(NOT text MATCHES "release ([0-9]+[.][0-9]+)")
        message(STATUS "${CMAKE_CUDA_COMPILER} is not nvcc: latpar::cuda is not built")
    elseif(CMAKE_MATCH_1 VERSION_LESS 12.8)
        message(STATUS "${CMAKE_CUDA_COMPILER} is of CUDA ${CMAKE_MATCH_1}; latpar::cuda needs 12.8")
    else()
        set(${result} TRUE PARENT_SCOPE)
    endif()
endfunction()
