// SPDX-License-Identifier: Apache-2.0
// Memory of a device and page-locked memory, streams and devices.
#include "device_lab.hpp"

#include <support/catch.hpp>

#include <numeric>
#include <vector>

using namespace latpar;

TEST_CASE("bytes go to device memory and come back") {
    const cuda::stream stream;
    cuda::device_memory device;
    cuda::pinned_memory pinned;
    std::vector<std::uint8_t> values(100001);
    std::iota(values.begin(), values.end(), std::uint8_t{0});
    const auto bytes = static_cast<index_t>(values.size());

    const buffer first(bytes, device.source());
    const buffer second(bytes, device.source());
    const buffer locked(bytes, pinned.source());
    CHECK(first.space() == memory_space::cuda);
    CHECK(locked.space() == memory_space::host);
    CHECK(reinterpret_cast<std::uintptr_t>(first.data()) % 256 == 0);
    cuda::copy_bytes(first.data(), values.data(), bytes, stream);
    cuda::copy_bytes(second.data(), first.data(), bytes, stream);
    cuda::copy_bytes(locked.data(), second.data(), bytes, stream);
    CHECK(std::equal(values.begin(), values.end(),
                     reinterpret_cast<const std::uint8_t*>(locked.data())));
    cuda::copy_bytes(nullptr, nullptr, 0, stream);
}

TEST_CASE("a resource counts on a device as it does on the host") {
    cuda::device_memory device;
    counting_resource counted(&device);
    {
        latent z({1, 16, 21, 60, 104}, dtype::f32, {&counted, memory_space::cuda});
        CHECK(z.view().space == memory_space::cuda);
        CHECK(counted.bytes_in_use() == z.bytes());
    }
    CHECK(counted.bytes_in_use() == 0);
    CHECK(counted.allocations() == 1);
    CHECK(device.is_equal(cuda::device_memory(device.device())));
    CHECK_FALSE(device.is_equal(*std::pmr::get_default_resource()));
}

TEST_CASE("memory that there is not is a device error, and one that is said") {
    cuda::device_memory device;
    CHECK_THROWS_AS(buffer(index_t{1} << 50, device.source()), device_error);
    CHECK_THROWS_WITH(buffer(index_t{1} << 50, device.source()),
                      ContainsSubstring("bytes of device"));
    CHECK_THROWS_AS(device.allocate(16, 512), usage_error);
    // It was said once; the next call is none the worse.
    const buffer small(16, device.source());
    CHECK(small.data() != nullptr);
}

TEST_CASE("streams are moved, and waited for") {
    cuda::stream first;
    const stream_ref handle = first;
    cuda::stream second(std::move(first));
    CHECK(second.ref() == handle);
    cuda::stream third;
    third = std::move(second);
    CHECK(third.ref() == handle);
    third.synchronize();
    cuda::synchronize({});
    CHECK_FALSE(cuda::device_name(cuda::current_device()).empty());
}
