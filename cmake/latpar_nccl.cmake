# SPDX-License-Identifier: Apache-2.0
# latpar::nccl, the communicator of ranks that have a GPU each.

# 2.18 is the first whose operations can be given to a communicator that does not block.
find_package(CUDAToolkit 12.8 REQUIRED)
find_package(NCCL 2.18 REQUIRED)

add_library(latpar_nccl
    src/nccl/channel.cpp
    src/nccl/collectives.cpp
    src/nccl/communicator.cpp
    src/nccl/exchange.cpp
    src/nccl/family.cpp
    src/nccl/gates.cpp
    src/nccl/shared_words.cpp
    src/nccl/share.cpp
    src/nccl/text.cpp)
add_library(latpar::nccl ALIAS latpar_nccl)
set_target_properties(latpar_nccl PROPERTIES EXPORT_NAME nccl)
latpar_setup_library(latpar_nccl)
target_include_directories(latpar_nccl PRIVATE ${PROJECT_SOURCE_DIR})
target_link_libraries(latpar_nccl PUBLIC latpar::latpar NCCL::NCCL PRIVATE CUDA::cudart_static)
