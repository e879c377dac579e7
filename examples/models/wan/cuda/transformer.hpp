// SPDX-License-Identifier: Apache-2.0
// The Wan 2.1 transformer on a GPU.
#pragma once

#include <wan/cuda/trunk.hpp>
#include <wan/transformer.hpp>

namespace wan::cuda {

/// wan::transformer in device memory, on the stream of each call; see cuda::trunk.
///
/// Example:
///     latpar::cuda::device_memory device;
///     auto host = wan::load_weights("model.safetensors");
///     auto exec = std::make_shared<wan::cuda::executor>(
///         wan::cuda::executor_options{latpar::dtype::bf16, device.source()});
///     wan::cuda::transformer<> model(
///         wan::cuda::upload_weights(*host, exec->type(), device.source()), exec);
///     model.set_text(latpar::guidance_branch::conditional, embeddings);
///     model(z, info, prediction, stream);
template <wan::attention Attention = attention>
using transformer = wan::transformer<Attention, trunk>;

}  // namespace wan::cuda
