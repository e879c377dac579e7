// SPDX-License-Identifier: Apache-2.0
// What the transformer computes with on a GPU: matrix products, precision and memory.
#pragma once

#include <latpar/core/memory.hpp>

#include <wan/cuda/weights.hpp>

#include <cstddef>

struct cublasContext;

namespace wan::cuda {

struct executor_options {
    /// Of matrices and activations, f32 or bf16; the residual stream, sums, norms and the time
    /// embedding are float32 in both.
    latpar::dtype type = latpar::dtype::bf16;
    /// Device memory, which activations and scratch memory come from.
    latpar::memory_source memory{};
    /// For cuBLAS, taken at once from that memory; NVIDIA's advice for Hopper.
    index_t workspace_bytes = index_t{32} << 20;
};

/// The current device's cuBLAS, with a workspace of its own so that results are reproducible and
/// calls can be captured in a CUDA graph.
///
/// An executor serves one model instance (and its attention) at a time, on one stream at a time.
/// Errors: usage_error for another type or memory of the host, device_error without a device.
class executor {
public:
    explicit executor(const executor_options& options);
    executor(const executor&) = delete;
    executor& operator=(const executor&) = delete;
    ~executor();

    [[nodiscard]] latpar::dtype type() const noexcept { return type_; }
    [[nodiscard]] latpar::memory_source memory() const noexcept { return memory_; }

    /// y [rows, out] = x [rows, in] * weight, without the bias; all of `type()`.
    ///
    /// In f32 without TF32, in bf16 with sums in f32. cuBLAS may choose another kernel for another
    /// number of rows, so a row's result depends on how many there are, by rounding.
    void multiply(const linear_weights& layer, const void* x, index_t rows, void* y,
                  latpar::stream_ref stream);
    /// y [rows, out] += x [rows, in] * weight, with y of float32.
    void multiply_add(const linear_weights& layer, const void* x, index_t rows, float* y,
                      latpar::stream_ref stream);

private:
    void run(const linear_weights& layer, const void* x, index_t rows, void* y,
             latpar::dtype y_type, float keep, latpar::stream_ref stream);

    latpar::dtype type_;
    latpar::memory_source memory_;
    latpar::buffer workspace_;
    cublasContext* blas_ = nullptr;
    latpar::stream_ref stream_;
    bool has_stream_ = false;
};

}  // namespace wan::cuda
