# SPDX-License-Identifier: Apache-2.0
# latpar_test(): one test executable and its CTest entries.

find_package(Catch2 QUIET)
if(NOT Catch2_FOUND)
    message(FATAL_ERROR "Catch2 (2 or 3) is needed for the tests: install catch2, or configure with "
                        "-DLATPAR_BUILD_TESTS=OFF")
endif()

# Catch2 3 is a library with headers of its own, Catch2 2 a single header.
add_library(latpar_test_main STATIC
    ${CMAKE_CURRENT_LIST_DIR}/main.cpp ${CMAKE_CURRENT_LIST_DIR}/run_tests.cpp)
target_include_directories(latpar_test_main PUBLIC ${CMAKE_CURRENT_LIST_DIR}/..)
target_link_libraries(latpar_test_main PUBLIC latpar::latpar Catch2::Catch2)
target_compile_definitions(latpar_test_main PUBLIC
    LATPAR_DEFAULT_REFERENCE_DIR="${PROJECT_SOURCE_DIR}/tests/data/reference")
if(Catch2_VERSION VERSION_GREATER_EQUAL 3)
    target_compile_definitions(latpar_test_main PUBLIC LATPAR_CATCH2_V3)
endif()

# Compiling the test runner costs more than running it ever will.
set_source_files_properties(${CMAKE_CURRENT_LIST_DIR}/run_tests.cpp PROPERTIES COMPILE_OPTIONS -O0)

# What the tests run, and nothing else.
add_custom_target(latpar_tests)
# Those of them that need a device: labelled gpu or nccl.
add_custom_target(latpar_device_tests)
# Those of them that have several threads: labelled threads.
add_custom_target(latpar_thread_tests)

# Open MPI as root in a container needs its consent, and more ranks than cores need it too.
set(LATPAR_MPIEXEC_FLAGS --allow-run-as-root --oversubscribe CACHE STRING
    "Flags of mpirun in the tests, before the number of ranks")

# latpar_test(NAME SOURCES a.cpp ... LABELS unit ... [LIBRARIES ...] [TIMEOUT seconds])
# runs the executable once. With RANKS 1 2 3 it is run under mpirun for each number of ranks.
# With DEVICES 1 it is skipped where there are fewer CUDA devices. Sanitizers have four times as long.
function(latpar_test name)
    cmake_parse_arguments(arg "" "TIMEOUT;DEVICES" "SOURCES;LABELS;LIBRARIES;RANKS" ${ARGN})
    if(NOT arg_TIMEOUT)
        set(arg_TIMEOUT 300)
    endif()
    if(latpar_sanitized)
        math(EXPR arg_TIMEOUT "4 * ${arg_TIMEOUT}")
    endif()
    set(target test_${name})
    if(arg_DEVICES AND NOT arg_RANKS)
        list(APPEND arg_SOURCES ${PROJECT_SOURCE_DIR}/tests/cuda/main.cpp)
    endif()
    add_executable(${target} ${arg_SOURCES})
    if(arg_DEVICES)
        target_compile_definitions(${target} PRIVATE LATPAR_TEST_DEVICES=${arg_DEVICES})
    endif()
    target_link_libraries(${target} PRIVATE latpar_test_main ${arg_LIBRARIES})
    latpar_warnings(${target})
    add_dependencies(latpar_tests ${target})
    if("gpu" IN_LIST arg_LABELS OR "nccl" IN_LIST arg_LABELS)
        add_dependencies(latpar_device_tests ${target})
    endif()
    if("threads" IN_LIST arg_LABELS)
        add_dependencies(latpar_thread_tests ${target})
    endif()
    set(entries)
    if(arg_RANKS)
        foreach(ranks IN LISTS arg_RANKS)
            add_test(NAME ${name}.${ranks} COMMAND ${MPIEXEC_EXECUTABLE} ${LATPAR_MPIEXEC_FLAGS}
                     ${MPIEXEC_NUMPROC_FLAG} ${ranks} $<TARGET_FILE:${target}>)
            list(APPEND entries ${name}.${ranks})
            # So that ctest -j does not put two of them on the same cores.
            set_tests_properties(${name}.${ranks} PROPERTIES PROCESSORS ${ranks})
        endforeach()
    else()
        add_test(NAME ${name} COMMAND ${target})
        list(APPEND entries ${name})
    endif()
    set_tests_properties(${entries} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT}
                         SKIP_RETURN_CODE 77)
endfunction()
