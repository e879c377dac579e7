// SPDX-License-Identifier: Apache-2.0
// copy, copy_all and round: what a thread does, and the tasks that it is given.
#pragma once

#include "loop_shape.hpp"

#include <latpar/kernel/kernel_set.hpp>

namespace latpar::inline v0::cuda::detail {

/// One copy, or one part of it.
///
/// A thread writes the elements between two multiples of its access in the target's memory, so
/// that stores are whole whatever the alignment; loads are as wide as source and target agree.
struct copy_task {
    operand source;
    operand target;
    loop_shape shape;
    dtype source_type = dtype::f32;
    dtype target_type = dtype::f32;
    dtype via = dtype::f32;      ///< what a value is rounded to on its way, when rounding
    std::uint8_t width = 0;      ///< elements of one load; 0: an item is a single element
    bool rows_are_even = false;  ///< every row begins at a multiple of the access
    /// Each row asks for the sectors of the target that it fills in part. Only in the device's own
    /// memory: asking for a peer's takes more time than it saves, some 20 ns each.
    bool fetches_parts = false;
};

/// Items of a thread, all loaded before the first is stored: as many as are 64 bytes to load; and
/// two where sectors are asked for, which is faster than one or four.
[[nodiscard]] constexpr LATPAR_DEVICE std::uint32_t copy_items(index_t source_size,
                                                               index_t target_size,
                                                               bool fetches_parts = false) {
    return fetches_parts || source_size > target_size ? 2 : 4;
}

/// Items of a block.
[[nodiscard]] LATPAR_DEVICE std::uint32_t copy_tile(const copy_task& task) {
    const bool narrows =
        task.width > 0 && task.source_type == dtype::f32 && task.target_type != dtype::f32;
    return (narrows ? copy_items(4, 2) : copy_items(4, 4, task.fetches_parts)) * block_threads;
}

/// Several copies in one launch: as much as fits the parameters of a kernel.
///
/// The tiles are cut into `runs`, and neighbouring blocks work in different ones: what crosses a
/// link to another device is then under way together with what does not. Up to `runs` - 1 blocks
/// find no tile.
template <int Capacity>
struct copy_batch {
    static constexpr std::uint32_t runs = Capacity > 1 ? 8 : 1;

    std::uint32_t count = 0;
    std::uint32_t tiles = 0;
    std::uint32_t first_tile[Capacity] = {};
    copy_task tasks[Capacity];

    [[nodiscard]] LATPAR_DEVICE std::uint32_t tiles_per_run() const {
        return (tiles + runs - 1) / runs;
    }
    [[nodiscard]] std::uint32_t blocks() const { return runs * tiles_per_run(); }
};

/// Calls f.template operator()<FetchesParts>() as the one copy of a batch does; several never ask.
template <int Capacity, class F>
void visit_fetching(const copy_batch<Capacity>& batch, F&& f) {
    if constexpr (Capacity == 1) {
        if (batch.tasks[0].fetches_parts) {
            f.template operator()<true>();
            return;
        }
    }
    f.template operator()<false>();
}

/// Elements of an item: 16 bytes of the target, for a store of half a sector costs as much.
[[nodiscard]] constexpr int copy_group(index_t target_size) noexcept {
    return 16 / static_cast<int>(target_size);
}

/// The task of copying or, with `via`, of rounding, within memory of one device. The views are
/// checked and no larger than `max_positions`.
[[nodiscard]] copy_task plan_copy(const const_latent_view& source, const latent_view& target,
                                  dtype via);

/// Calls launch(batch) for the copies, in batches of at most `Capacity`.
template <int Capacity, class IsOwn, class Launch>
void run_batches(std::span<const kernel::copy_pair> copies, const IsOwn& is_own, Launch& launch,
                 index_t limit) {
    // Tiles are counted in 32 bits: a batch holds at most 128 * 2^30 / 512 of them.
    copy_batch<Capacity> batch;
    const auto flush = [&] {
        if (batch.count > 0) launch(std::as_const(batch));
        batch.count = 0;
        batch.tiles = 0;
    };
    for (const kernel::copy_pair& c : copies) {
        for_each_block(c.target.extents, limit, [&](const auto& origin, const auto& extents) {
            if (batch.count == Capacity) flush();
            copy_task& task = batch.tasks[batch.count];
            task = plan_copy(block_of(c.source, origin, extents),
                             block_of(c.target, origin, extents), dtype::f32);
            task.fetches_parts = task.fetches_parts && is_own(c.target.data);
            batch.first_tile[batch.count] = batch.tiles;
            ++batch.count;
            batch.tiles += (task.shape.items + copy_tile(task) - 1) / copy_tile(task);
        });
    }
    flush();
}

/// Calls launch(batch) for one copy; is_own(data) says whether its target is in the device's own
/// memory.
template <class IsOwn, class Launch>
void run_copy(const kernel::copy_pair& pair, const IsOwn& is_own, Launch&& launch,
              index_t limit = max_positions) {
    run_batches<1>({&pair, 1}, is_own, launch, limit);
}

/// Calls launch(batch) for copies to wherever the device reaches, in batches that are no larger
/// than need be.
template <class Launch>
void run_copies(std::span<const kernel::copy_pair> copies, Launch&& launch,
                index_t limit = max_positions) {
    // CUDA reports another process's memory as the device's own, so none is asked for.
    const auto is_own = [](const std::byte*) { return false; };
    if (copies.size() <= 1) {
        run_batches<1>(copies, is_own, launch, limit);
    } else if (copies.size() <= 16) {
        run_batches<16>(copies, is_own, launch, limit);
    } else {
        run_batches<128>(copies, is_own, launch, limit);
    }
}

/// Calls launch(task) for each part of a latent that is rounded to `via`.
template <class Launch>
void run_round(const latent_view& values, dtype via, Launch&& launch,
               index_t limit = max_positions) {
    // Every half and bfloat16 is a float.
    if (via == values.type || via == dtype::f32) return;
    for_each_block(values.extents, limit, [&](const auto& origin, const auto& extents) {
        const latent_view block = block_of(values, origin, extents);
        launch(plan_copy(block, block, via));
    });
}

// What becomes of the bits of one element, and of two neighbours of two bytes each, on their way.

template <int Size>
struct moved {
    static constexpr int source_size = Size;
    static constexpr int target_size = Size;
    LATPAR_DEVICE static std::uint32_t one(std::uint32_t bits) { return bits; }
    LATPAR_DEVICE static std::uint32_t two(std::uint32_t first, std::uint32_t second) {
        return first | second << 16;
    }
};

template <class Source, class Target>
struct converted {
    static constexpr int source_size = sizeof(Source);
    static constexpr int target_size = sizeof(Target);
    LATPAR_DEVICE static std::uint32_t one(std::uint32_t bits) {
        return narrow<Target>(widen<Source>(bits));
    }
    LATPAR_DEVICE static std::uint32_t two(std::uint32_t first, std::uint32_t second) {
        return narrow_two<Target>(widen<Source>(first), widen<Source>(second));
    }
};

template <class Via>
struct rounded {
    static constexpr int source_size = sizeof(float);
    static constexpr int target_size = sizeof(float);
    LATPAR_DEVICE static std::uint32_t one(std::uint32_t bits) {
        return narrow<float>(widen<Via>(narrow<Via>(widen<float>(bits))));
    }
};

/// The bits of one element of any type on their way to any other.
LATPAR_DEVICE std::uint32_t change_one(const copy_task& task, std::uint32_t bits) {
    if (task.source_type == task.target_type && task.via == dtype::f32) return bits;
    float value = widen_one(task.source_type, bits);
    if (task.via != dtype::f32) value = widen_one(task.via, narrow_one(task.via, value));
    return narrow_one(task.target_type, value);
}

/// Elements one by one: those that are no neighbours in memory, and conversions that are rare.
LATPAR_DEVICE void copy_elements(const copy_task& task, std::uint32_t first) {
    constexpr std::uint32_t items = copy_items(1, 1);
    std::uint32_t values[items];
    std::byte* to[items];
    LATPAR_UNROLL
    for (std::uint32_t u = 0; u < items; ++u) {
        const std::uint32_t item = first + u * block_threads;
        to[u] = nullptr;
        if (item >= task.shape.items) continue;
        const item_place at = locate(task.shape, item);
        const auto in_row = static_cast<std::int64_t>(at.in_row);
        to[u] = task.target.row(at, task.shape.outer_axes) + in_row * task.target.step;
        const std::byte* from =
            task.source.row(at, task.shape.outer_axes) + in_row * task.source.step;
        if (task.source_type == dtype::f32) {
            load<4>(from, &values[u]);
        } else {
            values[u] = load_half(from);
        }
    }
    LATPAR_UNROLL
    for (std::uint32_t u = 0; u < items; ++u) {
        if (!to[u]) continue;
        const std::uint32_t bits = change_one(task, values[u]);
        if (task.target_type == dtype::f32) {
            store<4>(to[u], &bits);
        } else {
            store_half(to[u], static_cast<std::uint16_t>(bits));
        }
    }
}

/// What a group of neighbours is to be copied from and to: elements [begin, end) of it.
struct copy_place {
    const std::byte* from = nullptr;
    std::byte* to = nullptr;  ///< a multiple of the access
    int begin = 0;
    int end = 0;
    std::int64_t in_row = 0;  ///< the group's first element
};

template <int SourceSize, int TargetSize>
LATPAR_DEVICE copy_place place_of(const copy_task& task, std::uint32_t item) {
    constexpr int count = copy_group(TargetSize);
    copy_place out;
    if (item >= task.shape.items) return out;
    const item_place at = locate(task.shape, item);
    std::byte* const row = task.target.row(at, task.shape.outer_axes);
    int before = 0;
    if (!task.rows_are_even) {
        before = static_cast<int>(reinterpret_cast<std::uintptr_t>(row) / TargetSize) & (count - 1);
    }
    out.in_row = static_cast<std::int64_t>(at.in_row) * count - before;
    const std::int64_t left = static_cast<std::int64_t>(task.shape.row_elements) - out.in_row;
    out.begin = out.in_row < 0 ? before : 0;
    out.end = left < count ? static_cast<int>(left) : count;
    out.to = row + out.in_row * TargetSize;
    out.from = task.source.row(at, task.shape.outer_axes) + out.in_row * SourceSize;
    return out;
}

/// A sector of the target, and whether a thread is to ask for it.
struct sector_request {
    std::uintptr_t at = 0;
    bool is_wanted = false;
};

/// The sector that a group begins in; wanted of the first group of a row there, if the row fills
/// the sector in part.
template <int TargetSize>
LATPAR_DEVICE sector_request sector_of(const copy_task& task, const copy_place& place) {
    constexpr int count = sector_bytes / TargetSize;
    const auto address = reinterpret_cast<std::uintptr_t>(place.to);
    const int before = (static_cast<int>(address) & (sector_bytes - 1)) / TargetSize;
    const std::int64_t left = static_cast<std::int64_t>(task.shape.row_elements) - place.in_row;
    const bool is_first = before == 0 || place.in_row <= 0;
    const bool is_in_part = place.in_row < before || left + before < count;
    return {address - static_cast<std::uintptr_t>(before * TargetSize),
            place.begin < place.end && is_first && is_in_part};
}

/// Loads the elements that are wanted of groups, many of which are ends of rows.
template <int Size, int Count, std::uint32_t Items>
LATPAR_DEVICE void load_groups(const copy_place (&at)[Items], int width, group (&values)[Items]) {
    if (width < 2) {
        LATPAR_UNROLL
        for (std::uint32_t u = 0; u < Items; ++u) {
            load_some<Size, Count>(at[u].from, Size, at[u].begin, at[u].end, values[u]);
        }
        return;
    }
    const auto is_whole = [&](std::uint32_t u) { return at[u].begin == 0 && at[u].end == Count; };
    LATPAR_UNROLL
    for (std::uint32_t u = 0; u < Items; ++u) {
        if (is_whole(u)) load_group<Size, Count>(at[u].from, Size, width, 0, Count, values[u]);
    }
    // The ends last: elements of two bytes are waited for, to be put together.
    LATPAR_UNROLL
    for (std::uint32_t u = 0; u < Items; ++u) {
        if (is_whole(u)) continue;
        load_some<Size, Count>(at[u].from, Size, at[u].begin, at[u].end, values[u]);
    }
}

/// Groups of neighbours.
template <class Change, bool FetchesParts>
LATPAR_DEVICE void copy_groups(const copy_task& task, std::uint32_t first) {
    constexpr int source_size = Change::source_size;
    constexpr int target_size = Change::target_size;
    constexpr int count = copy_group(target_size);
    constexpr std::uint32_t items = copy_items(source_size, target_size, FetchesParts);
    group values[items];
    copy_place at[items];
    LATPAR_UNROLL
    for (std::uint32_t u = 0; u < items; ++u) {
        at[u] = place_of<source_size, target_size>(task, first + u * block_threads);
        if constexpr (FetchesParts) {
            const sector_request sector = sector_of<target_size>(task, at[u]);
            prefetch_sector(sector.at, sector.is_wanted);
        } else if (at[u].to != nullptr) {
            load_group<source_size, count>(at[u].from, source_size, task.width, at[u].begin,
                                           at[u].end, values[u]);
        }
    }
    if constexpr (FetchesParts) load_groups<source_size, count>(at, task.width, values);
    LATPAR_UNROLL
    for (std::uint32_t u = 0; u < items; ++u) {
        group out;
        LATPAR_UNROLL
        for (int e = 0; e < count; e += 2) {
            const std::uint32_t first_bits = bits_of<source_size>(values[u], e);
            const std::uint32_t second_bits = bits_of<source_size>(values[u], e + 1);
            if constexpr (target_size == 4) {
                out.words[e] = Change::one(first_bits);
                out.words[e + 1] = Change::one(second_bits);
            } else {
                out.words[e / 2] = Change::two(first_bits, second_bits);
            }
        }
        store_group<target_size, count>(at[u].to, target_size, count, at[u].begin, at[u].end, out);
    }
}

/// The share of one thread of one tile of a task that copies.
template <bool FetchesParts>
LATPAR_DEVICE void copy_share(const copy_task& task, std::uint32_t first) {
    const dtype from = task.source_type;
    const dtype to = task.target_type;
    if (task.width == 0) {
        copy_elements(task, first);
    } else if (from == to) {
        if (from == dtype::f32) {
            copy_groups<moved<4>, FetchesParts>(task, first);
        } else {
            copy_groups<moved<2>, FetchesParts>(task, first);
        }
    } else if (from == dtype::f32) {
        if (to == dtype::bf16) {
            copy_groups<converted<float, bfloat16>, FetchesParts>(task, first);
        } else {
            copy_groups<converted<float, float16>, FetchesParts>(task, first);
        }
    } else if (from == dtype::bf16) {
        copy_groups<converted<bfloat16, float>, FetchesParts>(task, first);
    } else {
        copy_groups<converted<float16, float>, FetchesParts>(task, first);
    }
}

/// The same of a task that rounds.
LATPAR_DEVICE void round_share(const copy_task& task, std::uint32_t first) {
    if (task.width == 0) {
        copy_elements(task, first);
    } else if (task.via == dtype::bf16) {
        copy_groups<rounded<bfloat16>, false>(task, first);
    } else {
        copy_groups<rounded<float16>, false>(task, first);
    }
}

/// The share of one thread of a block of a batch.
template <bool FetchesParts, int Capacity>
LATPAR_DEVICE void copy_batch_share(const copy_batch<Capacity>& batch, std::uint32_t block,
                                    std::uint32_t thread) {
    constexpr std::uint32_t runs = copy_batch<Capacity>::runs;
    const std::uint32_t tile = block % runs * batch.tiles_per_run() + block / runs;
    if (tile >= batch.tiles) return;
    std::uint32_t k = 0;
    if constexpr (Capacity > 1) {
        // The last task that begins at or before the tile.
        std::uint32_t end = batch.count;
        while (end - k > 1) {
            const std::uint32_t middle = (k + end) / 2;
            if (batch.first_tile[middle] <= tile) {
                k = middle;
            } else {
                end = middle;
            }
        }
    }
    copy_share<FetchesParts>(batch.tasks[k],
                             (tile - batch.first_tile[k]) * copy_tile(batch.tasks[k]) + thread);
}

}  // namespace latpar::inline v0::cuda::detail
