# SPDX-License-Identifier: Apache-2.0
# Objects that only some processors can run must share no inline function with the rest of a program:
# cmake -DNM=nm -DNAMES=avx2 -DOBJECTS=a.o -P check_symbols.cmake
list(LENGTH NAMES count)
math(EXPR last "${count} - 1")
foreach(i RANGE ${last})
    list(GET NAMES ${i} name)
    list(GET OBJECTS ${i} object)
    execute_process(COMMAND ${NM} --defined-only --extern-only ${object}
                    OUTPUT_VARIABLE symbols RESULT_VARIABLE failed)
    if(failed OR NOT symbols MATCHES "kernels_${name}")
        message(FATAL_ERROR "${object} does not define kernels_${name}:\n${symbols}")
    endif()
    string(REGEX MATCHALL "[^\n]+" lines "${symbols}")
    foreach(line IN LISTS lines)
        # The personality reference of the C++ runtime is data, the same for every object.
        if(NOT line MATCHES "kernels_${name}|Eigen_wan_${name}|DW\\.ref\\.__gxx_personality_v0")
            message(SEND_ERROR "${object} would lend this to the whole program: ${line}")
        endif()
    endforeach()
endforeach()
