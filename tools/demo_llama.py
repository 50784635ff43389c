"""The Llama that train_demo_model.py trains: the hub's parameter names, so that its state is an ordinary folder's, and dropout."""

import argparse
import math

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, a: argparse.Namespace):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.dropout = a.heads, a.kv_heads, a.head_dim, a.dropout
        self.q_proj = nn.Linear(a.hidden, a.heads * a.head_dim, bias=False)
        self.k_proj = nn.Linear(a.hidden, a.kv_heads * a.head_dim, bias=False)
        self.v_proj = nn.Linear(a.hidden, a.kv_heads * a.head_dim, bias=False)
        self.o_proj = nn.Linear(a.heads * a.head_dim, a.hidden, bias=False)

    def forward(self, x, cos, sin):
        def rotated(y):
            low, high = y.chunk(2, dim=-1)
            return y * cos + torch.cat((-high, low), dim=-1) * sin

        batch, tokens, _ = x.shape
        q = rotated(self.q_proj(x).view(batch, tokens, self.heads, self.head_dim).transpose(1, 2))
        k = rotated(self.k_proj(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2))
        v = self.v_proj(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)
        k, v = (y.repeat_interleave(self.heads // self.kv_heads, dim=1) for y in (k, v))
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        return self.o_proj(out.transpose(1, 2).reshape(batch, tokens, -1))


class Mlp(nn.Module):
    def __init__(self, a: argparse.Namespace):
        super().__init__()
        self.gate_proj = nn.Linear(a.hidden, a.intermediate, bias=False)
        self.up_proj = nn.Linear(a.hidden, a.intermediate, bias=False)
        self.down_proj = nn.Linear(a.intermediate, a.hidden, bias=False)
        self.dropout = nn.Dropout(a.dropout)

    def forward(self, x):
        return self.down_proj(self.dropout(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class Layer(nn.Module):
    def __init__(self, a: argparse.Namespace):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(a.hidden, eps=a.norm_eps)
        self.self_attn = Attention(a)
        self.post_attention_layernorm = nn.RMSNorm(a.hidden, eps=a.norm_eps)
        self.mlp = Mlp(a)
        self.dropout = nn.Dropout(a.dropout)

    def forward(self, x, cos, sin):
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Llama(nn.Module):
    def __init__(self, a: argparse.Namespace, vocab: int):
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(vocab, a.hidden),
                "layers": nn.ModuleList(Layer(a) for _ in range(a.layers)),
                "norm": nn.RMSNorm(a.hidden, eps=a.norm_eps),
            }
        )
        self.dropout = nn.Dropout(a.dropout)
        inverse = a.rope_theta ** (-torch.arange(0, a.head_dim, 2, dtype=torch.float64) / a.head_dim)
        angles = torch.outer(torch.arange(a.context, dtype=torch.float64), inverse).repeat(1, 2)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * a.layers) if into_residual else 1))

    def forward(self, ids):
        tokens = ids.shape[1]
        x = self.dropout(self.model["embed_tokens"](ids))
        cos, sin = self.cos[:tokens].to(x.dtype), self.sin[:tokens].to(x.dtype)
        for layer in self.model["layers"]:
            x = layer(x, cos, sin)
        return F.linear(self.dropout(self.model["norm"](x)), self.model["embed_tokens"].weight)
