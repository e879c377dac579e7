// SPDX-License-Identifier: Apache-2.0
// A kernel set with an operation of another signature is none.
// refused: kernel_set
// refused: stitch
#include <latpar/kernel/kernel_set.hpp>

using namespace latpar;

struct partial : kernel::archetype {
#if !defined(LATPAR_ACCEPTED)
    void stitch(latent_view, axis) const;
#endif
};

template <kernel_set Kernels>
memory_space space_of(const Kernels& kernels) {
    return kernels.space();
}

memory_space space() {
    return space_of(partial{});
}
