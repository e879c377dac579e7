// SPDX-License-Identifier: Apache-2.0
// Reading the weights and the configuration of a Wan transformer.
#include "wan_support.hpp"

#include <support/catch.hpp>

#include <fstream>
#include <map>

using namespace latpar;

namespace {

void write_text(const std::filesystem::path& file, std::string_view text) {
    std::ofstream(file, std::ios::binary) << text;
}

// The tensors of the small model, to be changed and written again.
class checkpoint {
public:
    checkpoint() {
        const temporary_folder folder;
        wan::write_random_model(folder / "small.safetensors", small_config, 1);
        const auto file = safetensors_file::open(folder / "small.safetensors");
        for (const auto& [name, entry] : file.entries()) {
            tensors[name] = {entry.shape, to_float32(entry)};
        }
    }

    struct content {
        std::vector<index_t> shape;
        std::vector<float> values;
    };
    std::map<std::string, content> tensors;
    std::string config{small_config};

    // Those whose name the filter takes, in the given element type.
    template <class T, class Filter>
    void write(const std::filesystem::path& path, const Filter& filter) const {
        std::map<std::string, std::vector<T>> converted;
        safetensors_writer writer;
        if (!config.empty()) writer.set_metadata("config", config);
        for (const auto& [name, tensor] : tensors) {
            if (!filter(name)) continue;
            auto& to = converted[name];
            for (const float value : tensor.values) to.push_back(from_float<T>(value));
            writer.add<T>(name, tensor.shape, std::span<const T>(to));
        }
        writer.write(path);
    }
    template <class T = float>
    void write(const std::filesystem::path& path) const {
        write<T>(path, [](const std::string&) { return true; });
    }

    // As diffusers lays out a large model.
    void write_sharded(const temporary_folder& folder) const {
        checkpoint bare = *this;
        bare.config.clear();
        write_text(folder / "config.json", config);
        const auto is_first = [](const std::string& name) { return name.starts_with("blocks.1"); };
        bare.write<float>(folder / first, is_first);
        bare.write<float>(folder / second,
                          [&](const std::string& name) { return !is_first(name); });
        std::string map;
        for (const auto& [name, tensor] : tensors) {
            map += (map.empty() ? "\"" : ",\"") + name + "\":\"" +
                   (is_first(name) ? first : second) + "\"";
        }
        write_text(folder / index,
                   "{\"metadata\":{\"total_size\":1},\"weight_map\":{" + map + "}}");
    }

    static constexpr const char* first = "diffusion_pytorch_model-00001-of-00002.safetensors";
    static constexpr const char* second = "diffusion_pytorch_model-00002-of-00002.safetensors";
    static constexpr const char* index = "diffusion_pytorch_model.safetensors.index.json";
};

std::vector<float> prediction_of(const std::shared_ptr<const wan::weights>& weights) {
    wan::transformer model(weights, executor_of(1));
    set_texts(model);
    const latent z = filled_latent({1, 4, 2, 6, 6}, 1);
    const call at(z, 400);
    return predicted(model, z, at.info);
}

std::string refusal(const std::filesystem::path& path) {
    try {
        static_cast<void>(wan::load_weights(path));
        return {};
    } catch (const io_error& problem) {
        return problem.what();
    }
}

}  // namespace

TEST_CASE("a sharded directory gives what the single file gives") {
    const auto expected = prediction_of(small_model());
    const checkpoint model;
    const temporary_folder sharded;
    model.write_sharded(sharded);
    CHECK(identical(prediction_of(wan::load_weights(sharded.path())), expected));

    const temporary_folder single;
    checkpoint bare = model;
    bare.config.clear();
    bare.write(single / "diffusion_pytorch_model.safetensors");
    write_text(single / "config.json", small_config);
    CHECK(identical(prediction_of(wan::load_weights(single.path())), expected));
    CHECK(
        identical(prediction_of(wan::load_weights(single / "diffusion_pytorch_model.safetensors")),
                  expected));
}

TEST_CASE("weights of low precision are read") {
    const auto expected = prediction_of(small_model());
    const checkpoint model;
    const temporary_folder folder;
    model.write<bfloat16>(folder / "bf16.safetensors");
    model.write<float16>(folder / "f16.safetensors");
    const double bf16 =
        relative_l2(prediction_of(wan::load_weights(folder / "bf16.safetensors")), expected);
    const double f16 =
        relative_l2(prediction_of(wan::load_weights(folder / "f16.safetensors")), expected);
    CHECK(bf16 < 0.05);
    CHECK(bf16 > 1e-4);
    CHECK(f16 < 0.005);
    CHECK(f16 > 1e-5);

    checkpoint rounded = model;
    for (auto& [name, tensor] : rounded.tensors) {
        for (float& value : tensor.values) value = to_float(to_bfloat16(value));
    }
    rounded.write(folder / "rounded.safetensors");
    CHECK(identical(prediction_of(wan::load_weights(folder / "bf16.safetensors")),
                    prediction_of(wan::load_weights(folder / "rounded.safetensors"))));
}

TEST_CASE("tensors that are missing, misshapen or unknown are refused by name") {
    const checkpoint good;
    const temporary_folder folder;
    const auto path = folder / "model.safetensors";
    for (const std::string name :
         {"patch_embedding.weight", "blocks.2.attn2.norm_k.weight", "scale_shift_table",
          "condition_embedder.time_proj.bias", "blocks.0.ffn.net.0.proj.weight"}) {
        INFO(name);
        checkpoint missing = good;
        missing.tensors.erase(name);
        missing.write(path);
        CHECK_THAT(refusal(path), ContainsSubstring("'" + name + "' is missing"));
        checkpoint misshapen = good;
        misshapen.tensors[name].shape.insert(misshapen.tensors[name].shape.begin(), 1);
        misshapen.write(path);
        CHECK_THAT(refusal(path), ContainsSubstring("'" + name + "' has shape [1,"));
    }
    for (const std::string name :
         {"blocks.3.norm2.weight", "blocks.0.attn2.add_k_proj.weight",
          "condition_embedder.image_embedder.ff.weight", "proj_out.more"}) {
        INFO(name);
        checkpoint more = good;
        more.tensors[name] = {{1}, {0.0f}};
        more.write(path);
        CHECK_THAT(refusal(path), ContainsSubstring("'" + name + "' is unknown"));
    }
    checkpoint others = good;
    others.tensors["latent.decode.weight"] = {{2}, {0.0f, 1.0f}};
    others.write(path);
    CHECK(identical(prediction_of(wan::load_weights(path)), prediction_of(small_model())));

    safetensors_writer integers;
    const std::vector<std::int32_t> zeros(28);
    const auto file = safetensors_file::open(path);
    for (const auto& [name, entry] : file.entries()) {
        if (name != "patch_embedding.bias") integers.add(entry);
    }
    integers.add<std::int32_t>("patch_embedding.bias", {28}, zeros);
    integers.set_metadata("config", std::string(small_config));
    integers.write(folder / "integers.safetensors");
    CHECK_THAT(refusal(folder / "integers.safetensors"), ContainsSubstring("holds I32"));
}

TEST_CASE("a broken directory is refused") {
    const checkpoint model;
    {
        const temporary_folder folder;
        CHECK_THAT(refusal(folder.path()), ContainsSubstring("has neither"));
        CHECK_THAT(refusal(folder / "nothing"), ContainsSubstring("No such file"));
        checkpoint bare = model;
        bare.config.clear();
        bare.write(folder / "diffusion_pytorch_model.safetensors");
        CHECK_THAT(refusal(folder.path()), ContainsSubstring("no configuration"));
    }
    const temporary_folder folder;
    model.write_sharded(folder);
    for (const std::string map :
         {R"({})", R"([])", R"({"weight_map":{}})", R"({"weight_map":{"x":1}})",
          R"({"weight_map":{"x":"../other.safetensors"}})",
          R"({"weight_map":{"x":"absent.safetensors"}})", R"(not json)"}) {
        INFO(map);
        write_text(folder / checkpoint::index, map);
        CHECK_FALSE(refusal(folder.path()).empty());
    }
    write_text(folder / checkpoint::index,
               std::string(R"({"weight_map":{"x":")") + checkpoint::first + "\"}}");
    CHECK_THAT(refusal(folder.path()), ContainsSubstring("'x' is not in its shard"));
    model.write_sharded(folder);
    std::filesystem::copy_file(folder / checkpoint::first, folder / "copy.safetensors");
    write_text(folder / checkpoint::index,
               std::string(R"({"weight_map":{"blocks.1.norm2.weight":")") + checkpoint::first +
                   R"(","blocks.1.norm2.bias":"copy.safetensors"}})");
    CHECK_THAT(refusal(folder.path()), ContainsSubstring("in another shard, too"));
}

TEST_CASE("a configuration that cannot be computed is refused") {
    const auto parse = [](const std::string& text) { return wan::parse_config(text, "here"); };
    const auto with = [](const std::string& more) {
        return std::string(small_config.substr(0, small_config.size() - 1)) + "," + more + "}";
    };
    const wan::config config = parse(std::string(small_config));
    CHECK(config.width() == 28);
    CHECK(config.patch_size == extents3{1, 2, 2});
    CHECK(config.rotary_pairs() == extents3{3, 2, 2});
    CHECK(config ==
          parse(with(R"("qk_norm":"rms_norm_across_heads","image_dim":null,"later":[1])")));
    CHECK_THROWS_WITH(parse("{}"), ContainsSubstring("lacks num_attention_heads"));
    CHECK_THROWS_WITH(parse("[]"), ContainsSubstring("not a JSON object"));
    CHECK_THROWS_WITH(parse("{"), ContainsSubstring("here"));
    for (const std::string bad :
         {R"("num_layers":0)", R"("num_layers":-1)", R"("num_layers":1.5)", R"("ffn_dim":"40")",
          R"("text_dim":10000000)", R"("attention_head_dim":13)", R"("attention_head_dim":4)",
          R"("freq_dim":15)", R"("patch_size":[1,2])", R"("patch_size":2)",
          R"("patch_size":[1,2,0])", R"("eps":0)", R"("eps":"x")", R"("cross_attn_norm":false)",
          R"("qk_norm":"layer_norm")", R"("image_dim":1280)", R"("added_kv_proj_dim":1280)",
          R"("pos_embed_seq_len":257)"}) {
        INFO(bad);
        const std::string name = bad.substr(1, bad.find('"', 1) - 1);
        CHECK_THROWS_AS(parse(with(bad)), io_error);
        CHECK_THROWS_WITH(parse(with(bad)), ContainsSubstring(name));
    }
    // 2 x (3 layers x (6 w^2 + 2 w f + 2 w (n + s)) n + ends), by hand for n = 1, s = 1
    CHECK(config.operations(1, 1) == 2 * (3 * (6 * 784 + 2 * 28 * 40 + 4 * 28) + 28 * 4 * 7));
}

TEST_CASE("a pipeline stage loads its own layers only") {
    const temporary_folder folder;
    wan::write_random_model(folder / "small.safetensors", small_config, 1);
    const auto load = [&](wan::layer_range layers, counting_resource& counter) {
        return wan::load_weights(folder / "small.safetensors", {layers, {&counter}});
    };
    counting_resource all_bytes;
    counting_resource none_bytes;
    counting_resource one_bytes;
    const auto all = load({0, 3}, all_bytes);
    const auto none = load({1, 1}, none_bytes);
    const auto one = load({1, 2}, one_bytes);
    // What embeds patches comes with the first layer, the head with the last.
    counting_resource patch_bytes;
    counting_resource head_bytes;
    static_cast<void>(load({0, 0}, patch_bytes));
    static_cast<void>(load({3, 3}, head_bytes));
    const index_t base = none_bytes.bytes_in_use();
    const index_t ends = patch_bytes.peak_bytes() + head_bytes.peak_bytes() - 2 * base;
    const auto rounded = [](index_t floats) { return (floats + 15) / 16 * 64; };
    CHECK(patch_bytes.peak_bytes() - base == rounded(16 * 28) + rounded(28));
    CHECK(head_bytes.peak_bytes() - base == rounded(12 * 28) + rounded(12) + rounded(2 * 28));
    CHECK(all_bytes.bytes_in_use() - base == 3 * (one_bytes.bytes_in_use() - base) + ends);
    for (const wan::layer_range layers :
         {wan::layer_range{0, 3}, wan::layer_range{0, -1}, wan::layer_range{1, 3}}) {
        counting_resource bytes;
        static_cast<void>(load(layers, bytes));
        CHECK(bytes.peak_bytes() == wan::weight_bytes(all->config, layers));
    }
    CHECK_THROWS_WITH(wan::weight_bytes(all->config, {2, 4}), ContainsSubstring("[2, 4)"));

    const latent z = filled_latent({1, 4, 2, 6, 6}, 1);
    const call at(z, 400);
    wan::transformer whole(all, executor_of(1));
    wan::transformer stage(one, executor_of(1));
    set_texts(whole);
    set_texts(stage);
    std::vector<tensor<3>> hidden;
    for (auto* model : {&whole, &stage}) {
        auto context = model->prepare(at.info, {});
        auto& rows = hidden.emplace_back(model->signature(1, at.info.window.extent)[0].extents);
        const std::array views{rows.view()};
        whole.embed(z.view(), context, views, {});
        model->layers(1, 2, context, views, nullptr, {});
        if (model == &stage) {
            CHECK_THROWS_WITH(model->layers(2, 3, context, views, nullptr, {}),
                              ContainsSubstring("layer 2 was not loaded"));
            CHECK_THROWS_WITH(model->embed(z.view(), context, views, {}),
                              ContainsSubstring("comes with layer 0, [1, 2) were"));
            latent prediction({1, 3, 2, 6, 6});
            CHECK_THROWS_WITH(model->head(context, views, prediction.view(), {}),
                              ContainsSubstring("comes with the last layer, [1, 2) were"));
        }
    }
    CHECK(identical(hidden[0].elements<float>(), hidden[1].elements<float>()));
    CHECK_THROWS_AS(load({2, 4}, all_bytes), usage_error);
    CHECK_THROWS_AS(load({2, 1}, all_bytes), usage_error);
}
