// SPDX-License-Identifier: Apache-2.0
// What every communicator must do, checked on whatever ranks a harness provides.
#pragma once

#include <latpar/comm/agreement.hpp>
#include <latpar/comm/background.hpp>
#include <latpar/comm/collectives.hpp>
#include <latpar/comm/direct.hpp>

#include <comm/memory_probe.hpp>
#include <support/catch.hpp>

#include <cstdint>
#include <thread>

/// The checks. Each runs on every rank and returns what is wrong there, or nothing.
namespace conformance {

/// What a communicator does beyond what every one must.
struct strengths {
    /// Exchanges of a rank overtake each other. Where they do not, as on a GPU's stream, an
    /// exchange that waits for what a peer starts later would wait for ever: the checks that need
    /// it have another form.
    bool overtakes = true;
    /// Messages of a wrong size or type are told.
    bool tells_mismatches = true;
    /// Ranks write to each other's memory.
    bool reaches_peers = false;
};

using namespace latpar;
using bytes = std::vector<std::uint8_t>;

inline std::uint8_t pattern(std::size_t seed, std::size_t i) {
    return static_cast<std::uint8_t>(seed * 131 + i * 7 + (i >> 8));
}

inline bytes filled(std::size_t size, std::size_t seed) {
    bytes out(size);
    for (std::size_t i = 0; i < size; ++i) out[i] = pattern(seed, i);
    return out;
}

inline send_op to(int peer, const bytes& data) {
    return {data.data(), static_cast<index_t>(data.size()), dtype::u8, peer};
}

inline recv_op from(int peer, bytes& data) {
    return {data.data(), static_cast<index_t>(data.size()), dtype::u8, peer};
}

template <class C>
auto start(C& comm, const std::vector<send_op>& sends, const std::vector<recv_op>& recvs) {
    return comm.start_exchange(sends, recvs, {});
}

template <class C>
int right_of(const C& comm) {
    return (comm.rank() + 1) % comm.size();
}

template <class C>
int left_of(const C& comm) {
    return (comm.rank() + comm.size() - 1) % comm.size();
}

/// The message of the Error that `f` throws; "" if it throws none.
template <class Error, class F>
std::string message_of(F&& f) {
    try {
        f();
    } catch (const Error& error) {
        return error.what();
    }
    return {};
}

inline std::string complain(bool good, const std::string& what) {
    return good ? std::string() : what + "; ";
}

inline bool mentions(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

/// Every rank to every rank, itself included, in one exchange of sizes size(from, to).
template <class C, class Size>
std::string all_pairs(C& comm, Size size) {
    const auto ranks = static_cast<std::size_t>(comm.size());
    const auto self = static_cast<std::size_t>(comm.rank());
    std::vector<bytes> out;
    std::vector<bytes> in;
    for (std::size_t peer = 0; peer < ranks; ++peer) {
        out.push_back(filled(size(self, peer), self * ranks + peer));
        in.emplace_back(size(peer, self));
    }
    std::vector<send_op> sends;
    std::vector<recv_op> recvs;
    for (std::size_t peer = 0; peer < ranks; ++peer) {
        sends.push_back(to(static_cast<int>(peer), out[peer]));
        recvs.push_back(from(static_cast<int>(peer), in[peer]));
    }
    exchange(comm, sends, recvs);
    std::string wrong;
    for (std::size_t peer = 0; peer < ranks; ++peer) {
        wrong += complain(in[peer] == filled(size(peer, self), peer * ranks + self),
                          detail::concat("wrong content from rank ", peer));
    }
    return wrong;
}

template <class C>
std::string every_pair(C& comm) {
    return all_pairs(comm, [](std::size_t, std::size_t) { return 33u; });
}

template <class C>
std::string uneven_sizes(C& comm) {
    return all_pairs(comm, [](std::size_t source, std::size_t target) {
        return (source * 7 + target * 13) % 5 * 65537 + source + 1;
    });
}

template <class C>
std::string zero_bytes(C& comm) {
    std::string wrong = all_pairs(comm, [](std::size_t, std::size_t) { return 0u; });
    // An empty message takes its place in the order, and needs no pointer.
    const bytes one{static_cast<std::uint8_t>(comm.rank())};
    bytes got{255};
    exchange(
        comm,
        std::vector<send_op>{{nullptr, 0, dtype::f32, right_of(comm)}, to(right_of(comm), one)},
        std::vector<recv_op>{{nullptr, 0, dtype::f32, left_of(comm)}, from(left_of(comm), got)});
    wrong += complain(got[0] == left_of(comm), "an empty message displaced the next one");
    return wrong;
}

/// Many requests between one pair, of sizes on both sides of every threshold, waited for backwards.
template <class C>
std::string many_in_order(C& comm, const strengths& can) {
    constexpr std::size_t count = 96;
    const auto size = [](std::size_t i) {
        return i % 3 == 0 ? i : i % 3 == 1 ? 700 * i : 9000 + i;
    };
    const auto self = static_cast<std::size_t>(comm.rank());
    const auto left = static_cast<std::size_t>(left_of(comm));
    std::vector<bytes> out;
    std::vector<bytes> in;
    for (std::size_t i = 0; i < count; ++i) {
        out.push_back(filled(size(i), self * count + i));
        in.emplace_back(size(i));
    }
    std::vector<decltype(start(comm, {}, {}))> requests;
    for (std::size_t i = 0; i < count; ++i) {
        if (can.overtakes) {
            requests.push_back(start(comm, {}, {from(left_of(comm), in[i])}));
            requests.push_back(start(comm, {to(right_of(comm), out[i])}, {}));
        } else {
            requests.push_back(
                start(comm, {to(right_of(comm), out[i])}, {from(left_of(comm), in[i])}));
        }
    }
    while (!requests.empty()) {
        requests.back().wait();
        requests.pop_back();
    }
    std::string wrong;
    for (std::size_t i = 0; i < count; ++i) {
        wrong += complain(in[i] == filled(size(i), left * count + i),
                          detail::concat("message ", i, " is out of order"));
    }
    return wrong;
}

/// The receiver leaves a large message in flight and blocks elsewhere on what the sender sends only
/// after its own wait: fine with synchronous sends, so fine here.
template <class C>
std::string left_in_flight(C& comm) {
    C other = comm.duplicate();
    const bytes large = filled(1 << 20, 1);
    const bytes second = filled(1 << 16, 2);
    const bytes small = filled(8, 3);
    bytes got_large(large.size());
    bytes got_second(second.size());
    bytes got_small(small.size());
    if (comm.size() == 1) return {};
    if (comm.rank() == 0) {
        auto first = start(comm, {to(1, large)}, {});
        start(comm, {to(1, second)}, {}).wait();
        first.wait();
        start(other, {to(1, small)}, {}).wait();
    } else if (comm.rank() == 1) {
        auto first = start(comm, {}, {from(0, got_large)});
        auto next = start(comm, {}, {from(0, got_second)});
        start(other, {}, {from(0, got_small)}).wait();
        next.wait();
        first.wait();
        return complain(got_large == large && got_second == second && got_small == small,
                        "wrong content");
    }
    return {};
}

template <class C>
std::string test_and_deadline(C& comm) {
    using clock = std::chrono::steady_clock;
    const bytes out = filled(100000, static_cast<std::size_t>(comm.rank()));
    bytes in(out.size());
    const bytes seven{7};
    bytes token(1);
    std::string wrong;
    auto request = start(comm, {}, {from(left_of(comm), in)});
    wrong += complain(!request.test(), "done before it was sent");
    const auto begin = clock::now();
    wrong += complain(!request.wait_until(begin + std::chrono::milliseconds(20)),
                      "done by a deadline before it was sent");
    wrong += complain(clock::now() - begin >= std::chrono::milliseconds(20), "gave up too early");
    wrong += complain(!request.wait_until(begin), "done by a deadline that has passed");
    barrier(comm);
    auto send = start(comm, {to(right_of(comm), out), to(right_of(comm), seven)}, {});
    auto later = start(comm, {}, {from(left_of(comm), token)});
    later.wait();
    wrong += complain(request.wait_until(clock::now() + std::chrono::minutes(1)), "never arrived");
    send.wait();
    wrong += complain(request.test() && later.test() && send.test(), "done, then not done");
    wrong +=
        complain(in == filled(in.size(), static_cast<std::size_t>(left_of(comm))), "wrong content");
    wrong += complain(token[0] == 7, "wrong token");
    return wrong;
}

/// The same with one of a pair receiving and the other sending.
template <class C>
std::string test_and_deadline_in_turn(C& comm) {
    using clock = std::chrono::steady_clock;
    const int peer = comm.rank() ^ 1;
    std::string wrong;
    for (const int receiver : {0, 1}) {
        const bytes out = filled(100000, static_cast<std::size_t>(receiver));
        const bytes seven{7};
        bytes in(out.size());
        bytes token(1);
        if (peer >= comm.size()) {
            barrier(comm);
        } else if (comm.rank() % 2 == receiver) {
            auto request = start(comm, {}, {from(peer, in)});
            wrong += complain(!request.test(), "done before it was sent");
            const auto begin = clock::now();
            wrong += complain(!request.wait_until(begin + std::chrono::milliseconds(20)),
                              "done by a deadline before it was sent");
            wrong += complain(clock::now() - begin >= std::chrono::milliseconds(20),
                              "gave up too early");
            wrong += complain(!request.wait_until(begin), "done by a deadline that has passed");
            barrier(comm);
            auto later = start(comm, {}, {from(peer, token)});
            later.wait();
            wrong += complain(request.wait_until(clock::now() + std::chrono::minutes(1)),
                              "never arrived");
            wrong += complain(request.test() && later.test(), "done, then not done");
            wrong += complain(in == out && token == seven, "wrong content");
        } else {
            barrier(comm);
            auto send = start(comm, {to(peer, out), to(peer, seven)}, {});
            wrong +=
                complain(send.wait_until(clock::now() + std::chrono::minutes(1)), "never left");
        }
    }
    return wrong;
}

/// One exchange with a message from a peer, which arrives first, and one from the rank itself.
template <class C>
std::string a_peer_and_itself(C& comm) {
    const bytes out = filled(100000, static_cast<std::size_t>(comm.rank()));
    const bytes seven{7};
    bytes in(out.size());
    bytes own(1);
    auto both = start(comm, {}, {from(left_of(comm), in), from(comm.rank(), own)});
    start(comm, {to(right_of(comm), out)}, {}).wait();
    barrier(comm);
    std::string wrong;
    for (int i = 0; i < 1000; ++i) wrong += complain(!both.test(), "done without its own message");
    auto send = start(comm, {to(comm.rank(), seven)}, {});
    both.wait();
    send.wait();
    wrong +=
        complain(in == filled(in.size(), static_cast<std::size_t>(left_of(comm))), "wrong content");
    return wrong + complain(own[0] == 7, "wrong content from itself");
}

template <class C>
std::string polled_to_the_end(C& comm) {
    const bytes out = filled(3 << 20, static_cast<std::size_t>(comm.rank()));
    bytes in(out.size());
    auto request = start(comm, {to(right_of(comm), out)}, {from(left_of(comm), in)});
    while (!request.test()) std::this_thread::yield();
    return complain(in == filled(in.size(), static_cast<std::size_t>(left_of(comm))),
                    "wrong content");
}

template <class C>
std::string splits(C& comm) {
    const int ranks = comm.size();
    const bool out = ranks > 1 && comm.rank() == ranks - 1;
    std::string wrong;
    std::optional<C> half = comm.split(out ? no_color : comm.rank() % 2, -comm.rank());
    wrong += complain(half.has_value() != out, "the wrong rank was left out");
    if (half) {
        const int parity = comm.rank() % 2;
        const int members = ((ranks > 1 ? ranks - 1 : 1) + 1 - parity) / 2;
        wrong += complain(half->size() == members, detail::concat("a part of ", half->size()));
        wrong += complain(half->rank() == members - 1 - comm.rank() / 2, "wrong order by key");
        wrong += all_pairs(*half, [](std::size_t a, std::size_t b) { return 20000 * a + b; });
        // Nested, and while an exchange of the outer one is in flight.
        const bytes mine(30000, static_cast<std::uint8_t>(comm.rank()));
        bytes theirs(mine.size());
        auto request = start(*half, {to(right_of(*half), mine)}, {from(left_of(*half), theirs)});
        std::optional<C> quarter = half->split(half->rank() / 2, 0);
        wrong += complain(quarter && quarter->size() <= 2, "wrong nested size");
        std::vector<int> world_ranks(static_cast<std::size_t>(quarter->size()));
        all_gather(*quarter, std::array{comm.rank()}, world_ranks);
        for (const int peer : world_ranks) {
            wrong +=
                complain(peer % 2 == parity && (members - 1 - peer / 2) / 2 == half->rank() / 2,
                         detail::concat("rank ", peer, " is in the wrong nested part"));
        }
        request.wait();
        // left_of(half) has the next higher world rank of this parity, cyclically.
        const int left = parity + 2 * (members - 1 - left_of(*half));
        wrong += complain(theirs == bytes(theirs.size(), static_cast<std::uint8_t>(left)),
                          "wrong content in the part");
    }
    wrong += every_pair(comm);
    // A bad colour is refused on every rank, so that nobody waits.
    wrong += complain(mentions(message_of<usage_error>([&] {
                                   static_cast<void>(comm.split(comm.rank() == 0 ? -7 : 0, 0));
                               }),
                               "-7"),
                      "color -7 was not refused");
    return wrong;
}

/// Messages of a duplicate overtake those of the original, and each finds its own.
template <class C>
std::string duplicates(C& comm, C other, const strengths& can) {
    const auto self = static_cast<std::size_t>(comm.rank());
    const auto left = static_cast<std::size_t>(left_of(comm));
    const bytes here = filled(50000, self);
    const bytes there = filled(50000, self + 100);
    bytes got_here(here.size());
    bytes got_there(there.size());
    if (can.overtakes) {
        auto sent_here = start(comm, {to(right_of(comm), here)}, {});
        auto sent_there = start(other, {to(right_of(other), there)}, {});
        start(other, {}, {from(left_of(other), got_there)}).wait();
        start(comm, {}, {from(left_of(comm), got_here)}).wait();
        sent_there.wait();
        sent_here.wait();
    } else {
        auto in_flight = start(comm, {to(right_of(comm), here)}, {from(left_of(comm), got_here)});
        start(other, {to(right_of(other), there)}, {from(left_of(other), got_there)}).wait();
        in_flight.wait();
    }
    return complain(got_here == filled(here.size(), left), "wrong content here") +
           complain(got_there == filled(there.size(), left + 100), "wrong content there");
}

/// Two rings in opposite directions at once, waited for in an order that differs by rank.
template <class C>
std::string two_at_once(C& comm) {
    C other = comm.duplicate();
    const auto self = static_cast<std::size_t>(comm.rank());
    std::string wrong;
    for (std::size_t round = 0; round < 20; ++round) {
        const bytes a = filled(1000 * round + 1, self);
        const bytes b = filled(3000 * round + 1, self + 50);
        bytes got_a(a.size());
        bytes got_b(b.size());
        auto one = start(comm, {to(right_of(comm), a)}, {from(left_of(comm), got_a)});
        auto two = start(other, {to(left_of(comm), b)}, {from(right_of(comm), got_b)});
        if (comm.rank() % 2 == 0) one.wait();
        two.wait();
        one.wait();
        wrong += complain(got_a == filled(a.size(), static_cast<std::size_t>(left_of(comm))), "a");
        wrong +=
            complain(got_b == filled(b.size(), static_cast<std::size_t>(right_of(comm)) + 50), "b");
    }
    return wrong;
}

template <class C>
std::string refusals(C& comm) {
    std::uint8_t byte = 0;
    const int past = comm.size();
    const auto refused_send = [&](const send_op& op, const std::string& part) {
        const std::string text =
            message_of<usage_error>([&] { static_cast<void>(start(comm, {op}, {})); });
        return complain(mentions(text, part), "not refused with \"" + part + "\" but: " + text);
    };
    const auto refused_receive = [&](const recv_op& op, const std::string& part) {
        const std::string text =
            message_of<usage_error>([&] { static_cast<void>(start(comm, {}, {op})); });
        return complain(mentions(text, part), "not refused with \"" + part + "\" but: " + text);
    };
    return refused_send({&byte, 1, dtype::u8, past}, detail::concat("rank ", past)) +
           refused_send({&byte, 1, dtype::u8, -1}, "rank -1") +
           refused_send({&byte, -3, dtype::u8, 0}, "-3") +
           refused_send({nullptr, 5, dtype::f32, 0}, "null") +
           // An MPI may reach it.
           (comm.reaches(memory_space::cuda)
                ? std::string()
                : refused_send({&byte, 1, dtype::u8, 0, memory_space::cuda}, "cuda")) +
           refused_receive({&byte, 1, dtype::u8, past}, detail::concat("rank ", past)) +
           refused_receive({nullptr, 5, dtype::f32, 0}, "null") +
           complain(comm.reaches(memory_space::host), "does not reach host memory") +
           every_pair(comm);
}

template <class C>
std::string mismatches(C& comm) {
    C other = comm.duplicate();
    const std::vector<float> out(20000);
    std::vector<float> in(20001);
    const auto ring = [&](index_t sent, index_t expected, dtype type) {
        return message_of<comm_error>([&] {
            exchange(other, std::array{send_op{out.data(), sent, dtype::f32, right_of(comm)}},
                     std::array{recv_op{in.data(), expected, type, left_of(comm)}});
        });
    };
    std::string wrong;
    const auto check = [&](const std::string& text, const std::string& a, const std::string& b) {
        wrong += complain(mentions(text, a) && mentions(text, b), "a mismatch gave: " + text);
    };
    check(ring(4, 5, dtype::f32), "sent 4 ", "expected 5 ");
    // What does not fit may be cut off before it is counted.
    const std::string long_one = ring(5, 4, dtype::f32);
    check(long_one, mentions(long_one, "sent 5") ? "sent 5" : "more than 4", "expected 4 ");
    check(ring(20000, 20001, dtype::f32), "sent 20000 ", "expected 20001 ");
    check(ring(4, 4, dtype::i32), "f32", "i32");
    wrong += complain(ring(4, 4, dtype::f32).empty(), "the next exchange failed too");
    return wrong;
}

template <class C>
std::string control_channel(C& comm) {
    std::string wrong;
    // Payload in flight does not disturb it.
    const bytes out = filled(90000, 1);
    bytes in(out.size());
    auto request = start(comm, {to(right_of(comm), out)}, {from(left_of(comm), in)});
    for (std::size_t round = 0; round < 5; ++round) {
        const auto text = [&](int rank) {
            return std::string((round * 4000 + static_cast<std::size_t>(rank)) * round,
                               static_cast<char>('a' + rank));
        };
        const std::vector<std::string> texts = comm.control_all_gather(text(comm.rank()));
        wrong += complain(static_cast<int>(texts.size()) == comm.size(), "wrong number of texts");
        for (int rank = 0; rank < comm.size(); ++rank) {
            wrong += complain(texts[static_cast<std::size_t>(rank)] == text(rank),
                              detail::concat("wrong text of rank ", rank, " in round ", round));
        }
    }
    wrong += complain(any_rank(comm, comm.rank() == comm.size() - 1), "lost a cancellation");
    wrong += complain(!any_rank(comm, false), "invented a cancellation");
    agree_on(comm, "the size", comm.size());
    if (comm.size() > 1) {
        const std::string text =
            message_of<usage_error>([&] { agree_on(comm, "steps", comm.rank() == 0 ? 20 : 50); });
        wrong += complain(mentions(text, "rank 0: 20") && mentions(text, "50"),
                          "a disagreement gave: " + text);
    }
    const std::string text = message_of<usage_error>([&] {
        agree_no_error(comm,
                       comm.rank() == 0 ? std::optional<std::string>("B is 0") : std::nullopt);
    });
    wrong += complain(text == "rank 0: B is 0", "an error gave: " + text);
    agree_no_error(comm, std::nullopt);
    request.wait();
    return wrong + complain(in == out, "wrong payload");
}

/// A request that goes away in flight waits.
template <class C>
std::string dropped(C& comm, const strengths& can) {
    const bytes out = filled(200000, static_cast<std::size_t>(comm.rank()));
    bytes in(out.size());
    if (!can.overtakes) {
        const std::vector<send_op> sends{to(right_of(comm), out)};
        { auto both = start(comm, sends, {from(left_of(comm), in)}); }
        const bool arrived = in == filled(in.size(), static_cast<std::size_t>(left_of(comm)));
        auto both = start(comm, sends, {from(left_of(comm), in)});
        auto next = start(comm, sends, {from(left_of(comm), in)});
        both = std::move(next);
        both.wait();
        return complain(arrived, "did not wait");
    }
    auto send = start(comm, {to(right_of(comm), out)}, {});
    { auto receive = start(comm, {}, {from(left_of(comm), in)}); }
    const bool arrived = in == filled(in.size(), static_cast<std::size_t>(left_of(comm)));
    send.wait();
    // Moved onto, too.
    auto receive = start(comm, {}, {from(left_of(comm), in)});
    auto next = start(comm, {to(right_of(comm), out)}, {});
    receive = std::move(next);
    receive.wait();
    return complain(arrived, "did not wait");
}

template <class C>
std::string aborts(C& comm) {
    C other = comm.duplicate();
    C below = other.duplicate();
    const std::string reason = "the disk is full";
    const bool guilty = comm.rank() == comm.size() - 1;
    bytes in(100000);
    std::string wrong;
    barrier(comm);
    if (guilty) {
        other.abort(reason);
    } else {
        // On the aborted one or on one made from it, for a message that nobody sends.
        C& used = comm.rank() % 2 == 0 ? other : below;
        const std::string text =
            message_of<comm_error>([&] { start(used, {}, {from(right_of(comm), in)}).wait(); });
        wrong += complain(mentions(text, reason), "a pending receive gave: " + text);
    }
    const auto later = [&](const char* what, auto f) {
        const std::string text = message_of<comm_error>(f);
        wrong += complain(mentions(text, reason), detail::concat(what, " later gave: ", text));
    };
    later("an exchange", [&] { start(other, {}, {}).wait(); });
    later("an exchange below", [&] { start(below, {}, {}).wait(); });
    later("a gather", [&] { static_cast<void>(other.control_all_gather("x")); });
    later("a split", [&] { static_cast<void>(below.split(0, 0)); });
    later("a duplicate", [&] { static_cast<void>(other.duplicate()); });
    other.abort("something else");
    later("a second reason", [&] { start(other, {}, {}).wait(); });
    return wrong + every_pair(comm);
}

/// An exception between start and wait: buffers large and small, never met by anyone, are let go,
/// and the others learn the message.
template <class C>
std::string exceptions(C& comm) {
    C other = comm.duplicate();
    const std::string reason = "no such layer: 41";
    std::string text;
    std::string original;
    try {
        guarded(other, [&] {
            const bytes large = filled(1 << 20, 5);
            bytes in(1 << 20);
            bytes never(1 << 20);
            C part = other.duplicate();
            auto met = start(other, {to(right_of(other), large)}, {from(left_of(other), in)});
            auto lost = start(other, {to(right_of(other), large)}, {});
            auto lost_too = start(part, {}, {from(left_of(other), never)});
            if (comm.rank() == 0) throw std::out_of_range(reason);
            met.wait();
            lost.wait();
            lost_too.wait();  // a message that leaves may do so though nobody takes it
        });
    } catch (const comm_error& error) {
        text = error.what();
    } catch (const std::out_of_range& error) {
        original = error.what();
    }
    if (comm.rank() == 0) return complain(original == reason, "lost its own exception");
    return complain(mentions(text, reason), "a peer's exception gave: " + text);
}

/// Each rank writes to every rank's memory, where the communicator lets them.
template <class C>
std::string written_directly(C& comm, const strengths& can) {
    std::string wrong;
    if constexpr (direct_communicator<C>) {
        const auto ranks = static_cast<std::size_t>(comm.size());
        const auto self = static_cast<std::size_t>(comm.rank());
        bytes mine(ranks);
        auto* const memory = reinterpret_cast<std::byte*>(mine.data());
        const peer_memory peers =
            comm.share(memory, static_cast<index_t>(mine.size()), memory_space::host);
        wrong += complain(peers.of.size() == (can.reaches_peers ? ranks : 0), "wrong memories");
        for (std::size_t round = 0; round < 20 && !peers.empty(); ++round) {
            for (std::size_t peer = 0; peer < ranks; ++peer) {
                peers.of[peer][self] = static_cast<std::byte>(pattern(round + peer, self));
            }
            comm.meet();
            for (std::size_t peer = 0; peer < ranks; ++peer) {
                wrong += complain(mine[peer] == pattern(round + self, peer),
                                  detail::concat("rank ", peer, " has not written"));
            }
            comm.meet();
        }
        wrong += complain(!peers.is_broken(), "broken without a failure");
        if (can.reaches_peers && peers.empty()) return wrong;
        if (!peers.empty()) {
            // A message to where the next rank has it.
            const auto right = static_cast<std::size_t>(right_of(comm));
            const bytes out = filled(mine.size(), self);
            send_op send = to(right_of(comm), out);
            send.target = peers.of[right];
            recv_op recv = from(left_of(comm), mine);
            recv.is_target = true;
            exchange(comm, std::array{send}, std::array{recv});
            wrong += complain(mine == filled(mine.size(), static_cast<std::size_t>(left_of(comm))),
                              "a message to a target has other content");
        }
        // One that shares nothing is enough.
        const peer_memory none =
            comm.share(self == 0 ? nullptr : memory, self == 0 ? 0 : 1, memory_space::host);
        wrong += complain(none.empty(), "reaches what is not shared");
    }
    return wrong;
}

/// 3 GiB in total: nothing is allocated on the way, and the process does not grow.
template <class C>
std::string traffic_without_growth(C& comm) {
    const std::size_t size = is_sanitized() ? 1 << 18 : 16 << 20;
    const std::size_t total = std::size_t{192} * size;
    const auto ranks = static_cast<std::size_t>(comm.size());
    const std::size_t rounds = total / (ranks * size) + 1;
    const bytes out = filled(size, static_cast<std::size_t>(comm.rank()));
    bytes in(size);
    const std::array sends{to(right_of(comm), out)};
    const std::array recvs{from(left_of(comm), in)};
    long allocations = 0;
    std::size_t before = 0;
    std::size_t after = 0;
    for (std::size_t round = 0; round < rounds; ++round) {
        // Ranks of one process are less than `ranks` rounds apart, and allocate before and after.
        if (round == ranks + 1) {
            before = resident_bytes();
            allocations -= allocation_count();
        }
        exchange(comm, sends, recvs);
        if (round == rounds - ranks - 2) {
            allocations += allocation_count();
            after = resident_bytes();
        }
    }
    std::string wrong =
        complain(allocations == 0, detail::concat(allocations, " allocations on the way"));
    wrong += complain(is_sanitized() || after < before + (32 << 20),
                      detail::concat("grew from ", before, " to ", after, " bytes"));
    wrong += complain(in == filled(size, static_cast<std::size_t>(left_of(comm))), "wrong content");
    return wrong;
}

/// A message of more than 2^31 bytes between ranks 0 and 1, the buffers mapped many times over.
template <class C>
std::string beyond_two_gib(C& comm) {
    constexpr index_t size = (index_t{1} << 31) + (index_t{1} << 30) + 12345;
    const repeated_bytes memory(static_cast<std::size_t>(size));
    const bytes seed = filled(repeated_bytes::period, 9);
    if (comm.rank() == 0) {
        std::copy(seed.begin(), seed.end(), memory.data());
        start(comm, {{memory.data(), size, dtype::u8, 1}}, {}).wait();
    } else if (comm.rank() == 1) {
        start(comm, {}, {{memory.data(), size, dtype::u8, 0}}).wait();
        // Every period was written to the same pages, the last time up to where the message ends.
        return complain(std::equal(seed.begin(), seed.end(), memory.data()), "wrong content");
    }
    return {};
}

/// Runs all of them. `harness.run(f)` calls f(communicator) on every rank and returns, on every
/// process, what each rank's call returned.
template <class Harness>
void run(Harness& harness, const strengths& can = {}) {
    const auto check = [&](const char* name, auto f) {
        const std::vector<std::string> verdicts = harness.run(f);
        for (std::size_t rank = 0; rank < verdicts.size(); ++rank) {
            INFO(name << " on rank " << rank << " of " << verdicts.size());
            CHECK(verdicts[rank] == "");
        }
    };
    check("every pair", [](auto& comm) { return every_pair(comm); });
    check("uneven sizes", [](auto& comm) { return uneven_sizes(comm); });
    check("zero bytes", [](auto& comm) { return zero_bytes(comm); });
    check("many in order", [&](auto& comm) { return many_in_order(comm, can); });
    check("left in flight", [](auto& comm) { return left_in_flight(comm); });
    check("test and deadline, in turn", [](auto& comm) { return test_and_deadline_in_turn(comm); });
    if (can.overtakes) {
        check("test and deadline", [](auto& comm) { return test_and_deadline(comm); });
        check("a peer and itself", [](auto& comm) { return a_peer_and_itself(comm); });
    }
    check("polled to the end", [](auto& comm) { return polled_to_the_end(comm); });
    check("splits", [](auto& comm) { return splits(comm); });
    check("duplicates", [&](auto& comm) { return duplicates(comm, comm.duplicate(), can); });
    check("background", [&](auto& comm) { return duplicates(comm, background(comm), can); });
    check("two at once", [](auto& comm) { return two_at_once(comm); });
    check("refusals", [](auto& comm) { return refusals(comm); });
    if (can.tells_mismatches) {
        check("mismatches", [](auto& comm) { return mismatches(comm); });
    }
    check("control channel", [](auto& comm) { return control_channel(comm); });
    check("dropped", [&](auto& comm) { return dropped(comm, can); });
    check("written directly", [&](auto& comm) { return written_directly(comm, can); });
    check("aborts", [](auto& comm) { return aborts(comm); });
    check("exceptions", [](auto& comm) { return exceptions(comm); });
    check("traffic without growth", [](auto& comm) { return traffic_without_growth(comm); });
}

}  // namespace conformance
