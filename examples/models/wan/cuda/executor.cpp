// SPDX-License-Identifier: Apache-2.0
// What the transformer computes with on a GPU.
#include <cublas_v2.h>
#include <wan/cuda/check.hpp>
#include <wan/cuda/executor.hpp>

namespace wan::cuda {
namespace {

using latpar::dtype;
using latpar::detail::require;

void check(cublasStatus_t status, const char* doing) {
    require<latpar::device_error>(status == CUBLAS_STATUS_SUCCESS, doing,
                                  " failed: ", cublasGetStatusString(status));
}

cudaDataType_t native(dtype type) {
    return type == dtype::bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

}  // namespace

executor::executor(const executor_options& options) : type_(options.type), memory_(options.memory) {
    require(type_ == dtype::f32 || type_ == dtype::bf16, "the transformer computes in f32 or bf16 ",
            "on a GPU, not in ", name_of(type_));
    require(memory_.space == latpar::memory_space::cuda,
            "the transformer's executor on a GPU takes device memory, not that of the host; ",
            "pass a source of it");
    workspace_ = latpar::buffer(options.workspace_bytes, memory_);
    check(cublasCreate(&blas_), "making a cuBLAS handle");
    // Never TF32 for float32, and never sums in bfloat16.
    const auto math = type_ == dtype::f32 ? CUBLAS_PEDANTIC_MATH
                                          : CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    check(cublasSetMathMode(blas_, math), "choosing cuBLAS's arithmetic");
}

executor::~executor() {
    if (blas_) static_cast<void>(cublasDestroy(blas_));
}

void executor::multiply(const linear_weights& layer, const void* x, index_t rows, void* y,
                        latpar::stream_ref stream) {
    run(layer, x, rows, y, type_, 0.0f, stream);
}

void executor::multiply_add(const linear_weights& layer, const void* x, index_t rows, float* y,
                            latpar::stream_ref stream) {
    run(layer, x, rows, y, dtype::f32, 1.0f, stream);
}

void executor::run(const linear_weights& layer, const void* x, index_t rows, void* y, dtype y_type,
                   float keep, latpar::stream_ref stream) {
    if (rows == 0) return;
    if (!has_stream_ || !(stream == stream_)) {
        check(cublasSetStream(blas_, cuda::native(stream)), "giving cuBLAS a stream");
        // A stream resets it.
        check(cublasSetWorkspace(blas_, workspace_.data(),
                                 static_cast<std::size_t>(workspace_.bytes())),
              "giving cuBLAS its workspace");
        stream_ = stream;
        has_stream_ = true;
    }
    // In cuBLAS's columns: y^T [out, rows] = weight^T [out, in] * x^T [in, rows].
    const float one = 1.0f;
    const auto compute = type_ == dtype::f32 ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F;
    check(cublasGemmEx_64(blas_, CUBLAS_OP_N, CUBLAS_OP_N, layer.out, rows, layer.in, &one,
                          layer.weight, native(type_), layer.out, x, native(type_), layer.in, &keep,
                          y, native(y_type), layer.out, compute, CUBLAS_GEMM_DEFAULT),
          "a product of matrices");
}

}  // namespace wan::cuda
