// SPDX-License-Identifier: Apache-2.0
// Reading the weights of a Wan 2.1 transformer.
#include <latpar/io/safetensors.hpp>

#include <nlohmann/json.hpp>
#include <wan/weights.hpp>

#include <algorithm>
#include <cmath>
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
struct target {
    std::string name;
    std::vector<index_t> shape;
    const float** destination;  // null: checked, but not loaded
    bool transposed;
};

index_t elements_of(const std::vector<index_t>& shape) {
    index_t out = 1;
    for (const index_t extent : shape) out *= extent;
    return out;
}

// Layers of a configuration, the default resolved, and room for their pointers.
void choose_layers(weights& into, layer_range wanted) {
    const index_t layers = into.config.num_layers;
    into.layers = wanted;
    if (into.layers.last < 0) into.layers.last = layers;
    require(0 <= into.layers.first && into.layers.first <= into.layers.last &&
                into.layers.last <= layers,
            "layers [", wanted.first, ", ", wanted.last, ") were asked for of a model that has ",
            layers);
    into.blocks.resize(static_cast<std::size_t>(layers));
}

// Everything that a file must have, in the order of the file's names.
class target_list {
public:
    explicit target_list(weights& into) : into_(into) {
        const config& c = into.config;
        const index_t w = c.width();
        const index_t patch = c.patch_volume();
        const bool has_head = into.layers.last == c.num_layers;
        linear("patch_embedding", into.layers.first == 0 ? &into.patch : nullptr,
               c.in_channels * patch, w,
               {w, c.in_channels, c.patch_size[0], c.patch_size[1], c.patch_size[2]});
        const std::string embedder = "condition_embedder.";
        linear(embedder + "time_embedder.linear_1", &into.time_1, c.freq_dim, w);
        linear(embedder + "time_embedder.linear_2", &into.time_2, w, w);
        linear(embedder + "time_proj", &into.time_projection, w, 6 * w);
        linear(embedder + "text_embedder.linear_1", &into.text_1, c.text_dim, w);
        linear(embedder + "text_embedder.linear_2", &into.text_2, w, w);
        vector("scale_shift_table", has_head ? &into.head_modulation : nullptr, {1, 2, w});
        linear("proj_out", has_head ? &into.head : nullptr, w, c.out_channels * patch);
        for (index_t i = 0; i < c.num_layers; ++i) block(i);
    }

    [[nodiscard]] const std::vector<target>& all() const noexcept { return all_; }

    /// Floats that a tensor takes, so that the next begins on a cache line.
    [[nodiscard]] static index_t room_of(const target& one) {
        constexpr index_t alignment = 16;
        return (elements_of(one.shape) + alignment - 1) / alignment * alignment;
    }
    /// What all that are loaded take.
    [[nodiscard]] index_t bytes() const {
        index_t floats = 0;
        for (const target& one : all_) floats += one.destination ? room_of(one) : 0;
        return floats * static_cast<index_t>(sizeof(float));
    }

private:
    void vector(std::string name, const float** destination, std::vector<index_t> shape) {
        all_.push_back({std::move(name), std::move(shape), destination, false});
    }

    void linear(const std::string& name, linear_weights* layer, index_t in, index_t out,
                std::vector<index_t> shape = {}) {
        if (shape.empty()) shape = {out, in};
        if (layer) {
            layer->in = in;
            layer->out = out;
        }
        all_.push_back(
            {name + ".weight", std::move(shape), layer ? &layer->weight : nullptr, true});
        vector(name + ".bias", layer ? &layer->bias : nullptr, {out});
    }

    void attention(const std::string& name, attention_weights* to) {
        const index_t w = into_.config.width();
        linear(name + "to_q", to ? &to->q : nullptr, w, w);
        linear(name + "to_k", to ? &to->k : nullptr, w, w);
        linear(name + "to_v", to ? &to->v : nullptr, w, w);
        linear(name + "to_out.0", to ? &to->out : nullptr, w, w);
        vector(name + "norm_q.weight", to ? &to->norm_q : nullptr, {w});
        vector(name + "norm_k.weight", to ? &to->norm_k : nullptr, {w});
    }

    void block(index_t i) {
        const config& c = into_.config;
        const index_t w = c.width();
        const bool wanted = i >= into_.layers.first && i < into_.layers.last;
        block_weights* to = wanted ? &into_.blocks[static_cast<std::size_t>(i)] : nullptr;
        const std::string name = concat("blocks.", i, '.');
        attention(name + "attn1.", to ? &to->self : nullptr);
        attention(name + "attn2.", to ? &to->cross : nullptr);
        vector(name + "norm2.weight", to ? &to->norm2_weight : nullptr, {w});
        vector(name + "norm2.bias", to ? &to->norm2_bias : nullptr, {w});
        linear(name + "ffn.net.0.proj", to ? &to->ffn_up : nullptr, w, c.ffn_dim);
        linear(name + "ffn.net.2", to ? &to->ffn_down : nullptr, c.ffn_dim, w);
        vector(name + "scale_shift_table", to ? &to->modulation : nullptr, {1, 6, w});
    }

    weights& into_;
    std::vector<target> all_;
};

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

std::shared_ptr<const weights> load_weights(const path& where, const load_options& options) {
    const checkpoint from = open_checkpoint(where);
    auto out = std::make_shared<weights>();
    out->config = parse_config(from.config_text, from.config_from.string());
    choose_layers(*out, options.layers);
    require(options.memory.space == latpar::memory_space::host,
            "the weights are loaded to host memory, not ", name_of(options.memory.space));

    const target_list targets(*out);
    for (const target& one : targets.all()) static_cast<void>(checked(from, one));
    refuse_unknown(from, targets.all());

    out->storage = latpar::buffer(targets.bytes(), options.memory);
    auto* next = reinterpret_cast<float*>(out->storage.data());
    for (const target& one : targets.all()) {
        if (!one.destination) continue;
        const safetensors_entry& entry = *from.tensors.at(one.name);
        const index_t elements = entry.elements();
        if (one.transposed) {
            transpose(to_float32(entry), one.shape[0], elements / one.shape[0], next);
        } else {
            to_float32(entry, {next, static_cast<std::size_t>(elements)});
        }
        *one.destination = next;
        next += target_list::room_of(one);
    }
    return out;
}

index_t weight_bytes(const config& shape, layer_range layers) {
    weights nothing;
    nothing.config = shape;
    choose_layers(nothing, layers);
    return target_list(nothing).bytes();
}

std::vector<tensor_shape> tensor_shapes(const config& shape) {
    weights nothing;
    nothing.config = shape;
    const target_list targets(nothing);
    std::vector<tensor_shape> out;
    for (const target& one : targets.all()) out.push_back({one.name, one.shape});
    return out;
}

void write_random_model(const path& where, std::string_view config_json, std::uint64_t seed) {
    const auto tensors = tensor_shapes(parse_config(config_json, "the configuration"));
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
    for (const tensor_shape& tensor : tensors) {
        const index_t elements = elements_of(tensor.shape);
        const bool is_norm = tensor.name.find("norm") != std::string::npos;
        const bool is_scale = is_norm && tensor.name.ends_with("weight");
        const bool is_matrix = !is_norm && tensor.name.ends_with("weight");
        const auto inputs = static_cast<float>(elements / tensor.shape[0]);
        const float spread = is_matrix ? 1.7f / std::sqrt(inputs) : 0.2f;
        auto& data = values.emplace_back(static_cast<std::size_t>(elements));
        for (float& value : data) value = spread * uniform() + (is_scale ? 1.0f : 0.0f);
    }
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        writer.add<float>(tensors[i].name, tensors[i].shape, values[i]);
    }
    writer.write(where);
}

}  // namespace wan
