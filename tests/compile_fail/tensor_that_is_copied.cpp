// SPDX-License-Identifier: Apache-2.0
// A tensor moves, and is never copied by accident.
// refused: deleted
// refused: tensor
#include <latpar/core/memory.hpp>

#include <utility>

using namespace latpar;

latent hand_over(latent& z) {
#if defined(LATPAR_ACCEPTED)
    return std::move(z);
#else
    return z;
#endif
}
