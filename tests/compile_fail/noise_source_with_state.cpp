// SPDX-License-Identifier: Apache-2.0
// A generator that changes with each draw is no noise source: who draws first would matter.
// refused: noise_source
// refused: fill
#include <latpar/schedule/noise_source.hpp>

using namespace latpar;

#if defined(LATPAR_ACCEPTED)
#define LATPAR_FIXED const
#else
#define LATPAR_FIXED
#endif

struct generator {
    void fill(latent_view, const box&, noise_key, stream_ref) LATPAR_FIXED {}
};

template <noise_source Noise>
void begin(const Noise& noise, latent_view z) {
    noise.fill(z, {}, {}, {});
}

void run(latent_view z) {
    begin(generator{}, z);
}
