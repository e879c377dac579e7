// SPDX-License-Identifier: Apache-2.0
// What a loop asks of the model.
#pragma once

#include <latpar/denoise/step_info.hpp>

namespace latpar::inline v0::loop {

/// A call that the model is to make next: it reads z and writes the prediction.
///
/// The views stay valid until the loop is advanced.
struct request {
    const_latent_view z;
    step_info info;
    latent_view prediction;
};

}  // namespace latpar::inline v0::loop
