// SPDX-License-Identifier: Apache-2.0
// Reading the weights of a Wan 2.1 transformer.
#include <latpar/io/safetensors.hpp>

#include <nlohmann/json.hpp>
#include <wan/tensors.hpp>
#include <wan/weights.hpp>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <string>

namespace wan {
namespace {

using latpar::io_error;
using latpar::safetensors_entry;
using latpar::safetensors_file;
using latpar::detail::concat;
using latpar::detail::require;
using std::filesystem::path;

constexpr std::string_view base_name = "diffusion_pytorch_model.safetensors";

// One tensor of the file and where it goes.
struct target : tensor_info {
    const float** destination;
};

// Everything that a file must have, in the order of the file's names.
std::vector<target> targets_of(weights& into) {
    std::vector<target> out;
    for_each_tensor(into, [&](tensor_info one, const float*& pointer) {
        out.push_back({std::move(one), &pointer});
    });
    return out;
}

// Floats that a tensor takes, so that the next begins on a cache line.
index_t room_of(const target& one) {
    constexpr index_t alignment = 16;
    return (one.elements() + alignment - 1) / alignment * alignment;
}

// What all that are loaded take.
index_t bytes_of(const std::vector<target>& targets) {
    index_t floats = 0;
    for (const target& one : targets) floats += one.is_loaded ? room_of(one) : 0;
    return floats * static_cast<index_t>(sizeof(float));
}

std::string read_text(const path& file) {
    std::ifstream stream(file, std::ios::binary);
    require<io_error>(stream.good(), "cannot open '", file.string(), "'");
    return {std::istreambuf_iterator<char>(stream), {}};
}

// The tensors of one file or of all shards.
struct checkpoint {
    path where;
    std::vector<safetensors_file> files;
    std::map<std::string_view, const safetensors_entry*> tensors;
    std::string config_text;
    path config_from;

    void add(const path& file) {
        files.push_back(safetensors_file::open(file));
        for (const auto& [name, entry] : files.back().entries()) {
            require<io_error>(tensors.emplace(entry.name, &entry).second, file.string(),
                              ": tensor '", name, "' is in another shard, too");
        }
    }
};

void add_shards(checkpoint& from, const path& directory, const path& index_file) {
    const auto index = nlohmann::json::parse(read_text(index_file), nullptr, false);
    const bool has_map = index.is_object() && index.contains("weight_map") &&
                         index["weight_map"].is_object() && !index["weight_map"].empty();
    require<io_error>(has_map, index_file.string(), ": there is no object 'weight_map'");
    std::map<std::string, std::string> shard_of;
    std::set<std::string> shards;
    for (const auto& [name, shard] : index["weight_map"].items()) {
        require<io_error>(shard.is_string(), index_file.string(), ": the shard of '", name,
                          "' is no string");
        shard_of[name] = shard.get<std::string>();
        shards.insert(shard_of[name]);
    }
    from.files.reserve(shards.size());
    for (const std::string& shard : shards) {
        require<io_error>(path(shard).filename() == path(shard) && shard.ends_with(".safetensors"),
                          index_file.string(), ": '", shard,
                          "' is no name of a safetensors file in this directory");
        from.add(directory / shard);
    }
    for (const auto& [name, shard] : shard_of) {
        const auto found =
            std::ranges::find(from.files, directory / shard, &safetensors_file::path);
        require<io_error>(found->find(name), index_file.string(), ": tensor '", name,
                          "' is not in its shard '", shard, "'");
    }
}

checkpoint open_checkpoint(const path& where) {
    checkpoint out;
    out.where = where;
    path folder = where.parent_path();
    if (std::filesystem::is_directory(where)) {
        folder = where;
        const path index = where / concat(base_name, ".index.json");
        const path single = where / base_name;
        require<io_error>(std::filesystem::exists(index) || std::filesystem::exists(single), "'",
                          where.string(), "' has neither ", base_name, " nor its .index.json");
        if (std::filesystem::exists(index)) {
            add_shards(out, where, index);
        } else {
            out.add(single);
        }
    } else {
        out.add(where);
    }
    for (const safetensors_file& file : out.files) {
        const auto found = file.metadata().find("config");
        if (found == file.metadata().end()) continue;
        out.config_text = found->second;
        out.config_from = file.path();
        return out;
    }
    out.config_from = folder / "config.json";
    require<io_error>(std::filesystem::exists(out.config_from), where.string(),
                      ": there is no configuration, neither in the metadata nor in '",
                      out.config_from.string(), "'");
    out.config_text = read_text(out.config_from);
    return out;
}

std::string text_of(const std::vector<index_t>& shape) {
    std::string out;
    for (const index_t extent : shape) out += concat(out.empty() ? "[" : ",", extent);
    return out + "]";
}

const safetensors_entry& checked(const checkpoint& from, const target& wanted) {
    const auto found = from.tensors.find(wanted.name);
    require<io_error>(found != from.tensors.end(), from.where.string(), ": tensor '", wanted.name,
                      "' is missing");
    const safetensors_entry& entry = *found->second;
    require<io_error>(entry.shape == wanted.shape, from.where.string(), ": tensor '", wanted.name,
                      "' has shape ", text_of(entry.shape), "; the configuration asks for ",
                      text_of(wanted.shape));
    require<io_error>(is_floating(entry.type()), from.where.string(), ": tensor '", wanted.name,
                      "' holds ", entry.format, "; F32, BF16, F16 or F64 was expected");
    return entry;
}

// Names that only a tensor of the transformer has.
bool is_own_name(std::string_view name) {
    if (name == "scale_shift_table") return true;
    for (const std::string_view prefix :
         {"blocks.", "condition_embedder.", "patch_embedding.", "proj_out."}) {
        if (name.starts_with(prefix)) return true;
    }
    return false;
}

void refuse_unknown(const checkpoint& from, const std::vector<target>& wanted) {
    std::set<std::string_view> known;
    for (const target& one : wanted) known.insert(one.name);
    for (const auto& [name, entry] : from.tensors) {
        require<io_error>(!is_own_name(name) || known.contains(name), from.where.string(),
                          ": tensor '", name, "' is unknown to a model of this configuration");
    }
}

void transpose(const std::vector<float>& from, index_t rows, index_t columns, float* to) {
    constexpr index_t block = 32;
    for (index_t j = 0; j < columns; j += block) {
        for (index_t i = 0; i < rows; ++i) {
            for (index_t l = j; l < std::min(j + block, columns); ++l) {
                to[l * rows + i] = from[static_cast<std::size_t>(i * columns + l)];
            }
        }
    }
}

}  // namespace

layer_range chosen_layers(const config& shape, layer_range wanted) {
    const layer_range out{wanted.first, wanted.last < 0 ? shape.num_layers : wanted.last};
    require(0 <= out.first && out.first <= out.last && out.last <= shape.num_layers, "layers [",
            wanted.first, ", ", wanted.last, ") were asked for of a model that has ",
            shape.num_layers);
    return out;
}

std::shared_ptr<const weights> load_weights(const path& where, const load_options& options) {
    const checkpoint from = open_checkpoint(where);
    auto out = std::make_shared<weights>(parse_config(from.config_text, from.config_from.string()),
                                         options.layers);
    require(options.memory.space == latpar::memory_space::host,
            "the weights are loaded to host memory, not ", name_of(options.memory.space));

    const std::vector<target> targets = targets_of(*out);
    for (const target& one : targets) static_cast<void>(checked(from, one));
    refuse_unknown(from, targets);

    out->storage = latpar::buffer(bytes_of(targets), options.memory);
    auto* next = reinterpret_cast<float*>(out->storage.data());
    for (const target& one : targets) {
        if (!one.is_loaded) continue;
        const safetensors_entry& entry = *from.tensors.at(one.name);
        const index_t elements = entry.elements();
        if (one.role == tensor_role::matrix) {
            transpose(to_float32(entry), one.shape[0], elements / one.shape[0], next);
        } else {
            to_float32(entry, {next, static_cast<std::size_t>(elements)});
        }
        *one.destination = next;
        next += room_of(one);
    }
    return out;
}

index_t weight_bytes(const config& shape, layer_range layers) {
    weights nothing(shape, layers);
    return bytes_of(targets_of(nothing));
}

void write_random_model(const path& where, std::string_view config_json, std::uint64_t seed) {
    weights nothing(parse_config(config_json, "the configuration"), {0, -1});
    const std::vector<target> tensors = targets_of(nothing);
    std::vector<std::vector<float>> values;
    latpar::safetensors_writer writer;
    writer.set_metadata("config", std::string(config_json));
    std::uint64_t state = seed;
    const auto uniform = [&state] {  // SplitMix64, in [-1, 1)
        std::uint64_t bits = state += 0x9e3779b97f4a7c15u;
        bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
        bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
        return static_cast<float>((bits ^ (bits >> 31)) >> 40) * 0x1p-23f - 1.0f;
    };
    for (const target& tensor : tensors) {
        const float spread = tensor.random_spread();
        auto& data = values.emplace_back(static_cast<std::size_t>(tensor.elements()));
        for (float& value : data) value = spread * uniform() + tensor.random_centre();
    }
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        writer.add<float>(tensors[i].name, tensors[i].shape, values[i]);
    }
    writer.write(where);
}

}  // namespace wan
