# SPDX-License-Identifier: Apache-2.0
# For Conan's package alone: gives its targets what they link of the machine's toolkit and NCCL.
include(CMakeFindDependencyMacro)
find_dependency(CUDAToolkit)
if(TARGET latpar::cuda)
    target_link_libraries(latpar::cuda INTERFACE CUDA::cudart_static)
endif()
if(TARGET latpar::nccl)
    list(PREPEND CMAKE_MODULE_PATH ${CMAKE_CURRENT_LIST_DIR})
    find_dependency(NCCL 2.18)
    list(POP_FRONT CMAKE_MODULE_PATH)
    target_link_libraries(latpar::nccl INTERFACE NCCL::NCCL CUDA::cudart_static)
endif()
