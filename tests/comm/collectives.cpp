// SPDX-License-Identifier: Apache-2.0
// Collectives against what they should give, with uneven counts and for several numbers of ranks.
#include <latpar/comm/collectives.hpp>
#include <latpar/comm/metered.hpp>
#include <latpar/comm/self.hpp>
#include <latpar/comm/thread_team.hpp>
#include <latpar/core/memory.hpp>

#include <support/catch.hpp>

#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>

using namespace latpar;

namespace {

/// Runs f on every rank; f returns whether all was well there.
template <class F>
int failures(int ranks, F f) {
    std::atomic<int> failed = 0;
    thread_team(ranks).run([&](thread_communicator& comm) {
        if (!f(comm)) ++failed;
    });
    return failed;
}

/// What rank `from` has for rank `to` at `i`.
int value(int from, int to, int i) {
    return from * 10000 + to * 100 + i;
}

/// How much rank `from` has for rank `to`: sometimes nothing.
index_t count(int from, int to) {
    return (from * 2 + to * 3) % 4;
}

}  // namespace

TEST_CASE("all_gather and all_gather_v") {
    const int ranks = GENERATE(1, 2, 3, 4, 7);
    CHECK(failures(ranks, [ranks](auto& comm) {
              std::vector<int> mine{comm.rank(), -comm.rank()};
              std::vector<int> all(static_cast<std::size_t>(2 * ranks), 99);
              all_gather(comm, mine, all);
              std::vector<index_t> counts;
              std::vector<int> expected;
              for (int r = 0; r < ranks; ++r) {
                  counts.push_back(count(r, 1));
                  for (int i = 0; i < count(r, 1); ++i) expected.push_back(value(r, 1, i));
                  if (all[static_cast<std::size_t>(2 * r)] != r) return false;
                  if (all[static_cast<std::size_t>(2 * r + 1)] != -r) return false;
              }
              // In place: its own part lies where it belongs.
              std::vector<int> gathered(expected.size());
              index_t first = 0;
              for (int r = 0; r < comm.rank(); ++r) first += count(r, 1);
              const auto own = std::span(gathered).subspan(
                  static_cast<std::size_t>(first), static_cast<std::size_t>(count(comm.rank(), 1)));
              for (std::size_t i = 0; i < own.size(); ++i) {
                  own[i] = value(comm.rank(), 1, static_cast<int>(i));
              }
              all_gather_v(comm, own, gathered, counts);
              return gathered == expected;
          }) == 0);
}

TEST_CASE("all_to_all_v") {
    const int ranks = GENERATE(1, 2, 3, 4, 7);
    CHECK(failures(ranks, [ranks](auto& comm) {
              std::vector<int> out;
              std::vector<int> expected;
              std::vector<index_t> out_counts;
              std::vector<index_t> in_counts;
              for (int r = 0; r < ranks; ++r) {
                  out_counts.push_back(count(comm.rank(), r));
                  in_counts.push_back(count(r, comm.rank()));
                  for (int i = 0; i < out_counts.back(); ++i) {
                      out.push_back(value(comm.rank(), r, i));
                  }
                  for (int i = 0; i < in_counts.back(); ++i) {
                      expected.push_back(value(r, comm.rank(), i));
                  }
              }
              std::vector<int> in(expected.size());
              all_to_all_v(comm, out, out_counts, in, in_counts);
              return in == expected;
          }) == 0);
}

TEST_CASE("broadcast, gather_v and scatter_v from every root") {
    const int ranks = GENERATE(1, 2, 3, 4, 7);
    CHECK(failures(ranks, [ranks](auto& comm) {
              bool good = true;
              for (int root = 0; root < ranks; ++root) {
                  const bool here = comm.rank() == root;
                  std::vector<double> data(5, here ? root + 0.5 : -1);
                  broadcast(comm, data, root);
                  good = good && data == std::vector<double>(5, root + 0.5);

                  std::vector<index_t> counts;
                  std::vector<int> whole;
                  for (int r = 0; r < ranks; ++r) {
                      counts.push_back(count(r, root));
                      for (int i = 0; i < counts.back(); ++i) whole.push_back(value(r, root, i));
                  }
                  const auto own = static_cast<std::size_t>(count(comm.rank(), root));
                  std::vector<int> mine(own);
                  scatter_v(comm, here ? whole : std::vector<int>(), counts, mine, root);
                  for (std::size_t i = 0; i < own; ++i) {
                      good = good && mine[i] == value(comm.rank(), root, static_cast<int>(i));
                  }
                  std::vector<int> back(here ? whole.size() : 0);
                  gather_v(comm, mine, back, counts, root);
                  good = good && (!here || back == whole);

                  std::vector<int> even(here ? static_cast<std::size_t>(ranks) : 0);
                  gather(comm, std::array{comm.rank() * 3}, even, root);
                  for (std::size_t r = 0; r < even.size(); ++r) {
                      good = good && even[r] == static_cast<int>(r) * 3;
                  }
              }
              return good;
          }) == 0);
}

TEST_CASE("all_reduce adds in rank order, to the bit, on every rank") {
    const int ranks = GENERATE(1, 2, 3, 4, 7);
    const int size = GENERATE(0, 1, 5, 100);
    const auto element = [](int rank, int i) {
        // Values whose sum depends on the order.
        return std::ldexp(1.0f + static_cast<float>(i) / 3.0f, (rank * 7 + i) % 26) *
               (rank % 2 == 0 ? 1.0f : -1.0f);
    };
    CHECK(failures(ranks, [=](auto& comm) {
              const auto own = [&](int i) { return element(comm.rank(), i); };
              std::vector<float> sum;
              std::vector<float> expected;
              std::vector<std::int64_t> most;
              for (int i = 0; i < size; ++i) {
                  sum.push_back(own(i));
                  most.push_back((comm.rank() * 5 + i) % ranks);
                  float total = element(0, i);
                  for (int r = 1; r < ranks; ++r) total += element(r, i);
                  expected.push_back(total);
              }
              std::vector<std::int64_t> least = most;
              all_reduce(comm, std::span(sum), reduce_op::sum);
              all_reduce(comm, std::span(most), reduce_op::max);
              all_reduce(comm, std::span(least), reduce_op::min);
              bool good = sum == expected;
              for (int i = 0; i < size; ++i) {
                  std::int64_t high = 0;
                  std::int64_t low = ranks;
                  for (int r = 0; r < ranks; ++r) {
                      high = std::max<std::int64_t>(high, (r * 5 + i) % ranks);
                      low = std::min<std::int64_t>(low, (r * 5 + i) % ranks);
                  }
                  good = good && most[static_cast<std::size_t>(i)] == high;
                  good = good && least[static_cast<std::size_t>(i)] == low;
              }
              return good;
          }) == 0);
}

TEST_CASE("a NaN of any rank survives all_reduce") {
    for (const reduce_op op : {reduce_op::sum, reduce_op::max, reduce_op::min}) {
        for (int bad = 0; bad < 3; ++bad) {
            CHECK(failures(3, [=](auto& comm) {
                      const float nan = std::numeric_limits<float>::quiet_NaN();
                      return std::isnan(all_reduce(comm, comm.rank() == bad ? nan : 1.0f, op));
                  }) == 0);
        }
    }
}

TEST_CASE("collectives move the algorithmic payload and no more") {
    const auto account = std::make_shared<ledger>();
    const auto moved = [&](auto f) {
        account->reset();
        thread_team(4).run([&](thread_communicator& inner) {
            metered comm(std::move(inner), account);
            f(comm);
        });
        return account->total();
    };
    CHECK(moved([](auto& comm) {
              std::vector<float> data(10);
              broadcast(comm, data, 2);
          }) == traffic{120, 120, 3, 3});
    CHECK(moved([](auto& comm) {
              std::vector<float> all(8);
              all_gather(comm, std::array{1.0f, 2.0f}, all);
          }) == traffic{96, 96, 12, 12});
    CHECK(moved([](auto& comm) {
              std::vector<float> data(8);
              all_reduce(comm, std::span(data), reduce_op::sum);
          }) == traffic{192, 192, 24, 24});
    CHECK(moved([](auto& comm) { barrier(comm); }) == traffic{});
}

TEST_CASE("views of bytes work as spans do, and those with gaps are refused") {
    self_communicator comm;
    std::vector<float> in{1, 2, 3};
    std::vector<float> out(3);
    all_gather(comm, make_view(std::as_const(in).data(), std::array{index_t{3}}),
               make_view(out.data(), std::array{index_t{3}}));
    CHECK(out == in);
    auto gaps = make_view(out.data(), std::array{index_t{2}});
    gaps.strides[0] = 2;
    CHECK_THROWS_AS(broadcast(comm, gaps, 0), usage_error);
}

TEST_CASE("the operations of a collective need no heap for a hundred ranks") {
    counting_resource heap;
    std::pmr::memory_resource* const before = std::pmr::set_default_resource(&heap);
    {
        detail::operation_list list(100);
        float value = 0;
        for (int peer = 0; peer < 100; ++peer) {
            list.send(std::span<const float>(&value, 1), peer);
            list.receive(std::span(&value, 1), peer);
        }
    }
    std::pmr::set_default_resource(before);
    CHECK(heap.allocations() == 0);
}

TEST_CASE("counts, roots and types that do not fit are refused") {
    self_communicator comm;
    std::vector<float> three(3);
    std::vector<float> four(4);
    std::vector<int> ints(3);
    const std::vector<index_t> one_count{3};
    const std::vector<index_t> two_counts{1, 2};
    const std::vector<index_t> negative{-3};
    CHECK_THROWS_WITH(all_gather(comm, three, four),
                      ContainsSubstring("4 elements") && ContainsSubstring("ask for 3"));
    CHECK_THROWS_WITH(all_gather_v(comm, three, four, one_count), ContainsSubstring("4"));
    CHECK_THROWS_WITH(all_gather_v(comm, three, four, two_counts), ContainsSubstring("2 counts"));
    CHECK_THROWS_WITH(all_gather_v(comm, three, four, negative), ContainsSubstring("-3"));
    CHECK_THROWS_WITH(all_gather_v(comm, three, ints, one_count),
                      ContainsSubstring("f32") && ContainsSubstring("i32"));
    CHECK_THROWS_WITH(broadcast(comm, three, 1), ContainsSubstring("rank 1"));
    CHECK_THROWS_AS(gather(comm, three, four, 0), usage_error);
    CHECK_THROWS_AS(scatter_v(comm, four, one_count, three, 0), usage_error);
    CHECK_THROWS_AS(all_to_all_v(comm, three, one_count, four, one_count), usage_error);
}
