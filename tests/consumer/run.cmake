# SPDX-License-Identifier: Apache-2.0
# Helpers of the consumer tests: each step must succeed, or fail with a given message.
cmake_minimum_required(VERSION 3.22)

# must_run(command...) stops the test if the command fails.
function(must_run)
    execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
    message(STATUS "${text}")
    if(NOT status EQUAL 0)
        list(JOIN ARGN " " command)
        message(FATAL_ERROR "failed (${status}): ${command}\n${text}")
    endif()
endfunction()

# must_fail(regex command...) stops the test unless the command fails with a matching message.
function(must_fail pattern)
    execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
    if(status EQUAL 0)
        list(JOIN ARGN " " command)
        message(FATAL_ERROR "must fail, but does not: ${command}")
    endif()
    must_match("${pattern}" "${text}" ${ARGN})
endfunction()

# must_say(regex command...) stops the test unless the command succeeds with a matching message.
function(must_say pattern)
    execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
    if(NOT status EQUAL 0)
        list(JOIN ARGN " " command)
        message(FATAL_ERROR "failed (${status}): ${command}\n${text}")
    endif()
    must_match("${pattern}" "${text}" ${ARGN})
endfunction()

function(must_match pattern text)
    # CMake breaks lines of messages where it likes.
    string(REGEX REPLACE "[ \n]+" " " text "${text}")
    if(NOT text MATCHES "${pattern}")
        list(JOIN ARGN " " command)
        message(FATAL_ERROR "the message does not match '${pattern}': ${command}\n${text}")
    endif()
endfunction()

# must_build(source binary arguments...) configures, builds and tests a project.
function(must_build source binary)
    must_run(${CMAKE_COMMAND} -S ${source} -B ${binary} -G ${GENERATOR} ${ARGN}
             -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_CXX_COMPILER_LAUNCHER=${LAUNCHER}
             "-DCMAKE_CXX_FLAGS=-O1 -Wall -Wextra -Wpedantic -Werror")
    must_run(${CMAKE_COMMAND} --build ${binary} --parallel 2)
    must_run(${CMAKE_CTEST_COMMAND} --test-dir ${binary} --output-on-failure --no-tests=error)
endfunction()

# Nothing of an earlier run may help this one.
file(REMOVE_RECURSE ${SCRATCH})
file(MAKE_DIRECTORY ${SCRATCH})
