"""Decoders with a dense, gated feed-forward block in every layer and RMS norms."""

from __future__ import annotations

from typing import ClassVar

from pydantic import AliasChoices, Field, model_validator

from moemodel.model.architecture.family import GroupedDecoder, QkNorm
from moemodel.model.architecture.fields import ActivationName, Count, CountOrZero, Flag, Layers, reject
from moemodel.model.architecture.spec import Mlp, Moe


class DenseDecoder(GroupedDecoder):
    """The same dense block in every layer, and no windows."""

    num_key_value_heads: Count | None = None  # as many as heads
    intermediate_size: Count

    def feed_forward(self, index: int) -> Mlp | Moe:  # noqa: ARG002
        """The same dense block in every layer."""
        return self.dense(self.intermediate_size, bias=self.mlp_biased)

    @property
    def mlp_biased(self) -> bool:
        """Biases of the dense block."""
        return False


class Mistral(DenseDecoder):
    """Mistral 7B and its like: a window in every layer, if there is one."""

    num_key_value_heads: Count | None
    sliding_window: CountOrZero | None = 4096

    def is_windowed(self, index: int) -> bool:  # noqa: ARG002
        """Every layer."""
        return True


class Phi3(Mistral):
    """Phi-3 and Phi-4."""

    num_key_value_heads: Count | None = None  # as many as heads
    sliding_window: CountOrZero | None = None


class Llama(DenseDecoder):
    """Llama 1 to 3, and the many that have its shape."""

    mlp_bias: Flag = False

    @property
    def mlp_biased(self) -> bool:
        """Its own key."""
        return self.mlp_bias


class Cwm(Llama):
    """Code World Model: a Llama with windows in three of four layers."""

    sliding_window: CountOrZero | None = 8192

    def is_windowed(self, index: int) -> bool:
        """All but the first, the fifth, and so on."""
        return index % 4 != 0


class SmolLm3(Llama):
    """SmolLM3: a Llama with positions in three of four layers, and windows in these if asked for."""

    windows_need_a_flag: ClassVar[bool] = True
    tie_word_embeddings: Flag = True
    no_rope_layers: tuple[CountOrZero, ...] | None = None  # 1: a layer with positions
    no_rope_layer_interval: Count = 4

    def is_windowed(self, index: int) -> bool:
        """Layers without positions."""
        if self.no_rope_layers is None:
            return (index + 1) % self.no_rope_layer_interval == 0
        return index < len(self.no_rope_layers) and self.no_rope_layers[index] == 0


class SeedOss(Llama):
    """Seed-OSS: biases of queries, keys and values; those of the output have a key of their own."""

    attention_bias: Flag = True
    attention_out_bias: Flag = False
    head_dim: Count | None = 128

    @property
    def bias_out(self) -> bool:
        """Its own key."""
        return self.attention_out_bias


class InternLm3(Llama):
    """InternLM3: biases of the output and of dense blocks have one key, those of queries, keys and values another."""

    num_key_value_heads: Count | None = 2
    head_dim: Count | None = 128
    attention_bias: Flag = Field(default=False, validation_alias=AliasChoices("qkv_bias", "attention_bias"))
    mlp_bias: Flag = Field(default=False, validation_alias=AliasChoices("bias", "mlp_bias"))

    @property
    def bias_out(self) -> bool:
        """Of the output."""
        return self.mlp_bias


class Ernie45(DenseDecoder):
    """ERNIE 4.5, dense: one key for all biases."""

    head_dim: Count | None = 128
    tie_word_embeddings: Flag = True
    attention_bias: Flag = Field(default=False, validation_alias="use_bias")

    @property
    def mlp_biased(self) -> bool:
        """The same key."""
        return self.attention_bias


class Glm(DenseDecoder):
    """GLM-4-9B: no bias of the output."""

    num_key_value_heads: Count | None = 2
    head_dim: Count | None = 128
    attention_bias: Flag = True

    @property
    def bias_out(self) -> bool:
        """Never."""
        return False


class Glm4(Glm):
    """GLM-4-0414: norms before and behind each block."""

    second_norm: ClassVar[bool] = True


class Glm4v(Glm4):
    """The language model of GLM-4.1V."""

    head_dim: Count | None = None


class Olmo2(DenseDecoder):
    """OLMo 2: norms over all heads of queries and keys together."""

    @property
    def qk_norm(self) -> QkNorm:
        """Over all heads together."""
        return "full"


class Olmo3(Olmo2):
    """OLMo 3: OLMo 2 with windows in three of four layers."""

    sliding_window: CountOrZero | None = 4096

    def is_windowed(self, index: int) -> bool:
        """All but every fourth."""
        return (index + 1) % 4 != 0


class HunyuanDense(DenseDecoder):
    """Hunyuan, dense: norms of each head of queries and keys."""

    use_qk_norm: Flag = True

    @property
    def qk_norm(self) -> QkNorm:
        """Of each head."""
        return "per_head" if self.use_qk_norm else "none"


class Qwen2(DenseDecoder):
    """Qwen 2: biases of queries, keys and values, none of the output; windows from a layer on, if asked for."""

    windows_need_a_flag: ClassVar[bool] = True
    num_key_value_heads: Count | None
    sliding_window: CountOrZero | None = 4096
    max_window_layers: CountOrZero = 28

    @property
    def bias_qkv(self) -> bool:
        """Always."""
        return True

    @property
    def bias_out(self) -> bool:
        """Never."""
        return False

    def is_windowed(self, index: int) -> bool:
        """Layers from `max_window_layers` on."""
        return index >= self.max_window_layers


class Qwen3(Qwen2):
    """Qwen 3: norms of each head of queries and keys."""

    head_dim: Count | None = 128

    @property
    def bias_qkv(self) -> bool:
        """Its key."""
        return self.attention_bias

    @property
    def bias_out(self) -> bool:
        """The same key."""
        return self.attention_bias

    @property
    def qk_norm(self) -> QkNorm:
        """Of each head."""
        return "per_head"


class Exaone4(DenseDecoder):
    """EXAONE 4: norms of each head of queries and keys, windows in all but every so many-th layer."""

    sliding_window: CountOrZero | None = 4096
    sliding_window_pattern: Count | str | None = 4

    @model_validator(mode="after")
    def _pattern_fits(self) -> Exaone4:
        pattern = self.sliding_window_pattern
        if isinstance(pattern, str) and (not pattern or set(pattern) - set("LG")):
            reject("sliding_window_pattern", repr(pattern), "a number, or L (local) and G (global) in order")
        return self

    @property
    def qk_norm(self) -> QkNorm:
        """Of each head."""
        return "per_head"

    def is_windowed(self, index: int) -> bool:
        """Local layers of the pattern, which repeats."""
        pattern = self.sliding_window_pattern
        if isinstance(pattern, str):
            return pattern[index % len(pattern)] == "L"
        return pattern is not None and (index + 1) % pattern != 0


class Gemma(DenseDecoder):
    """Gemma 1."""

    hidden_act: ActivationName = Field(default="gelu", validation_alias=AliasChoices("hidden_activation", "hidden_act"))
    head_dim: Count | None = 256
    tie_word_embeddings: Flag = True


class Gemma2(Gemma):
    """Gemma 2: norms before and behind each block, windows in every other layer."""

    second_norm: ClassVar[bool] = True
    sliding_window: CountOrZero | None = 4096

    def is_windowed(self, index: int) -> bool:
        """The first, the third, and so on."""
        return index % 2 == 0


class VaultGemma(Gemma2):
    """VaultGemma: Gemma 2 without norms behind blocks."""

    second_norm: ClassVar[bool] = False


class Gemma3(Gemma2):
    """Gemma 3, its language model: norms of each head of queries and keys, windows in five of six layers."""

    sliding_window_pattern: Count = Field(
        default=6, validation_alias=AliasChoices("sliding_window_pattern", "_sliding_window_pattern")
    )

    def window(self, index: int) -> int | None:
        """Where attention is not causal (EmbeddingGemma), half of it to each side."""
        window = super().window(index)
        return window if window is None or self.causal else window // 2

    @property
    def qk_norm(self) -> QkNorm:
        """Of each head."""
        return "per_head"

    def is_windowed(self, index: int) -> bool:
        """All but every so many-th."""
        return (index + 1) % self.sliding_window_pattern != 0


class Exaone(Llama):
    """EXAONE 3: a Llama under other keys."""

    num_hidden_layers: Layers = Field(validation_alias=AliasChoices("num_hidden_layers", "num_layers"))


class InternLm2(DenseDecoder):
    """InternLM 1 and 2: one key for biases of attention."""

    attention_bias: Flag = Field(default=False, validation_alias=AliasChoices("bias", "attention_bias"))


class Ministral3(Mistral):
    """Ministral 3: a Mistral without windows unless the file states one."""

    head_dim: Count | None = 128
    sliding_window: CountOrZero | None = None
