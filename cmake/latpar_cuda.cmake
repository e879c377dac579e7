# SPDX-License-Identifier: Apache-2.0
# latpar::cuda, the kernels for CUDA devices.

# From Ampere to Blackwell, and intermediate code for what comes after. A project that has enabled
# CUDA before without naming any has nvcc's oldest, which the kernels are not for.
set(latpar_cuda_architectures 80-real 86-real 89-real 90-real 100-real 120)
foreach(one IN LISTS CMAKE_CUDA_ARCHITECTURES)
    if(one MATCHES "^([0-9]+)" AND CMAKE_MATCH_1 LESS 80)
        message(WARNING "latpar::cuda is for compute capability 8.0 and later, and "
                        "CMAKE_CUDA_ARCHITECTURES is ${CMAKE_CUDA_ARCHITECTURES} (CMake's default, if "
                        "your project does not set it): it is built for "
                        "${latpar_cuda_architectures}. Set it before project(), such as to 90-real.")
        set(CMAKE_CUDA_ARCHITECTURES ${latpar_cuda_architectures})
        break()
    endif()
endforeach()
if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES ${latpar_cuda_architectures})
endif()
enable_language(CUDA)
find_package(CUDAToolkit 12.8 REQUIRED)

add_library(latpar_cuda
    ${latpar_cuda_plans}
    cuda/count_non_finite.cu
    cuda/device.cpp
    cuda/kernels.cu
    cuda/memory_resource.cpp
    cuda/philox_noise.cu
    cuda/staged.cpp
    cuda/step_scalars.cu
    cuda/stream.cpp)
add_library(latpar::cuda ALIAS latpar_cuda)
set_target_properties(latpar_cuda PROPERTIES EXPORT_NAME cuda)
if(CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set_target_properties(latpar_cuda PROPERTIES CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON)
else()
    # CMake 3.25 does not know that nvcc speaks C++20.
    target_compile_options(latpar_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
endif()
latpar_setup_library(latpar_cuda)
# Linked into the library or its consumer, who needs the toolkit's libraries but no nvcc.
target_link_libraries(latpar_cuda PUBLIC latpar::latpar PRIVATE CUDA::cudart_static)
target_compile_options(latpar_cuda PRIVATE
    # No contraction, as on the host; and its conversions, which are constexpr, serve the device.
    $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false --expt-relaxed-constexpr>)
