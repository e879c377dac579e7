// SPDX-License-Identifier: Apache-2.0
// cuda::count_non_finite against the host.
#include "device_lab.hpp"
#include "kernel_cases.hpp"

#include <latpar/cuda/count_non_finite.hpp>
#include <latpar/kernel/count_non_finite.hpp>

#include <kernel/count_cases.hpp>

using namespace latpar;

namespace {

/// A counter in device memory.
class device_counter {
public:
    explicit device_counter(device_lab& lab, std::uint64_t begin = 0)
        : lab_(&lab), memory_(8, lab.memory()) {
        lab.upload(memory_.data(), std::as_bytes(std::span(&begin, 1)));
    }

    [[nodiscard]] std::uint64_t* get() const {
        return reinterpret_cast<std::uint64_t*>(memory_.data());
    }
    [[nodiscard]] std::uint64_t read() const {
        std::uint64_t out = 0;
        lab_->download(std::as_writable_bytes(std::span(&out, 1)), memory_.data());
        return out;
    }

private:
    device_lab* lab_;
    buffer memory_;
};

}  // namespace

TEST_CASE("a device counts what the host does, and adds it") {
    device_lab lab;
    std::mt19937 generator(33);
    std::uint64_t expected = std::uint64_t{1} << 40;
    const device_counter total(lab, expected);
    index_t different = 0;
    for (int trial = 0; trial < 400; ++trial) {
        random_latent content(random_extents(generator), random_type(generator), generator);
        count_cases::sprinkle(content, generator);
        const kernel_cases::placed there(lab, content, generator);
        // The same view of both.
        std::mt19937 same = generator;
        const const_latent_view on_host = count_cases::varied(content.view(), same);
        const const_latent_view on_device = count_cases::varied(there.view(), generator);
        const device_counter one(lab);
        cuda::count_non_finite(on_device, one.get(), lab.stream());
        cuda::count_non_finite(on_device, total.get(), lab.stream());
        different += one.read() != kernel::count_non_finite(on_host);
        expected += kernel::count_non_finite(on_host);
    }
    CHECK(different == 0);
    CHECK(total.read() == expected);
}

TEST_CASE("a latent that is all NaN is counted whole") {
    device_lab lab;
    latent values({1, 16, 21, 90, 163}, dtype::bf16, lab.memory());
    const std::vector<std::uint16_t> nan(static_cast<std::size_t>(values.view().elements()),
                                         std::uint16_t{0x7fc0});
    lab.upload(values.view().data, std::as_bytes(std::span(nan)));
    const device_counter counter(lab);
    cuda::count_non_finite(values.view(), counter.get(), lab.stream());
    CHECK(counter.read() == nan.size());
}
