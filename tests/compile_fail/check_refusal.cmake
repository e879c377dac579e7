# SPDX-License-Identifier: Apache-2.0
# Compiles SOURCE twice: as it is, which must fail with every "// refused: <regex>" of its text in
# the diagnostics, and with LATPAR_ACCEPTED defined, which must succeed.
cmake_minimum_required(VERSION 3.22)

function(compile result output)
    execute_process(
        COMMAND ${COMPILER} -std=c++20 -fsyntax-only -I${INCLUDE} ${ARGN} ${SOURCE}
        RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
    set(${result} ${status} PARENT_SCOPE)
    set(${output} "${text}" PARENT_SCOPE)
endfunction()

compile(status text -DLATPAR_ACCEPTED)
if(NOT status EQUAL 0)
    message(FATAL_ERROR "${SOURCE} must compile with LATPAR_ACCEPTED, but does not:\n${text}")
endif()

file(STRINGS ${SOURCE} expectations REGEX "^// refused: ")
if(NOT expectations)
    message(FATAL_ERROR "${SOURCE} has no line '// refused: <regex>'")
endif()
compile(status text)
if(status EQUAL 0)
    message(FATAL_ERROR "${SOURCE} compiles, but must be refused")
endif()
foreach(expectation IN LISTS expectations)
    string(REPLACE "// refused: " "" pattern "${expectation}")
    if(NOT text MATCHES "${pattern}")
        message(FATAL_ERROR "the diagnostics do not match '${pattern}':\n${text}")
    endif()
endforeach()
