# SPDX-License-Identifier: Apache-2.0
"""The Wan 2.1 transformer in plain PyTorch, under the parameter names of the diffusers library."""

import math

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 4,
    "attention_head_dim": 48,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 64,
    "freq_dim": 128,
    "ffn_dim": 768,
    "num_layers": 8,
    "cross_attn_norm": True,
    "eps": 1e-06,
    "rope_max_seq_len": 256,
}


def rotary_table(extent, head_dim, device, theta=1e4):
    """Cosines and sines [tokens, head_dim / 2] for tokens in (t, h, w) order."""
    spatial = 2 * (head_dim // 6)
    sizes = (head_dim - 2 * spatial, spatial, spatial)
    grids = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in extent), indexing="ij")
    angles = [
        grid.flatten()[:, None] * theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        for grid, size in zip(grids, sizes)
    ]
    angles = torch.cat(angles, dim=1)
    return angles.cos().float().to(device), angles.sin().float().to(device)


def rotate(x, cosine, sine):
    """Rotate the interleaved pairs (2i, 2i + 1) of x [batch, tokens, heads, head_dim]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = cosine[:, None], sine[:, None]
    pairs = torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1)
    return pairs.flatten(-2).to(x.dtype)


class RmsNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * self.weight.float()).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, width, heads, eps):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.norm_q = RmsNorm(width, eps)
        self.norm_k = RmsNorm(width, eps)

    def forward(self, x, source, rotary=None):
        q = self.norm_q(self.to_q(x)).unflatten(-1, (self.heads, -1))
        k = self.norm_k(self.to_k(source)).unflatten(-1, (self.heads, -1))
        v = self.to_v(source).unflatten(-1, (self.heads, -1))
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.to_out[0](y.transpose(1, 2).flatten(-2))


class GeluLinear(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.proj = nn.Linear(width, hidden)

    def forward(self, x):
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.net = nn.ModuleList([GeluLinear(width, hidden), nn.Identity(), nn.Linear(hidden, width)])

    def forward(self, x):
        return self.net[2](self.net[0](x))


class Block(nn.Module):
    def __init__(self, width, heads, hidden, eps):
        super().__init__()
        self.eps = eps
        self.attn1 = Attention(width, heads, eps)
        self.attn2 = Attention(width, heads, eps)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.ffn = FeedForward(width, hidden)
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 6, width))

    def normalize(self, x, scale, shift):
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale) + shift

    def forward(self, x, text, time, cosine, sine):
        """x [batch, tokens, width] in float32, time [batch, 6, width]."""
        m = (self.scale_shift_table.float() + time).unsqueeze(2).unbind(1)
        y = self.normalize(x, m[1], m[0])
        x = x + m[2] * self.attn1(y, y, (cosine, sine))
        x = x + self.attn2(self.norm2(x), text)
        return x + m[5] * self.ffn(self.normalize(x, m[4], m[3]))


class LinearPair(nn.Module):
    def __init__(self, source, width):
        super().__init__()
        self.linear_1 = nn.Linear(source, width)
        self.linear_2 = nn.Linear(width, width)


class ConditionEmbedder(nn.Module):
    def __init__(self, width, freq_dim, text_dim):
        super().__init__()
        self.freq_dim = freq_dim
        self.time_embedder = LinearPair(freq_dim, width)
        self.time_proj = nn.Linear(width, 6 * width)
        self.text_embedder = LinearPair(text_dim, width)

    def forward(self, timestep, text):
        half = self.freq_dim // 2
        ramp = torch.arange(half, dtype=torch.float32, device=timestep.device)
        angles = timestep.float()[:, None] * torch.exp(-math.log(1e4) * ramp / half)
        embedding = torch.cat((angles.cos(), angles.sin()), dim=1)
        pair = self.time_embedder
        temb = pair.linear_2(F.silu(pair.linear_1(embedding)))
        time = self.time_proj(F.silu(temb)).unflatten(1, (6, -1))
        pair = self.text_embedder
        text = pair.linear_2(F.gelu(pair.linear_1(text), approximate="tanh"))
        return temb.float(), time.float(), text


class WanTransformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = dict(config)
        self.patch = tuple(config["patch_size"])
        self.heads = config["num_attention_heads"]
        self.head_dim = config["attention_head_dim"]
        self.channels = config["out_channels"]
        self.eps = config["eps"]
        width = self.heads * self.head_dim
        self.patch_embedding = nn.Conv3d(config["in_channels"], width, self.patch, self.patch)
        self.condition_embedder = ConditionEmbedder(width, config["freq_dim"], config["text_dim"])
        self.blocks = nn.ModuleList(
            Block(width, self.heads, config["ffn_dim"], self.eps) for _ in range(config["num_layers"])
        )
        self.proj_out = nn.Linear(width, config["out_channels"] * math.prod(self.patch))
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 2, width))
        self.rotary = {}

    def initialize(self):
        """Small weights; gates, cross-attention outputs and the head start at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.data.flatten(1))
        nn.init.zeros_(self.patch_embedding.bias)
        for pair in (self.condition_embedder.time_embedder, self.condition_embedder.text_embedder):
            nn.init.normal_(pair.linear_1.weight, std=0.05)
            nn.init.normal_(pair.linear_2.weight, std=0.05)
        nn.init.zeros_(self.condition_embedder.time_proj.weight)
        for block in self.blocks:
            nn.init.zeros_(block.attn2.to_out[0].weight)
        nn.init.zeros_(self.proj_out.weight)

    def tokens(self, z):
        """[B, C, T, H, W] to [B, T, h, w, C * patch], the order of the convolution's weights."""
        batch, channels, t, h, w = z.shape
        pt, ph, pw = self.patch
        z = z.reshape(batch, channels, t // pt, pt, h // ph, ph, w // pw, pw)
        return z.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)

    def forward(self, z, timestep, text, record=None):
        """Predict noise - x0 for z [B, C, T, H, W], timestep [B] = 1000 sigma, text [B, S, text_dim]."""
        pt, ph, pw = self.patch
        patches = self.tokens(z)
        extent = tuple(patches.shape[1:4])
        key = (extent, z.device)
        if key not in self.rotary:
            self.rotary[key] = rotary_table(extent, self.head_dim, z.device)
        x = F.linear(patches.flatten(1, 3), self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        x = x.float()
        temb, time, text = self.condition_embedder(timestep, text)
        if record is not None:
            record.update(after_patch=x, temb=temb, timestep_proj=time.flatten(1), text_embedded=text)
        for index, block in enumerate(self.blocks):
            x = block(x, text, time, *self.rotary[key])
            if record is not None and index == 0:
                record["after_block0"] = x
        shift, scale = (self.scale_shift_table.float() + temb[:, None]).unsqueeze(2).unbind(1)
        x = self.proj_out(F.layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale) + shift)
        x = x.unflatten(1, extent).unflatten(-1, (pt, ph, pw, self.channels))
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(z.shape[0], self.channels, *z.shape[2:]).float()
