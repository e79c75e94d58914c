"""OneRec-V2 (arXiv 2508.20900): context processor, lazy decoder, one head per semantic-id level."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import OneRecConfig
from model.context import ContextKV, ContextProcessor
from model.decoder import LazyDecoder, SelfKV


class OneRecV2(nn.Module):
    """Generates the semantic ids of the next item, level by level, from a user's history."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        self.context = ContextProcessor(config)
        self.decoder = LazyDecoder(config)
        self.bos = nn.Parameter(torch.empty(d))
        # level l's table embeds the code generated at level l; the last level's code is never read
        self.token_embed = nn.ModuleList(nn.Embedding(config.codebook_size, d) for _ in range(config.levels - 1))
        self.head_norms = nn.ModuleList(nn.RMSNorm(d, eps=config.norm_eps) for _ in range(config.levels))
        self.heads = nn.ModuleList(nn.Linear(d, config.codebook_size, bias=False) for _ in range(config.levels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights of variance 1/fan_in, residual outputs smaller by sqrt(3L), embeddings of std 0.5."""
        residual = (3 * self.config.n_layers) ** -0.5
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.5)
            elif isinstance(module, nn.Linear):
                scale = residual if name.endswith((".wo", ".down")) else 1.0
                nn.init.normal_(module.weight, std=scale * module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for head in self.heads:
            nn.init.normal_(head.weight, std=0.02)  # type: ignore[arg-type]
        self.context.reset_pathways()
        nn.init.normal_(self.bos, std=0.5)

    def logits(self, h: Tensor, level: int) -> Tensor:
        """Decoder output [..., d] -> logits [..., codebook] of one level."""
        out: Tensor = self.heads[level](self.head_norms[level](h))
        return out

    def start(self, context: ContextKV) -> tuple[Tensor, list[SelfKV]]:
        """Decode BOS: (decoder output [B, 1, d], caches of one row per request)."""
        batch = context.mask.shape[0]
        h, caches = self.decoder(self.bos.expand(batch, 1, 1, -1), context)
        return h[:, :, 0], caches

    def advance(
        self, codes: Tensor, level: int, context: ContextKV, caches: list[SelfKV]
    ) -> tuple[Tensor, list[SelfKV]]:
        """Decode the codes [B, R] chosen at `level`: (decoder output [B, R, d], caches longer by one)."""
        h, longer = self.decoder(self.token_embed[level](codes)[:, :, None], context, caches)
        return h[:, :, 0], longer

    def forward(self, context: ContextKV, codes: Tensor) -> list[Tensor]:
        """Teacher forcing. codes [B, levels] of the target -> logits [B, codebook] of each level."""
        tokens = [self.bos.expand(codes.shape[0], -1)]
        tokens += [table(codes[:, level]) for level, table in enumerate(self.token_embed)]
        h, _ = self.decoder(torch.stack(tokens, dim=1)[:, None], context)
        return [self.logits(h[:, 0, level], level) for level in range(self.config.levels)]

    def loss(self, context: ContextKV, codes: Tensor) -> Tensor:
        """Mean over the batch and the levels of -log p(code), the next-item objective."""
        parts = [
            functional.cross_entropy(out.float(), codes[:, level]) for level, out in enumerate(self(context, codes))
        ]
        return torch.stack(parts).mean()
